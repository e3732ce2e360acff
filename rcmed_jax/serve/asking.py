"""What the server's paths share: the engine, the limits, how one asks."""

import asyncio
from collections.abc import Callable, Sequence
import dataclasses
from typing import TypeVar

import numpy as np
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from rcmed_jax.data import prompts, tokens
from rcmed_jax.serve import payload
from rcmed_jax.serve.assistant import Question
from rcmed_jax.serve.engine import Answered, Engine
from rcmed_jax.serve.errors import BadFieldError
from rcmed_jax.serve.limits import Keys, Limits

Result = TypeVar("Result")

# Pictures that are decoded or encoded at once, each in memory.
_AT_WORK = 4
# Of a form: more are an accident or an attack. A DICOM series is many files.
MOST_FILES = 2000
_MOST_FIELDS = 50
# nginx's word for it; nobody is there to read it, but logs and metrics are.
CLIENT_LEFT = 499


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

  async def work(self, what: Callable[[], Result]) -> Result:
    """The result of what keeps a core busy, made beside the event loop."""
    async with self.working:
      return await asyncio.to_thread(what)

  async def picture(self, data: bytes, field: str) -> np.ndarray:
    """See `payload.picture`."""
    most = self.limits.pixels
    return await self.work(lambda: payload.picture(data, field, most))

  async def ask(
    self, request: Request, image_IJC: np.ndarray, text: str, *, describe: bool
  ) -> Answered:
    """The answer, unless the client leaves first; then it is not computed.

    Raises:
      BadFieldError: the assistant cannot be asked so.
      TimeoutError: there was none in time.
      QueueFullError, NotReadyError: see `Engine.submit`.
    """
    if self.log_prompts:
      request.state.prompt = text
    question = Question(image_IJC, text, describe)
    limit_s = self.limits.answer_s
    waiting = asyncio.wrap_future(self.engine.submit(question, limit_s))
    gone = asyncio.create_task(_left(request))
    try:
      await asyncio.wait(
        (waiting, gone), timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
      )
      if waiting.done():
        return waiting.result()
      if gone.done():
        raise HTTPException(CLIENT_LEFT, "the client left")
      raise TimeoutError
    except ValueError as error:
      raise BadFieldError("prompt", str(error)) from error
    finally:
      gone.cancel()
      waiting.cancel()


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


async def form_of(request: Request, *, files: int = 1) -> FormData:
  """The fields of a multipart body.

  Raises:
    BadFieldError: 415 if it is none; starlette raises 400 if it is damaged.
  """
  kind = request.headers.get("content-type", "")
  if not kind.lower().startswith("multipart/form-data"):
    raise BadFieldError("body", "expected multipart/form-data", 415)
  return await request.form(
    max_files=files,
    max_fields=_MOST_FIELDS,
    max_part_size=1 << 20,
  )


def file_of(form: FormData, field: str) -> UploadFile:
  """A file of a form.

  Raises:
    BadFieldError: there is none of that name.
  """
  found = form.get(field)
  if not isinstance(found, UploadFile):
    raise BadFieldError(field, "expected a file")
  return found


def text_of(form: FormData, field: str) -> str | None:
  """A text of a form; None where there is none.

  Raises:
    BadFieldError: it is a file.
  """
  found = form.get(field)
  if isinstance(found, UploadFile):
    raise BadFieldError(field, "expected text and no file")
  return found


async def _left(request: Request) -> None:
  """Returns when the client has closed the connection."""
  while (await request.receive())["type"] != "http.disconnect":
    pass
