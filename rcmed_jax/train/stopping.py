"""SIGINT and SIGTERM: noticed at once, obeyed after a step."""

from collections.abc import Callable
import os
import signal
import threading
from typing import Any

from rcmed_jax.parallel import faults


class Signals:
  """Tells of SIGINT and SIGTERM while it is entered; a second one acts at once.

  Outside the main thread Python takes no handlers; there it tells of nothing.
  """

  def __init__(self, tell: Callable[[int], None]):
    """Calls `tell` with the first signal's number, perhaps twice.

    A handler of Python's waits until the main thread comes back from waiting
    for the devices. What the interpreter writes to a pipe as the signal comes
    does not, and another thread reads it.
    """
    self._tell = tell
    self._before: dict[signal.Signals, Any] = {}
    self._pipe: tuple[int, int] | None = None
    self._pipe_before = -1

  def __enter__(self) -> "Signals":
    if threading.current_thread() is threading.main_thread():
      self._pipe = os.pipe()
      os.set_blocking(self._pipe[1], False)
      self._pipe_before = signal.set_wakeup_fd(
        self._pipe[1], warn_on_full_buffer=False
      )
      threading.Thread(target=self._read, args=self._pipe, daemon=True).start()
      for number in (signal.SIGINT, signal.SIGTERM):
        self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    if self._pipe:
      signal.set_wakeup_fd(self._pipe_before)
      os.close(self._pipe[1])  # which ends the thread

  def _note(self, number: int, _: object) -> None:
    signal.signal(number, self._before[signal.Signals(number)])
    self._tell(number)

  def _read(self, end: int, _: int) -> None:
    with os.fdopen(end, "rb", buffering=0) as pipe:
      while number := pipe.read(1):
        if number[0] in (signal.SIGINT, signal.SIGTERM):
          self._tell(number[0])


def exit_code(number: int) -> int:
  """A person's Ctrl-C is final; a scheduler's SIGTERM asks to come back."""
  return faults.STOPPED if number == signal.SIGTERM else 128 + number
