"""Sources drawn from numbers, for builds in this process and in others."""

from collections.abc import Iterator
import dataclasses
import time

import numpy as np

from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Triplet
from rcmed_jax.ingest.sources import Faults

SHAPE = (24, 20)


def triplet(number: int, part: int = 0) -> Triplet:
  """Colour where the number is even, grey where it is odd."""
  rng = np.random.default_rng((number, part))
  image_IJC = rng.integers(0, 256, (*SHAPE, 3), np.uint8)
  if number % 2:
    image_IJC = np.repeat(image_IJC[..., :1], 3, 2)
  classes = ("liver", "left kidney", "tumour")[: number % 4]
  return Triplet(
    id=f"{number}/{part}",
    image_IJC=image_IJC,
    masks_GIJ=rng.random((len(classes), *SHAPE)) < 0.3,
    classes=classes,
    modality="computed tomography" if number % 3 else "pathology",
    description=f"Number {number}, müde." if number % 5 else None,
    spacing_mm=(0.7, 1.1) if number % 2 else None,
    source="one" if number < 10 else "two",
    license="CC-BY-4.0" if number % 7 else None,
    group=f"p{number // 2}" if number % 3 else None,
  )


def triplets_of(number: int) -> list[Triplet]:
  """What a unit of this number gives: some give several, some nothing."""
  if number % 11 in (4, 5, 6):
    return []
  return [triplet(number, part) for part in range(1 + number % 3)]


@dataclasses.dataclass(frozen=True)
class Unit:
  """Of eleven one is faulty, one breaks, one is empty; one has a bad mask."""

  number: int
  delay_s: float = 0.0

  @property
  def id(self) -> str:
    return f"unit {self.number}"

  def triplets(self, faults: Faults) -> Iterator[Triplet]:
    time.sleep(self.delay_s)
    kind = self.number % 11
    if kind == 4:
      faults(DataError(self.id, "image", "it is torn", "Mend it"))
    elif kind == 5:
      raise RuntimeError("a library gave up")
    elif kind == 7:
      faults(DataError(self.id, "mask", "it is empty", "Remove it"))
    if kind != 6:
      yield from triplets_of(self.number)


@dataclasses.dataclass(frozen=True)
class Source:
  """Units of these numbers; every 13th entry is no unit at all."""

  start: int
  stop: int
  delay_s: float = 0.0

  def units(self, faults: Faults) -> Iterator[Unit]:
    for number in range(self.start, self.stop):
      if number % 13 == 12:
        faults(DataError(f"entry {number}", "index", "no list", "Correct it"))
      else:
        yield Unit(number, self.delay_s)


def expected(start: int, stop: int) -> list[Triplet]:
  """All that such a source gives, in order."""
  numbers = [n for n in range(start, stop) if n % 13 != 12]
  return [one for number in numbers for one in triplets_of(number)]
