"""A profiler's trace of a few steps of a run."""

import os
import re
from typing import Any

from etils import epath
import jax

FOLDER = "profile"


def parse(text: str) -> tuple[int, int]:
  """(first, last) step of a window such as "100:110".

  Raises:
    ValueError: it is none.
  """
  found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", text)
  first, last = map(int, found.groups()) if found else (1, 0)
  if last < first:
    raise ValueError(
      f"--profile={text}: expected FIRST:LAST, steps counted from 1, as in "
      "100:110."
    )
  return first, last


class Window:
  """Traces the steps of a window into `workdir/profile`; a context manager.

  The trace is for TensorBoard's profiler or Perfetto. A window that lies before
  the step a run goes on from traces nothing.
  """

  def __init__(
    self, window: tuple[int, int] | None, workdir: str | os.PathLike[str]
  ):
    self._first, self._last = window or (0, -1)
    self._folder = epath.Path(workdir) / FOLDER
    self._tracing = False

  def __enter__(self) -> "Window":
    return self

  def __exit__(self, *_: object) -> None:
    self._stop()

  def before(self, step: int) -> None:
    """Begins, where the step is the first of the window that runs."""
    if not self._tracing and self._first <= step <= self._last:
      self._folder.mkdir(parents=True, exist_ok=True)
      jax.profiler.start_trace(str(self._folder))
      self._tracing = True

  def after(self, step: int, results: Any) -> None:
    """Ends after the last step, once the devices have its `results`."""
    if self._tracing and step >= self._last:
      jax.block_until_ready(results)
      self._stop()

  def _stop(self) -> None:
    if self._tracing:
      self._tracing = False
      jax.profiler.stop_trace()
