"""Bodies of multipart forms: their texts and files."""

import json
import pathlib
import shutil
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from rcmed_jax.serve import shelf
from rcmed_jax.serve.errors import BadFieldError

# More are an accident or an attack.
_MOST_FIELDS = 50
_MOST_TEXT = 1 << 20  # bytes of a field that is no file


async def form_of(request: Request, *, files: int = 1) -> FormData:
  """The fields of a multipart body.

  Raises:
    BadFieldError: 415 if it is none; starlette raises 400 if it is damaged.
  """
  kind = request.headers.get("content-type", "")
  if not kind.lower().startswith("multipart/form-data"):
    raise BadFieldError("body", "expected multipart/form-data", 415)
  return await request.form(
    max_files=files, max_fields=_MOST_FIELDS, max_part_size=_MOST_TEXT
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


def params_of(form: FormData) -> dict[str, Any]:
  """The JSON object in a form's `params`; {} where there is none.

  Raises:
    BadFieldError: it is something else.
  """
  text = text_of(form, "params")
  try:
    params = json.loads(text or "{}")
  except (ValueError, RecursionError) as error:
    raise BadFieldError("params", "it is no JSON", 400) from error
  if not isinstance(params, dict):
    raise BadFieldError("params", "expected an object")
  return params


def incoming_of(file: UploadFile) -> shelf.Incoming:
  """A file, and what writes it. Clients send whole local paths as names."""

  def write(path: pathlib.Path) -> None:
    with path.open("wb") as out:
      shutil.copyfileobj(file.file, out)

  return file.filename or "", write
