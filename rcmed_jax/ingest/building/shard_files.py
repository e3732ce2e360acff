"""One shard: its units read, its files written and put in place."""

from collections.abc import Iterator
import dataclasses
import hashlib
import json
import os
import pathlib
import tempfile
from typing import Any

# Compiled, so that pyright does not see it.
from array_record.python import array_record_module  # pyright: ignore
from etils import epath
import numpy as np

from rcmed_jax.data import encoded, files, shards
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Triplet
from rcmed_jax.data.shards import Shard
from rcmed_jax.ingest.building import manifest
from rcmed_jax.ingest.building.manifest import Fault
from rcmed_jax.ingest.sources import Unit

# PNG is compressed already.
_EXAMPLES = "group_size:1,uncompressed"
_HEADERS = "group_size:1"


@dataclasses.dataclass(frozen=True)
class Task:
  """One shard to build; pickles to another process."""

  out: str
  split: str
  number: int
  units: tuple[tuple[str, Unit], ...]  # (prefix of ids, unit)

  @property
  def sha256(self) -> str:
    """Of the names of its units."""
    names = [[prefix, unit.id] for prefix, unit in self.units]
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def write(task: Task) -> tuple[Shard, list[Fault]]:
  """Builds one shard and puts its files in place."""
  out = files.absolute(task.out)
  remote = files.is_remote(out)
  parent = None if remote else os.fspath(out / manifest.PARTIAL)
  shard = Shard(
    split=task.split,
    number=task.number,
    units=len(task.units),
    units_sha256=task.sha256,
    triplets=0,
    quarantined=0,
    empty=0,
    faults=0,
    examples=shards.File(0, ""),
    headers=shards.File(0, ""),
    classes=(),
  )
  with tempfile.TemporaryDirectory(dir=parent) as folder:
    local = pathlib.Path(folder)
    examples, headers = local / "examples", local / "headers"
    writers = _writer(examples, _EXAMPLES), _writer(headers, _HEADERS)
    told, found = _write_units(task, *writers)
    for writer in writers:
      writer.close()
    shard = dataclasses.replace(
      shard, **told, examples=_file(examples), headers=_file(headers)
    )
    for path, name in (
      (examples, shard.examples_name),
      (headers, shard.headers_name),
    ):
      _place(path, out / name)
  return shard, found


def fault(error: DataError) -> Fault:
  """The error as a line of the quarantine."""
  return {
    "path": error.path,
    "field": error.field,
    "reason": error.message,
    "remedy": error.remedy,
  }


def _write_units(
  task: Task, examples: Any, headers: Any
) -> tuple[dict[str, Any], list[Fault]]:
  """What `Shard` says of the units, and their faults."""
  found: list[Fault] = []
  counts = {"triplets": 0, "quarantined": 0, "empty": 0}
  classes: dict[tuple[str, str], set[str]] = {}
  ids: set[str] = set()
  windows: set[str] = set()
  for prefix, unit in task.units:
    before, used = len(found), 0
    for triplet in _triplets(unit, prefix, found):
      if triplet.id in ids:
        found.append(
          fault(
            DataError(
              triplet.id,
              "id",
              "two triplets of the source have this id",
              "This is a fault of the reader; report it",
            )
          )
        )
        continue
      ids.add(triplet.id)
      examples.write(encoded.encode(triplet))
      headers.write(encoded.header(triplet))
      key = triplet.source, triplet.modality
      classes.setdefault(key, set()).update(triplet.classes)
      if triplet.window is not None:
        windows.add(triplet.window)
      used += 1
    counts["triplets"] += used
    if not used:
      counts["quarantined" if len(found) > before else "empty"] += 1
  return {
    **counts,
    "faults": len(found),
    "classes": tuple(
      (dataset, modality, tuple(sorted(names)))
      for (dataset, modality), names in sorted(classes.items())
    ),
    "windows": tuple(sorted(windows)),
  }, found


def _triplets(unit: Unit, prefix: str, found: list[Fault]) -> Iterator[Triplet]:
  """A unit's triplets; whatever it raises is a fault like any other."""
  told = unit.triplets(lambda error: found.append(fault(error)))
  while True:
    try:
      triplet = next(told, None)
      if triplet is None:
        return
      _require_sound(unit, triplet)
    except DataError as error:
      found.append(fault(error))
      return
    except MemoryError:
      raise  # of this machine, not of the file
    # A reader's own mistake, or a library's about a strange file: it must not
    # stop a build of millions, nor pass unseen.
    except Exception as error:
      found.append(
        fault(
          DataError(
            unit.id,
            "unit",
            f"reading it raised {type(error).__name__}: {error}",
            "Save it anew; if it is sound, report this",
          )
        )
      )
      return
    yield dataclasses.replace(triplet, id=prefix + triplet.id)


def _require_sound(unit: Unit, triplet: Triplet) -> None:
  """Raises DataError where arrays are not what `Triplet` says."""
  image_IJC, masks_GIJ = triplet.image_IJC, triplet.masks_GIJ
  if (
    image_IJC.dtype != np.uint8
    or image_IJC.shape[2:] != (3,)
    or masks_GIJ.dtype != bool
    or masks_GIJ.shape != (len(triplet.classes), *image_IJC.shape[:2])
    or len(set(triplet.classes)) != len(triplet.classes)
  ):
    raise DataError(
      unit.id,
      "triplet",
      f"image {image_IJC.dtype}{list(image_IJC.shape)}, masks "
      f"{masks_GIJ.dtype}{list(masks_GIJ.shape)}, classes {triplet.classes}",
      "This is a fault of the reader; report it",
    )


def _writer(path: pathlib.Path, options: str) -> Any:
  return array_record_module.ArrayRecordWriter(str(path), options)


def _file(path: pathlib.Path) -> shards.File:
  return shards.File(path.stat().st_size, shards.digest(path))


def _place(path: pathlib.Path, to: epath.Path) -> None:
  """Puts a finished file where it belongs, whole or not at all."""
  to.parent.mkdir(parents=True, exist_ok=True)
  if files.is_remote(to):
    epath.Path(path).copy(to, overwrite=True)
    return
  manifest.sync(path)
  os.replace(path, to)
  manifest.sync(to.parent)
