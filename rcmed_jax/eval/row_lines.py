"""Rows as lines of JSON, in a ledger and in the files of an evaluation.

A line holds the fields of one row. `name` is called "class" there, and a mask's
counts lie among the others, with the Dice and the IoU that they make.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import json
import math
import os
import pathlib
from typing import Any, TypeVar

from rcmed_jax.data.checks import DataError
from rcmed_jax.eval.instances import InstanceScore
from rcmed_jax.eval.metrics import Counts
from rcmed_jax.eval.rows import MaskScore

# A line's Dice and that of its counts differ by rounding at most.
ROUNDING = 1e-6

_REMEDY = "Evaluate again into an empty folder"
_COUNTS = tuple(field.name for field in dataclasses.fields(Counts))
# Of a field -> types in JSON, in words.
_TYPES: Mapping[Any, tuple[tuple[type, ...], str]] = {
  str: ((str,), "a text"),
  bool: ((bool,), "true or false"),
  int: ((int,), "an integer"),
  float: ((int, float), "a number"),
}

Row = TypeVar("Row")


def of(row: Any) -> dict[str, Any]:
  """The line of a row, as JSON values."""
  line = dataclasses.asdict(row)
  if "name" in line:
    line["class"] = line.pop("name")
  if isinstance(row, MaskScore):
    made = {"dice": row.counts.dice, "iou": row.counts.iou}
    line |= line.pop("counts") | made
  return line


def row(kind: type[Row], line: Mapping[str, Any]) -> Row:
  """The row of a line.

  Raises:
    KeyError, TypeError: the line is of no such row.
  """
  values: dict[str, Any] = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in line.items()
  }
  if "class" in values:
    values["name"] = values.pop("class")
  if kind is MaskScore:
    values["counts"] = Counts(*(values.pop(name) for name in _COUNTS))
    for made in ("dice", "iou"):
      del values[made]
    if values.get("instances") is not None:
      values["instances"] = row(InstanceScore, values["instances"])
  return kind(**values)


def read(path: str | os.PathLike[str], kind: type[Row]) -> Iterator[Row]:
  """The rows of a file of an evaluation, one a line.

  A last line that broke off is a fault here: the file was written whole.

  Raises:
    DataError: the file is missing or no text, or a line is of no such row, or
      contradicts itself; it tells file, line and field.
  """
  number = 0
  try:
    with pathlib.Path(path).open(encoding="utf-8") as file:
      for number, text in enumerate(file, start=1):
        yield _checked(kind, text, f"{path}, line {number}")
  except (OSError, UnicodeDecodeError) as error:
    raise DataError(
      path, "scores", f"cannot be read: {error}", "Run `rcmed evaluate` again"
    ) from error


def _checked(kind: type[Row], text: str, place: str) -> Row:
  try:
    line = json.loads(text)
    found = row(kind, line)
  except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
    expected = ", ".join(
      "class" if field.name == "name" else field.name
      for field in dataclasses.fields(kind)  # pyright: ignore
    )
    raise DataError(
      place,
      "line",
      f"expected a JSON object with {expected}, received {text[:60]!r}",
      _REMEDY,
    ) from error
  _check_types(found, place)
  if isinstance(found, MaskScore):
    _check_types(found.counts, place)
    _check_counts(found.counts, line["dice"], place)
  return found


def _check_types(found: Any, place: str) -> None:
  for field in dataclasses.fields(found):
    if field.type not in _TYPES:
      continue
    value = getattr(found, field.name)
    types, expected = _TYPES[field.type]
    if type(value) not in types or (
      isinstance(value, float) and not math.isfinite(value)
    ):
      name = "class" if field.name == "name" else field.name
      raise DataError(
        place, name, f"expected {expected}, not {value!r}", _REMEDY
      )


def _check_counts(counts: Counts, dice: Any, place: str) -> None:
  inter, pred, ref = counts.inter, counts.pred, counts.ref
  if not 0 <= inter <= min(pred, ref):
    raise DataError(
      place, "inter", f"{inter} pixels of {pred} and {ref} are shared", _REMEDY
    )
  is_number = isinstance(dice, int | float)
  if not is_number or not abs(dice - counts.dice) <= ROUNDING:
    raise DataError(
      place,
      "dice",
      f"{dice!r} is not that of its counts, {counts.dice}",
      _REMEDY,
    )
