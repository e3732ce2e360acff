"""Counts over all that a check sees, in memory that hardly grows.

Of three million triplets it keeps 25 bytes each, and their ids in a file.
"""

import array
import collections
import dataclasses
import hashlib
import json
import re
from typing import IO, Any

import numpy as np

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest.checking import facts

# Kinds of faults told apart; messages differ in numbers and names besides.
MOST_REASONS = 200
OTHER_REASONS = ("other", "reasons of further kinds")


@dataclasses.dataclass
class SourceCounts:
  """Of one source."""

  split: str
  path: str
  units: int = 0
  triplets: int = 0
  faults: int = 0


class Tally:
  """Counts; see the fields.

  Args:
    ids: an empty file for the ids of triplets, which is read again.
    quarantine: takes a JSON line a fault.
    group: finds in an id what must not lie on both sides of a split: its first
      group, or all that is found; None: what the reader says.
  """

  def __init__(
    self,
    ids: IO[bytes],
    quarantine: IO[str],
    group: re.Pattern[str] | None = None,
  ):
    self.sources: list[SourceCounts] = []
    self.split_names: list[str] = []  # by their number in `splits_N`
    # Every unit is one of these.
    self.units = 0
    self.read = 0  # gave triplets
    self.left_out = 0  # gave none, as asked
    self.unread = 0  # says nothing unless it is decoded
    self.quarantined = 0  # gave none for its faults
    self.with_faults = 0  # of those read: lack a class or a slice
    self.faults = 0
    self.outside = 0  # of the faults: of what did not become a unit
    self.left_out_slices = 0
    self.triplets = 0
    self.splits: collections.Counter[str] = collections.Counter()
    self.modalities: collections.Counter[tuple[str, str]] = (
      collections.Counter()
    )  # modality, split
    self.tasks: collections.Counter[tuple[str, str, str]] = (
      collections.Counter()
    )  # modality, class, split
    self.datasets: collections.Counter[tuple[str, str]] = collections.Counter()
    self.licenses: collections.Counter[tuple[str, str]] = (
      collections.Counter()
    )  # license or "", dataset
    self.sizes: collections.Counter[tuple[int, int]] = collections.Counter()
    self.spacings: collections.Counter[tuple[float, float] | None] = (
      collections.Counter()
    )
    self.targets: collections.Counter[int] = collections.Counter()
    self.described = 0
    self.masks = 0
    # (modality, class) -> masks that small, that large
    self.tiny: collections.Counter[tuple[str, str]] = collections.Counter()
    self.full: collections.Counter[tuple[str, str]] = collections.Counter()
    self.reasons: collections.Counter[tuple[str, str]] = collections.Counter()
    self.examples: dict[tuple[str, str], str] = {}  # of reasons: a path
    self._ids, self._quarantine, self._group = ids, quarantine, group
    self._places = array.array("q")
    self._split_numbers = array.array("B")
    self._groups, self._exact = array.array("Q"), array.array("Q")
    self._id_hashes = array.array("Q")
    self._seen, self._seen_of = array.array("Q"), array.array("q")

  def start(self, split: str, path: object) -> None:
    """Counts what follows as of this source."""
    self.sources.append(SourceCounts(split, str(path)))
    if split not in self.split_names:
      self.split_names.append(split)

  def fault(self, error: DataError, source: int = -1) -> None:
    """Counts a fault, and writes it down."""
    self.faults += 1
    self.sources[source].faults += 1
    kind = _kind(error)
    if kind not in self.reasons and len(self.reasons) >= MOST_REASONS:
      kind = OTHER_REASONS
    self.reasons[kind] += 1
    self.examples.setdefault(kind, error.path)
    line = {
      "path": error.path,
      "field": error.field,
      "reason": error.message,
      "remedy": error.remedy,
      "split": self.sources[source].split,
    }
    self._quarantine.write(json.dumps(line) + "\n")

  def fault_outside(self, error: DataError) -> None:
    """Counts the fault of what did not become a unit of the last source."""
    self.outside += 1
    self.fault(error)

  def add(self, unit: facts.UnitFacts, source: int) -> None:
    """Counts a unit."""
    self.units += 1
    self.sources[source].units += 1
    self.left_out_slices += unit.left_out
    for error in unit.faults:
      self.fault(error, source)
    for triplet in unit.triplets:
      self._add_triplet(triplet, source)
    if unit.triplets:
      self.read += 1
      self.with_faults += bool(unit.faults)
    elif unit.unread:
      self.unread += 1
    elif unit.faults:
      self.quarantined += 1
    else:
      self.left_out += 1

  def ids(self, places: Any) -> list[tuple[str, str]]:
    """(split, id) of triplets by their number."""
    self._ids.flush()
    found = []
    for place in places:
      self._ids.seek(self._places[place])
      line = self._ids.readline().rstrip(b"\n").decode("utf-8", "replace")
      found.append((self.split_names[self._split_numbers[place]], line))
    return found

  @property
  def splits_N(self) -> np.ndarray:
    """Number of the split of each triplet."""
    return np.array(self._split_numbers, np.uint8)

  @property
  def groups_N(self) -> np.ndarray:
    """Hash of the group of each triplet; 0: none."""
    return np.array(self._groups, np.uint64)

  @property
  def ids_N(self) -> np.ndarray:
    """Hash of the id of each triplet within its split."""
    return np.array(self._id_hashes, np.uint64)

  @property
  def exact_N(self) -> np.ndarray:
    """Hash of the pixels of each triplet; empty where nothing was decoded."""
    return np.array(self._exact, np.uint64)

  @property
  def seen_K(self) -> tuple[np.ndarray, np.ndarray]:
    """Perceptual hashes, and the triplets that they are of."""
    return np.array(self._seen, np.uint64), np.array(self._seen_of, np.int64)

  def check(self) -> None:
    """Raises RuntimeError where the counts do not add up."""
    sums = {
      "units": (
        self.units,
        self.read + self.left_out + self.unread + self.quarantined,
      ),
      "units of sources": (self.units, sum(s.units for s in self.sources)),
      "triplets of splits": (self.triplets, sum(self.splits.values())),
      "triplets of sources": (
        self.triplets,
        sum(source.triplets for source in self.sources),
      ),
      "faults by reason": (self.faults, sum(self.reasons.values())),
    }
    for name, (whole, parts) in sums.items():
      if whole != parts:
        raise RuntimeError(f"{name}: {whole} counted, {parts} by parts")

  def _add_triplet(self, one: facts.Facts, source: int) -> None:
    counts = self.sources[source]
    number = self.triplets
    self.triplets += 1
    counts.triplets += 1
    self.splits[counts.split] += 1
    self.modalities[one.modality, counts.split] += 1
    self.datasets[one.dataset, counts.split] += 1
    self.licenses[one.license or "", one.dataset] += 1
    self.targets[len(one.classes)] += 1
    self.described += one.described
    for name in one.classes:
      self.tasks[one.modality, name, counts.split] += 1
    self._split_numbers.append(self.split_names.index(counts.split))
    self._places.append(self._ids.tell())
    line = one.id.encode("utf-8", "replace").replace(b"\n", b" ")
    self._ids.write(line + b"\n")
    self._id_hashes.append(_hash(f"{counts.split}\n{one.id}"))
    self._groups.append(self._group_of(one))
    if one.shape is not None and one.exact is not None:
      self._add_decoded(one, one.shape, one.exact, number)

  def _add_decoded(
    self, one: facts.Facts, shape: tuple[int, int], exact: int, number: int
  ) -> None:
    self.sizes[shape] += 1
    spacing = one.spacing_mm
    self.spacings[
      None if spacing is None else (round(spacing[0], 3), round(spacing[1], 3))
    ] += 1
    self.masks += len(one.shares)
    for name, share in zip(one.classes, one.shares, strict=True):
      self.tiny[one.modality, name] += share < facts.TINY_SHARE
      self.full[one.modality, name] += share > facts.FULL_SHARE
    self._exact.append(exact)
    if one.seen is not None:
      self._seen.append(one.seen)
      self._seen_of.append(number)

  def _group_of(self, one: facts.Facts) -> int:
    group = one.group
    if group is None and self._group:
      found = self._group.search(one.id)
      group = found and found[1 if self._group.groups else 0]
    return _hash(group) if group else 0


def _hash(text: str) -> int:
  """64 bits, the same in every run; never 0."""
  data = text.encode("utf-8", "replace")
  digest = hashlib.blake2b(data, digest_size=8).digest()
  return int.from_bytes(digest, "little") or 1


def _kind(error: DataError) -> tuple[str, str]:
  """Field and reason without what differs from file to file."""
  words = re.sub(r"\d+(\.\d+)?", "#", error.field)
  field = words if re.fullmatch(r"[A-Za-z# -]{1,40}", words) else "entry"
  reason = re.sub(r"'[^']*'|\"[^\"]*\"|\([^)]*\)|/\S+", "…", error.message)
  return field, re.sub(r"-?\d+([.,]\d+)*", "#", reason)[:160]
