"""An answer of OpenAI's chat API as server-sent events, while it is written.

The role; the text in parts, as it grows; the targets; the usage where it is
asked for; [DONE]. A fault on the way is an event as well, in OpenAI's form.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
import contextlib
from typing import Any

from rcmed_jax.serve import errors, events
from rcmed_jax.serve.engine import Answered
from rcmed_jax.serve.questions import Answer


class Events:
  """One answer's events.

  Made in the event loop. Of texts that come faster than they are sent, the
  newest alone is kept.

  Args:
    head: what all chunks begin with.
    extra: an answer's fields beside its text.
    with_usage: whether the last chunk counts tokens.
  """

  def __init__(
    self,
    head: dict[str, Any],
    extra: Callable[[Answer], Awaitable[dict[str, Any]]],
    *,
    with_usage: bool,
  ):
    self._head = head
    self._extra = extra
    self._with_usage = with_usage
    self._loop = asyncio.get_running_loop()
    self._text = ""
    self._new = asyncio.Event()
    self._sent = ""

  def said(self, text: str) -> None:
    """Takes the text so far, in any thread."""
    # The loop is closed where the process ends before the batch does.
    with contextlib.suppress(RuntimeError):
      self._loop.call_soon_threadsafe(self._set, text)

  async def first(self) -> None:
    """Returns once there is any text."""
    await self._new.wait()

  async def events(
    self, waiting: "asyncio.Future[Answered]", most_s: float
  ) -> AsyncIterator[str]:
    """The events until the answer has ended.

    Args:
      waiting: for it; cancelled where the client leaves first.
      most_s: how long.
    """
    try:
      yield self._chunk({"role": "assistant", "content": ""})
      async with asyncio.timeout(most_s):
        while not waiting.done():
          new = asyncio.ensure_future(self._new.wait())
          await asyncio.wait(
            (waiting, new), return_when=asyncio.FIRST_COMPLETED
          )
          new.cancel()
          self._new.clear()
          if part := self._part(self._text):
            yield self._chunk({"content": part})
      answer = waiting.result().answer
      if part := self._part(answer.text):
        yield self._chunk({"content": part})
      yield self._chunk(await self._extra(answer), reason(answer))
      if self._with_usage:
        counted = {"choices": [], "usage": usage(answer)}
        yield events.event({**self._base(), **counted})
    except Exception as error:  # it cannot become a status any more
      yield events.event(errors.told(error))
    finally:
      waiting.cancel()
    yield events.END

  def _set(self, text: str) -> None:
    self._text = text
    self._new.set()

  def _part(self, text: str) -> str:
    """What of the text was not sent yet."""
    if not text.startswith(self._sent):
      return ""
    part = text[len(self._sent) :]
    self._sent = text
    return part

  def _chunk(self, delta: dict[str, Any], ended: str | None = None) -> str:
    choice = {"index": 0, "delta": delta, "finish_reason": ended}
    return events.event({**self._base(), "choices": [choice]})

  def _base(self) -> dict[str, Any]:
    return {**self._head, "object": "chat.completion.chunk"}


def reason(answer: Answer) -> str:
  """Why an answer ended, in OpenAI's words."""
  return "stop" if answer.tokens.ended else "length"


def usage(answer: Answer) -> dict[str, int]:
  """Tokens of the prompt, the image as one, and of the answer."""
  asked, said = answer.tokens.prompt, answer.tokens.answer
  return {
    "prompt_tokens": asked,
    "completion_tokens": said,
    "total_tokens": asked + said,
  }
