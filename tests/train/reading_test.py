"""Checkpoints that two processes read, and one of them cannot."""

import json
import sys

from etils import epath
import jax
import numpy as np
import pytest

from launch import local
from rcmed_jax.parallel import faults, hosts
from rcmed_jax.train import fingerprints, reading

PROGRAM = """
import pathlib
import sys
import jax
import jax.numpy as jnp
import numpy as np
from rcmed_jax.parallel import hosts, places
from rcmed_jax.train import checkpoints, reading
from rcmed_jax.train import step as steps

workdir, mode = pathlib.Path(sys.argv[1]), sys.argv[2]

def placed(values, *names):
  spec = jax.sharding.PartitionSpec(*names)
  sharding = jax.sharding.NamedSharding(mesh, spec)
  return jax.jit(lambda: values, out_shardings=sharding)()

def state(n):
  return steps.TrainState(
    placed(jnp.int32(n)),
    {"a": placed(jnp.arange(65536.0) + n, "fsdp")},
    {"f": placed(jnp.ones(8), "fsdp")},
    {"m": placed(jnp.zeros(8), "fsdp")},
  )

with hosts.started(places.find()):
  process = jax.process_index()
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ("fsdp",))
  with checkpoints.Checkpoints(workdir, keep=2) as saved:
    for n in (1, 2):
      saved.save(state(n), {"next": n}, {})
  hosts.barrier("saved")
  if process == 0 and mode == "lost":
    # The part of an array that process 1 alone reads.
    for path in (workdir / "checkpoints/2/trainable").rglob("d/*"):
      if "process_1" in str(path):
        path.unlink()
  hosts.barrier("lost")
  if process == 1 and mode in ("flaky", "down"):
    reading.PAUSES_S = (0.1, 0.1)
    whole, times = reading.ocp.StandardCheckpointHandler.restore, []

    def restore(*args, **more):
      times.append(1)
      if mode == "down" or len(times) == 1:
        raise ValueError("UNAVAILABLE: Error reading: the bucket is busy")
      return whole(*args, **more)

    reading.ocp.StandardCheckpointHandler.restore = restore
  wanted = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
    state(0),
  )
  with checkpoints.Checkpoints(workdir, keep=2) as saved:
    found = saved.restore(wanted)
    print("step", int(found.state.step), found.data_state, len(found.damaged))
    again = saved.stored()["a"].placed(wanted.trainable["a"].sharding)
    assert jnp.array_equal(again, found.state.trainable["a"])
  whole = sorted(int(p.name) for p in (workdir / "checkpoints").iterdir())
  print("left", whole, (workdir / "damaged").exists())
"""


def run_two(folder, mode):
  """Exit code of both; each ends within the time that a deadlock would take."""
  program = folder / "program.py"
  program.write_text(PROGRAM)
  environ = dict(local.os.environ) | {"PYTHONPATH": "."}
  port = local.free_port()
  return local.run(
    ["timeout", "120", sys.executable, program, folder / "run", mode],
    [local.environment(i, 2, 1, port, environ) for i in range(2)],
    grace_s=10,
  )


def test_what_one_process_cannot_read_no_process_takes(tmp_path, capsys):
  assert run_two(tmp_path, "lost") == 0
  out = capsys.readouterr().out
  for process in range(2):
    assert f"[{process}] step 1 {{'next': 1}} 1\n" in out
    assert f"[{process}] left [1] True\n" in out


def test_a_moment_s_trouble_of_one_process_damages_nothing(tmp_path, capsys):
  assert run_two(tmp_path, "flaky") == 0
  out = capsys.readouterr().out
  for process in range(2):
    assert f"[{process}] step 2 {{'next': 2}} 0\n" in out
    assert f"[{process}] left [1, 2] False\n" in out


def test_a_bucket_that_is_away_is_told_as_such(tmp_path, capsys):
  assert run_two(tmp_path, "down") == faults.UNREACHED
  err = capsys.readouterr().err
  assert "could not be read now" in err
  assert "delete that folder" not in err
  assert not (tmp_path / "run/damaged").exists()


def test_one_process_hears_its_own_error():
  error = KeyError("lost")
  with pytest.raises(KeyError) as caught, reading.together():
    raise error
  assert caught.value is error
  with (
    pytest.raises(ConnectionError, match="UNAVAILABLE"),
    reading.together(),
  ):
    raise ValueError("UNAVAILABLE: away")


def test_the_worst_of_all_is_raised_in_all(monkeypatch):
  said = [[0, ""], [1, "damaged"], [3, "another model"]]
  monkeypatch.setattr(
    hosts, "said_by_all", lambda _: [json.dumps(one) for one in said]
  )
  with (
    pytest.raises(reading.OtherModelError, match="process 2: another model"),
    reading.together(),
  ):
    pass


def test_only_what_may_pass_is_tried_again(monkeypatch):
  monkeypatch.setattr(reading, "PAUSES_S", (0.0, 0.0))
  tried = []

  def read():
    tried.append(1)
    raise error

  for error, times in ((TimeoutError("slow"), 3), (KeyError("lost"), 1)):
    tried.clear()
    with pytest.raises(type(error)):
      reading._again(read)
    assert len(tried) == times


def test_a_stored_array_is_read_alone_and_compared(tmp_path):
  arrays = {"a": {"b": jax.numpy.arange(8.0)}, "c": jax.numpy.ones(3)}
  folder = epath.Path(tmp_path / "item")
  with reading.ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(folder, arrays)
  prints = fingerprints.of(arrays)
  with pytest.raises(ValueError, match=r"a\.b is not what was saved"):
    reading.stored(folder, {"c": prints["c"]})
  found = reading.stored(folder, prints | {"c": prints["c"] ^ 1})
  assert set(found) == {"a.b", "c"}
  np.testing.assert_array_equal(np.asarray(found["a.b"]), np.arange(8.0))
  with pytest.raises(ValueError, match=r"item cannot be read: c does not hold"):
    np.asarray(found["c"])
