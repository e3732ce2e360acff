"""Replies of models, kept by what was asked: one JSON line each.

A line is written whole or not at all; one that a crash cut short is passed over
and asked again. Nothing is kept of a question but its hash.
"""

import json
import os
import pathlib

FILE = "replies.jsonl"


class Replies:
  """What is in a folder, and what is added to it.

  Only places of lines are in memory, about 150 bytes a reply. Several
  processes may share the folder; each sees what was there when it began.
  """

  def __init__(self, folder: str | os.PathLike[str]):
    self.path = pathlib.Path(folder) / FILE
    self.path.parent.mkdir(parents=True, exist_ok=True)
    self.broken = 0  # lines that hold no reply
    self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
    self._places: dict[bytes, tuple[int, int]] = {}  # key -> offset, length
    self._begin()

  def __len__(self) -> int:
    return len(self._places)

  def __contains__(self, key: str) -> bool:
    return bytes.fromhex(key) in self._places

  def get(self, key: str) -> str | None:
    """The last reply that was kept for this key."""
    place = self._places.get(bytes.fromhex(key))
    if place is None:
      return None
    offset, length = place
    return json.loads(os.pread(self._file, length, offset))["text"]

  def add(self, key: str, text: str, model: str) -> None:
    """Keeps a reply."""
    entry = json.dumps({"key": key, "model": model, "text": text})
    line = entry.encode("ascii") + b"\n"
    os.write(self._file, line)  # one call: no other process comes between
    end = os.lseek(self._file, 0, os.SEEK_CUR)
    self._places[bytes.fromhex(key)] = end - len(line), len(line)

  def close(self) -> None:
    """No more is read or added."""
    os.close(self._file)

  def _begin(self) -> None:
    """Finds the lines, and ends the last one if it was cut short."""
    offset = 0
    line = b"\n"
    with self.path.open("rb") as file:
      for line in file:
        try:
          entry = json.loads(line)
          key, text = bytes.fromhex(entry["key"]), entry["text"]
        except (ValueError, KeyError, TypeError):
          key, text = b"", None
        if key and isinstance(text, str) and line.endswith(b"\n"):
          self._places[key] = offset, len(line)
        else:
          self.broken += bool(line.strip())
        offset += len(line)
    if not line.endswith(b"\n"):
      os.write(self._file, b"\n")
