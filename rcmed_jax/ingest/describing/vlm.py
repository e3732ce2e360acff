"""A vision-language model behind an OpenAI-compatible server, asked with care.

What passes by itself is tried again, later and later: time-outs, full servers,
cut connections, answers that are none. What does not is an error at once: a
wrong key, a model that is not there. One pace and one purse for all workers.

The server gets the words and pictures that it is asked about and nothing else.
It is never followed to another address.
"""

import asyncio
import dataclasses
import datetime
import email.utils
import json
import math
import random
import time
from typing import Any

from rcmed_jax.data import extras
from rcmed_jax.ingest.describing.endpoint import Server, text_tokens

# Statuses that pass by themselves; so do all from 500 on.
PASSING = (408, 409, 425, 429)
# So many requests in a row that failed for good: nobody is there.
MOST_IN_A_ROW = 20
# No server is waited for longer, whatever it asks for.
LONGEST_PAUSE_S = 600.0
# No question or answer has more; a count beyond is nonsense.
MOST_TOKENS = 10**8
# Of an answer; no description is longer, and what is done with one takes time.
MOST_CHARACTERS = 20_000
# Characters of what a server says that are kept in errors.
TOLD = 200

Message = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Reply:
  """What the model said."""

  text: str
  tokens_in: int  # as the server counts; where it does not, estimated
  tokens_out: int
  is_cut: bool  # it ended because it was too long


class RefusedError(ValueError):
  """No request will be answered; the run cannot go on."""


class UnansweredError(Exception):
  """This request was not answered, after all tries."""


class SpentError(Exception):
  """One more request could cost more than is left."""


class _AgainError(Exception):
  """This try failed and another may not."""

  def __init__(
    self, reason: str, *, is_free: bool = False, pause_s: float = 0.0
  ):
    super().__init__(reason)
    self.is_free = is_free  # the server did no work for it
    self.pause_s = pause_s  # what it asks all of us to wait


