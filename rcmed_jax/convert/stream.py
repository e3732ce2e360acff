"""Arrays into a folder of safetensors files, one piece in memory at a time.

Sizes are known before any number is, so the files are made at full size and
each piece is written to its place. Everything happens in OUT.partial, which
takes its name at the end. A journal there lists the pieces that are safely on
the disk: after a crash, the same command goes on from there and ends with the
same bytes.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any

import numpy as np

from rcmed_jax.convert import safetensors_file
from rcmed_jax.convert.tensors import Array
from rcmed_jax.data.files import write_whole

# As large as transformers makes its shards.
SHARD_BYTES = 5_000_000_000
# Between two looks at the disk: what a crash may cost.
SYNC_BYTES = 1 << 30
JOURNAL = "journal.jsonl"

Files = Mapping[str, Sequence[Array]]
# Called with the bytes of each piece once it is written, or found to be, and
# with those of all pieces.
Progress = Callable[[int, int], None]


def split(
  arrays: Iterable[Array], stem: str, most: int = SHARD_BYTES
) -> dict[str, list[Array]]:
  """The arrays of each file, `stem-00001-of-0000N.safetensors`, in order.

  An array larger than `most` bytes has a file of its own.
  """
  shards: list[list[Array]] = [[]]
  filled = 0
  for array in arrays:
    if shards[-1] and filled + array.nbytes > most:
      shards.append([])
      filled = 0
    shards[-1].append(array)
    filled += array.nbytes
  return {
    f"{stem}-{1 + at:05}-of-{len(shards):05}.safetensors": shard
    for at, shard in enumerate(shards)
  }


def index(files: Files) -> dict[str, Any]:
  """The JSON that says in which file each array lies."""
  return {
    "metadata": {"total_size": _total(files)},
    "weight_map": {
      array.name: name for name, some in files.items() for array in some
    },
  }


@contextlib.contextmanager
def folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """OUT.partial to write into; it becomes OUT if no error comes.

  Raises:
    FileExistsError: OUT exists, or OUT.partial is of no conversion.
  """
  partial = out.with_name(out.name + ".partial")
  journal = partial / JOURNAL
  if out.exists():
    raise FileExistsError(f"{out} exists; remove it or give another OUT.")
  if partial.exists() and not journal.exists():
    raise FileExistsError(
      f"{partial} is not of an unfinished conversion; remove it."
    )
  partial.mkdir(parents=True, exist_ok=True)
  yield partial
  journal.unlink()
  partial.rename(out)


def write(
  partial: pathlib.Path,
  files: Files,
  sources: Mapping[str, Any],
  progress: Progress = lambda *_: None,
) -> None:
  """Writes all pieces of all files that are not written yet.

  Args:
    partial: from `folder`.
    files: by file name, from `split`.
    sources: JSON that changes when the numbers may have; from `fingerprint`.
    progress: told of each piece.

  Raises:
    ValueError: the folder holds a conversion of something else.
    OSError: the disk has no room for it.
  """
  layouts = {
    name: safetensors_file.header(_aligned(some))
    for name, some in files.items()
  }
  headers = b"".join(first for first, _ in layouts.values())
  task = {**sources, "layout": hashlib.sha256(headers).hexdigest()}
  done = _begin(partial / JOURNAL, task)
  sizes = {
    name: len(layouts[name][0]) + sum(array.nbytes for array in some)
    for name, some in files.items()
  }
  _require_space(partial, sizes)
  total = _total(files)
  for name, some in files.items():
    first, offsets = layouts[name]
    places = zip(_aligned(some), offsets, strict=True)
    with _File(partial / name, sizes[name], first) as file:
      for array, offset in places:
        for size in _fill(file, array, offset, done):
          progress(size, total)


def fingerprint(files: Iterable[pathlib.Path]) -> dict[str, Any]:
  """What tells whether files have changed, unread: their sizes and times."""
  found = {}
  for path in sorted(set(files)):
    stat = path.stat()
    found[str(path.absolute())] = [stat.st_size, stat.st_mtime_ns]
  return found


def digests(files: Iterable[pathlib.Path]) -> dict[str, str]:
  """sha256 of each file, by its name."""
  found = {}
  for path in sorted(set(files)):
    with path.open("rb") as file:
      found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
  return found


class _File:
  """A file of known size and its lines in the journal."""

  def __init__(self, path: pathlib.Path, size: int, first: bytes):
    self._journal = path.with_name(JOURNAL)
    self._number = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.truncate(self._number, size)
    self._put(first, 0)
    self._pending: list[str] = []
    self._unsynced = 0

  def __enter__(self) -> "_File":
    return self

  def __exit__(self, *_: object) -> None:
    # Whatever stopped the work, what is written is kept.
    try:
      self._settle()
    finally:
      os.close(self._number)

  def write(self, data: memoryview, offset: int, label: str) -> None:
    """Writes a piece to its place; the journal learns of it later."""
    self._put(data, offset)
    self._pending.append(label)
    self._unsynced += len(data)
    if self._unsynced >= SYNC_BYTES:
      self._settle()

  def _put(self, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:  # the system may take less than all at once
      written = os.pwrite(self._number, view, offset)
      view, offset = view[written:], offset + written

  def _settle(self) -> None:
    """Names the pending pieces in the journal once the disk has them."""
    os.fsync(self._number)
    with self._journal.open("a", encoding="utf-8") as journal:
      journal.writelines(json.dumps(label) + "\n" for label in self._pending)
      journal.flush()
      os.fsync(journal.fileno())
    self._pending, self._unsynced = [], 0


def _fill(
  file: _File, array: Array, offset: int, done: set[str]
) -> Iterator[int]:
  """Writes the pieces of an array that begins at `offset`; yields sizes."""
  for place, read in array.pieces.items():
    leading = array.shape[: len(place)]
    count = int(np.prod(leading, dtype=np.int64))
    size = array.nbytes // count
    at = int(np.ravel_multi_index(place, leading)) if place else 0
    label = f"{array.name} {list(place)}"
    if label not in done:
      file.write(_bytes(read()), offset + at * size, label)
    yield size


def _total(files: Files) -> int:
  return sum(array.nbytes for some in files.values() for array in some)


def _bytes(values: np.ndarray) -> memoryview:
  """Its numbers in C order."""
  # Plain integers are reordered twice as fast as bfloat16.
  bits = values.view(f"u{values.dtype.itemsize}")
  return np.ascontiguousarray(bits).reshape(-1).view(np.uint8).data


def _aligned(arrays: Sequence[Array]) -> list[Array]:
  """Wide numbers first, so that each array begins at a multiple of its own."""
  return sorted(arrays, key=lambda array: -array.dtype.itemsize)


def _begin(journal: pathlib.Path, task: Mapping[str, Any]) -> set[str]:
  """Labels of the pieces that are done; starts the journal if there is none."""
  if not journal.exists():
    journal.write_text(json.dumps(task) + "\n", encoding="utf-8")
    return set()
  text = journal.read_text(encoding="utf-8")
  # A crash may have cut the last line.
  first, *lines = text[: text.rfind("\n") + 1].splitlines() or ["{}"]
  if json.loads(first) != json.loads(json.dumps(task)):
    raise ValueError(
      f"{journal.parent} holds an unfinished conversion of other files, or of "
      "these before they changed; remove it."
    )
  write_whole(journal, "\n".join([first, *lines, ""]))
  return {json.loads(line) for line in lines}


def _require_space(partial: pathlib.Path, sizes: Mapping[str, int]) -> None:
  """Refuses to begin what the disk cannot hold."""
  held = sum(
    (partial / name).stat().st_blocks * 512
    for name in sizes
    if (partial / name).exists()
  )
  needed = sum(sizes.values()) - held
  free = shutil.disk_usage(partial).free
  if needed > free:
    raise OSError(
      f"{partial}: no space: the conversion needs {needed:,} more bytes, "
      f"{free:,} are free; free some or give an OUT on another disk."
    )
