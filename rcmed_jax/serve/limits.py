"""Who may ask, how often, and how much: keys, rates, sizes, times.

`Gate` stands before the application and sees every request first. Keys are held
as hashes and compared in constant time. A browser's page of another origin is
refused whether or not it obeys CORS, since a form needs no permission to send.
"""

import asyncio
import collections
from collections.abc import Mapping
import dataclasses
import hashlib
import hmac
import pathlib
import re
import time
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rcmed_jax.serve import errors, page

MEGABYTE = 1_000_000
# Of a key; a shorter one can be guessed.
SHORTEST_KEY = 16
# What answers without a key: whether the server lives, how to log in, and the
# page that asks for the key.
OPEN = ("/healthz", "/readyz", "/auth/", "/auth/token", *page.PATHS)
# Bytes a second that a client with much to send has to reach.
_SLOWEST = MEGABYTE
_NOT_CALLED_SO = (
  "Host: without keys the server answers to names of its own machine alone; "
  "call it by localhost, or start it with --keys=FILE"
)
# Callers whose rates are remembered; the one that was seen longest ago goes.
_MOST_CALLERS = 10_000


@dataclasses.dataclass(frozen=True)
class Limits:
  """What one request may take.

  Raises:
    ValueError: one of them is not above zero.
  """

  body_bytes: int = 64 * MEGABYTE  # of a request that is held in memory
  upload_bytes: int = 1000 * MEGABYTE  # of a form, whose files go to disk
  bodies_bytes: int = 4000 * MEGABYTE  # of all requests that are inside
  unpacked_bytes: int = 2000 * MEGABYTE  # of the files in an archive
  body_s: float = 30.0  # to send a body, and a second more a megabyte
  send_s: float = 60.0  # for a client to take a part of its answer
  pixels: int = 40_000_000  # of an image, after decoding
  mask_bytes: int = 8000 * MEGABYTE  # of the masks of all volumes at once
  voxels: int = 400_000_000  # of a volume: 1,500 slices of 512 x 512
  text: int = 4000  # characters of a conversation
  answer_s: float = 120.0  # until an answer must be there
  volume_s: float = 3600.0  # until the answer to a volume must be there
  rate: float = 120.0  # requests a minute and caller

  def __post_init__(self) -> None:
    for name, value in dataclasses.asdict(self).items():
      if not value > 0:
        raise ValueError(f"{name}: {value} must be above 0.")


class Keys:
  """The keys of a server, by the names of those they were given to.

  Args:
    keys: name -> key; empty: everybody may ask.
  """

  def __init__(self, keys: Mapping[str, str] | None = None):
    self._digests = {name: _digest(key) for name, key in (keys or {}).items()}

  def __bool__(self) -> bool:
    return bool(self._digests)

  def owner(self, key: str) -> str | None:
    """Whose key it is. All are compared, whichever fits."""
    given, found = _digest(key), None
    for name, digest in self._digests.items():
      if hmac.compare_digest(given, digest):
        found = name
    return found


def read_keys(path: pathlib.Path) -> Keys:
  """Keys of a file with a NAME and a KEY a line; # begins a comment.

  Raises:
    OSError: it cannot be read.
    ValueError: a line is badly formed, a key too short, a name or key given
      twice, or there is no key. The message holds no key.
  """
  keys: dict[str, str] = {}
  lines = path.read_text(encoding="utf-8").splitlines()
  for number, line in enumerate(lines, 1):
    words = line.split()
    if not words or words[0].startswith("#"):
      continue
    if len(words) != 2 or len(words[1]) < SHORTEST_KEY:
      raise ValueError(
        f"{path}:{number}: expected a name and a key of {SHORTEST_KEY} "
        "characters or more."
      )
    if words[0] in keys or words[1] in keys.values():
      raise ValueError(f"{path}:{number}: the name or the key is given twice.")
    keys[words[0]] = words[1]
  if not keys:
    raise ValueError(f"{path} holds no key; nobody could ask.")
  return Keys(keys)


class Rates:
  """A bucket a caller, which holds one minute's requests at most."""

  def __init__(self, per_minute: float):
    self._per_minute = per_minute
    # Caller -> requests left, and when that was so.
    self._left: collections.OrderedDict[str, tuple[float, float]] = (
      collections.OrderedDict()
    )

  def wait_s(self, caller: str) -> float:
    """0 where the caller may ask, which is then counted; else how long not."""
    now = time.monotonic()
    left, then = self._left.pop(caller, (self._per_minute, now))
    left = min(self._per_minute, left + (now - then) * self._per_minute / 60)
    wait = 0.0 if left >= 1 else (1 - left) * 60 / self._per_minute
    self._left[caller] = (left - (wait == 0), now)
    if len(self._left) > _MOST_CALLERS:
      self._left.popitem(last=False)
    return wait


