"""Guards around what is global in libraries, for several threads at once.

Loggers, filters of warnings and nibabel's level of errors belong to the whole
process. Were each user to set and restore them, the first to leave would take
the guard from the others, and the last might restore what another had set.
"""

from collections.abc import Callable, Iterator
import contextlib
import logging
import threading
from types import TracebackType
import warnings


class Shared:
  """A guard that the first to enter sets and the last to leave takes away.

  Args:
    make: the guard, as one thread alone would use it.
  """

  def __init__(
    self, make: Callable[[], contextlib.AbstractContextManager[object]]
  ):
    self._make = make
    self._lock = threading.Lock()
    self._inside = 0
    self._held = contextlib.ExitStack()

  def __enter__(self) -> None:
    with self._lock:
      if not self._inside:
        self._held.enter_context(self._make())
      self._inside += 1

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    with self._lock:
      self._inside -= 1
      if not self._inside:
        self._held.close()


@contextlib.contextmanager
def without_logs(*names: str) -> Iterator[None]:
  """While it lasts, loggers of these names say nothing; for `Shared`."""
  loggers = [logging.getLogger(name) for name in names]
  before = [logger.disabled for logger in loggers]
  for logger in loggers:
    logger.disabled = True
  try:
    yield
  finally:
    for logger, disabled in zip(loggers, before, strict=True):
      logger.disabled = disabled


# One for all: two that save and restore the same filters would mix them up.
NO_WARNINGS = Shared(lambda: warnings.catch_warnings(action="ignore"))
