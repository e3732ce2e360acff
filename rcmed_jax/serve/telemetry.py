"""What the server tells of itself: one line of JSON a request, and metrics.

A line holds no path but the route's template, no prompt, no name of a file and
no address: all of these may name a patient. Prompts are there only if asked
for.
"""

from collections.abc import Callable
import json
import logging
import sys
import time
import traceback
from typing import Any
import uuid

import prometheus_client as prometheus
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rcmed_jax.serve import errors

_METHODS = ("GET", "PUT", "POST", "DELETE", "HEAD", "OPTIONS")
# Seconds, from a toy on a CPU to a large model behind a full queue.
_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
  """Counters of one server; two in a process do not share any."""

  def __init__(self):
    self.registry = prometheus.CollectorRegistry()
    self.requests = prometheus.Counter(
      "rcmed_requests",
      "Requests that were answered",
      ("route", "method", "status"),
      registry=self.registry,
    )
    self.seconds = prometheus.Histogram(
      "rcmed_request_seconds",
      "From a request's first byte to its answer's last",
      ("route",),
      buckets=_BUCKETS,
      registry=self.registry,
    )
    self.rows = prometheus.Histogram(
      "rcmed_batch_requests",
      "Requests that were answered together",
      buckets=_ROWS,
      registry=self.registry,
    )

  def watch(self, name: str, what: str, value: Callable[[], float]) -> None:
    """Adds a gauge that is read when metrics are."""
    gauge = prometheus.Gauge(name, what, registry=self.registry)
    gauge.set_function(value)

  def page(self) -> bytes:
    """The metrics in Prometheus' text format."""
    return prometheus.generate_latest(self.registry)


def write_line(**fields: Any) -> None:
  """Writes one event to standard error, as JSON."""
  line = json.dumps({"time": round(time.time(), 3), **fields})
  print(line, file=sys.stderr, flush=True)


class LibraryLog(logging.Handler):
  """Turns what libraries log into events, without what they fill in.

  A message's template says what happened; its values may be of a patient.
  """

  def __init__(self, log: Callable[..., None] = write_line):
    super().__init__(logging.WARNING)
    self._log = log

  def emit(self, record: logging.LogRecord) -> None:
    """Logs one record."""
    self._log(
      event="library",
      logger=record.name,
      level=record.levelname,
      message=str(record.msg),
    )


class Telemetry:
  """An ASGI application that counts and logs the requests of another.

  Each gets an id, which the response names as X-Request-ID.
  """

  def __init__(
    self,
    app: ASGIApp,
    metrics: Metrics,
    log: Callable[..., None] = write_line,
  ):
    self._app = app
    self._metrics = metrics
    self._log = log

  async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
      await self._app(scope, receive, send)
      return
    began = time.monotonic()
    scope["state"] = {**scope.get("state", {}), "caller": None}
    told = _Told(uuid.uuid4().hex)

    async def received() -> Message:
      message = await receive()
      told.bytes_in += len(message.get("body", b""))
      return message

    async def sent(message: Message) -> None:
      if message["type"] == "http.response.start":
        told.begun, told.status = True, message["status"]
        marked = (b"x-request-id", told.id.encode())
        headers = [*message.get("headers", []), marked]
        message = {**message, "headers": headers}
      told.bytes_out += len(message.get("body", b""))
      await send(message)

    try:
      await self._app(scope, received, sent)
    except Exception as error:  # a fault of ours, which ends this request only
      told.fault = _where(error)
      if not told.begun:
        await errors.response(error)(scope, received, sent)
    finally:
      self._tell(scope, told, time.monotonic() - began)

  def _tell(self, scope: Scope, told: "_Told", seconds: float) -> None:
    route = getattr(scope.get("route"), "path", None) or "none"
    method = scope["method"] if scope["method"] in _METHODS else "other"
    self._metrics.requests.labels(route, method, str(told.status)).inc()
    self._metrics.seconds.labels(route).observe(seconds)
    fields: dict[str, Any] = {
      "event": "request",
      "id": told.id,
      "method": method,
      "route": route,
      "status": told.status,
      "seconds": round(seconds, 4),
      "bytes_in": told.bytes_in,
      "bytes_out": told.bytes_out,
      "caller": scope["state"]["caller"],
    }
    if told.fault:
      fields["fault"] = told.fault
    if "prompt" in scope["state"]:
      fields["prompt"] = scope["state"]["prompt"]
    self._log(**fields)


class _Told:
  """What is known of a request, while it is answered."""

  def __init__(self, name: str):
    self.id = name
    self.status = 500
    self.bytes_in = 0
    self.bytes_out = 0
    self.begun = False  # whether the response is being sent
    self.fault = ""


def _where(error: Exception) -> str:
  """Which error, and where: no message, since one may quote what was sent."""
  frames = traceback.extract_tb(error.__traceback__)[-3:]
  places = [f"{frame.name}:{frame.lineno}" for frame in frames]
  return f"{type(error).__name__} in {' < '.join(reversed(places))}"
