"""One process in this one, two in programs that launch/local.py starts."""

import sys
import time

import jax
import pytest

from launch import local
from rcmed_jax.parallel import hosts

PROGRAM = """
import sys
import jax
from rcmed_jax.parallel import hosts, places
from rcmed_jax.parallel import mesh as meshes

with hosts.started(places.find()):
  process = jax.process_index()
  assert jax.device_count() == 4 and jax.local_device_count() == 2
"""
AGREE = """
  assert hosts.is_first() == (process == 0)
  assert hosts.first_decides(process == 0) is True
  assert hosts.first_decides(process == 1) is False
  done = []
  hosts.first_does(lambda: done.append(process))
  assert done == [0] * (process == 0)

  def fail():
    raise OSError("no room on the disk")

  try:
    hosts.first_does(fail)
  except (OSError, ValueError) as error:
    print("told:", error)

  print("said:", hosts.said_by_all(f"I am {process}"))
  print("said:", hosts.said_by_all(f"I was {process}"))
  print("part:", meshes.batch_part(meshes.make_mesh(meshes.MeshConfig())))
  whole = meshes.MeshConfig(data=1, tensor=4)
  print("all:", meshes.batch_part(meshes.make_mesh(whole)))
"""
FAIL = """
  if process == 1:
    print("process 1 fails", file=sys.stderr)
    raise ValueError("bad record")
  hosts.barrier("never")
"""
# It dies once its devices are all connected to the other's: what dies before
# that is missed after half a minute, when connecting is given up.
DIE = """
  import os, signal, time
  from jax.experimental import multihost_utils
  import numpy as np
  multihost_utils.process_allgather(np.zeros(1))
  if process == 1:
    time.sleep(2)
    os.kill(os.getpid(), signal.SIGKILL)
  multihost_utils.process_allgather(np.zeros(1))
"""


def run_two(folder, body, **options):
  program = folder / "program.py"
  program.write_text(PROGRAM + body)
  port = local.free_port()
  environ = dict(local.os.environ) | {"PYTHONPATH": "."}
  return local.run(
    [sys.executable, str(program)],
    [local.environment(i, 2, 2, port, environ) for i in range(2)],
    **options,
  )


def test_two_processes_agree(tmp_path, capsys):
  assert run_two(tmp_path, AGREE) == 0
  out = capsys.readouterr().out
  assert "[0] told: no room on the disk\n" in out
  assert "[1] told: process 0: no room on the disk\n" in out
  for process in range(2):
    assert f"[{process}] said: ['I am 0', 'I am 1']\n" in out
    assert f"[{process}] said: ['I was 0', 'I was 1']\n" in out
    assert f"[{process}] part: ({process}, 2)\n" in out
    assert f"[{process}] all: (0, 1)\n" in out


# Nothing but the vote itself keeps the processes in step.
VOTE = """
  import time
  vote = hosts.Vote()
  def casts(number, pause_s):
    for _ in range(number):
      if told := vote.cast():
        return told
      time.sleep(pause_s)
    return 0

  assert casts(4, 0.01) == 0
  if process == 1:
    vote.tell(15)
    vote.tell(2)
  hosts.barrier("told")
  time.sleep(1)  # a thread answers while this one waits for devices
  assert vote.cast() == vote.cast() == vote.told == 15

  for round in range(5):
    made, vote = 0, hosts.Vote()
    while not (told := vote.cast()):
      made += 1
      if made == 20 + round and process == round % 2:
        vote.tell(15)
      time.sleep(0.001 * (1 + 2 * process))
    assert told == 15
    print("made:", round, made)
"""


def test_one_that_is_told_stops_all_at_the_same_cast(tmp_path, capsys):
  assert run_two(tmp_path, VOTE) == 0
  lines = capsys.readouterr().out.splitlines()
  for number in range(5):
    found = [
      line.partition("made:")[2] for line in lines if f"made: {number} " in line
    ]
    assert len(found) == 2 and len(set(found)) == 1


def test_one_that_fails_waits_for_nobody(tmp_path, capsys):
  since = time.monotonic()
  # jax alone would wait five minutes for a farewell of the other.
  assert run_two(tmp_path, FAIL, grace_s=5) == 2
  assert time.monotonic() - since < 120
  err = capsys.readouterr().err
  assert "[1] ValueError: bad record" in err
  assert "[1] left with" in err


def test_one_whose_fellow_is_gone_says_so_and_leaves_by_its_own_code(
  tmp_path, capsys
):
  since = time.monotonic()
  assert run_two(tmp_path, DIE) == 137
  assert time.monotonic() - since < 30  # at once
  err = capsys.readouterr().err
  assert f"[0] left with {hosts.LOST}" in err
  assert "[0] process 0: another process of this run is gone" in err
  assert "Traceback" not in err


def test_other_errors_say_nothing_of_others():
  error = RuntimeError("Connection closed by peer")
  assert not hosts.are_gone(error)  # there is one process
  assert not hosts.are_gone(None)


def test_one_process_asks_nobody():
  vote = hosts.Vote()
  assert vote.cast() == 0
  vote.tell(15)
  vote.tell(2)
  assert (vote.cast(), vote.told) == (15, 15)
  assert hosts.said_by_all("so") == ["so"]
  assert hosts.is_first() and jax.process_count() == 1
  assert hosts.first_decides(True) and not hosts.first_decides(False)

  def fail():
    raise OSError("as it was")

  with pytest.raises(OSError, match="as it was"):
    hosts.first_does(fail)
