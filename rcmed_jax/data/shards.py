"""A built data set: a folder of shards, read at random.

  manifest.json      settings, and of every shard its sizes, sums and classes
  quarantine.jsonl   what could not be used
  rcmed-train.array_record-00000   examples, see `encoded`; and so on
  headers/rcmed-train-00000        of the same records, without pixels
  dataset_info.json, features.json   for `tfds.builder_from_directory`

`rcmed data build` writes it. Opening reads the manifest only; three million
records take as much memory as their three thousand lines in it.
"""

import bisect
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import threading
from typing import Any, overload

# Compiled, so that pyright does not see it.
from array_record.python import array_record_module  # pyright: ignore
import numpy as np

from rcmed_jax.data import encoded, files
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Triplet

MANIFEST = "manifest.json"
VERSION = 1  # of the manifest and of what it describes
NAME = "rcmed"  # of the data set, to TFDS
# TFDS's words; without the number of shards, which a build learns at its end.
TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"
HEADERS = "headers"

# Opened shards, two files each; reopening one takes a tenth of a millisecond.
MOST_OPEN = 256
# Read at once when hashing.
_BLOCK = 1 << 20
_READ_OPTIONS = "readahead_buffer_size:0"
_READ_BUFFER = 1 << 15  # a header's neighbours, or part of an image


@dataclasses.dataclass(frozen=True)
class File:
  """One file of a shard."""

  bytes: int
  sha256: str


@dataclasses.dataclass(frozen=True)
class Shard:
  """What the manifest says of one shard."""

  split: str
  number: int
  units: int
  units_sha256: str  # of the names of its units
  triplets: int
  quarantined: int  # units that gave nothing, for a fault
  empty: int  # units that had nothing to give
  faults: int  # all that was written to the quarantine
  examples: File
  headers: File
  # [dataset, modality, its classes]
  classes: tuple[tuple[str, str, tuple[str, ...]], ...]
  windows: tuple[str, ...] = ()  # in which volumes are shown, sorted

  @property
  def examples_name(self) -> str:
    """Path within the folder."""
    return f"{NAME}-{self.split}.array_record-{self.number:05d}"

  @property
  def headers_name(self) -> str:
    """Path within the folder."""
    return f"{HEADERS}/{NAME}-{self.split}-{self.number:05d}"


def from_json(values: dict[str, Any]) -> Shard:
  """The shard whose `dataclasses.asdict` this is, read back from JSON."""
  known = dict(values)
  known["examples"] = File(**values["examples"])
  known["headers"] = File(**values["headers"])
  known["classes"] = tuple(
    (dataset, modality, tuple(names))
    for dataset, modality, names in values["classes"]
  )
  known["windows"] = tuple(values.get("windows", ()))
  return Shard(**known)


def is_built(path: str | os.PathLike[str]) -> bool:
  """Whether it is the folder of a built data set, finished or not."""
  return not files.is_remote(path) and pathlib.Path(path).is_dir()


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """The manifest's values, its shards as `Shard`s in their order.

  Raises:
    DataError: the folder holds none, or one that is not understood.
  """
  path = pathlib.Path(folder) / MANIFEST
  if not path.is_file():
    raise DataError(
      folder,
      "index",
      f"it holds no {MANIFEST}: no data set was built here, or not to its end",
      "Run `rcmed data build` with the same arguments; it goes on",
    )
  try:
    values = json.loads(path.read_text(encoding="utf-8"))
    version = values["version"]
    if version == VERSION:
      values["shards"] = [from_json(shard) for shard in values["shards"]]
  except (ValueError, KeyError, TypeError) as error:
    raise DataError(
      path, "index", f"it cannot be read ({error})", "Build the data set again"
    ) from error
  if version != VERSION:
    raise DataError(
      path,
      "index",
      f"it is of version {version}, expected {VERSION}",
      "Build the data set again, or use the release that built it",
    )
  return values


