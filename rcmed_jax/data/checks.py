"""Faulty data: one error class, and the file where faults are kept.

Real data has faults. They never stop a run and never pass in silence: each is
raised as a `DataError`, and whoever goes on without the item writes it to a
`Quarantine`.
"""

import json
import pathlib
import threading


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

  Safe to use from several threads. What the file held before is kept.

  Raises:
    DataError: the file holds something else.
  """

  def __init__(self, path: str | pathlib.Path):
    self.path = pathlib.Path(path)
    self._lock = threading.Lock()
    self._known: set[tuple[str, str]] = set()
    if self.path.exists():
      lines = self.path.read_text(encoding="utf-8").splitlines()
      self._known.update(
        self._key(number, line) for number, line in enumerate(lines, 1)
      )

  def __len__(self) -> int:
    return len(self._known)

  def add(self, error: DataError) -> None:
    """Writes the error down, unless it is there already."""
    with self._lock:
      if (error.path, error.field) in self._known:
        return
      self._known.add((error.path, error.field))
      line = {
        "path": error.path,
        "field": error.field,
        "reason": error.message,
        "remedy": error.remedy,
      }
      self.path.parent.mkdir(parents=True, exist_ok=True)
      with self.path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")

  def _key(self, number: int, line: str) -> tuple[str, str]:
    try:
      item = json.loads(line)
      return item["path"], item["field"]
    except (ValueError, KeyError, TypeError) as error:
      raise DataError(
        self.path,
        f"line {number}",
        f"expected JSON with path and field, received {line!r}",
        "Delete the line, or the file: it is written anew",
      ) from error
