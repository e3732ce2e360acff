"""What the server's paths share: the engine, the limits, how one asks."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
import contextlib
import dataclasses
import math
import pathlib
import threading
from typing import Any, TypeVar

import numpy as np
from starlette.exceptions import HTTPException
from starlette.requests import Request

from rcmed_jax.data import prompts, tokens
from rcmed_jax.serve import payload, scans
from rcmed_jax.serve.engine import Answered, Engine, Said
from rcmed_jax.serve.errors import CLIENT_LEFT, BadFieldError, later
from rcmed_jax.serve.limits import Keys, Limits
from rcmed_jax.serve.questions import Question

Result = TypeVar("Result")

# Pictures that are decoded or encoded at once, each in memory.
_AT_WORK = 4
# Volumes that are answered at once, and that may wait for it. Their slices
# take turns with pictures; each volume is in memory.
_VOLUMES, _MOST_VOLUMES = 2, 8


class _StoppedError(Exception):
  """Nobody waits for a volume any more."""


class Places:
  """Places for volumes, and how many wait for one."""

  def __init__(self, count: int):
    self.waiting = 0
    self._free = asyncio.Semaphore(count)

  @contextlib.asynccontextmanager
  async def place(self) -> AsyncIterator[None]:
    """One of them, once it is free."""
    self.waiting += 1
    try:
      await self._free.acquire()
    finally:
      self.waiting -= 1
    try:
      yield
    finally:
      self._free.release()


@dataclasses.dataclass(frozen=True)
class Service:
  """What a request is answered with."""

  engine: Engine
  limits: Limits
  keys: Keys
  name: str  # of the model
  modalities: tuple[str, ...] = ()  # that it was trained on, if that is known
  classes: tuple[str, ...] = ()  # likewise
  log_prompts: bool = False
  working: asyncio.Semaphore = dataclasses.field(
    default_factory=lambda: asyncio.Semaphore(_AT_WORK)
  )
  volumes: Places = dataclasses.field(default_factory=lambda: Places(_VOLUMES))

  async def work(self, what: Callable[[], Result]) -> Result:
    """The result of what keeps a core busy, made beside the event loop."""
    async with self.working:
      return await asyncio.to_thread(what)

  async def picture(self, data: bytes, field: str) -> np.ndarray:
    """See `payload.picture`. Who would be refused is so before the work."""
    self.engine.require_room()
    most = self.limits.pixels
    return await self.work(lambda: payload.picture(data, field, most))

  def submit(
    self, request: Request, question: Question, said: Said | None = None
  ) -> "asyncio.Future[Answered]":
    """The answer to come; cancel it once nobody waits for it.

    Args:
      said: told of the text as it grows.

    Raises:
      BadFieldError: the assistant cannot be asked so.
      QueueFullError, NotReadyError: see `Engine.submit`.
    """
    if self.log_prompts:
      request.state.prompt = question.text
    try:
      future = self.engine.submit(question, self.limits.answer_s, said)
    except ValueError as error:
      raise BadFieldError("prompt", str(error)) from error
    return asyncio.wrap_future(future)

  async def first(
    self, request: Request, *waiting: "asyncio.Future[Any]", most_s: float
  ) -> None:
    """Returns once one of them is done.

    Raises:
      HTTPException: the client left; nobody reads this.
      TimeoutError: none of them was in time.
    """
    gone = asyncio.create_task(left(request))
    try:
      await asyncio.wait(
        (*waiting, gone), timeout=most_s, return_when=asyncio.FIRST_COMPLETED
      )
      if any(one.done() for one in waiting):
        return
      if gone.done():
        raise HTTPException(CLIENT_LEFT, "the client left")
      raise TimeoutError
    finally:
      gone.cancel()

  async def ask(self, request: Request, question: Question) -> Answered:
    """The answer, unless the client leaves first; then it is not computed.

    Raises:
      As `submit` and `first`.
    """
    waiting = self.submit(request, question)
    try:
      await self.first(request, waiting, most_s=self.limits.answer_s)
      return waiting.result()
    except ValueError as error:
      raise BadFieldError("prompt", str(error)) from error
    finally:
      waiting.cancel()

  async def volume(
    self, request: Request, what: Callable[[Callable[[], None]], Result]
  ) -> Result:
    """The result of what asks about a volume, slice by slice.

    Args:
      what: calls its argument between slices, which raises where nobody waits
        for the answer any more.

    Raises:
      HTTPException: 429 where too many volumes wait, or see `first`.
      What `what` raises.
    """
    if self.volumes.waiting >= _MOST_VOLUMES:
      raise later(429, "too many volumes wait", 30)
    stopped = threading.Event()

    def go_on() -> None:
      if stopped.is_set():
        raise _StoppedError

    async with self.volumes.place():
      running = asyncio.ensure_future(asyncio.to_thread(what, go_on))
      try:
        await self.first(request, running, most_s=self.limits.volume_s)
        return running.result()
      finally:
        stopped.set()
        # Its place is free once its slice is answered.
        with contextlib.suppress(Exception):
          await running


def open_scan(
  path: pathlib.Path, text: str, looking: scans.Looking, limits: Limits
) -> scans.Scan:
  """A scan that is whole, and no larger than is answered.

  Raises:
    BadFieldError: 413, it is larger.
    DataError: it cannot be read, or not all of it.
  """
  scan = scans.open_scan(path, text, looking)
  if scan.faults:  # a slice too few would not be seen in the answer
    raise scan.faults[0]
  sizes = (
    (scan.view.shape, limits.voxels, "voxels"),
    (scan.view.shape[1:], limits.pixels, "pixels a slice"),
  )
  for shape, most, unit in sizes:
    if math.prod(shape) > most:
      raise BadFieldError(
        "image", f"it has more than {most / 1e6:g} million {unit}", 413
      )
  return scan


def check_text(text: str, field: str, limits: Limits) -> str:
  """The text as it was given.

  Raises:
    BadFieldError: it is empty, too long, or holds a marker of prompts.
  """
  if not text.strip():
    raise BadFieldError(field, "it has no text; write what to look for")
  if len(text) > limits.text:
    raise BadFieldError(field, f"it is longer than {limits.text} characters")
  if any(marker in text for marker in tokens.MARKERS):
    raise BadFieldError(
      field,
      f"expected text without any of {' '.join(tokens.MARKERS)}",
    )
  return text


def question_of(classes: Sequence[str], modality: str | None) -> str:
  """The question that asks for classes, as in training if the modality is told.

  ("liver", "spleen") and None become
  "Can you segment the liver, spleen in this image?"
  """
  return prompts.question(classes, modality, 0)


def prompt_of(
  prompt: str | None,
  classes: Sequence[str] | None,
  modality: str | None,
  limits: Limits,
) -> str:
  """The text to ask with.

  Raises:
    BadFieldError: not one of prompt and classes is given, or see `check_text`.
  """
  if (prompt is None) == (classes is None):
    raise BadFieldError("prompt", "give a prompt or classes, one of the two")
  if classes is not None:
    for name in classes:
      check_text(name, "classes", limits)
    prompt = question_of(classes, modality)
  return check_text(prompt or "", "prompt", limits)


def unanswered(classes: Sequence[str], said: Iterable[str]) -> list[str]:
  """Of the classes that were asked for, those an answer does not speak of."""
  spoken = {name.lower() for name in said}
  return [name for name in classes if name.lower() not in spoken]


async def left(request: Request) -> None:
  """Returns when the client has closed the connection."""
  while (await request.receive())["type"] != "http.disconnect":
    pass
