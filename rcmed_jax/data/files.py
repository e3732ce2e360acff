"""Files of a run, on a disk or in a bucket (gs://).

A run's folder may be `gs://bucket/run`: checkpoints, settings, tokenizer,
metrics and quarantine then lie there. Images and indices are read from disks.
"""

from collections.abc import Iterable
import os
import time

from etils import epath

# Buckets refuse to write one object more than once a second.
UPLOAD_EVERY_S = 10.0


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Whether it lies in a bucket."""
  return "://" in os.fspath(path)


def absolute(path: str | os.PathLike[str]) -> epath.Path:
  """The path from the root, on a disk or in a bucket."""
  return epath.Path(
    os.fspath(path) if is_remote(path) else os.path.abspath(path)
  )


class LineFile:
  """A text file that grows by lines. Not for several threads at once.

  On a disk every line is there as soon as it is added. In a bucket nothing can
  grow: the whole file is written again, at most every ten seconds and when
  asked to by `flush`.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self.path = epath.Path(path)
    self._remote = is_remote(path)
    # What a bucket's file holds, and whether all of it is there.
    self._lines = self.lines() if self._remote else []
    self._written_at = -UPLOAD_EVERY_S
    self._behind = False

  def lines(self) -> list[str]:
    """The lines on disk or in the bucket, each with its end."""
    if not self.path.exists():
      return []
    return self.path.read_text(encoding="utf-8").splitlines(keepends=True)

  def replace(self, lines: Iterable[str]) -> None:
    """Makes these, each with its end, all of the file."""
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._lines = list(lines)
    self._upload()
    if not self._remote:
      self._lines = []

  def add(self, line: str) -> None:
    """Adds a line, given without its end."""
    if not self._remote:
      self.path.parent.mkdir(parents=True, exist_ok=True)
      with self.path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
      return
    self._lines.append(line + "\n")
    self._behind = True
    if time.monotonic() - self._written_at >= UPLOAD_EVERY_S:
      self._upload()

  def flush(self) -> None:
    """Returns when every line is where it belongs."""
    if self._behind:
      self._upload()

  def _upload(self) -> None:
    self.path.write_text("".join(self._lines), encoding="utf-8")
    self._written_at = time.monotonic()
    self._behind = False
