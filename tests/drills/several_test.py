"""One process of two is killed, or stands still; the other does not wait."""

import time

import drilling
import psutil
import pytest

from rcmed_jax.parallel import faults, hosts

pytestmark = pytest.mark.heavy

STEPS = 40
EVERY = 12  # a checkpoint
LIMIT_S = 20  # without a step, once all is compiled


def start(workdir, data, limit_s):
  told = drilling.flags(
    workdir,
    data,
    "--config.mesh.data=-1",
    f"--config.train.checkpoint_every={EVERY}",
    f"--config.train.watchdog_s={limit_s}",
    "--allow=train.watchdog_s",
    steps=STEPS,
  )
  return drilling.start(told, processes=2)


def stepping(workdir, saved, child):
  """Both processes, once steps go on after the checkpoint of step `saved`."""
  drilling.wait(
    child,
    lambda: (
      saved in drilling.saved_steps(workdir)
      and len(drilling.rows(workdir)) > saved
    ),
  )
  assert len(drilling.rows(workdir)) < saved + EVERY
  return sorted(psutil.Process(child.pid).children(), key=lambda p: p.pid)


@pytest.fixture(scope="module")
def killed(data, tmp_path_factory):
  """The folder of a run whose second process was killed."""
  workdir = tmp_path_factory.mktemp("runs") / "killed"
  child = start(workdir, data, 0)
  _, second = stepping(workdir, EVERY, child)
  second.kill()
  since = time.monotonic()
  code, said = drilling.finish(child)
  assert code == 137, said  # that of the one that was killed
  assert f"[0] left with {hosts.LOST}" in said
  assert "[0] process 0: another process of this run is gone" in said
  assert "the last checkpoint" in said and "Traceback" not in said
  assert time.monotonic() - since < LIMIT_S  # at once
  return workdir


@pytest.fixture(scope="module")
def frozen(killed, data):
  """The same folder after it went on, and one process stood still."""
  since = time.monotonic()
  child = start(killed, data, LIMIT_S)
  drilling.wait(child, lambda: len(drilling.rows(killed)) == EVERY)
  drilling.wait(child, lambda: len(drilling.rows(killed)) > EVERY)
  print(f"back at a new step after {time.monotonic() - since:.1f} s")
  first, second = stepping(killed, 2 * EVERY, child)
  second.suspend()
  psutil.wait_procs([first], timeout=drilling.PATIENCE_S)
  second.kill()  # as a launcher would
  code, said = drilling.finish(child)
  assert code == faults.HUNG, said  # the first to fail: the watchdog
  assert f"[0] left with {faults.HUNG}" in said
  assert f"No step for {LIMIT_S} s" in said
  assert "Thread MainThread" in (killed / "hang-0.txt").read_text()
  return killed


def test_what_comes_of_it_is_the_run_without_a_break(frozen, data, tmp_path):
  for workdir in (frozen, tmp_path):
    code, said = drilling.finish(start(workdir, data, 0))
    assert code == 0, said
  assert len(drilling.rows(tmp_path)) == STEPS
  drilling.assert_as_if_nothing_had_happened(frozen, tmp_path)
