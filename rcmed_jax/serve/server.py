"""The HTTP application and the process that runs it.

From the outside in: telemetry, which sees every request; the gate, which lets
few of them through (`limits`); CORS; the paths.

SIGTERM closes the gate: new requests get 503, those inside are answered, then
the process ends. A second signal ends it a second later, with the batch that is
with the devices.
"""

import asyncio
from collections.abc import Callable
import logging
import time
from typing import Any

from fastapi import APIRouter, FastAPI
import prometheus_client
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

import rcmed_jax
from rcmed_jax.serve import (
  api,
  asking,
  chat,
  errors,
  limits,
  monailabel,
  page,
  payload,
  shelf,
  telemetry,
  volume_api,
)

# For a client to send a request's first line and headers.
HEADERS_S = 10.0
# Of libraries that would otherwise write to standard error as they please.
_LOGGERS = ("uvicorn", "python_multipart", "asyncio", "pydicom", "py.warnings")
# Connections at once; each takes a little memory before the gate sees it.
_MOST_CONNECTIONS = 1000


class Application:
  """What uvicorn runs: the paths behind the gate behind telemetry.

  Args:
    service: what answers.
    kept: where clients' files lie.
    origins: whose pages may ask, "https://viewer.example.org".
    hosts: see `limits.Gate`.
    write_answer: see `volume_api.WriteAnswer`.
    metrics: of the engine and of this.
    log: takes the fields of an event.

  Attributes:
    gate: closes on SIGTERM.
  """

  def __init__(
    self,
    service: asking.Service,
    kept: shelf.Shelf,
    *,
    origins: tuple[str, ...] = (),
    hosts: tuple[str, ...] = (),
    write_answer: volume_api.WriteAnswer | None = None,
    metrics: telemetry.Metrics | None = None,
    log: Callable[..., None] = telemetry.write_line,
  ):
    metrics = metrics or telemetry.Metrics()
    self.service = service
    self.log = log
    made = _paths(service, kept, metrics)
    made.include_router(volume_api.router(service, kept, write_answer))
    made.include_router(page.router())
    inner: ASGIApp = made
    if origins:
      inner = CORSMiddleware(
        inner,
        allow_origins=origins,
        allow_methods=("GET", "POST", "PUT", "DELETE"),
        allow_headers=("Authorization", "Content-Type"),
      )
    self.gate = limits.Gate(
      inner,
      keys=service.keys,
      limits=service.limits,
      origins=origins,
      hosts=hosts,
    )
    self._app = telemetry.Telemetry(self.gate, metrics, log)
    engine = service.engine
    metrics.watch(
      "rcmed_waiting", "Requests in the queue", lambda: engine.waiting
    )
    metrics.watch(
      "rcmed_inside",
      "Requests that are being answered, this one included",
      lambda: self.gate.inside,
    )
    metrics.watch(
      "rcmed_ready", "1 once requests are answered", lambda: engine.ready
    )

  async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
    await self._app(scope, receive, send)


class Server(uvicorn.Server):
  """uvicorn, which on SIGTERM first answers what is inside.

  Args:
    begun: called once it listens.
  """

  def __init__(
    self,
    app: Application,
    *,
    host: str,
    port: int,
    drain_s: float,
    begun: Callable[[], None] = lambda: None,
  ):
    super().__init__(
      uvicorn.Config(
        app,
        host=host,
        port=port,
        http=_Protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MOST_CONNECTIONS,
        timeout_graceful_shutdown=1,
      )
    )
    self._application = app
    self._drain_s = drain_s
    self._begun = begun
    self._until: float | None = None

  async def startup(self, sockets: Any = None) -> None:
    """Listens, and only then begins what takes long."""
    await super().startup(sockets)
    if self.started:
      self._begun()

  def handle_exit(self, sig: int, frame: Any) -> None:
    """The first signal closes the gate; see the top of this file.

    Not as uvicorn does, which raises the signal again once it is done, so that
    the process would die of it with nothing written.
    """
    now = time.monotonic()
    if self._until is None:
      self._application.gate.closed = True
      self._until = now + self._drain_s
    else:
      self._until = now

  async def on_tick(self, counter: int) -> bool:
    """Called ten times a second."""
    if self._until is not None:
      late = time.monotonic() > self._until
      if late or not self._application.gate.inside:
        self.should_exit = True
    if self._application.service.engine.failed is not None:
      self.should_exit = True
    return await super().on_tick(counter)


