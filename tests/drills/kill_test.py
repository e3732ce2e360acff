"""A process that is killed, or told to stop, loses nothing that it saved.

`kill -9` while data is built: tests/ingest/building; while it is read:
tests/data/pipeline_shards_test.py.
"""

import os
import random

import drilling
import pytest

pytestmark = pytest.mark.heavy

KILLS = 2


def half_written(workdir):
  folder = workdir / "checkpoints"
  names = os.listdir(folder) if folder.exists() else []
  return [name for name in names if "tmp" in name]


def test_kill_9_while_a_checkpoint_is_written(data, whole, go_on, tmp_path):
  hits = 0
  for _ in range(KILLS):
    saved = max(drilling.saved_steps(tmp_path), default=0)
    child = drilling.start(drilling.flags(tmp_path, data))
    # Not the last one, which the run may end with before it is seen.
    newer = min(saved + random.randrange(4), drilling.STEPS - 4)
    drilling.wait(
      child,
      lambda newer=newer: (
        bool(half_written(tmp_path))
        and max(drilling.saved_steps(tmp_path), default=0) >= newer
      ),
    )
    child.kill()
    drilling.finish(child)
    hits += bool(half_written(tmp_path))
    assert max(drilling.saved_steps(tmp_path), default=0) >= saved
  assert hits  # else they all came between two
  assert go_on(tmp_path) == 0
  assert not half_written(tmp_path)
  drilling.assert_as_if_nothing_had_happened(tmp_path, whole)


def test_sigterm_at_some_step(whole, go_on, workdir):
  assert go_on(workdir, "--resume=required") == 0
  drilling.assert_as_if_nothing_had_happened(workdir, whole)
