"""Faulty data: one error class, and the file where faults are kept.

Real data has faults. They never stop a run and never pass in silence: each is
raised as a `DataError`, and whoever goes on without the item writes it to a
`Quarantine`.
"""

import json
import os
import threading

from rcmed_jax.data import files


class DataError(ValueError):
  """Something on disk that cannot be used.

  Args:
    path: the file at fault.
    field: what about it: "image", "mask", "modality", "index", ...
    message: expected and received.
    remedy: what to do.
  """

  def __init__(self, path: object, field: str, message: str, remedy: str):
    # All four, so that the error survives pickling between processes.
    super().__init__(str(path), field, message, remedy)
    self.path = str(path)
    self.field = field
    self.message = message
    self.remedy = remedy

  def __str__(self) -> str:
    return f"{self.path}: {self.field}: {self.message}. {self.remedy}."


class Quarantine:
  """Bad items, each once, as JSON lines {path, field, reason, remedy}.

  Safe to use from several threads. What the file held before is kept. In a
  bucket, lines wait for a few seconds, or for `flush`.

  Raises:
    DataError: the file holds something else.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self._file = files.LineFile(path)
    self.path = self._file.path
    self._lock = threading.Lock()
    lines = enumerate(self._file.lines(), 1)
    self._known = {
      _key(self._file, number, line.rstrip("\n")) for number, line in lines
    }

  def __len__(self) -> int:
    return len(self._known)

  def add(self, error: DataError) -> None:
    """Writes the error down, unless it is there already."""
    line = {
      "path": error.path,
      "field": error.field,
      "reason": error.message,
      "remedy": error.remedy,
    }
    self._add((error.path, error.field), json.dumps(line))

  def take(self, path: str | os.PathLike[str]) -> None:
    """Adds all items of another such file.

    Raises:
      DataError: it is none.
    """
    other = files.LineFile(path)
    lines = [line.rstrip("\n") for line in other.lines()]
    for number, line in enumerate(lines, 1):
      self._add(_key(other, number, line), line)

  def flush(self) -> None:
    """Returns when every item is in the file."""
    with self._lock:
      self._file.flush()

  def _add(self, key: tuple[str, str], line: str) -> None:
    with self._lock:
      if key not in self._known:
        self._known.add(key)
        self._file.add(line)


def _key(file: files.LineFile, number: int, line: str) -> tuple[str, str]:
  try:
    item = json.loads(line)
    return item["path"], item["field"]
  except (ValueError, KeyError, TypeError) as error:
    raise DataError(
      file.path,
      f"line {number}",
      f"expected JSON with path and field, received {line!r}",
      "Delete the line, or the file: it is written anew",
    ) from error
