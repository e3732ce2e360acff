"""Units of many sources read by several processes, in their order."""

import collections
from collections.abc import Iterator, Sequence
import concurrent.futures
from concurrent.futures.process import BrokenProcessPool
import multiprocessing
import signal

import cv2

from rcmed_jax.ingest.checking import facts
from rcmed_jax.ingest.sources import Unit

# Pictures handed to a process at once, so that the hand-over costs little; and
# how many such batches wait for each process. Volumes go one by one.
BATCH = 16
AHEAD = 4


def read(
  units: Iterator[Unit], processes: int, decode: bool
) -> Iterator[facts.UnitFacts]:
  """The facts of each unit, in order.

  A unit that ends its process, through a fault in a library or for want of
  memory, is a fault like others: the rest goes on in new processes.

  Raises:
    ImportError: see `facts.of_units`.
  """
  batches = _batches(units)
  if processes < 2:
    for batch in batches:
      yield from facts.of_units(batch, decode)
    return
  pool = _pool(processes)
  waiting: collections.deque[_Batch] = collections.deque()
  try:
    for batch in batches:
      waiting.append((batch, _submit(pool, batch, decode)))
      if len(waiting) <= processes * AHEAD:
        continue
      found, pool = _take(waiting, pool, processes, decode)
      yield from found
    while waiting:
      found, pool = _take(waiting, pool, processes, decode)
      yield from found
  finally:
    pool.shutdown(wait=False, cancel_futures=True)


def _batches(units: Iterator[Unit]) -> Iterator[list[Unit]]:
  batch: list[Unit] = []
  for unit in units:
    batch.append(unit)
    if len(batch) == BATCH or not hasattr(unit, "record"):
      yield batch
      batch = []
  if batch:
    yield batch


_Batch = tuple[list[Unit], concurrent.futures.Future]


def _take(
  waiting: collections.deque[_Batch],
  pool: concurrent.futures.ProcessPoolExecutor,
  processes: int,
  decode: bool,
) -> tuple[Sequence[facts.UnitFacts], concurrent.futures.ProcessPoolExecutor]:
  """The facts of the first batch, and the pool to go on with."""
  batch, future = waiting.popleft()
  try:
    return future.result(), pool
  except BrokenProcessPool:
    pool.shutdown(wait=False)
  # Which batch did it cannot be known: each unit of the first is read alone,
  # the others are handed out again.
  found = _one_by_one(batch, decode)
  pool = _pool(processes)
  for index, (others, future) in enumerate(waiting):
    if not future.done() or future.exception():
      waiting[index] = others, _submit(pool, others, decode)
  return found, pool


def _submit(
  pool: concurrent.futures.ProcessPoolExecutor, batch: list[Unit], decode: bool
) -> concurrent.futures.Future:
  """The batch's future; of a broken pool, one that says so when asked."""
  try:
    return pool.submit(facts.of_units, batch, decode)
  except BrokenProcessPool as error:
    future = concurrent.futures.Future()
    future.set_exception(error)
    return future


def _one_by_one(units: Sequence[Unit], decode: bool) -> list[facts.UnitFacts]:
  """The facts of each; one that ends its process takes no other with it."""
  found = []
  pool = _pool(1)
  for unit in units:
    try:
      found += pool.submit(facts.of_units, [unit], decode).result()
    except BrokenProcessPool:
      found.append(facts.broken(unit, "reading it ended the process"))
      pool.shutdown(wait=False)
      pool = _pool(1)
  pool.shutdown(wait=False)
  return found


def _pool(processes: int) -> concurrent.futures.ProcessPoolExecutor:
  return concurrent.futures.ProcessPoolExecutor(
    processes, multiprocessing.get_context("spawn"), _prepare
  )


def _prepare() -> None:
  # Ctrl-C reaches all of them; the first process decides what becomes of it.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  # As many threads as processes are enough.
  cv2.setNumThreads(1)
