"""How much memory the masks of all volumes that are answered may take.

Masks come as slices are answered, and nobody knows how many before: a volume
of 400 million voxels that shows 64 classes would need 26 GB of them.
"""

from collections.abc import Iterator
import contextlib
import threading
from typing import Protocol


class FullError(RuntimeError):
  """Other volumes hold so much that there is no room now."""


class Take(Protocol):
  """Sets bytes aside."""

  def __call__(self, size: int) -> None:
    """Before they are needed.

    Raises:
      FullError: others hold too much; there will be room once they end.
      ValueError: it would never fit.
    """
    ...


def unbounded(size: int) -> None:
  """Takes what a command on one's own machine asks for."""
  del size


class MaskMemory:
  """Bytes that all volumes share; threads may.

  Args:
    most_bytes: of all together.
  """

  def __init__(self, most_bytes: float):
    self._most_bytes = most_bytes
    self._held = 0
    self._lock = threading.Lock()

  @contextlib.contextmanager
  def share(self) -> Iterator[Take]:
    """What one volume takes, until its files are written."""
    own = 0

    def take(size: int) -> None:
      nonlocal own
      if own + size > self._most_bytes:
        raise ValueError(
          "the slices show more classes than there is memory for, "
          f"{self._most_bytes / 1e9:g} GB; ask for fewer, by name."
        )
      with self._lock:
        if self._held + size > self._most_bytes:
          raise FullError(
            "the masks of other volumes fill the server's memory; ask again "
            "once they are answered"
          )
        self._held += size
      own += size

    try:
      yield take
    finally:
      with self._lock:
        self._held -= own
