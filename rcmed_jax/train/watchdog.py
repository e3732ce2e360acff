"""A run that hangs says where and ends, so that it can be started again."""

import os
import sys
import threading
import time
import traceback

from etils import epath
import jax

from rcmed_jax.parallel import faults

# Of a process, in the working directory.
DUMP = "hang-{}.txt"


class Watchdog:
  """Ends the process when no step came for too long; use as a context manager.

  Where one process of several hangs, the others wait for it in a collective:
  each has its own watchdog, and each writes where its threads stand. Python's
  own stacks tell it; what hangs inside a library shows the call into it.
  """

  def __init__(self, limit_s: float, workdir: epath.Path):
    """Watches from a `fed` on until it may `rest`.

    Args:
      limit_s: longer than a step with its checkpoint and evaluation, and than
        reading a part of a checkpoint; 0: never.
      workdir: takes the stacks.
    """
    self._limit_s = limit_s
    self._path = workdir / DUMP.format(jax.process_index())
    self._fed_at: float | None = None
    self._over = threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)

  def __enter__(self) -> "Watchdog":
    if self._limit_s:
      self._thread.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._over.set()

  def fed(self) -> None:
    """A step was done, or something else that it waits for."""
    self._fed_at = time.monotonic()  # wall clocks jump

  def rest(self) -> None:
    """What comes now, as compilation, takes the time it takes."""
    self._fed_at = None

  def _watch(self) -> None:
    while not self._over.wait(self._limit_s / 10):
      fed_at = self._fed_at
      if fed_at is not None and time.monotonic() - fed_at > self._limit_s:
        self._bite()

  def _bite(self) -> None:
    stacks = _stacks()
    print(
      f"No step for {self._limit_s:g} s (train.watchdog_s): ending the process "
      f"with code {faults.HUNG}; the same command goes on from the last "
      f"checkpoint. Where its threads stand, also in {self._path}:\n"
      f"{stacks}",
      file=sys.stderr,
      flush=True,
    )
    try:
      self._path.write_text(stacks, encoding="utf-8")
    finally:  # the disk may be what hangs or is full
      os._exit(faults.HUNG)


def _stacks() -> str:
  """The Python stack of every thread, as text."""
  names = {thread.ident: thread.name for thread in threading.enumerate()}
  return "\n".join(
    f"Thread {names.get(ident, ident)}:\n"
    + "".join(traceback.format_stack(frame))
    for ident, frame in sys._current_frames().items()
  )
