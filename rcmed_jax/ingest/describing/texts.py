"""The file of descriptions, JSON {image: text}: whole, or not there."""

import json
import os
import pathlib
import tempfile


class Texts:
  """{image: text} in a file that is there only once it is whole.

  Texts may come out of order; the file has them in order.
  """

  def __init__(self, path: str | os.PathLike[str]):
    self._path = pathlib.Path(path)
    self._path.parent.mkdir(parents=True, exist_ok=True)
    self._next = 0
    self._waiting: dict[int, tuple[str, str | None]] = {}
    self._is_first = True

  def __enter__(self) -> "Texts":
    self._file = tempfile.NamedTemporaryFile(
      "w",
      encoding="utf-8",
      dir=self._path.parent,
      prefix=f".{self._path.name}.",
      delete=False,
    )
    self._file.write("{")
    return self

  def __exit__(self, kind: object, *_: object) -> None:
    try:
      if kind is None:
        self._file.write("\n}\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        # As any new file, not for its owner alone.
        os.chmod(self._file.name, 0o666 & ~_umask())
        os.replace(self._file.name, self._path)
    finally:
      self._file.close()
      pathlib.Path(self._file.name).unlink(missing_ok=True)

  def add(self, id: str, text: str) -> None:
    """Writes the next one."""
    comma = "" if self._is_first else ","
    self._is_first = False
    self._file.write(f"{comma}\n {json.dumps(id)}: {json.dumps(text)}")

  def put(self, number: int, id: str, text: str | None) -> None:
    """Takes the `number`-th, or that it has no text."""
    self._waiting[number] = id, text
    while self._next in self._waiting:
      id, text = self._waiting.pop(self._next)
      self._next += 1
      if text is not None:
        self.add(id, text)


def _umask() -> int:
  mask = os.umask(0)
  os.umask(mask)
  return mask
