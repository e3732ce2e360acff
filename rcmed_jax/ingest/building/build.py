"""Sources to shards: in parallel, and again from where it was killed.

Units are counted through all sources of a split, and a shard is so many of
them: which units are in it, and so its bytes, depend on nothing else. A shard
is written under another name, brought to the disk, renamed, and only then
entered in the journal. What is not entered is built again.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
import contextlib
import dataclasses
import fcntl
import json
import multiprocessing
from multiprocessing import connection
import os
import shutil
import tempfile
import threading
from typing import Any

import cv2
from etils import epath

from rcmed_jax.data import files
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.shards import Shard
from rcmed_jax.ingest.building import manifest, shard_files
from rcmed_jax.ingest.building.manifest import Fault, Totals
from rcmed_jax.ingest.building.shard_files import Task
from rcmed_jax.ingest.sources import Source, Unit

# Units a shard: some 100 MB of images, and a file to copy in a second.
SHARD_UNITS = 256
# Shards that wait for a process, so that none waits for a source.
_AHEAD = 2
# Expected of a shard before the first is finished.
_FIRST_BYTES = 64 << 20


@dataclasses.dataclass(frozen=True)
class Input:
  """One source and where its triplets go."""

  split: str
  source: Source
  # Before its ids where a split has several sources; "" for none.
  prefix: str = ""


def build(
  inputs: Sequence[Input],
  out: str | os.PathLike[str],
  settings: dict[str, Any],
  *,
  processes: int = 1,
  shard_units: int = SHARD_UNITS,
  on_shard: Callable[[Shard], None] = lambda shard: None,
) -> Totals:
  """Builds what is not yet built; returns the totals of all there is.

  Args:
    inputs: in the order in which their units are counted.
    out: folder of the data set, on a disk or in a bucket.
    settings: JSON values that say what is built, to be the same when a build
      goes on.
    processes: that build at once; 1: this one.
    shard_units: units a shard.
    on_shard: told of each shard that is there, built now or before.

  Raises:
    ValueError: the folder was begun with other settings or sources, another
      build is at work in it, or the disk is too full.
    DataError: a source has nothing of its format, or none has a unit.
  """
  folder = files.absolute(out)
  with _only_one(folder):
    journal = manifest.Journal(folder, settings | {"shard_units": shard_units})
    known: set[tuple[str, int]] = set()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as lines:

      def note(error: DataError) -> None:
        lines.write(json.dumps(shard_files.fault(error)) + "\n")

      tasks = _tasks(inputs, str(folder), shard_units, note)
      missing = _missing(tasks, journal, known, on_shard)
      for shard, found in _run(missing, folder, processes):
        journal.add(shard, found)
        on_shard(shard)
      journal.require_only(known)
      if not known:
        raise DataError(
          out, "sources", "they have no unit", "Check the paths of the sources"
        )
      lines.seek(0)
      return journal.finish(lines)


def _tasks(
  inputs: Sequence[Input],
  out: str,
  shard_units: int,
  on_fault: Callable[[DataError], None],
) -> Iterator[Task]:
  """All shards, made as the sources give their units."""
  waiting: dict[str, list[tuple[str, Unit]]] = {}
  numbers: dict[str, int] = {}
  for given in inputs:
    units = waiting.setdefault(given.split, [])
    for unit in given.source.units(on_fault):
      units.append((given.prefix, unit))
      if len(units) == shard_units:
        number = numbers.get(given.split, 0)
        yield Task(out, given.split, number, tuple(units))
        numbers[given.split] = number + 1
        units.clear()
  for split, units in waiting.items():
    if units:
      yield Task(out, split, numbers.get(split, 0), tuple(units))


def _missing(
  tasks: Iterator[Task],
  journal: manifest.Journal,
  known: set[tuple[str, int]],
  on_shard: Callable[[Shard], None],
) -> Iterator[Task]:
  """Those that are not finished; takes note of all."""
  for task in tasks:
    known.add((task.split, task.number))
    shard = journal.finished(task.split, task.number)
    if shard is None:
      yield task
      continue
    if shard.units_sha256 != task.sha256:
      raise ValueError(
        f"{task.out}: {task.split} shard {task.number} was built of other "
        f"units than the {len(task.units)} from {task.units[0][1].id} on; the "
        "sources have changed. Restore them, or build into another folder."
      )
    on_shard(shard)


def _run(
  tasks: Iterator[Task], out: epath.Path, processes: int
) -> Iterator[tuple[Shard, list[Fault]]]:
  """Finished shards as they come; few tasks are held at once."""
  largest = 0
  if processes == 1:
    for task in tasks:
      _require_space(out, max(largest, _FIRST_BYTES))
      shard, found = shard_files.write(task)
      largest = max(largest, shard.examples.bytes + shard.headers.bytes)
      yield shard, found
    return
  with _workers(processes) as pool:
    pending: set[futures.Future] = set()
    exhausted = False
    while pending or not exhausted:
      while not exhausted and len(pending) < processes + _AHEAD:
        task = next(tasks, None)
        if task is None:
          exhausted = True
          break
        _require_space(out, (len(pending) + 1) * max(largest, _FIRST_BYTES))
        pending.add(pool.submit(shard_files.write, task))
      done, pending = futures.wait(pending, return_when=futures.FIRST_COMPLETED)
      for future in done:
        shard, found = future.result()
        largest = max(largest, shard.examples.bytes + shard.headers.bytes)
        yield shard, found


@contextlib.contextmanager
def _workers(processes: int) -> Iterator[futures.ProcessPoolExecutor]:
  pool = futures.ProcessPoolExecutor(
    processes,
    mp_context=multiprocessing.get_context("spawn"),
    initializer=_start_worker,
  )
  try:
    yield pool
  except BrokenProcessPool as error:
    raise ValueError(
      "a process that built shards was killed, mostly for want of memory; "
      "give fewer --processes. What is finished stays."
    ) from error
  finally:
    pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
  cv2.setNumThreads(1)  # there are as many processes as cores are to be used
  parent = multiprocessing.parent_process()
  assert parent is not None

  def watch() -> None:
    # A killed parent cannot tell its workers, who would wait for ever.
    connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _require_space(out: epath.Path, needed: int) -> None:
  if files.is_remote(out):
    return
  free = shutil.disk_usage(out).free
  if free < needed:
    raise ValueError(
      f"{out}: the next shards need about {needed} bytes and {free} are free; "
      "make room and run the same command again, it goes on."
    )


@contextlib.contextmanager
def _only_one(out: epath.Path) -> Iterator[None]:
  """Keeps a second build out of the folder, and clears what a killed one left.

  The lock goes with its process, however that ends. Buckets have none.
  """
  if files.is_remote(out):
    yield
    return
  out.mkdir(parents=True, exist_ok=True)
  with open(out / manifest.LOCK, "w", encoding="utf-8") as lock:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise ValueError(
        f"another build is at work in {out}; wait for it, or give another "
        "--out."
      ) from error
    shutil.rmtree(out / manifest.PARTIAL, ignore_errors=True)
    (out / manifest.PARTIAL).mkdir()
    try:
      yield
    finally:
      shutil.rmtree(out / manifest.PARTIAL, ignore_errors=True)
