"""Answers that take minutes: told slice by slice, and left off if nobody waits.

A job runs in a thread of its own and owns the folder that it works in, so that
nothing is removed under its hands; once its client has left, it ends with the
slice at hand.
"""

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
import dataclasses
import io
import pathlib
import tempfile
import threading
from typing import Any
import zipfile

from starlette.exceptions import HTTPException
from starlette.requests import Request

from rcmed_jax.data.checks import DataError
from rcmed_jax.serve import asking, errors, events
from rcmed_jax.serve.engine import NotReadyError, QueueFullError

# Volumes that are answered at once; each is in memory. More get a 429.
AT_ONCE = 2
_AGAIN_S = 20.0

# Called after each slice with the number of all.
OnSlice = Callable[[int], None]
# Writes its files into a folder; what is said of them comes back.
Answering = Callable[[OnSlice, pathlib.Path], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Result:
  """An answer and its files by their names."""

  answered: dict[str, Any]
  files: dict[str, bytes]

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


class Jobs:
  """The jobs of a server."""

  def __init__(self, at_once: int = AT_ONCE):
    self._places = threading.BoundedSemaphore(at_once)

  def start(
    self, answering: Answering, folder: tempfile.TemporaryDirectory[str]
  ) -> "Job":
    """A job that has begun.

    Args:
      folder: to work in; it goes with the end of the job.

    Raises:
      HTTPException: 429, as many run as may.
    """
    if not self._places.acquire(blocking=False):
      folder.cleanup()
      raise errors.later(429, "other volumes are being answered", _AGAIN_S)
    return Job(answering, folder, self._places.release)


class Job:
  """One volume's answer to come; made in the event loop."""

  def __init__(
    self,
    answering: Answering,
    folder: tempfile.TemporaryDirectory[str],
    done: Callable[[], None],
  ):
    self._loop = asyncio.get_running_loop()
    self._stopped = threading.Event()
    # (slices that are done, all of them); None at the end.
    self._told: asyncio.Queue[tuple[int, int] | None] = asyncio.Queue()
    self._future: asyncio.Future[Result] = self._loop.create_future()
    threading.Thread(
      target=self._run,
      args=(answering, folder, done),
      name="volume",
      daemon=True,
    ).start()

  async def result(self, request: Request) -> Result:
    """The result, unless the client leaves first.

    Raises:
      What the job ends in; HTTPException: 499, the client left.
    """
    gone = asyncio.create_task(asking.left(request))
    try:
      await asyncio.wait(
        (self._future, gone), return_when=asyncio.FIRST_COMPLETED
      )
      if not self._future.done():
        raise HTTPException(errors.CLIENT_LEFT, "the client left")
      return self._future.result()
    finally:
      gone.cancel()
      self._stopped.set()

  async def events(self) -> AsyncIterator[str]:
    """Server-sent events: {"slice", "slices"}, then {"answer"} or {"error"}."""
    try:
      while (told := await self._told.get()) is not None:
        yield events.event({"slice": told[0], "slices": told[1]})
      try:
        yield events.event({"answer": self._future.result().json()})
      except Exception as error:  # the status was sent long ago
        yield events.event(_body(error))
        if _status(error) == 500:
          raise
      yield "data: [DONE]\n\n"
    finally:
      self._stopped.set()

  def _run(
    self,
    answering: Answering,
    folder: tempfile.TemporaryDirectory[str],
    done: Callable[[], None],
  ) -> None:
    count = 0

    def on_slice(slices: int) -> None:
      nonlocal count
      count += 1
      if self._stopped.is_set():
        raise _StoppedError
      self._say((count, slices))

    try:
      with folder:
        out = pathlib.Path(folder.name) / "answer"
        answered = answering(on_slice, out)
        files = {path.name: path.read_bytes() for path in out.iterdir()}
      self._end(Result(answered, files), None)
    except Exception as error:  # of any library; whoever waits raises it
      self._end(None, error)
    finally:
      done()

  def _end(self, result: Result | None, error: Exception | None) -> None:
    def end() -> None:
      if error is None:
        self._future.set_result(result)  # pyright: ignore
      else:
        self._future.set_exception(_told_as(error))
        self._future.exception()  # nobody may be there to raise it
      self._told.put_nowait(None)

    self._call(end)

  def _say(self, told: tuple[int, int]) -> None:
    self._call(lambda: self._told.put_nowait(told))

  def _call(self, what: Callable[[], None]) -> None:
    """In the event loop, if the server still runs."""
    if not self._loop.is_closed():
      self._loop.call_soon_threadsafe(what)


class _StoppedError(Exception):
  """Nobody waits any more."""


def _told_as(error: Exception) -> Exception:
  """The error as the client is told of it."""
  if type(error) is ValueError:  # of the assistant, or of clean-up
    return errors.BadFieldError("prompt", str(error))
  return error


def _status(error: Exception) -> int:
  if isinstance(error, errors.BadFieldError):
    return error.status
  if isinstance(error, HTTPException):
    return error.status_code
  kinds = (
    (DataError, 400),
    (NotImplementedError, 501),
    (QueueFullError, 429),
    (NotReadyError, 503),
    (TimeoutError, 504),
  )
  return next((code for kind, code in kinds if isinstance(error, kind)), 500)


def _body(error: Exception) -> dict[str, Any]:
  """As `errors.add_handlers` would answer it."""
  status = _status(error)
  if isinstance(error, errors.BadFieldError):
    return errors.body(status, f"{error.field}: {error.message}", error.field)
  if isinstance(error, DataError):
    return errors.body(status, errors.of_data(error), error.field)
  if status == 500:
    return errors.body(status, errors.FAULT)
  return errors.body(status, str(error) or "there was no answer in time")
