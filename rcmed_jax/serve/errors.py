"""Errors of the server: one form, that of OpenAI's API, for every path.

{"error": {"message": ..., "type": ..., "param": ..., "code": ...}}

No message quotes what was sent, other than the name of a field.
"""

from collections.abc import Iterator, Mapping
import contextlib
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
from rcmed_jax.serve.mask_memory import FullError

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


# Errors of libraries, data and engine -> status.
_STATUSES: tuple[tuple[type[Exception], int], ...] = (
  (RequestValidationError, 422),
  (DataError, 400),
  (NotImplementedError, 501),
  (QueueFullError, 429),
  (NotReadyError, 503),
  (FullError, 503),
  (ClientDisconnect, CLIENT_LEFT),
  (TimeoutError, 504),
)


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


@contextlib.contextmanager
def blaming(field: str) -> Iterator[None]:
  """What cannot be asked so, as the assistant says it, is told of a field.

  Raises:
    BadFieldError: in the place of a plain ValueError.
  """
  try:
    yield
  except ValueError as error:
    if type(error) is not ValueError:
      raise
    raise BadFieldError(field, str(error)) from error


def later(status: int, message: str, wait_s: float) -> HTTPException:
  """An error that says when to ask again."""
  return HTTPException(status, message, _retry_after(wait_s))


def response(error: Exception) -> JSONResponse:
  """The response that an error becomes."""
  return JSONResponse(told(error), status(error), _headers(error))


def status(error: Exception) -> int:
  """The status of that response."""
  match error:
    case HTTPException():
      return error.status_code
    case BadFieldError():
      return error.status
    case _:
      known = (code for kind, code in _STATUSES if isinstance(error, kind))
      return next(known, 500)


def told(error: Exception) -> dict[str, Any]:
  """Its body, which an event of a stream holds as well."""
  param: str | None = None
  match error:
    case HTTPException():
      message = error.detail
    case BadFieldError():
      message, param = f"{error.field}: {error.message}", error.field
    case RequestValidationError():
      fault = error.errors()[0]
      param = ".".join(map(str, fault["loc"]))
      message = f"{param}: {fault['msg']}"
    case DataError():
      message, param = f"{error.field}: {without_path(error)}", error.field
    case ClientDisconnect():
      message = "the client left"
    case TimeoutError():
      message = "there was no answer in time"
    case (
      NotImplementedError() | QueueFullError() | NotReadyError() | FullError()
    ):
      message = str(error)
    case _:
      message = FAULT
  code = status(error)
  kind = "invalid_request_error" if code < 500 else "server_error"
  return {
    "error": {
      "message": message,
      "type": _TYPES.get(code, kind),
      "param": param,
      "code": None,
    }
  }


def _headers(error: Exception) -> Mapping[str, str] | None:
  match error:
    case HTTPException():
      return error.headers
    case QueueFullError():
      return _retry_after(error.wait_s)
    case NotReadyError():
      return _retry_after(5)
    case FullError():
      return _retry_after(30)
    case _:
      return None


def _retry_after(wait_s: float) -> dict[str, str]:
  return {"Retry-After": str(max(math.ceil(wait_s), 1))}


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


def add_handlers(app: FastAPI) -> None:
  """Gives all errors of an application their form."""

  def answer(request: Request, error: Exception) -> JSONResponse:
    return response(error)

  for kind in (HTTPException, BadFieldError, Exception):
    app.add_exception_handler(kind, answer)
  for kind, _ in _STATUSES:
    app.add_exception_handler(kind, answer)
