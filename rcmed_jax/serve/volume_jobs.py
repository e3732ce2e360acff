"""Answers that take minutes: told slice by slice, and left off if nobody waits.

A job runs in a thread of its own. Once its client has left, or its time is
over, it ends with the slice at hand, and then its place is free.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
import dataclasses
import io
import pathlib
import threading
import time
from typing import Any, Generic, TypeVar
import zipfile

from starlette.requests import Request

from rcmed_jax.serve import errors, events, waiting

Result = TypeVar("Result")

# Volumes that are answered at once, and that may wait for it. Their slices
# take turns with pictures; each volume is in memory.
AT_ONCE, MOST_WAITING = 2, 8
_AGAIN_S = 30.0

# Called after each slice with the number of all.
OnSlice = Callable[[int], None]


class Jobs:
  """The jobs of a server; made anywhere, used in one event loop."""

  def __init__(self, at_once: int = AT_ONCE, most_waiting: int = MOST_WAITING):
    self._free = asyncio.Semaphore(at_once)
    self._most_waiting = most_waiting
    self._waiting = 0

  async def begin(
    self, answering: Callable[[OnSlice], Result], most_s: float
  ) -> "Job[Result]":
    """A job that has begun, once there is a place for it.

    Args:
      answering: raises what its argument raises: nobody waits any more.
      most_s: that it may take from then on.

    Raises:
      HTTPException: 429, as many wait as may.
    """
    if self._free.locked() and self._waiting >= self._most_waiting:
      raise errors.later(429, "too many volumes wait", _AGAIN_S)
    self._waiting += 1
    try:
      await self._free.acquire()
    finally:
      self._waiting -= 1
    return Job(answering, most_s, self._free.release)


class Job(Generic[Result]):
  """One volume's answer to come; made in the event loop.

  Args:
    most_s: that it may take.
    done: called there at its end.
  """

  def __init__(
    self,
    answering: Callable[[OnSlice], Result],
    most_s: float,
    done: Callable[[], None],
  ):
    self._until = time.monotonic() + most_s
    self._loop = asyncio.get_running_loop()
    self._stopped = threading.Event()
    # (slices that are done, all of them); None at the end.
    self._told: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()
    self._future: asyncio.Future[Result] = self._loop.create_future()
    threading.Thread(
      target=self._run, args=(answering, done), name="volume", daemon=True
    ).start()

  async def result(self, request: Request) -> Result:
    """The result, unless the client leaves first. It has ended in any case.

    Raises:
      What the job ends in, or as `waiting.first`.
    """
    try:
      await waiting.first(request, self._future, most_s=self._left_s())
      return self._future.result()
    finally:
      self._stopped.set()
      await asyncio.wait((self._future,))

  async def events(
    self, answered: Callable[[Result], dict[str, Any]]
  ) -> AsyncIterator[str]:
    """Server-sent events: {"slice", "slices"}, then {"answer"} or {"error"}."""
    try:
      try:
        while (told := await self._next()) is not None:
          yield events.event({"slice": told[0], "slices": told[1]})
        yield events.event({"answer": answered(self._future.result())})
      except Exception as error:  # the status was sent long ago
        yield events.event(errors.told(error))
        if errors.status(error) == 500:
          raise
      yield events.END
    finally:
      self._stopped.set()

  async def _next(self) -> tuple[int, int] | None:
    """What is told next.

    Raises:
      TimeoutError: the time is over.
    """
    async with asyncio.timeout(self._left_s()):
      return await self._told.get()

  def _left_s(self) -> float:
    return max(self._until - time.monotonic(), 0.0)

  def _run(
    self, answering: Callable[[OnSlice], Result], done: Callable[[], None]
  ) -> None:
    count = 0

    def on_slice(slices: int) -> None:
      nonlocal count
      count += 1
      if self._stopped.is_set():
        raise _StoppedError
      if time.monotonic() > self._until:
        raise TimeoutError
      self._call(self._told.put_nowait, (count, slices))

    try:
      result = answering(on_slice)
      self._call(self._future.set_result, result)
    except Exception as error:  # of any library; whoever waits raises it
      self._call(self._fail, error)
    self._call(self._told.put_nowait, None)
    self._call(done)

  def _fail(self, error: Exception) -> None:
    self._future.set_exception(error)
    self._future.exception()  # nobody may be there to raise it

  def _call(self, what: Callable[..., object], *args: Any) -> None:
    """In the event loop, if the server still runs."""
    if not self._loop.is_closed():
      self._loop.call_soon_threadsafe(what, *args)


@dataclasses.dataclass(frozen=True)
class Files:
  """An answer and its files by their names."""

  answered: dict[str, Any]
  files: dict[str, bytes]

  @classmethod
  def read(cls, answered: dict[str, Any], folder: pathlib.Path) -> "Files":
    """Of all that lies in a folder."""
    return cls(
      answered, {one.name: one.read_bytes() for one in folder.iterdir()}
    )

  def json(self) -> dict[str, Any]:
    """The answer, with `files` as base64; it stands for answer.json itself."""
    files = {
      name: base64.b64encode(data).decode()
      for name, data in self.files.items()
      if not name.endswith(".json")
    }
    return {**self.answered, "files": files}

  def zip(self) -> bytes:
    """A zip file of all files."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as packed:
      for name, data in sorted(self.files.items()):
        packed.writestr(name, data)
    return made.getvalue()


class _StoppedError(Exception):
  """Nobody waits any more."""