def faults(folder: str | os.PathLike[str], shard: Shard) -> list[DataError]:
  """What is wrong with a shard's files, after reading all of them."""
  found = []
  for name, expected in (
    (shard.examples_name, shard.examples),
    (shard.headers_name, shard.headers),
  ):
    path = pathlib.Path(folder) / name
    try:
      _check_size(path, expected)
    except DataError as error:
      found.append(error)
      continue
    if digest(path) != expected.sha256:
      found.append(
        DataError(
          path,
          "shard",
          "its bytes are not those that were built (sha256 differs)",
          "Delete it and build again; only this shard is then built",
        )
      )
  return found


def digest(path: str | os.PathLike[str]) -> str:
  """sha256 of a file, in hexadecimal digits."""
  total = hashlib.sha256()
  with open(path, "rb") as file:
    while block := file.read(_BLOCK):
      total.update(block)
  return total.hexdigest()


@dataclasses.dataclass(frozen=True)
class Stored:
  """A sample in a shard; see `records.Sample`."""

  id: str
  classes: tuple[str, ...]
  modality: str
  dataset: str
  description: str | None
  spacing_mm: tuple[float, float] | None
  license: str | None
  group: str | None
  window: str | None  # of volumes; None also where none was kept
  place: int  # its number in `shards`
  shards: "Shards" = dataclasses.field(repr=False, compare=False)

  @property
  def files(self) -> tuple[str, ...]:
    """The shard's, with pixels."""
    return (self.shards.file_of(self.place),)

  def load(
    self, on_fault: Callable[[DataError], None] | None = None
  ) -> Triplet:
    """Reads and decodes it; its masks are all sound, or it was not built.

    Raises:
      DataError: its bytes in the shard are damaged.
    """
    del on_fault
    image_IJC, masks = self.shards.pixels(self)
    return Triplet(
      id=self.id,
      image_IJC=image_IJC,
      masks_GIJ=np.array(masks, bool).reshape(-1, *image_IJC.shape[:2]),
      classes=self.classes,
      modality=self.modality,
      description=self.description,
      spacing_mm=self.spacing_mm,
      source=self.dataset,
      license=self.license,
      group=self.group,
      window=self.window,
    )


