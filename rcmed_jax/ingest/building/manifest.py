"""What a build has finished, so that it goes on after being killed.

  build.json    sources and settings, written first
  shards.jsonl  a line a finished shard, written when its files are in place

What is not in `shards.jsonl` was not built. At the end, manifest, quarantine
and what TFDS reads are made from it.
"""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import difflib
import json
import os
from typing import Any

from etils import epath

from rcmed_jax.data import encoded, files, shards
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.shards import Shard

SETTINGS = "build.json"
JOURNAL = "shards.jsonl"
QUARANTINE = "quarantine.jsonl"
LOCK = "build.lock"  # held by the one build that runs
PARTIAL = "partial"  # where shards are until they are whole
# Of the layout and features, to TFDS.
TFDS_VERSION = "1.0.0"

Fault = dict[str, str]  # a line of the quarantine


@dataclasses.dataclass
class Totals:
  """Of a whole build: units = used + quarantined + empty."""

  units: int = 0
  used: int = 0  # units that gave triplets
  quarantined: int = 0  # units that gave none, for a fault
  empty: int = 0  # units that had nothing to give
  triplets: int = 0
  faults: int = 0  # lines of the quarantine, masks and entries among them
  shards: int = 0
  bytes: int = 0

  def add(self, shard: Shard) -> None:
    """Counts a shard."""
    self.units += shard.units
    self.used += shard.units - shard.quarantined - shard.empty
    self.quarantined += shard.quarantined
    self.empty += shard.empty
    self.triplets += shard.triplets
    self.faults += shard.faults
    self.shards += 1
    self.bytes += shard.examples.bytes + shard.headers.bytes


class Journal:
  """The finished shards of a build.

  Args:
    out: folder of the data set, on a disk or in a bucket; made if missing.
    settings: of the build, JSON values.

  Raises:
    ValueError: the folder was begun with other settings; names them.
    DataError: the folder holds something else, or a file is damaged.
  """

  def __init__(self, out: epath.Path, settings: Mapping[str, Any]):
    self.out = out
    self._begin(dict(settings))
    self._file = files.LineFile(out / JOURNAL)
    self._lines: dict[tuple[str, int], str] = {}
    self._read()

  def finished(self, split: str, number: int) -> Shard | None:
    """The shard, if it is entered and its files are there."""
    line = self._lines.get((split, number))
    if line is None:
      return None
    shard, _ = _parse(line)
    for name, file in (
      (shard.examples_name, shard.examples),
      (shard.headers_name, shard.headers),
    ):
      path = self.out / name
      if not path.exists() or path.stat().length != file.bytes:
        return None
    return shard

  def add(self, shard: Shard, faults: list[Fault]) -> None:
    """Enters a shard whose files are in place."""
    line = json.dumps(
      {"shard": dataclasses.asdict(shard), "quarantine": faults}
    )
    key = shard.split, shard.number
    again = key in self._lines  # its files had gone
    self._lines[key] = line
    if again:
      self._rewrite()
    else:
      self._file.add(line)

  def require_only(self, known: set[tuple[str, int]]) -> None:
    """Raises ValueError where shards are entered that no source gives."""
    gone = sorted(set(self._lines) - known)
    if gone:
      split, number = gone[0]
      raise ValueError(
        f"{self.out}: {len(gone)} finished shards, from {split} number "
        f"{number} on, are of units that the sources no longer have; restore "
        "them, or build into another folder."
      )

  def finish(self, source_faults: Iterable[str]) -> Totals:
    """Writes quarantine, TFDS's files and manifest; returns what there is.

    Args:
      source_faults: lines, with their ends, of entries that are no unit.
    """
    self._rewrite()
    self._file.flush()
    totals = Totals()
    listed = []
    for line in self._lines.values():
      shard, _ = _parse(line)
      totals.add(shard)
      listed.append(shard)
    lines = self._quarantine(source_faults)
    totals.faults = _write_lines(self.out / QUARANTINE, lines)
    assert totals.units == totals.used + totals.quarantined + totals.empty
    _write_tfds(self.out, listed)
    manifest = {
      "version": shards.VERSION,
      "settings": json.loads((self.out / SETTINGS).read_text()),
      "totals": dataclasses.asdict(totals),
      "shards": [dataclasses.asdict(shard) for shard in listed],
    }
    write_text(self.out / shards.MANIFEST, json.dumps(manifest, indent=1))
    return totals

  def _quarantine(self, source_faults: Iterable[str]) -> Iterator[str]:
    yield from source_faults
    for line in self._lines.values():
      for fault in json.loads(line)["quarantine"]:
        yield json.dumps(fault) + "\n"

  def _begin(self, settings: dict[str, Any]) -> None:
    path = self.out / SETTINGS
    now = json.dumps(settings, indent=2, sort_keys=True) + "\n"
    if path.exists():
      before = path.read_text(encoding="utf-8")
      changes = [
        line
        for line in difflib.ndiff(before.splitlines(), now.splitlines())
        if line[0] in "+-"
      ]
      if changes:
        listed = "\n  ".join(changes)
        raise ValueError(
          f"{self.out} was begun with other sources or settings (-: its own, "
          f"+: these):\n  {listed}\nGive the same to go on, or another --out."
        )
      return
    if self.out.exists() and any(
      entry.name not in (LOCK, PARTIAL) for entry in self.out.iterdir()
    ):
      raise DataError(
        self.out,
        "out",
        f"it holds files, but no {SETTINGS} of an earlier build",
        "Give an empty folder, or one that does not exist",
      )
    self.out.mkdir(parents=True, exist_ok=True)
    write_text(path, now)

  def _read(self) -> None:
    lines = self._file.lines()
    if lines and not lines[-1].endswith("\n"):
      lines.pop()  # cut off by a kill; its shard is built again
      self._file.replace(lines)
    for number, line in enumerate(lines, 1):
      try:
        shard, _ = _parse(line)
      except (ValueError, KeyError, TypeError) as error:
        raise DataError(
          self.out / JOURNAL,
          f"line {number}",
          f"it is no finished shard ({error})",
          "Delete the line; its shard is then built again",
        ) from error
      self._lines[shard.split, shard.number] = line.rstrip("\n")

  def _rewrite(self) -> None:
    """The journal in the order of its shards, whatever order they came in."""
    self._lines = dict(sorted(self._lines.items()))
    _write_lines(
      self.out / JOURNAL, (line + "\n" for line in self._lines.values())
    )
    self._file = files.LineFile(self.out / JOURNAL)


