"""Checkpoints that are damaged on disk, and settings that change."""

import os

import drilling
import pytest

pytestmark = pytest.mark.heavy


def flip_a_byte(folder):
  """In the middle of each file of arrays: which hold no dead places alone."""
  for path in (folder / "trainable").rglob("d/*"):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def lose_a_shard(folder):
  files = (folder / "optimizer").rglob("d/*")
  max(files, key=os.path.getsize).unlink()


@pytest.mark.parametrize("damage", [flip_a_byte, lose_a_shard])
def test_the_one_before_is_taken(damage, workdir, go_on, whole, capsys):
  *_, before, newest = drilling.saved_steps(workdir)
  damage(workdir / "checkpoints" / str(newest))
  assert go_on(workdir) == 0
  said = capsys.readouterr().err
  assert f"checkpoints/{newest}: the checkpoint is damaged, set aside" in said
  assert f"going back to step {before}" in said
  assert (workdir / "damaged" / str(newest)).is_dir()
  drilling.assert_as_if_nothing_had_happened(workdir, whole)


def test_other_settings_are_refused_and_can_be_allowed(
  workdir, go_on, whole, capsys
):
  other = "--config.train.keep=1"
  assert go_on(workdir, other) == 2
  said = capsys.readouterr().err
  assert '-     "keep": 3' in said and '+     "keep": 1' in said
  assert go_on(workdir, other, "--allow=train.keep") == 0
  assert drilling.saved_steps(workdir) == [drilling.STEPS]
  drilling.assert_as_if_nothing_had_happened(workdir, whole)
