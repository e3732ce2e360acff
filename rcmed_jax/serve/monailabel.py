"""MONAI Label's protocol, as 3D Slicer's and OHIF's modules speak it.

Paths keep their trailing slashes, since Slicer's client follows no redirect; a
reply has a Content-Length and is never chunked, since it reads the socket as it
comes. What is asked of an image is in `monai_infer`.

Source: the clients' requests, read from the code of MONAI Label 0.8.5.
"""

import hashlib
import math
import pathlib
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse

import rcmed_jax
from rcmed_jax.ingest.volumes import geometry
from rcmed_jax.serve import asking, errors, forms, monai_infer, shelf
from rcmed_jax.serve.limits import bearer

# Of samples to label next: the first, by id, that has no label.
STRATEGY = "first"
# What a model may be told, and how, in the viewer's table of options: of a
# list, the first is told. See `monai_infer`.
CONFIG = {
  "prompt": "",
  "modality": "",
  "axis": list(geometry.AXES),
  "largest": False,
  "smooth": False,
  "min_mm3": 0.0,
}

_FILE: dict[int | str, dict[str, Any]] = errors.DOCUMENTED | {
  200: {"content": {"application/octet-stream": {}}}
}
_LOGIN = {
  "requestBody": {
    "required": True,
    "content": {
      "application/x-www-form-urlencoded": {
        "schema": {
          "type": "object",
          "properties": {
            name: {"type": "string"}
            for name in ("username", "password", "grant_type")
          },
          "required": ["password"],
        }
      }
    },
  }
}


def router(service: asking.Service, kept: shelf.Shelf) -> APIRouter:
  """The protocol's paths."""
  made = APIRouter()
  _add_info(made, service, kept)
  _add_auth(made, service)
  _add_sessions(made, service, kept)
  _add_images(made, service, kept)
  _add_labels(made, service, kept)
  monai_infer.add(made, service, kept)
  return made


def _add_info(
  made: APIRouter, service: asking.Service, kept: shelf.Shelf
) -> None:
  @made.get("/info/")
  async def info() -> dict[str, Any]:
    labels = list(service.classes)
    model = {
      "type": "segmentation",
      "labels": labels,
      "dimension": 3,  # so that the viewer asks about whole volumes
      "description": "Finds what params.prompt asks for",
      "config": CONFIG,
    }
    held = await service.work(kept.images)
    return {
      "name": "rcmed_jax",
      "description": "Masks and text from a plain request",
      "version": rcmed_jax.__version__,
      "labels": labels,
      "models": {service.name: model},
      "trainers": {},
      "strategies": {STRATEGY: {"description": "The first without a label"}},
      "scoring": {},
      "train_stats": {},
      "datastore": _counts(held),
      "config": {},
    }

  @made.post("/activelearning/{strategy}", responses=errors.DOCUMENTED)
  async def next_sample(strategy: str) -> dict[str, Any]:
    """The next image to label; {} where all are labelled."""
    if strategy != STRATEGY:
      raise HTTPException(404, f"there is no such strategy, only {STRATEGY}")
    return await service.work(lambda: _unlabelled(kept))


def _add_auth(made: APIRouter, service: asking.Service) -> None:
  @made.get("/auth/")
  def enabled() -> dict[str, bool]:
    return {"enabled": bool(service.keys)}

  @made.post("/auth/token", responses=errors.DOCUMENTED, openapi_extra=_LOGIN)
  async def token(request: Request) -> dict[str, str]:
    """A form's password, which is a key, comes back as the token."""
    form = await request.form(max_files=0, max_fields=10)
    key = forms.text_of(form, "password") or ""
    if service.keys.owner(key) is None:
      raise HTTPException(401, "give a key that is known here as password")
    return {"access_token": key, "token_type": "bearer"}

  @made.get("/auth/token/valid", responses=errors.DOCUMENTED)
  def valid(request: Request) -> dict[str, bool]:
    return {"valid": not service.keys or bool(bearer(request.headers))}


