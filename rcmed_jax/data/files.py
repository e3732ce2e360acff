"""Files of a run, on a disk or in a bucket (gs://).

A run's folder may be `gs://bucket/run`: checkpoints, settings, tokenizer,
metrics and quarantine then lie there. Images and indices are read from disks.
"""

from collections.abc import Iterable, Iterator
import contextlib
import os
import time

from etils import epath

# Buckets refuse to write one object more than once a second.
UPLOAD_EVERY_S = 10.0

# Read at once when looking for the end of the last line.
_BLOCK_BYTES = 1 << 16


def is_remote(path: str | os.PathLike[str]) -> bool:
  """Whether it lies in a bucket."""
  return "://" in os.fspath(path)


def absolute(path: str | os.PathLike[str]) -> epath.Path:
  """The path from the root, on a disk or in a bucket."""
  return epath.Path(
    os.fspath(path) if is_remote(path) else os.path.abspath(path)
  )


def write_whole(
  path: str | os.PathLike[str], data: str | bytes | Iterable[str]
) -> None:
  """Makes this all of a file, which is never seen half written.

  Killed, or where the disk is full, what was there before stays.

  Args:
    path: on a disk or in a bucket.
    data: text, bytes, or lines with their ends, written one by one.

  Raises:
    OSError: names the file.
  """
  path = epath.Path(path)
  pieces = [data] if isinstance(data, str | bytes) else data
  encoded = (p.encode() if isinstance(p, str) else p for p in pieces)
  if is_remote(path):  # a bucket takes all or nothing
    path.write_bytes(b"".join(encoded))
    return
  # Its own for each process: several may write the same file.
  part = path.with_name(f"{path.name}.{os.getpid()}.part")
  try:
    with _named(path):
      with part.open("wb") as file:
        file.writelines(encoded)
      os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)


class LineFile:
  """A text file that grows by lines. Not for several threads at once.

  On a disk every line is there as soon as it is added; one that a full disk or
  a kill cut short is no line, and gives way to the next. In a bucket nothing
  can grow: the whole file is written again, at most every ten seconds and when
  asked to by `flush`.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self.path = epath.Path(path)
    self._remote = is_remote(path)
    self._whole = False  # whether no line is known to be cut short
    # What a bucket's file holds, and whether all of it is there.
    self._lines = self.lines() if self._remote else []
    self._written_at = -UPLOAD_EVERY_S
    self._behind = False

  def lines(self) -> list[str]:
    """The lines on disk or in the bucket, each with its end."""
    return [line for _, line in self.placed()]

  def placed(self) -> Iterator[tuple[int, str]]:
    """The same one by one, each after its place, for files of gigabytes."""
    if not self.path.exists():
      return
    place = 0
    with self.path.open("rb") as file:
      for line in file:
        if line.endswith(b"\n"):
          yield place, line.decode()
        place += len(line)

  def at(self, place: int) -> str:
    """The line at a place that `placed` told."""
    with self.path.open("rb") as file:
      file.seek(place)
      return file.readline().decode()

  def replace(self, lines: Iterable[str]) -> None:
    """Makes these, each with its end, all of the file."""
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self._lines = list(lines)
    self._upload()
    if not self._remote:
      self._lines = []

  def add(self, line: str) -> None:
    """Adds a line, given without its end.

    Raises:
      OSError: names the file; the line may be there in part.
    """
    if not self._remote:
      with _named(self.path):
        self._append(line + "\n")
      return
    self._lines.append(line + "\n")
    self._behind = True
    if time.monotonic() - self._written_at >= UPLOAD_EVERY_S:
      self._upload()

  def flush(self) -> None:
    """Returns when every line is where it belongs."""
    if self._behind:
      self._upload()

  def _append(self, text: str) -> None:
    self.path.parent.mkdir(parents=True, exist_ok=True)
    if not self._whole and self.path.exists():
      _cut(self.path)
    self._whole = False
    with self.path.open("a", encoding="utf-8") as file:
      file.write(text)
    self._whole = True

  def _upload(self) -> None:
    write_whole(self.path, self._lines)
    self._written_at = time.monotonic()
    self._behind = False


def _cut(path: epath.Path) -> None:
  """Removes what follows the last whole line."""
  with open(path, "r+b") as file:
    size = start = file.seek(0, os.SEEK_END)
    end = 0  # where nothing in the file ends a line
    while start and not end:
      stop, start = start, max(start - _BLOCK_BYTES, 0)
      file.seek(start)
      found = file.read(stop - start).rfind(b"\n")
      end = start + found + 1 if found >= 0 else 0
    if end < size:
      file.truncate(end)


@contextlib.contextmanager
def _named(path: epath.Path) -> Iterator[None]:
  """An error of writing within it says to which file, as none does itself."""
  try:
    yield
  except OSError as error:
    if error.filename is not None or error.errno is None:
      raise
    raise OSError(error.errno, error.strerror, os.fspath(path)) from error
