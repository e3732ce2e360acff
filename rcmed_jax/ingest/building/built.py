"""A built data set read as sources, one a split: to check it, to look at it."""

from collections.abc import Iterator
import dataclasses
import functools
import pathlib

from rcmed_jax.data import shards
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Record, Triplet
from rcmed_jax.ingest.sources import Faults, Options

# Data sets whose files a process keeps open.
MOST_OPEN = 8


def matches(path: pathlib.Path) -> bool:
  """Whether `rcmed data build` wrote it."""
  return (path / shards.MANIFEST).is_file() and (path / shards.HEADERS).is_dir()


def splits(path: pathlib.Path) -> list[str]:
  """The splits that it has.

  Raises:
    DataError: its manifest is missing or damaged.
  """
  listed = shards.read_manifest(path)["shards"]
  return list(dict.fromkeys(shard.split for shard in listed))


def open_source(
  path: pathlib.Path, options: Options, split: str = ""
) -> "BuiltSource":
  """The source of a split, "" for the only one; `options` say nothing of it.

  Raises:
    DataError: it has no such split, or is damaged.
  """
  del options
  return BuiltSource(path, _open(path, split).split)


@dataclasses.dataclass(frozen=True)
class BuiltSource:
  """All records of a split."""

  path: pathlib.Path
  split: str

  def units(self, faults: Faults) -> Iterator["BuiltUnit"]:
    """One unit a record; a damaged header ends them, as a fault."""
    try:
      for place, stored in enumerate(_open(self.path, self.split)):
        record = Record(
          image=str(self.path / shards.MANIFEST),
          id=stored.id,
          masks=tuple(("", name) for name in stored.classes),
          modality=stored.modality,
          dataset=stored.dataset,
          description=stored.description,
        )
        yield BuiltUnit(self.path, self.split, place, record, stored.license)
    except DataError as error:
      faults(error)


@dataclasses.dataclass(frozen=True, slots=True)
class BuiltUnit:
  """A record of a split."""

  path: pathlib.Path
  split: str
  place: int
  record: Record  # what is known of it; its masks have no files
  license: str | None

  @property
  def id(self) -> str:
    """That of its triplet."""
    return self.record.id

  def triplets(self, faults: Faults) -> Iterator[Triplet]:
    """One, or none where its bytes are damaged."""
    try:
      yield _open(self.path, self.split)[self.place].load(faults)
    except DataError as error:
      faults(error)


@functools.lru_cache(MOST_OPEN)
def _open(path: pathlib.Path, split: str) -> shards.Shards:
  return shards.Shards(path, split)