class Shards(Sequence[Stored]):
  """The samples of one split of a built data set, in the order of its sources.

  Safe to use from several threads, and pickles to other processes as its path.

  Args:
    folder: on a disk.
    split: "" for the only one there is.

  Raises:
    DataError: no such split, or an empty one, the data set is not finished, or
      a file is missing or of another size.
  """

  def __init__(self, folder: str | os.PathLike[str], split: str = ""):
    self.folder = pathlib.Path(folder)
    listed = read_manifest(folder)["shards"]
    splits = list(dict.fromkeys(shard.split for shard in listed))
    if (split or len(splits) > 1) and split not in splits:
      raise DataError(
        folder,
        "split",
        f"received {split!r}, expected one of {', '.join(splits)}",
        f"Write {folder}:{splits[0]}",
      )
    self.split = split or splits[0]
    self._shards = [shard for shard in listed if shard.split == self.split]
    for shard in self._shards:
      _check_size(self.folder / shard.examples_name, shard.examples)
      _check_size(self.folder / shard.headers_name, shard.headers)
    self._ends = list(
      itertools.accumulate(shard.triplets for shard in self._shards)
    )
    if not len(self):
      raise DataError(
        folder,
        "split",
        f"its split {self.split} holds no sample",
        "See quarantine.jsonl there for why none could be used",
      )
    # Opens at most so many; a reader itself may be shared by threads.
    self._open = functools.lru_cache(2 * MOST_OPEN)(_open)
    self._lock = threading.Lock()

  def __reduce__(self) -> tuple[type, tuple[str, str]]:
    return Shards, (str(self.folder), self.split)

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  @overload
  def __getitem__(self, index: int) -> Stored: ...
  @overload
  def __getitem__(self, index: slice) -> list[Stored]: ...
  def __getitem__(self, index: int | slice) -> Stored | list[Stored]:
    """A sample's header.

    Raises:
      DataError: its bytes are damaged.
    """
    if isinstance(index, slice):
      return [self[place] for place in range(*index.indices(len(self)))]
    place = range(len(self))[index]
    shard, offset = self._find(place)
    name = shard.headers_name
    return self._stored(place, name, offset, self._read(name, offset))

  def __iter__(self) -> Iterator[Stored]:
    """All headers, a shard at once: a million take a few seconds."""
    place = 0
    for shard in self._shards:
      name = shard.headers_name
      try:
        lines = self._reader(name).read_all()
      except RuntimeError:  # then one by one, to name the damaged one
        lines = [self._read(name, n) for n in range(shard.triplets)]
      for offset, line in enumerate(lines):
        yield self._stored(place, name, offset, line)
        place += 1

  def windows(self) -> tuple[str, ...]:
    """In which its volumes are shown; from the manifest alone."""
    return tuple(sorted({w for shard in self._shards for w in shard.windows}))

  def class_table(self) -> dict[tuple[str, str], tuple[str, ...]]:
    """(dataset, modality) -> its classes, sorted; from the manifest alone."""
    table: dict[tuple[str, str], set[str]] = {}
    for shard in self._shards:
      for dataset, modality, names in shard.classes:
        table.setdefault((dataset, modality), set()).update(names)
    return {key: tuple(sorted(names)) for key, names in table.items()}

  def file_of(self, place: int) -> str:
    """The path of the file that holds a sample's pixels."""
    shard, _ = self._find(place)
    return f"{self.folder}/{shard.examples_name}"

  def example(self, place: int) -> bytes:
    """A sample as it is stored; see `encoded.decode`.

    Raises:
      DataError: its bytes are damaged.
    """
    shard, offset = self._find(place)
    return self._read(shard.examples_name, offset)

  def pixels(self, stored: Stored) -> tuple[np.ndarray, list[np.ndarray]]:
    """Image and masks of a sample: uint8[I, J, 3] and bool[I, J] each.

    Raises:
      DataError: its bytes are damaged.
    """
    shard, offset = self._find(stored.place)
    name = shard.examples_name
    data = self.example(stored.place)
    try:
      id, image_IJC, masks = encoded.decode(data)
    except ValueError as error:
      raise self._damaged(name, offset, str(error)) from error
    if id != stored.id or len(masks) != len(stored.classes):
      raise self._damaged(name, offset, f"it is not that of {stored.id}")
    return image_IJC, masks

  def _find(self, place: int) -> tuple[Shard, int]:
    number = bisect.bisect_right(self._ends, place)
    shard = self._shards[number]
    return shard, place - (self._ends[number] - shard.triplets)

  def _reader(self, name: str) -> Any:
    with self._lock:
      return self._open(str(self.folder / name))

  def _read(self, name: str, offset: int) -> bytes:
    try:
      return self._reader(name).read([offset])[0]
    except (RuntimeError, IndexError) as error:
      raise self._damaged(name, offset, str(error)) from error

  def _stored(self, place: int, name: str, offset: int, line: bytes) -> Stored:
    try:
      values = json.loads(line)
      spacing = values.get("spacing_mm")
      return Stored(
        id=values["id"],
        classes=tuple(values["classes"]),
        modality=values["modality"],
        dataset=values["dataset"],
        description=values.get("description"),
        spacing_mm=tuple(spacing) if spacing else None,
        license=values.get("license"),
        group=values.get("group"),
        window=values.get("window"),
        place=place,
        shards=self,
      )
    except (ValueError, KeyError, TypeError) as error:
      raise self._damaged(name, offset, str(error)) from error

  def _damaged(self, name: str, offset: int, what: str) -> DataError:
    return DataError(
      f"{self.folder / name}[{offset}]",
      "record",
      f"its bytes are damaged ({what})",
      "Delete the shard and build again; only this shard is then built",
    )


def _check_size(path: pathlib.Path, expected: File) -> None:
  found = path.stat().st_size if path.is_file() else None
  if found != expected.bytes:
    raise DataError(
      path,
      "shard",
      "it is missing"
      if found is None
      else f"it has {found} bytes, expected {expected.bytes}",
      "Build again; only missing shards are then built",
    )


def _open(path: str) -> Any:
  return array_record_module.ArrayRecordReader(
    path, options=_READ_OPTIONS, file_reader_buffer_size=_READ_BUFFER
  )
