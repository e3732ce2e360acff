"""A process that hangs, watched."""

import subprocess
import sys
import textwrap
import time

from etils import epath

from rcmed_jax.parallel import faults
from rcmed_jax.train import watchdog

HANGS = """
  import sys, threading
  from etils import epath
  from rcmed_jax.train import watchdog

  def wait_for_ever():
    threading.Event().wait()

  with watchdog.Watchdog(0.5, epath.Path(sys.argv[1])) as dog:
    dog.fed()
    wait_for_ever()
"""


def test_a_hang_is_told_and_ends_with_a_code_of_its_own(tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(HANGS), tmp_path],
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert (
    done.returncode == faults.HUNG != faults.STOPPED
  )  # which is not counted
  assert "No step for 0.5 s (train.watchdog_s)" in done.stderr
  kept = (tmp_path / "hang-0.txt").read_text()
  for told in (done.stderr, kept):
    assert "Thread MainThread" in told
    assert "wait_for_ever" in told


def test_one_that_is_fed_does_not_bite(tmp_path, monkeypatch):
  bitten = []
  monkeypatch.setattr(
    watchdog.Watchdog, "_bite", lambda self: bitten.append(self)
  )
  with watchdog.Watchdog(0.2, epath.Path(tmp_path)) as dog:
    time.sleep(0.4)  # not fed yet: it compiles
    for _ in range(10):
      dog.fed()
      time.sleep(0.05)
    assert not bitten
    time.sleep(0.4)
    assert bitten
  bitten.clear()
  with watchdog.Watchdog(0.2, epath.Path(tmp_path)) as dog:
    dog.fed()  # it reads a checkpoint
    dog.rest()  # it compiles
    time.sleep(0.4)
    assert not bitten
  with watchdog.Watchdog(0, epath.Path(tmp_path)) as dog:
    dog.fed()  # it is not on