def _add_sessions(
  made: APIRouter, service: asking.Service, kept: shelf.Shelf
) -> None:
  @made.put(
    "/session/",
    responses=errors.DOCUMENTED,
    openapi_extra=forms.body("files", many=True),
  )
  async def begin(
    request: Request, expiry: float = shelf.SESSION_S
  ) -> dict[str, Any]:
    """One file, an archive, or all files of a DICOM series."""
    if not math.isfinite(expiry):
      raise errors.BadFieldError("expiry", "expected seconds")
    form = await forms.form_of(request, files=shelf.MOST_FILES)
    try:
      incoming = [
        forms.incoming_of(file)
        for file in form.getlist("files")
        if isinstance(file, UploadFile)
      ]
      if not incoming:
        raise errors.BadFieldError("files", "expected one file or more")
      session = await service.work(
        lambda: kept.open_session(
          incoming,
          owner=request.state.caller,
          lasts_s=expiry if expiry > 0 else shelf.SESSION_S,
        )
      )
    finally:
      await form.close()
    return {"session_id": session.id, "session_info": _told(session)}

  @made.get("/session/{name}", responses=errors.DOCUMENTED)
  def known(request: Request, name: str) -> dict[str, Any]:
    return _told(kept.session(name, request.state.caller))

  @made.delete("/session/{name}", responses=errors.DOCUMENTED)
  def end(request: Request, name: str) -> dict[str, Any]:
    kept.close_session(name, request.state.caller)
    return {}


def _add_images(
  made: APIRouter, service: asking.Service, kept: shelf.Shelf
) -> None:
  @made.get("/datastore/")
  async def listed(output: str = "") -> dict[str, Any]:
    held = await service.work(kept.images)
    told = _counts(held)
    return {**told, "objects": held} if output == "all" else told

  async def put(request: Request, image: str = "") -> dict[str, str]:
    form = await forms.form_of(request)
    try:
      incoming = forms.incoming_of(forms.file_of(form, "file"))
      info = _info(form)
      name = await service.work(lambda: kept.put_image(image, incoming, info))
      return {"image": name}
    finally:
      await form.close()

  for path in ("/datastore/", "/datastore/image"):
    made.put(
      path,
      name=path,
      responses=errors.DOCUMENTED,
      openapi_extra=forms.body("file"),
    )(put)

  @made.get("/datastore/image", responses=_FILE, response_class=FileResponse)
  def get_image(image: str) -> FileResponse:
    return _file(kept.image(image))


def _add_labels(
  made: APIRouter, service: asking.Service, kept: shelf.Shelf
) -> None:
  @made.put(
    "/datastore/label",
    responses=errors.DOCUMENTED,
    openapi_extra=forms.body("label"),
  )
  async def put(request: Request, image: str, tag: str = "") -> dict[str, str]:
    form = await forms.form_of(request)
    try:
      incoming = forms.incoming_of(forms.file_of(form, "label"))
      info = _info(form)
      name = await service.work(
        lambda: kept.put_label(image, tag, incoming, info)
      )
      return {"image": image, "label": name}
    finally:
      await form.close()

  @made.get("/datastore/label", responses=_FILE, response_class=FileResponse)
  def get(label: str, tag: str = "") -> FileResponse:
    return _file(kept.label(label, tag))


def _info(form: FormData) -> dict[str, Any]:
  """What a viewer says of a file: names and numbers of its segments."""
  params = forms.params_of(form)
  return {"params": params} if params else {}


def _told(session: shelf.Session) -> dict[str, Any]:
  path = session.path
  count = len(list(path.iterdir())) if path.is_dir() else 1
  return {"files": count, "expiry": session.lasts_s}


def _counts(held: dict[str, dict[str, Any]]) -> dict[str, int]:
  labelled = sum(bool(one["labels"]) for one in held.values())
  return {"total": len(held), "completed": labelled}


def _unlabelled(kept: shelf.Shelf) -> dict[str, Any]:
  for name, held in kept.images().items():
    path = kept.image(name)
    if held["labels"] or path.is_dir():
      continue
    with path.open("rb") as file:
      digest = hashlib.file_digest(file, "sha256").hexdigest()
    # The viewer saves it under its name, of which it takes the ending.
    return {"id": name, "name": path.name, "checksum": f"SHA256:{digest}"}
  return {}


def _file(path: pathlib.Path) -> FileResponse:
  if path.is_dir():
    raise HTTPException(404, "it has several files; ask about it by its id")
  return FileResponse(
    path, filename=path.name, media_type="application/octet-stream"
  )
