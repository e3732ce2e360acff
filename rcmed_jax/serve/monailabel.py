"""MONAI Label's protocol, as the 3D Slicer module speaks it.

Paths keep their trailing slashes, since that client follows no redirect; a
reply has a Content-Length and is never chunked, since it reads the socket as it
comes. What to look for stands in `params` as `prompt`; without one the model is
asked to describe the image. A mask file is a label map: where masks overlap,
the one that the answer names last is seen.

Source: the client's requests, read from its code of December 2025.
"""

import json
import math
import pathlib
import secrets
import shutil
import tempfile
from typing import Any, Protocol

import cv2
from fastapi import APIRouter, Request
import numpy as np
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response

import rcmed_jax
from rcmed_jax.data import extras, prompts
from rcmed_jax.serve import asking, errors, payload, shelf
from rcmed_jax.serve.assistant import Answer
from rcmed_jax.serve.engine import Engine
from rcmed_jax.serve.limits import bearer

# Of a file: whether it is a volume and no picture.
_VOLUMES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd", ".npz")
# What a label map is written as, of a picture.
_PICTURES = (".png", ".nrrd")
_MOST_CLASSES = 255  # in a label map of 8 bits


class AnswerVolume(Protocol):
  """Answers a volume slice by slice."""

  def __call__(
    self,
    engine: Engine,
    path: pathlib.Path,
    text: str,
    out: pathlib.Path,
    *,
    describe: bool,
  ) -> dict[str, int]:
    """Writes a label map to `out`, .nii.gz; class -> its value comes back.

    Args:
      engine: has `rows` and `stream`, as an assistant does.
      path: a file, or the folder of a DICOM series.
      describe: the text asks for a description.

    Raises:
      DataError: it cannot be read.
      NotImplementedError: nothing here reads it.
    """
    ...


def router(
  service: asking.Service,
  kept: shelf.Shelf,
  answer_volume: AnswerVolume | None = None,
) -> APIRouter:
  """The protocol's paths."""
  made = APIRouter()
  _add_info(made, service, kept)
  _add_auth(made, service)
  _add_sessions(made, service, kept)
  _add_datastore(made, service, kept)
  _add_infer(made, service, kept, answer_volume)
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
      "dimension": 2,
      "description": "Finds what params.prompt asks for",
      "config": {"prompt": ""},
    }
    held = await service.work(kept.images)
    return {
      "name": "rcmed_jax",
      "description": "Masks and text from a plain request",
      "version": rcmed_jax.__version__,
      "labels": labels,
      "models": {service.name: model},
      "trainers": {},
      "strategies": {},
      "scoring": {},
      "train_stats": {},
      "datastore": {"total": len(held), "completed": _labelled(held)},
      "config": {},
    }


def _add_auth(made: APIRouter, service: asking.Service) -> None:
  @made.get("/auth/")
  def enabled() -> dict[str, bool]:
    return {"enabled": bool(service.keys)}

  @made.post("/auth/token", responses=errors.DOCUMENTED)
  async def token(request: Request) -> dict[str, str]:
    """A form's password, which is a key, comes back as the token."""
    form = await request.form(max_files=0, max_fields=10)
    key = asking.text_of(form, "password") or ""
    if service.keys.owner(key) is None:
      raise HTTPException(401, "give a key that is known here as password")
    return {"access_token": key, "token_type": "bearer"}

  @made.get("/auth/token/valid", responses=errors.DOCUMENTED)
  def valid(request: Request) -> dict[str, bool]:
    return {"valid": not service.keys or bool(bearer(request.headers))}