def write_text(path: epath.Path, text: str) -> None:
  """Writes a file so that it is there whole or not at all."""
  _write_lines(path, [text])


def sync(path: str | os.PathLike[str]) -> None:
  """Returns when a file or folder is on the disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def _write_lines(path: epath.Path, lines: Iterable[str]) -> int:
  """As `write_text`; returns how many lines, given with their ends."""
  if files.is_remote(path):  # objects appear whole
    lines = list(lines)
    path.write_text("".join(lines), encoding="utf-8")
    return len(lines)
  count = 0
  temporary = path.with_name(path.name + ".new")
  with open(temporary, "w", encoding="utf-8") as file:
    for line in lines:
      file.write(line)
      count += 1
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)
  sync(path.parent)
  return count


def _parse(line: str) -> tuple[Shard, list[Fault]]:
  values = json.loads(line)
  return shards.from_json(values["shard"]), values["quarantine"]


def _write_tfds(out: epath.Path, listed: list[Shard]) -> None:
  """What `tfds.builder_from_directory` reads."""
  import tensorflow_datasets as tfds

  splits: dict[str, list[Shard]] = {}
  for shard in listed:
    splits.setdefault(shard.split, []).append(shard)
  tfds.folder_dataset.write_metadata(
    data_dir=out,
    features=encoded.features(),
    version=TFDS_VERSION,
    filename_template=shards.TEMPLATE,
    split_infos=[
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[shard.triplets for shard in parts],
        num_bytes=sum(shard.examples.bytes for shard in parts),
        filename_template=tfds.core.ShardedFileTemplate(
          data_dir=out,
          template=shards.TEMPLATE,
          dataset_name=shards.NAME,
          split=split,
          filetype_suffix="array_record",
        ),
      )
      for split, parts in splits.items()
    ],
    check_data=False,  # it would need TensorFlow
    description="Image, masks and description triplets; rcmed data build.",
  )