class Client:
  """Asks; `async with Client(server) as client`.

  Raises:
    ImportError: the package that it needs is missing.
  """

  def __init__(self, server: Server):
    self._server = server
    self._openai = extras.load("openai", "Asking a server", "describe")
    self._pace = _Pace(server.per_minute)
    self._limit_name = "max_tokens"
    self._in_a_row = 0
    self._reserved = 0.0
    self._most_in = 0  # tokens; the dearest question so far
    self.spent = 0.0  # in the unit of the prices
    self.requests = 0  # sent, retries included
    self._api = self._openai.AsyncOpenAI(
      base_url=server.base_url,
      # The package insists on one, where the server may not.
      api_key=server.key or "none",
      max_retries=0,
      timeout=server.timeout_s,
      http_client=self._openai.DefaultAsyncHttpxClient(follow_redirects=False),
    )

  async def __aenter__(self) -> "Client":
    return self

  async def __aexit__(self, *_: object) -> None:
    await self._api.close()

  async def ask(self, messages: list[Message], tokens_in: int) -> Reply:
    """The model's reply.

    Args:
      messages: the conversation.
      tokens_in: of the messages, estimated.

    Raises:
      RefusedError: a fault that every request will have.
      UnansweredError: none, after all tries.
      SpentError: it could cost more than is left.
    """
    server = self._server
    for attempt in range(server.tries):
      await self._pace.turn()
      try:
        reply = await self._paid(messages, tokens_in)
      except _AgainError as error:
        reason = f"{error}, {attempt + 1} tries"
        self._pace.hold(error.pause_s)
        if attempt + 1 < server.tries:
          wait_s = min(server.first_wait_s * 2**attempt, server.longest_wait_s)
          # Jitter, or all workers would come back at once.
          await asyncio.sleep(
            max(error.pause_s, wait_s) * random.uniform(1.0, 1.5)
          )
      except UnansweredError as error:
        reason = str(error)
        break
      else:
        self._in_a_row = 0
        return reply
    self._in_a_row += 1
    if self._in_a_row >= MOST_IN_A_ROW:
      raise RefusedError(
        f"{server.base_url}: {self._in_a_row} requests in a row failed, the "
        f"last one because {reason}; see to the server and run again: what was "
        "answered is kept."
      )
    raise UnansweredError(reason)

  async def _paid(self, messages: list[Message], tokens_in: int) -> Reply:
    """The reply to one request, its price booked.

    One that breaks may have been answered all the same, and at any length; so
    the most that it can have cost is booked. Error statuses cost nothing.
    """
    server = self._server
    tokens_in = max(tokens_in, self._most_in)
    most = server.cost(tokens_in, server.max_tokens)
    if server.max_cost and self.spent + self._reserved + most > server.max_cost:
      raise SpentError
    self._reserved += most
    self.requests += 1
    booked = most
    try:
      reply = await self._once(messages, tokens_in)
      booked = server.cost(reply.tokens_in, reply.tokens_out)
      self._most_in = max(self._most_in, reply.tokens_in)
      return reply
    except (RefusedError, UnansweredError):
      booked = 0.0
      raise
    except _AgainError as error:
      booked = 0.0 if error.is_free else most
      raise
    finally:
      self._reserved -= most
      self.spent += booked

  async def _once(self, messages: list[Message], tokens_in: int) -> Reply:
    limit_name = self._limit_name
    try:
      async with asyncio.timeout(self._server.timeout_s):
        raw = await self._api.chat.completions.with_raw_response.create(
          model=self._server.model,
          messages=messages,
          **{limit_name: self._server.max_tokens},
        )
    except (TimeoutError, self._openai.APITimeoutError) as error:
      raise _AgainError(
        f"no whole answer came within {self._server.timeout_s:g} s"
      ) from error
    except self._openai.APIConnectionError as error:
      cause = type(error.__cause__ or error).__name__
      raise _AgainError(
        f"the connection failed ({cause})", is_free=cause.startswith("Connect")
      ) from error
    except self._openai.APIStatusError as error:
      raise self._judged(error, limit_name) from None
    return self._reply(raw.http_response.content, tokens_in)

  def _reply(self, body: bytes, tokens_in: int) -> Reply:
    """The reply in a body, if it holds one."""
    try:
      answer = json.loads(body)
    except (ValueError, RecursionError) as error:
      raise _AgainError("the answer is no JSON") from error
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(choice, dict) or not isinstance(text, str):
      raise _AgainError("the answer holds no text")
    if not text.strip():
      raise _AgainError("the answer is empty")
    usage = answer.get("usage")
    usage = usage if isinstance(usage, dict) else {}
    return Reply(
      text=self._clean(text)[:MOST_CHARACTERS],
      tokens_in=_count(usage.get("prompt_tokens"), tokens_in),
      tokens_out=_count(usage.get("completion_tokens"), text_tokens(text)),
      is_cut=choice.get("finish_reason") == "length"
      or len(text) > MOST_CHARACTERS,
    )

  def _judged(self, error: Any, limit_name: str) -> Exception:
    """What an error status means. What the server says may hold the key."""
    server, status = self._server, error.status_code
    told = " ".join(self._clean(str(error.message)).split())[:TOLD]
    if status in (401, 403):
      return RefusedError(
        f"{server.base_url}: the key was refused ({status}); set "
        f"{server.key_name} to one that may use {server.model}."
      )
    if status == 404:
      return RefusedError(
        f"{server.base_url}: there is no model {server.model!r}, or no such "
        "address (404); see which models it lists at "
        f"{server.base_url.rstrip('/')}/models."
      )
    if status == 402 or "insufficient_quota" in (error.code, error.type):
      return RefusedError(f"{server.base_url}: the account is empty ({told}).")
    if 300 <= status < 400:
      return RefusedError(
        f"{server.base_url}: it sends us elsewhere ({status}), and no image "
        "goes where nobody said; give the final address as --base-url."
      )
    if "max_completion_tokens" in told and limit_name == "max_tokens":
      # The newer name of the same thing, which some models insist on.
      self._limit_name = "max_completion_tokens"
      return _AgainError(
        f"the server wants another word for a limit ({status})", is_free=True
      )
    if status in PASSING or status >= 500:
      pause_s = retry_after_s(error.response.headers.get("retry-after", ""))
      return _AgainError(
        f"the server answered {status}", is_free=True, pause_s=pause_s
      )
    return UnansweredError(f"the server answered {status}: {told}")

  def _clean(self, text: str) -> str:
    key = self._server.key
    return text.replace(key, "[key]") if key else text


def retry_after_s(value: str) -> float:
  """Seconds that a Retry-After header asks for, as a number or a date.

  0 for what is neither; `LONGEST_PAUSE_S` at most.
  """
  try:
    wait_s = float(value)
  except ValueError:
    try:
      until = email.utils.parsedate_to_datetime(value)
    except ValueError:
      return 0.0
    if until.tzinfo is None:
      until = until.replace(tzinfo=datetime.UTC)
    wait_s = (until - datetime.datetime.now(datetime.UTC)).total_seconds()
  if math.isnan(wait_s):
    return 0.0
  return min(max(wait_s, 0.0), LONGEST_PAUSE_S)


class _Pace:
  """Turns at even intervals, for everybody together."""

  def __init__(self, per_minute: float):
    self._interval_s = 60 / per_minute if per_minute else 0.0
    self._next_s = 0.0

  async def turn(self) -> None:
    now_s = time.monotonic()
    at_s = max(self._next_s, now_s)
    self._next_s = at_s + self._interval_s
    await asyncio.sleep(at_s - now_s)

  def hold(self, pause_s: float) -> None:
    """No turn until then."""
    self._next_s = max(self._next_s, time.monotonic() + pause_s)


def _count(value: object, estimate: int) -> int:
  """The server's count, if it can be one."""
  if isinstance(value, bool) or not isinstance(value, int):
    return estimate
  return value if 0 <= value <= MOST_TOKENS else estimate