def _add_sessions(
  made: APIRouter, service: asking.Service, kept: shelf.Shelf
) -> None:
  @made.put("/session/", responses=errors.DOCUMENTED)
  async def begin(
    request: Request, expiry: float = shelf.SESSION_S
  ) -> dict[str, Any]:
    if not math.isfinite(expiry):
      raise errors.BadFieldError("expiry", "expected seconds")
    form = await asking.form_of(request, files=asking.MOST_FILES)
    try:
      incoming = [
        _incoming(file)
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


def _add_datastore(
  made: APIRouter, service: asking.Service, kept: shelf.Shelf
) -> None:
  @made.get("/datastore/")
  async def listed(output: str = "") -> dict[str, Any]:
    held = await service.work(kept.images)
    told = {"total": len(held), "completed": _labelled(held)}
    if output != "all":
      return told
    objects = {name: {"labels": tags} for name, tags in held.items()}
    return {**told, "objects": objects}

  @made.put("/datastore/", responses=errors.DOCUMENTED)
  async def image(request: Request, image: str = "") -> dict[str, str]:
    form = await asking.form_of(request)
    try:
      incoming = _incoming(asking.file_of(form, "file"))
      return {
        "image": await service.work(lambda: kept.put_image(image, incoming))
      }
    finally:
      await form.close()

  @made.put("/datastore/label", responses=errors.DOCUMENTED)
  async def label(
    request: Request, image: str, tag: str = ""
  ) -> dict[str, str]:
    form = await asking.form_of(request)
    try:
      incoming = _incoming(asking.file_of(form, "label"))
      found = await service.work(lambda: kept.put_label(image, tag, incoming))
      return {"image": image, "label": found}
    finally:
      await form.close()

  @made.get("/datastore/image", responses=errors.DOCUMENTED)
  def get_image(image: str) -> FileResponse:
    path = kept.image(image)
    return FileResponse(path, filename=path.name)

  @made.get("/datastore/label", responses=errors.DOCUMENTED)
  def get_label(label: str, tag: str = "") -> FileResponse:
    path = kept.label(label, tag)
    return FileResponse(path, filename=path.name)


def _add_infer(
  made: APIRouter,
  service: asking.Service,
  kept: shelf.Shelf,
  answer_volume: AnswerVolume | None,
) -> None:
  @made.post(
    "/infer/{model}",
    responses=errors.DOCUMENTED
    | {200: {"content": {"multipart/form-data": {}}}}
    | {501: {"description": "A volume of a kind that is not answered"}},
  )
  async def infer(
    request: Request,
    model: str,
    image: str = "",
    session_id: str = "",
    output: str = "all",
  ) -> Response:
    if model != service.name:
      raise HTTPException(404, f"there is no such model, only {service.name}")
    with tempfile.TemporaryDirectory() as folder:
      scratch = pathlib.Path(folder)
      form = await asking.form_of(request)
      try:
        params = _params(form)
        path = await service.work(
          lambda: _found(kept, form, scratch, request, session_id, image)
        )
      finally:
        await form.close()
      if path.is_dir() or path.name.lower().endswith(_VOLUMES):
        out = scratch / "label.nii.gz"
        said = await _volume(service, params, path, out, answer_volume)
      else:
        out = scratch / f"label{_suffix(params)}"
        said = await _picture(service, request, params, path, out)
      if output == "json":
        return JSONResponse(said)
      return multipart(said, out.name, out.read_bytes())


async def _volume(
  service: asking.Service,
  params: dict[str, Any],
  path: pathlib.Path,
  out: pathlib.Path,
  answer_volume: AnswerVolume | None,
) -> dict[str, Any]:
  """Writes a volume's label map; what is said beside it comes back."""
  if answer_volume is None:
    raise NotImplementedError(
      "volumes are not answered here; send a slice as a picture"
    )
  text, describe = _asked(params, service)
  names = await service.work(
    lambda: answer_volume(service.engine, path, text, out, describe=describe)
  )
  return {"label_names": names}


async def _picture(
  service: asking.Service,
  request: Request,
  params: dict[str, Any],
  path: pathlib.Path,
  out: pathlib.Path,
) -> dict[str, Any]:
  """Writes a picture's label map; what is said beside it comes back."""
  text, describe = _asked(params, service)
  most = service.limits.pixels
  image_IJC = await service.work(
    lambda: payload.picture_of(path, "image", most)
  )
  answered = await service.ask(request, image_IJC, text, describe=describe)
  labels_IJ, said = label_map(answered.answer, image_IJC.shape[:2])
  await service.work(lambda: _write(labels_IJ, out))
  return said


def label_map(
  answer: Answer, shape: tuple[int, ...]
) -> tuple[np.ndarray, dict[str, Any]]:
  """uint8[I, J], the number of each pixel's target, and what was said."""
  labels_IJ = np.zeros(shape[:2], np.uint8)
  names: dict[str, int] = {}
  targets = []
  for found in answer.targets:
    targets.append(
      {
        "class": found.name,
        "present": found.present,
        "box": found.box,
        "confidence": round(found.confidence, 4),
      }
    )
    if found.mask_IJ is None or len(names) >= _MOST_CLASSES:
      continue
    value = names.setdefault(found.name or "unnamed", len(names) + 1)
    labels_IJ[found.mask_IJ] = value
  return labels_IJ, {
    "label_names": names,
    "text": answer.text,
    "modality": answer.modality,
    "targets": targets,
  }


def multipart(said: dict[str, Any], name: str, data: bytes) -> Response:
  """A reply of two parts, `params` and the file `image`, sent in one piece."""
  line = secrets.token_hex(16)
  disposition = "Content-Disposition: form-data; name="
  head = (
    f'--{line}\r\n{disposition}"params"\r\n'
    f"Content-Type: application/json\r\n\r\n{json.dumps(said)}\r\n"
    f'--{line}\r\n{disposition}"image"; filename="{name}"\r\n'
    "Content-Type: application/octet-stream\r\n\r\n"
  )
  return Response(
    head.encode() + data + f"\r\n--{line}--\r\n".encode(),
    media_type=f"multipart/form-data; boundary={line}",
  )


def _params(form: FormData) -> dict[str, Any]:
  """The object in a form's `params`; {} where there is none."""
  text = asking.text_of(form, "params")
  try:
    params = json.loads(text or "{}")
  except (ValueError, RecursionError) as error:
    raise errors.BadFieldError("params", "it is no JSON", 400) from error
  if not isinstance(params, dict):
    raise errors.BadFieldError("params", "expected an object")
  return params


def _asked(params: dict[str, Any], service: asking.Service) -> tuple[str, bool]:
  """The question, and whether it asks for a description."""
  text = params.get("prompt") or ""
  if not isinstance(text, str):
    raise errors.BadFieldError("params.prompt", "expected text")
  if not text.strip():
    return prompts.description_question(0), True
  return asking.check_text(text, "params.prompt", service.limits), False


def _found(
  kept: shelf.Shelf,
  form: FormData,
  scratch: pathlib.Path,
  request: Request,
  session_id: str,
  image: str,
) -> pathlib.Path:
  """What is asked about: a file in the request, a session's, or one kept.

  The folder of a session that holds several.
  """
  if "file" in form:
    name, write = _incoming(asking.file_of(form, "file"))
    folder = scratch / "file"
    folder.mkdir()
    path = folder / payload.base_name(name, "file")
    write(path)
    return path
  if session_id:
    session = kept.session(session_id, request.state.caller)
    return session.paths[0] if len(session.names) == 1 else session.folder
  if image:
    return kept.image(image)
  raise errors.BadFieldError("file", "give a file, a session or an image", 400)


def _incoming(file: UploadFile) -> shelf.Incoming:
  """A file, and what writes it. The client sends its whole local path."""

  def write(path: pathlib.Path) -> None:
    with path.open("wb") as out:
      shutil.copyfileobj(file.file, out)

  return file.filename or "", write


def _suffix(params: dict[str, Any]) -> str:
  """What a picture's label map is to be written as."""
  suffix = params.get("result_extension", _PICTURES[0])
  if suffix not in _PICTURES:
    raise errors.BadFieldError(
      "params.result_extension", f"expected {' or '.join(_PICTURES)}"
    )
  return suffix


def _write(labels_IJ: np.ndarray, path: pathlib.Path) -> None:
  """Writes a label map as PNG or NRRD."""
  if path.suffix == ".nrrd":
    nrrd = extras.load("nrrd", "Label maps as NRRD", "dicom")
    # Columns first, one slice: as 3D Slicer holds a picture.
    nrrd.write(
      str(path),
      np.asfortranarray(labels_IJ.T[:, :, None]),
      {
        "space": "left-posterior-superior",
        "space directions": np.eye(3),
        "space origin": np.zeros(3),
        "encoding": "gzip",
      },
    )
  elif not cv2.imwrite(str(path), labels_IJ):
    raise OSError("a label map could not be written; is the disk full?")


def _told(session: shelf.Session) -> dict[str, Any]:
  return {"files": len(session.names), "expiry": session.lasts_s}


def _labelled(held: dict[str, list[str]]) -> int:
  return sum(bool(tags) for tags in held.values())
