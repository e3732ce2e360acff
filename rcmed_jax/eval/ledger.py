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
from pathlib import Path
import shutil
from typing import Any

from rcmed_jax.data import files
from rcmed_jax.data.checks import DataError
from rcmed_jax.eval import overlays, row_lines, rows
from rcmed_jax.eval.rows import Tally

_ROWS = {
  "masks": rows.MaskScore,
  "open_masks": rows.MaskScore,
  "named": rows.Named,
  "absent": rows.Absent,
  "present": rows.Present,
  "controls": rows.Control,
  "phrases": rows.Phrase,
  "quarantine": rows.Quarantined,
}
_PICTURES = ("image", "reference", "prediction")


class Ledger:
  """The scores of one evaluation, chunk by chunk.

  In memory are the numbers of the chunks alone.

  Args:
    folder: of the ledger alone; made where it is missing.
    told: all that scores depend on, as JSON values.
    part: which of the processes writes.

  Raises:
    ValueError: the folder holds scores of another evaluation.
    DataError: a file of it is damaged.
  """

  def __init__(self, folder: Path, told: Mapping[str, Any], part: int = 0):
    self.folder = folder
    self._told = told
    self._file = files.LineFile(folder / f"scores-{part}.jsonl")
    self._pictures = folder / f"pictures-{part}.json"
    self._kept: list[tuple[str, str]] = []  # the pictures in that file
    self._chunks = set(self._places())
    if not any(True for _ in self._file.placed()):
      self._file.add(json.dumps(told))

  def __contains__(self, chunk: int) -> bool:
    return chunk in self._chunks

  def add(self, chunk: int, tally: Tally, gallery: overlays.Gallery) -> None:
    """Puts down a chunk's scores, and all pictures that are kept so far."""
    samples = {sample.key: sample for sample in gallery.samples()}
    if list(samples) != self._kept:
      text = json.dumps([_sample(one) for one in samples.values()])
      files.write_whole(self._pictures, text)
      self._kept = list(samples)
    lists = {
      name: [row_lines.of(row) for row in getattr(tally, name)]
      for name in _ROWS
    }
    line = {"chunk": chunk, "images": tally.images, **lists}
    self._file.add(json.dumps(line))
    self._chunks.add(chunk)

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
    places = self._places()
    missing = [chunk for chunk in range(chunks) if chunk not in places]
    if missing:
      raise ValueError(
        f"{self.folder}: {len(missing)} of {chunks} chunks have no scores, the "
        f"first is number {missing[0]}; run the evaluation again, it goes on."
      )
    total = Tally()
    for chunk in range(chunks):
      file, place = places[chunk]
      line = json.loads(file.at(place))
      lists = {
        name: [row_lines.row(kind, one) for one in line[name]]
        for name, kind in _ROWS.items()
      }
      total.extend(Tally(line["images"], **lists))
    return total

  def close(self) -> None:
    """Removes the folder: all has been written elsewhere."""
    shutil.rmtree(self.folder)

  def _places(self) -> dict[int, tuple[files.LineFile, int]]:
    """Chunk -> where its line is, of all that were put down."""
    found = {}
    for path in sorted(self.folder.glob("scores-*.jsonl")):
      file = files.LineFile(path)
      for number, (place, text) in enumerate(file.placed()):
        try:
          line = json.loads(text)
        except json.JSONDecodeError as error:
          raise DataError(
            path,
            f"line {number + 1}",
            f"is no JSON: {error}",
            f"Delete the line, or {self.folder} to begin anew",
          ) from error
        if number:
          found[line["chunk"]] = (file, place)
        else:
          self._require_same(line)
    return found

  def _require_same(self, told: Mapping[str, Any]) -> None:
    changed = sorted(
      key
      for key in told.keys() | self._told.keys()
      if told.get(key) != self._told.get(key)
    )
    if changed:
      raise ValueError(
        f"{self.folder} holds scores of an evaluation with another "
        f"{', '.join(changed)}; delete it to begin anew, or give another --out."
      )


def _sample(sample: overlays.Sample) -> dict[str, Any]:
  values = dataclasses.asdict(sample)
  for name in _PICTURES:
    values[name] = base64.b64encode(values[name]).decode()
  return values


def _of_sample(values: dict[str, Any]) -> overlays.Sample:
  for name in _PICTURES:
    values[name] = base64.b64decode(values[name])
  return row_lines.row(overlays.Sample, values)
