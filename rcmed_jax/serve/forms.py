"""Bodies: texts and files of multipart forms, and how documents describe them.

Paths read their bodies themselves, since what is too large, too slow or of
another kind is refused before it is understood; so they describe them, too.
"""

import io
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any, BinaryIO, cast
import weakref

import pydantic
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from rcmed_jax.serve import shelf
from rcmed_jax.serve.errors import BadFieldError

# More are an accident or an attack.
_MOST_FIELDS = 50
_MOST_TEXT = 1 << 20  # bytes of a field that is no file
# Of a file: more goes to disk. A series of 2,000 files holds 130 MB.
IN_MEMORY = 1 << 16

# What a form's texts stand for.
_BOOLEANS = {"true": True, "false": False}

FILE = {"type": "string", "format": "binary"}
_PARAMS = {"type": "string", "contentMediaType": "application/json"}


def body(file: str, *, required: bool = True, many: bool = False) -> Any:
  """What documents say of a form with a file and `params`.

  Args:
    file: the field's name.
    required: whether the file must be there.
    many: whether there may be several.
  """
  files = {"type": "array", "items": FILE, "minItems": 1} if many else FILE
  schema = {
    "type": "object",
    "properties": {file: files, "params": _PARAMS},
    "required": [file] if required else [],
  }
  content = {"multipart/form-data": {"schema": schema}}
  return {"requestBody": {"required": True, "content": content}}


def schema_of(model: type[pydantic.BaseModel]) -> dict[str, Any]:
  """The JSON schema of a body, whole in itself, without references."""
  schema = model.model_json_schema()
  parts = schema.pop("$defs", {})

  def whole(value: Any) -> Any:
    if isinstance(value, list):
      return [whole(one) for one in value]
    if not isinstance(value, dict):
      return value
    if "$ref" in value:
      return whole(parts[value["$ref"].rpartition("/")[2]])
    # Of a discriminator nothing is lost: its parts name their kinds.
    return {
      key: whole(one) for key, one in value.items() if key != "discriminator"
    }

  return whole(schema)


async def json_of(request: Request) -> bytes:
  """A body of JSON, as it is.

  Raises:
    BadFieldError: 415 if it says to be something else.
  """
  kind = request.headers.get("content-type", "").partition(";")[0]
  if kind.strip().lower() != "application/json":
    raise BadFieldError("body", "expected application/json", 415)
  return await request.body()


async def form_of(request: Request, *, files: int = 1) -> FormData:
  """The fields of a multipart body.

  Raises:
    BadFieldError: 415 if it is none, 400 if it is damaged.
  """
  kind = request.headers.get("content-type", "")
  if not kind.lower().startswith("multipart/form-data"):
    raise BadFieldError("body", "expected multipart/form-data", 415)
  parser = _Parser(
    request.headers,
    request.stream(),
    max_files=files,
    max_fields=_MOST_FIELDS,
    max_part_size=_MOST_TEXT,
  )
  try:
    return await parser.parse()
  except MultiPartException as error:
    raise BadFieldError("body", error.message, 400) from error


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


def fields_of(form: FormData, file: str) -> dict[str, Any]:
  """A form's texts as JSON would have them; `classes` may come repeatedly.

  Args:
    file: the only field that may be a file, which is left out.

  Raises:
    BadFieldError: another is a file, or a text is given twice.
  """
  fields: dict[str, Any] = {}
  for name, value in form.multi_items():
    if isinstance(value, UploadFile):
      if name != file:
        raise BadFieldError(name, "expected text and no file")
    elif name == "classes":
      fields.setdefault(name, []).append(value)
    elif name in fields:
      raise BadFieldError(name, "it is given twice")
    elif name == "describe":
      fields[name] = _BOOLEANS.get(value, value)
    else:
      fields[name] = value
  return fields


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
    file.file.seek(0)

  return file.filename or "", write


class PartFile:
  """Bytes of a part: few in memory, more in a file that is mostly closed.

  A form of a long series has more files than a process may have open. Its file
  is open from a write or read until the next `seek`, which parser and readers
  call at the end of each part.
  """

  def __init__(self) -> None:
    self._open: BinaryIO = io.BytesIO()
    self._remove: weakref.finalize[..., Any] | None = None
    self._path = ""

  @property
  def _rolled(self) -> bool:
    """Whether it lies on disk: `UploadFile` then asks it in a thread."""
    return self._remove is not None

  @property
  def _max_size(self) -> int:
    """From where on it will; likewise."""
    return IN_MEMORY

  def write(self, data: bytes) -> int:
    """Adds to its end."""
    if not self._rolled and self._open.tell() + len(data) > IN_MEMORY:
      self._roll()
    return self._open.write(data)

  def read(self, size: int = -1) -> bytes:
    """The next bytes; b"" at the end."""
    if self._rolled and self._open.closed:
      self._open = open(self._path, "rb")  # noqa: SIM115
    return self._open.read(size)

  def seek(self, offset: int) -> int:
    """Goes back to the beginning, and closes the file on disk."""
    if offset:
      raise ValueError(f"PartFile.seek: expected 0, received {offset}.")
    if not self._rolled:
      return self._open.seek(0)
    self._open.close()
    return 0

  def tell(self) -> int:
    """How many bytes were written or read."""
    return self._open.tell()

  def close(self) -> None:
    """Ends it; its file is removed."""
    self._open.close()
    if self._remove is not None:
      self._remove()

  def _roll(self) -> None:
    descriptor, self._path = tempfile.mkstemp(prefix="part-")
    # Also of a request that nobody closes.
    self._remove = weakref.finalize(self, _unlink, self._path)
    held, self._open = self._open, os.fdopen(descriptor, "wb")
    held.seek(0)
    shutil.copyfileobj(held, self._open)


class _Parser(MultiPartParser):
  """Puts each file of a form into a `PartFile`."""

  def on_headers_finished(self) -> None:
    """Called before a part's first byte."""
    super().on_headers_finished()
    part = self._current_part.file
    if part is not None:
      file = PartFile()
      self._files_to_close_on_error[-1].close()
      self._files_to_close_on_error[-1] = cast(Any, file)
      self._current_part.file = UploadFile(
        cast(BinaryIO, file),
        size=0,
        filename=part.filename,
        headers=part.headers,
      )


def _unlink(path: str) -> None:
  pathlib.Path(path).unlink(missing_ok=True)
