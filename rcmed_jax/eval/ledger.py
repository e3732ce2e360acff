"""Scores put down as they are made, so that a stopped evaluation goes on.

Records are scored in chunks. A chunk is one line of `scores-<part>.jsonl`,
written when all of it is scored and only then; a line that was cut off is no
line. Several processes take every n-th chunk each and write files of their
own, which the first reads together. Beside them lie the report's pictures.
"""

import base64
from collections.abc import Mapping
import dataclasses
import json
import os
from pathlib import Path
import shutil
from typing import Any

from rcmed_jax.eval import overlays, rows
from rcmed_jax.eval.instances import InstanceScore
from rcmed_jax.eval.metrics import Counts
from rcmed_jax.eval.rows import Tally

_ROWS = {
  "masks": rows.MaskScore,
  "open_masks": rows.MaskScore,
  "named": rows.Named,
  "absent": rows.Absent,
  "controls": rows.Control,
  "phrases": rows.Phrase,
  "quarantine": rows.Quarantined,
}
# Fields that are rows themselves.
_PARTS = {"counts": Counts, "instances": InstanceScore}
_PICTURES = ("image", "reference", "prediction")


class Ledger:
  """The scores of one evaluation, chunk by chunk.

  Args:
    folder: of the ledger alone; made where it is missing.
    told: all that scores depend on, as JSON values.
    part: which of the processes writes.

  Raises:
    ValueError: the folder holds scores of another evaluation.
  """

  def __init__(self, folder: Path, told: Mapping[str, Any], part: int = 0):
    self.folder = folder
    self._told = told
    self._path = folder / f"scores-{part}.jsonl"
    self._pictures = folder / f"pictures-{part}.json"
    folder.mkdir(parents=True, exist_ok=True)
    self._lines = {}
    for path in sorted(folder.glob("scores-*.jsonl")):
      self._lines |= self._read(path)
    if not self._path.exists():
      self._append(told)
    else:
      _cut_off(self._path)

  def __contains__(self, chunk: int) -> bool:
    return chunk in self._lines

  def add(self, chunk: int, tally: Tally, gallery: overlays.Gallery) -> None:
    """Puts down a chunk's scores, and all pictures that are kept so far."""
    text = json.dumps([_sample(one) for one in gallery.samples()])
    written = self._pictures.with_suffix(".new")
    written.write_text(text, encoding="utf-8")
    written.replace(self._pictures)
    self._append({"chunk": chunk, **dataclasses.asdict(tally)})

  def pictures(self, gallery: overlays.Gallery) -> None:
    """Adds all pictures that were put down to the gallery."""
    for path in sorted(self.folder.glob("pictures-*.json")):
      for one in json.loads(path.read_text(encoding="utf-8")):
        sample = _of_sample(one)
        gallery.add(sample)

  def tally(self, chunks: int) -> Tally:
    """All scores, in the order of the chunks.

    Raises:
      ValueError: a chunk is missing.
    """
    lines: dict[int, dict[str, Any]] = {}
    for path in sorted(self.folder.glob("scores-*.jsonl")):
      lines |= self._read(path)
    missing = sorted(set(range(chunks)) - set(lines))
    if missing:
      raise ValueError(
        f"{self.folder}: {len(missing)} of {chunks} chunks have no scores, the "
        f"first is number {missing[0]}; run the evaluation again, it goes on."
      )
    total = Tally()
    for chunk in range(chunks):
      lists = {
        name: [_row(kind, values) for values in lines[chunk][name]]
        for name, kind in _ROWS.items()
      }
      total.extend(Tally(lines[chunk]["images"], **lists))
    return total

  def close(self) -> None:
    """Removes the folder: all has been written elsewhere."""
    shutil.rmtree(self.folder)

  def _read(self, path: Path) -> dict[int, dict[str, Any]]:
    """Chunk -> its line, of every whole line."""
    whole, _, _ = path.read_text(encoding="utf-8").rpartition("\n")
    head, *lines = [json.loads(line) for line in whole.split("\n") if line] or [
      self._told
    ]
    if head != self._told:
      changed = sorted(
        key
        for key in head.keys() | self._told.keys()
        if head.get(key) != self._told.get(key)
      )
      raise ValueError(
        f"{self.folder} holds scores of an evaluation with another "
        f"{', '.join(changed)}; delete it to begin anew, or give another --out."
      )
    return {line["chunk"]: line for line in lines}

  def _append(self, line: Mapping[str, Any]) -> None:
    with self._path.open("a", encoding="utf-8") as file:
      file.write(json.dumps(line) + "\n")
      file.flush()
      os.fsync(file.fileno())


def _cut_off(path: Path) -> None:
  """Removes what follows the last whole line."""
  data = path.read_bytes()
  whole = data.rfind(b"\n") + 1
  if whole < len(data):
    with path.open("r+b") as file:
      file.truncate(whole)


def _row(kind: type, values: Mapping[str, Any]) -> Any:
  """The dataclass that `asdict` and JSON took apart."""
  fields: dict[str, Any] = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in values.items()
  }
  for name, part in _PARTS.items():
    if fields.get(name) is not None:
      fields[name] = _row(part, fields[name])
  return kind(**fields)


def _sample(sample: overlays.Sample) -> dict[str, Any]:
  values = dataclasses.asdict(sample)
  for name in _PICTURES:
    values[name] = base64.b64encode(values[name]).decode()
  return values


def _of_sample(values: dict[str, Any]) -> overlays.Sample:
  for name in _PICTURES:
    values[name] = base64.b64decode(values[name])
  return _row(overlays.Sample, values)