def run(app: Application, *, host: str, port: int, drain_s: float) -> int:
  """Serves until a signal; how many were let in and not answered comes back.

  It listens before the model is loaded: it lives meanwhile, and is not ready.

  Raises:
    OSError: the port is taken.
    RuntimeError: the model could not be made ready.
    What loading it ends in.
  """
  engine = app.service.engine
  logging.captureWarnings(True)
  handler = telemetry.LibraryLog(app.log)
  for name in _LOGGERS:
    logging.getLogger(name).addHandler(handler)
  server = Server(
    app, host=host, port=port, drain_s=drain_s, begun=engine.start
  )
  app.log(event="start", host=host, port=port, model=app.service.name)
  try:
    server.run()
  except SystemExit as error:  # what uvicorn makes of a port that is taken
    raise OSError(f"port {port} of {host} cannot be listened on.") from error
  finally:
    for name in _LOGGERS:
      logging.getLogger(name).removeHandler(handler)
    logging.captureWarnings(False)
    if engine.ready:
      engine.stop()
    app.log(event="stop", unanswered=app.gate.dropped)
  if engine.failed is not None:
    if not engine.loaded:
      raise engine.failed
    raise RuntimeError("the model could not be made ready") from engine.failed
  return app.gate.dropped


def _paths(
  service: asking.Service, kept: shelf.Shelf, metrics: telemetry.Metrics
) -> FastAPI:
  # Its pages of documentation would load scripts from elsewhere, and its traces
  # quote errors, which may quote what was sent.
  app = FastAPI(
    title="rcmed_jax",
    version=rcmed_jax.__version__,
    docs_url=None,
    redoc_url=None,
    redirect_slashes=False,
    telemetry={"tracing": False, "metrics": False, "logs": False},
  )
  errors.add_handlers(app)
  for part in (
    _state(service, metrics),
    api.router(service),
    chat.router(service),
    monailabel.router(service, kept),
  ):
    app.include_router(part)
  return app


def _state(service: asking.Service, metrics: telemetry.Metrics) -> APIRouter:
  """Whether it lives, whether it answers, what it can, how it does."""
  made = APIRouter()

  @made.get("/healthz")
  def healthz() -> dict[str, str]:
    return {"status": "ok"}

  @made.get("/readyz", responses={503: {"description": "Not yet"}})
  def readyz() -> dict[str, str]:
    if not service.engine.ready:
      message = "the model is still being loaded, or its programs compiled"
      raise errors.later(503, message, 5)
    return {"status": "ready"}

  @made.get("/capabilities")
  def capabilities() -> dict[str, Any]:
    told, engine = service.limits, service.engine
    return {
      "model": service.name,
      "version": rcmed_jax.__version__,
      "modalities": service.modalities,
      "classes": service.classes,
      "images": [*payload.FORMATS, "DICOM"],
      "volumes": ["NIfTI", "NRRD", "DICOM series"],
      "masks": api.MASKS,
      "batch": engine.rows if engine.loaded else None,  # None: not yet known
      # Of one answer; more classes are asked in several questions.
      "max_targets": engine.max_targets if engine.loaded else None,
      "limits": {
        "body_bytes": told.body_bytes,
        "upload_bytes": told.upload_bytes,
        "pixels": told.pixels,
        "voxels": told.voxels,
        "prompt_characters": told.text,
        "requests_per_minute": told.rate,
        "answer_s": told.answer_s,
        "volume_s": told.volume_s,
      },
    }

  @made.get("/metrics", responses={200: {"content": {"text/plain": {}}}})
  def page() -> Response:
    return Response(
      metrics.page(), media_type=prometheus_client.CONTENT_TYPE_LATEST
    )

  return made


class _Protocol(H11Protocol):
  """Closes a connection whose headers do not come in time.

  uvicorn waits for them without end once a first byte was there, so that a few
  slow clients could hold all connections.
  """

  _timer: asyncio.TimerHandle | None = None

  def connection_made(self, transport: Any) -> None:
    super().connection_made(transport)
    self._watch()

  def data_received(self, data: bytes) -> None:
    super().data_received(data)
    self._watch()

  def connection_lost(self, exc: Exception | None) -> None:
    if self._timer is not None:
      self._timer.cancel()
    super().connection_lost(exc)

  def on_response_complete(self) -> None:
    super().on_response_complete()
    self._watch()

  def _watch(self) -> None:
    """Starts the clock while headers are due, and stops it once they are."""
    due = self.cycle is None or self.cycle.response_complete
    if due and self._timer is None:
      self._timer = self.loop.call_later(HEADERS_S, self.transport.close)
    elif not due and self._timer is not None:
      self._timer.cancel()
      self._timer = None
