"""A disk that is full, as the operating system says it."""

import os
import pathlib
import resource
import signal

import drilling
import pytest
import small_disk

pytestmark = pytest.mark.heavy


def start(workdir, data):
  """A run that has saved once and goes on."""
  child = drilling.start(drilling.flags(workdir, data))
  drilling.wait(child, lambda: bool(drilling.saved_steps(workdir)))
  return child


def test_a_file_that_may_not_grow(data, whole, go_on, tmp_path):
  child = start(tmp_path, data)
  # What its next checkpoints write is larger; EFBIG, as beyond a quota.
  resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))
  code, said = drilling.finish(child)
  assert code == 2, said
  assert "File too large" in said
  assert "the checkpoints before this one are whole" in said
  assert 0 < drilling.saved_steps(tmp_path)[-1] < drilling.STEPS
  assert go_on(tmp_path) == 0
  drilling.assert_as_if_nothing_had_happened(tmp_path, whole)


@pytest.fixture
def disk(tmp_path):
  """A file system of 64 MB."""
  with small_disk.mounted(tmp_path / "disk", "64m") as folder:
    yield folder


def fill(folder: pathlib.Path) -> pathlib.Path:
  """A file that takes all the room there is."""
  path = folder / "filler"
  with path.open("wb", buffering=0) as file:
    size = 1 << 20
    while size:
      try:
        file.write(b"\0" * size)
      except OSError:
        size //= 2
  return path


def test_not_a_byte_left(disk, data, whole, go_on, capsys):
  workdir = disk / "run"
  child = start(workdir, data)
  child.send_signal(signal.SIGSTOP)  # it frees room as fast as we fill it
  filler = fill(disk)
  child.send_signal(signal.SIGCONT)
  code, said = drilling.finish(child)
  assert code == 2, said
  assert "No space left on device" in said or "no space for" in said
  assert str(workdir) in said.splitlines()[-1]
  kept = drilling.saved_steps(workdir)
  assert kept and kept[-1] < drilling.STEPS

  # To try again helps nothing, and does no harm.
  fill(disk)
  held = sorted(workdir.rglob("*"))
  assert go_on(workdir) == 2
  said = capsys.readouterr().err
  assert "No space left on device" in said or "no space for" in said
  assert drilling.saved_steps(workdir) == kept
  assert {p for p in held if p.suffix == ".json"} <= set(workdir.rglob("*"))

  os.unlink(filler)
  assert go_on(workdir) == 0
  drilling.assert_as_if_nothing_had_happened(workdir, whole)
