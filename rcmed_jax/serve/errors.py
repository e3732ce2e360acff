"""Errors of the server: one form, that of OpenAI's API, for every path.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

No message quotes what was sent, other than the name of a field.
"""

import math
import pathlib
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
import pydantic
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from rcmed_jax.data.checks import DataError
from rcmed_jax.serve.engine import NotReadyError, QueueFullError

# Status -> OpenAI's word for it.
_TYPES = {
  401: "authentication_error",
  403: "permission_error",
  404: "not_found_error",
  429: "rate_limit_error",
}

# nginx's word for it; nobody is there to read it, but logs and metrics are.
CLIENT_LEFT = 499

# All that a client learns of a fault; the log says more.
FAULT = "the server could not answer; its log tells why, by X-Request-ID"

# Statuses that documents list of every path that asks the assistant.
DOCUMENTED: dict[int | str, dict[str, Any]] = {
  400: {"description": "Not JSON, not multipart, or not an image"},
  401: {"description": "No key, or a wrong one"},
  403: {"description": "A page of another origin"},
  404: {"description": "No such model, image, label or session"},
  408: {"description": "The body came too slowly"},
  413: {"description": "Too many bytes, pixels or voxels"},
  415: {"description": "The body is of another kind"},
  422: {"description": "A field is missing, unknown or out of range"},
  429: {"description": "Too many requests; see Retry-After"},
  500: {"description": "A fault of the server"},
  503: {"description": "Not ready, or being stopped; see Retry-After"},
  504: {"description": "No answer in time"},
  507: {"description": "The server's folder is full"},
}


class BadFieldError(ValueError):
  """A field that cannot be used.

  Args:
    field: its name.
    message: expected and received.
    status: of the response.
  """

  def __init__(self, field: str, message: str, status: int = 422):
    super().__init__(field, message, status)
    self.field = field
    self.message = message
    self.status = status


def later(status: int, message: str, wait_s: float) -> HTTPException:
  """An error that says when to ask again."""
  wait = str(max(math.ceil(wait_s), 1))
  return HTTPException(status, message, {"Retry-After": wait})


def body(status: int, message: str, param: str | None = None) -> dict[str, Any]:
  """What an error's body holds."""
  kind = "invalid_request_error" if status < 500 else "server_error"
  return {
    "error": {
      "message": message,
      "type": _TYPES.get(status, kind),
      "param": param,
      "code": None,
    }
  }


def response(error: HTTPException) -> JSONResponse:
  """The response that an error becomes."""
  return JSONResponse(
    body(error.status_code, error.detail), error.status_code, error.headers
  )


def without_path(error: DataError) -> str:
  """What it says, without its path, which is ours or names a patient."""
  message = error.message
  for word in (error.path, pathlib.Path(error.path).name):
    message = message.replace(word, "the file") if word else message
  return f"{message}. {error.remedy}"


def first_fault(error: pydantic.ValidationError) -> BadFieldError:
  """The first of a body's faults, without what was sent."""
  fault = error.errors(include_url=False, include_input=False)[0]
  if fault["type"] == "json_invalid":
    return BadFieldError("body", "it is no JSON", 400)
  field = ".".join(map(str, fault["loc"])) or "body"
  return BadFieldError(field, fault["msg"])


def of_data(error: DataError) -> str:
  """The field of a data error, and what it says without its path."""
  return f"{error.field}: {without_path(error)}"


def add_handlers(app: FastAPI) -> None:
  """Gives all errors of an application their form."""

  @app.exception_handler(HTTPException)
  def _(request: Request, error: HTTPException) -> JSONResponse:
    return response(error)

  @app.exception_handler(BadFieldError)
  def _(request: Request, error: BadFieldError) -> JSONResponse:
    message = f"{error.field}: {error.message}"
    return JSONResponse(body(error.status, message, error.field), error.status)

  @app.exception_handler(RequestValidationError)
  def _(request: Request, error: RequestValidationError) -> JSONResponse:
    fault = error.errors()[0]
    field = ".".join(map(str, fault["loc"]))
    return JSONResponse(body(422, f"{field}: {fault['msg']}", field), 422)

  @app.exception_handler(DataError)
  def _(request: Request, error: DataError) -> JSONResponse:
    return JSONResponse(body(400, of_data(error), error.field), 400)

  @app.exception_handler(NotImplementedError)
  def _(request: Request, error: NotImplementedError) -> JSONResponse:
    return JSONResponse(body(501, str(error)), 501)

  @app.exception_handler(QueueFullError)
  def _(request: Request, error: QueueFullError) -> JSONResponse:
    return response(later(429, str(error), error.wait_s))

  @app.exception_handler(NotReadyError)
  def _(request: Request, error: NotReadyError) -> JSONResponse:
    return response(later(503, str(error), 5))

  @app.exception_handler(ClientDisconnect)
  def _(request: Request, error: ClientDisconnect) -> JSONResponse:
    return JSONResponse(body(CLIENT_LEFT, "the client left"), CLIENT_LEFT)

  @app.exception_handler(Exception)
  def _(request: Request, error: Exception) -> JSONResponse:
    return JSONResponse(body(500, FAULT), 500)

  @app.exception_handler(TimeoutError)
  def _(request: Request, error: TimeoutError) -> JSONResponse:
    return JSONResponse(body(504, "there was no answer in time"), 504)
