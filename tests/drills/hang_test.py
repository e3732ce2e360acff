"""A process that hangs, for a file system that does not answer."""

import os
import pathlib

import drilling
import pytest

from rcmed_jax.data import readers
from rcmed_jax.parallel import hosts

pytestmark = pytest.mark.heavy


def late_image(data) -> pathlib.Path:
  """An image that is first read when a few steps are done."""
  index = readers.read_index(data / "image2label_train.json")
  batches = drilling.first_epoch(index)
  return pathlib.Path(index[int(batches[7][0])].image)


def test_the_watchdog_ends_it_and_says_where_it_stood(
  data, whole, go_on, tmp_path
):
  image = late_image(data)
  aside = image.with_suffix(".aside")
  image.rename(aside)
  os.mkfifo(image)  # to open it waits for a writer, who never comes
  limit = "--config.train.watchdog_s=20"
  try:
    code, said = drilling.finish(
      drilling.start(drilling.flags(tmp_path, data, limit))
    )
  finally:
    aside.replace(image)
  assert code == hosts.STOPPED, said
  assert "No step for 20 s" in said
  stacks = (tmp_path / "hang-0.txt").read_text()
  for told in (said, stacks):
    assert "Thread MainThread" in told and "feed.py" in told  # it waits
    assert "images.py" in told  # for this
  assert 0 < drilling.saved_steps(tmp_path)[-1] < drilling.STEPS
  assert go_on(tmp_path, limit) == 0
  drilling.assert_as_if_nothing_had_happened(tmp_path, whole)
