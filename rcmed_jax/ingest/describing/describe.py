"""Descriptions of all images of some sources, by the built-in describer.

Whoever describes, every image is counted once, and what a description is wanted
of and how it is counted stands here.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os

import cv2

from rcmed_jax.data import describe
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Triplet
from rcmed_jax.ingest.describing.texts import Texts
from rcmed_jax.ingest.sources import Faults, Source, Unit

# Units that are read ahead for each process.
AHEAD = 8


@dataclasses.dataclass(frozen=True)
class Wish:
  """What is wanted."""

  detail: bool = False  # two or three sentences a target instead of one
  limit: int = 0  # images, of those that come first; 0: all
  tries: int = 3  # answers to one question that are looked at
  fallback: bool = False  # the built-in description where the model's failed


@dataclasses.dataclass
class Counts:
  """Images by what became of them."""

  asked: int = 0  # with at least one new answer
  cached: int = 0  # with kept answers alone
  built_in: int = 0  # by the built-in describer, as wanted
  failed: int = 0
  blank: int = 0  # without any target
  left: int = 0  # not asked about: the money was spent
  fallback: int = 0  # of those that failed: described by geometry instead

  @property
  def images(self) -> int:
    """All of them."""
    return (
      self.asked
      + self.cached
      + self.built_in
      + self.failed
      + self.blank
      + self.left
    )


def built_in(
  sources: Sequence[Source],
  out: str | os.PathLike[str],
  wish: Wish,
  faults: Faults,
  on_image: Callable[[], object] = lambda: None,
  processes: int = 1,
) -> Counts:
  """Writes descriptions made from geometry, {image: text}.

  Args:
    out: a JSON file, there only once it is whole.
    faults: takes what is wrong with the source, and images that failed.
    on_image: called after each.
    processes: how many to work with; the file is the same.
  """
  counts = Counts()
  seen: set[str] = set()
  units = (unit for source in sources for unit in source.units(faults))
  one = functools.partial(_unit, wish.detail)
  with Texts(out) as texts:
    for found, wrong in _in_order(one, units, processes):
      for error in wrong:
        faults(error)
      for id, text in found:
        if id in seen:
          counts.failed += 1
          faults(twice(id))
        elif isinstance(text, DataError):
          counts.failed += 1
          faults(text)
        elif text is None:
          counts.blank += 1
        else:
          counts.built_in += 1
          texts.add(id, text)
        seen.add(id)
        on_image()
        if counts.images == wish.limit:
          return counts
  return counts


def from_geometry(triplet: Triplet, detail: bool) -> str:
  """The image's built-in description.

  Raises:
    DataError: it has none, as a mask is empty.
  """
  try:
    return describe.describe(
      triplet.image_IJC, triplet.masks_GIJ, triplet.classes, detail=detail
    )
  except ValueError as error:
    raise DataError(
      triplet.id,
      "description",
      str(error).rstrip("."),
      "Correct the mask or leave it out",
    ) from error


def twice(id: str) -> DataError:
  """The fault of an id that was there before."""
  return DataError(
    id,
    "description",
    "the sources hold this id twice, and a description is of one image",
    "Describe the sources into files of their own",
  )


def triplets(
  sources: Sequence[Source], faults: Faults, limit: int
) -> Iterator[tuple[Triplet, bool]]:
  """Every triplet, and whether its id is new."""
  seen: set[str] = set()
  count = 0
  for source in sources:
    for unit in source.units(faults):
      for triplet in unit.triplets(faults):
        yield triplet, triplet.id not in seen
        seen.add(triplet.id)
        count += 1
        if count == limit:
          return


def _unit(
  detail: bool, unit: Unit
) -> tuple[list[tuple[str, str | DataError | None]], list[DataError]]:
  """(id, text) of each image of a unit, and the unit's faults."""
  wrong: list[DataError] = []
  found: list[tuple[str, str | DataError | None]] = []
  for triplet in unit.triplets(wrong.append):
    text = None
    if triplet.classes:
      try:
        text = from_geometry(triplet, detail)
      except DataError as error:
        text = error
    found.append((triplet.id, text))
  return found, wrong


def _in_order(
  function: Callable[[Unit], tuple], units: Iterable[Unit], processes: int
) -> Iterator[tuple]:
  """function(unit) of each, in their order, few of them ahead."""
  if processes <= 1:
    yield from map(function, units)
    return
  # Spawned, not forked: the caller may already run threads.
  pool = concurrent.futures.ProcessPoolExecutor(
    processes,
    multiprocessing.get_context("spawn"),
    initializer=cv2.setNumThreads,
    initargs=(1,),
  )
  try:
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    for unit in units:
      waiting.append(pool.submit(function, unit))
      if len(waiting) >= AHEAD * processes:
        yield waiting.popleft().result()
    while waiting:
      yield waiting.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)
