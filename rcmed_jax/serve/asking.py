"""What the server's paths share: the engine, the limits, how one asks."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
import math
import pathlib
import time
from typing import TypeVar

import numpy as np
from starlette.requests import Request

from rcmed_jax.data import prompts, tokens
from rcmed_jax.serve import errors, payload, scans, volume_jobs, waiting
from rcmed_jax.serve.engine import Answered, Engine, Said
from rcmed_jax.serve.errors import BadFieldError
from rcmed_jax.serve.limits import Keys, Limits
from rcmed_jax.serve.mask_memory import MaskMemory
from rcmed_jax.serve.questions import Question

Result = TypeVar("Result")

# Pictures that are decoded or encoded at once, each in memory.
_AT_WORK = 4


@dataclasses.dataclass(frozen=True)
class Service:
  """What a request is answered with."""

  engine: Engine
  limits: Limits
  keys: Keys
  name: str  # of the model
  modalities: tuple[str, ...] = ()  # that it was trained on, if that is known
  classes: tuple[str, ...] = ()  # likewise
  windows: tuple[str, ...] = ()  # of CT in which it learnt, likewise
  log_prompts: bool = False
  working: asyncio.Semaphore = dataclasses.field(
    default_factory=lambda: asyncio.Semaphore(_AT_WORK)
  )
  volumes: volume_jobs.Jobs = dataclasses.field(
    default_factory=volume_jobs.Jobs
  )

  @functools.cached_property
  def masks(self) -> MaskMemory:
    """Memory for the masks of all volumes."""
    return MaskMemory(self.limits.mask_bytes)

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
    with errors.blaming("prompt"):
      future = self.engine.submit(question, self.limits.answer_s, said)
    return asyncio.wrap_future(future)

  async def ask(self, request: Request, question: Question) -> Answered:
    """The answer, unless the client leaves first; then it is not computed.

    Raises:
      As `submit` and `waiting.first`.
    """
    (answered,) = await self.ask_all(request, [question])
    return answered

  async def ask_all(
    self, request: Request, questions: Sequence[Question]
  ) -> list[Answered]:
    """As `ask`, of several questions, which wait together."""
    until = time.monotonic() + self.limits.answer_s
    futures: list[asyncio.Future[Answered]] = []
    try:
      for question in questions:
        futures.append(self.submit(request, question))
      if self.log_prompts:
        request.state.prompt = " ".join(one.text for one in questions)
      with errors.blaming("prompt"):
        for future in futures:
          left_s = max(until - time.monotonic(), 0.0)
          await waiting.first(request, future, most_s=left_s)
        return [future.result() for future in futures]
    finally:
      for future in futures:
        future.cancel()


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