class Gate:
  """An ASGI application that lets requests through to another.

  Args:
    app: the other.
    keys: who may ask.
    limits: how much.
    origins: whose web pages may ask, besides the server's own.
    hosts: names by which the server may be called, as of `host_name`; (): any.
      A page elsewhere can make its own name point to this machine and then seem
      the server's.

  Attributes:
    closed: new requests are refused; those inside are answered.
    inside: requests that were let in and are not answered yet.
    dropped: requests that were inside when the process had to end.
    held: bytes that those inside have sent.
  """

  def __init__(
    self,
    app: ASGIApp,
    *,
    keys: Keys,
    limits: Limits,
    origins: tuple[str, ...] = (),
    hosts: tuple[str, ...] = (),
  ):
    self.closed = False
    self.inside = 0
    self.dropped = 0
    self._app = app
    self._keys = keys
    self._limits = limits
    self._origins = origins
    self._hosts = hosts
    self.held = 0
    self._rates = Rates(limits.rate)

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    refused = self._refused(scope)
    if refused is not None:
      await errors.response(refused)(scope, receive, send)
      return
    self.inside += 1
    seen = [0]
    most = self._most_bytes(Headers(scope=scope))
    try:
      await self._app(
        scope, self._measured(receive, seen, most), self._timed(send)
      )
    except asyncio.CancelledError:  # only the end of the process does so
      self.dropped += 1
      raise
    except _TakesNothingError:
      pass  # uvicorn closes a connection whose answer has no end
    finally:
      self.inside -= 1
      self.held -= seen[0]

  def _refused(self, scope: Scope) -> HTTPException | None:
    """Why the request is not let in; notes whose it is where it is."""
    headers = Headers(scope=scope)
    if self._hosts and host_name(headers.get("host", "")) not in self._hosts:
      return HTTPException(403, _NOT_CALLED_SO)
    origin = headers.get("origin")
    if origin is not None and not self._is_own(origin, headers):
      return HTTPException(403, "pages of this origin may not ask here")
    if scope["path"] == "/healthz":
      return None
    if self.closed:
      return errors.later(503, "the server is being stopped", 5)
    if scope["path"] == "/readyz":
      return None
    caller = f"host {(scope.get('client') or ('',))[0]}"
    owner = None
    if self._keys:
      owner = self._keys.owner(bearer(headers))
      scope["state"]["caller"] = owner
    if owner is not None:
      caller = f"key {owner}"
    wait = self._rates.wait_s(caller)
    if wait:
      return errors.later(429, "too many requests a minute", wait)
    preflight = scope["method"] == "OPTIONS" and origin is not None
    if self._keys and not owner and scope["path"] not in OPEN and not preflight:
      message = "give a key that is known here as Authorization: Bearer KEY"
      return HTTPException(401, message, {"WWW-Authenticate": "Bearer"})
    length = headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
      return HTTPException(400, "Content-Length is no number")
    most = self._most_bytes(headers)
    if int(length) > most:
      return _too_large(most)
    return None

  def _most_bytes(self, headers: Headers) -> int:
    """Of a body: of a form, files go to disk as they come."""
    kind = headers.get("content-type", "")
    if kind.lower().startswith("multipart/form-data"):
      return self._limits.upload_bytes
    return self._limits.body_bytes

  def _is_own(self, origin: str, headers: Headers) -> bool:
    host = origin.partition("://")[2].lower()
    return origin in self._origins or (
      bool(host) and host == headers.get("host", "").lower()
    )

  def _measured(self, receive: Receive, seen: list[int], most: int) -> Receive:
    """`receive` that raises 413 or 408 for a body too large or too slow.

    Args:
      seen: its one number becomes the bytes that came.
      most: bytes.
    """
    done = False
    began: float | None = None

    async def measured() -> Message:
      nonlocal done, began
      if done:  # what comes now is that the client leaves
        return await receive()
      if began is None:
        began = asyncio.get_running_loop().time()
      allowed_s = self._limits.body_s + seen[0] / _SLOWEST
      try:
        async with asyncio.timeout_at(began + allowed_s):
          message = await receive()
      except TimeoutError as error:
        close = {"Connection": "close"}
        raise HTTPException(408, "the body came too slowly", close) from error
      size = len(message.get("body", b""))
      seen[0] += size
      self.held += size
      done = not message.get("more_body", False)
      if seen[0] > most:
        raise _too_large(most)
      if self.held > self._limits.bodies_bytes:
        raise errors.later(503, "too much is being sent at once", 5)
      return message

    return measured

  def _timed(self, send: Send) -> Send:
    """`send` that gives up a client that takes nothing of its answer."""

    async def timed(message: Message) -> None:
      try:
        async with asyncio.timeout(self._limits.send_s):
          await send(message)
      except TimeoutError:
        raise _TakesNothingError from None

    return timed


class _TakesNothingError(Exception):
  """A client does not take its answer."""


def _too_large(most: int) -> HTTPException:
  return HTTPException(
    413,
    f"the request is larger than {most / MEGABYTE:g} MB",
    {"Connection": "close"},
  )


def host_name(host: str) -> str:
  """The name in a Host header, in lower case: "[::1]:80" becomes "[::1]"."""
  found = re.fullmatch(r"(\[[^\]]*\]|[^\[:]*)(:\d*)?", host.strip().lower())
  return found[1] if found else ""


def bearer(headers: Any) -> str:
  """The key of an Authorization header; "" where there is none."""
  scheme, _, key = headers.get("authorization", "").partition(" ")
  return key.strip() if scheme.lower() == "bearer" else ""


def _digest(key: str) -> bytes:
  return hashlib.sha256(key.encode()).digest()
