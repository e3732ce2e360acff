"""Which record comes when: one set as it lies, or many in proportion.

As it lies, every record comes once an epoch, shuffled anew each time. Records
may also be drawn in proportion, from several sets and from rare tasks more
often than they are: the sequence is then an interleaving of endless, shuffled
streams, one a set or a task, that depends on the seed and the place alone.
"""

import bisect
import collections
from collections.abc import Iterator, Sequence
import itertools
from typing import Protocol, overload, runtime_checkable

import grain
import numpy as np

from rcmed_jax.data import readers
from rcmed_jax.data.records import Sample

# Grain takes seeds below 2**32.
_SEEDS = 1 << 32

# (dataset, modality) -> its classes.
ClassTable = dict[tuple[str, str], tuple[str, ...]]


@runtime_checkable
class KnowsClasses(Protocol):
  """Samples whose classes are known without reading each."""

  def class_table(self) -> ClassTable:
    """See `readers.class_table`."""
    ...


class Mixture(Sequence[Sample]):
  """Several sets as one sequence, with the share of rows that each has.

  Args:
    parts: the sets, none of them empty.
    weights: positive; only their proportions matter.
  """

  def __init__(
    self, parts: Sequence[Sequence[Sample]], weights: Sequence[float]
  ):
    if len(parts) != len(weights) or not parts or min(weights) <= 0:
      raise ValueError(
        f"expected a positive weight for each of {len(parts)} sets, received "
        f"{tuple(weights)}."
      )
    self.parts = tuple(parts)
    self.weights = tuple(float(weight) for weight in weights)
    self._ends = list(itertools.accumulate(map(len, parts)))

  def __len__(self) -> int:
    return self._ends[-1]

  @overload
  def __getitem__(self, index: int) -> Sample: ...
  @overload
  def __getitem__(self, index: slice) -> list[Sample]: ...
  def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
    if isinstance(index, slice):
      return [self[place] for place in range(*index.indices(len(self)))]
    place = range(len(self))[index]
    number = bisect.bisect_right(self._ends, place)
    part = self.parts[number]
    return part[place - (self._ends[number] - len(part))]

  def __iter__(self) -> Iterator[Sample]:
    return itertools.chain.from_iterable(self.parts)

  def class_table(self) -> ClassTable:
    """Of all parts; a data set that is in several has the classes of all."""
    merged: dict[tuple[str, str], set[str]] = {}
    for part in self.parts:
      for key, names in class_table(part).items():
        merged.setdefault(key, set()).update(names)
    return {key: tuple(sorted(names)) for key, names in merged.items()}


def class_table(items: Sequence[Sample]) -> ClassTable:
  """(dataset, modality) -> its classes, sorted; see `readers.class_table`."""
  if isinstance(items, KnowsClasses):
    return items.class_table()
  return readers.class_table(items)


def order(
  items: Sequence[Sample], seed: int, temperature: float = 1.0
) -> grain.MapDataset:
  """An endless dataset of indices into the items, with random steps seeded.

  Args:
    items: one set, or a `Mixture`.
    seed: of the whole sequence.
    temperature: 1: each set as it lies; above 1, a task of n records in a set
      has a share of its rows in proportion to n^(1/temperature). A task is a
      class in a modality, and a record is of its rarest class. All records of
      a task come before one comes again.
  """
  if temperature == 1 and not isinstance(items, Mixture):
    return grain.MapDataset.range(len(items)).seed(seed).shuffle().repeat()
  parts, weights = (
    (items.parts, items.weights)
    if isinstance(items, Mixture)
    else ((items,), (1.0,))
  )
  streams, shares, start = [], [], 0
  for part, weight in zip(parts, weights, strict=True):
    groups = (
      [range(len(part))] if temperature == 1 else list(tasks(part).values())
    )
    sizes = np.array([len(group) for group in groups], float)
    portions = sizes ** (1 / temperature)
    shares += (weight * portions / portions.sum()).tolist()
    for group in groups:
      places = np.array(group) + start
      streams.append(
        grain.MapDataset.range(len(places))
        .seed((seed * 1_000_003 + len(streams)) % _SEEDS)
        .shuffle()
        .map(places.item)
        .repeat()
      )
    start += len(part)
  return grain.MapDataset.mix(streams, shares).seed(seed)


def tasks(items: Sequence[Sample]) -> dict[tuple[str, str], list[int]]:
  """(modality, class) -> the records of that task, each record in one.

  A record of several classes is of the one that fewest records of its modality
  show; one without any is of the class "".
  """
  shown = [(sample.modality, sample.classes or ("",)) for sample in items]
  counts = collections.Counter(
    (modality, name) for modality, names in shown for name in names
  )
  found: dict[tuple[str, str], list[int]] = {}
  for index, (modality, names) in enumerate(shown):
    rarest = min(names, key=lambda name: (counts[modality, name], name))
    found.setdefault((modality, rarest), []).append(index)
  return dict(sorted(found.items()))
