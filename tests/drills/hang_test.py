"""A process that hangs, for a file system that does not answer."""

import os
import pathlib
import textwrap

import drilling
import pytest

from rcmed_jax.data import readers
from rcmed_jax.parallel import faults

pytestmark = pytest.mark.heavy


def late_image(data) -> pathlib.Path:
  """An image that is first read when a few steps are done."""
  index = readers.read_index(data / "image2label_train.json")
  batches = drilling.first_epoch(index)
  return pathlib.Path(index[int(batches[7][0])].image)


PROGRAM = """
  import os, sys

  from rcmed_jax import cli
  from rcmed_jax.data import images

  image, fifo, *told = sys.argv[1:]
  read = images.read

  def hanging(path):
    if str(path) == image:
      open(fifo).read()  # waits for a writer, who never comes
    return read(path)

  images.read = hanging
  sys.exit(cli.main(told))
"""


def test_the_watchdog_ends_it_and_says_where_it_stood(
  data, whole, go_on, tmp_path
):
  fifo, workdir = tmp_path / "fifo", tmp_path / "run"
  os.mkfifo(fifo)
  limit = "--config.train.watchdog_s=20"
  told = [
    str(late_image(data)),
    str(fifo),
    *drilling.flags(workdir, data, limit),
  ]
  child = drilling.start(told, "-c", textwrap.dedent(PROGRAM))
  code, said = drilling.finish(child)
  assert code == faults.HUNG, said
  assert "No step for 20 s" in said
  stacks = (workdir / "hang-0.txt").read_text()
  for told in (said, stacks):
    assert "Thread MainThread" in told and "feed.py" in told  # it waits
    assert "in hanging" in told  # for this
  assert 0 < drilling.saved_steps(workdir)[-1] < drilling.STEPS
  assert go_on(workdir, limit) == 0
  drilling.assert_as_if_nothing_had_happened(workdir, whole)
