"""What a check keeps of each unit: a few numbers and words, no pixels."""

from collections.abc import Sequence
import dataclasses
import os
from typing import Any

from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Record, Triplet
from rcmed_jax.ingest.checking import duplicates
from rcmed_jax.ingest.sources import Unit
from rcmed_jax.ingest.volumes import volumes

# A target of less cannot be seen in the model's frame: of 1024 x 1024 pixels it
# is less than one of the mask's 256 x 256.
TINY_SHARE = 16 / 1024**2
# And of more there is no background to tell it from.
FULL_SHARE = 0.999


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
  """Of one triplet."""

  id: str
  modality: str
  dataset: str
  license: str | None
  group: str | None
  classes: tuple[str, ...]
  described: bool
  # None where nothing was decoded:
  shape: tuple[int, int] | None = None  # rows, columns
  spacing_mm: tuple[float, float] | None = None
  shares: tuple[float, ...] = ()  # of the image, a class
  exact: int | None = None  # hash of the pixels
  seen: int | None = None  # perceptual hash; None also: there is nothing to see


@dataclasses.dataclass(frozen=True, slots=True)
class UnitFacts:
  """Of one unit: what it gave, and what was wrong."""

  triplets: tuple[Facts, ...]
  faults: tuple[DataError, ...]
  left_out: int = 0  # slices or tiles without a target, as asked
  # Of a unit that says nothing before it is decoded, and was not.
  unread: bool = False


def of_units(units: Sequence[Unit], decode: bool) -> list[UnitFacts]:
  """The facts of each; what a reader raises against its contract is a fault.

  Raises:
    ImportError: a library is missing, which no unit can be read without.
  """
  return [(_decoded if decode else _known)(unit) for unit in units]


def broken(unit: Unit, what: str) -> UnitFacts:
  """The facts of a unit whose reader failed."""
  error = DataError(
    unit.id,
    "reader",
    what,
    "Leave it out and report this: a reader refuses what it cannot use",
  )
  return UnitFacts((), (error,))


def _decoded(unit: Unit) -> UnitFacts:
  faults: list[DataError] = []
  found = []
  try:
    for triplet in unit.triplets(faults.append):
      found.append(_of_triplet(triplet))
  except ImportError:
    raise
  except DataError as error:
    faults.append(error)
  except Exception as error:
    # Not its text, which may quote a patient's name.
    faults.extend(broken(unit, f"it failed with {type(error).__name__}").faults)
  return _unit(found, faults)


def _of_triplet(triplet: Triplet) -> Facts:
  masks_GIJ = triplet.masks_GIJ
  pixels = max(masks_GIJ[0].size, 1) if len(masks_GIJ) else 1
  return Facts(
    id=triplet.id,
    modality=triplet.modality,
    dataset=triplet.source,
    license=triplet.license,
    group=triplet.group,
    classes=triplet.classes,
    described=bool(triplet.description),
    shape=triplet.image_IJC.shape[:2],
    spacing_mm=triplet.spacing_mm,
    shares=tuple(int(mask.sum()) / pixels for mask in masks_GIJ),
    exact=duplicates.exact_hash(triplet.image_IJC),
    seen=duplicates.perceptual_hash(triplet.image_IJC),
  )


def _known(unit: Unit) -> UnitFacts:
  """What is known without decoding: names, and whether the files are there."""
  record: Any = getattr(unit, "record", None)
  if not isinstance(record, Record):
    return UnitFacts((), (), unread=True)
  if not os.path.isfile(record.image):
    return UnitFacts((), (_missing(record.image, "image"),))
  faults = [
    _missing(path, "mask")
    for path, _ in record.masks
    if path and not os.path.isfile(path)
  ]
  absent = {error.path for error in faults}
  faulty = {name for path, name in record.masks if path in absent}
  facts = Facts(
    id=record.id,
    modality=record.modality,
    dataset=record.dataset,
    license=getattr(unit, "license", None) or None,
    group=None,
    classes=tuple(name for name in record.classes if name not in faulty),
    described=bool(record.description),
  )
  return UnitFacts((facts,), tuple(faults))


def _unit(found: list[Facts], errors: list[DataError]) -> UnitFacts:
  left_out = sum(
    error.count
    for error in errors
    if isinstance(error, volumes.EmptySlicesError)
  )
  faults = tuple(
    error for error in errors if not isinstance(error, volumes.EmptySlicesError)
  )
  return UnitFacts(tuple(found), faults, left_out)


def _missing(path: str, field: str) -> DataError:
  return DataError(
    path, field, "there is no such file", "Correct the path in the index"
  )
