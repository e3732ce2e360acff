"""Volumes over HTTP: what is asked of a NIfTI file or a DICOM series.

  POST /v1/segment_volume          an answer and its files
  GET  /v1/volumes/{id}            what was sent, as far as a viewer must know
  GET  /v1/volumes/{id}/image      as NIfTI, also of DICOM
  GET  /v1/volumes/{id}/picture    a slice as the model sees it, PNG
  POST /v1/picture                 a PNG, JPEG or TIFF as the model sees it

A volume comes in the request, or lies in a session of `PUT /session/`, so that
the next question about it need not send it again. An answer of many slices
takes its time: with stream=true it tells of each.
"""

from collections.abc import Callable
import pathlib
import tempfile
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Request
import pydantic
from starlette.background import BackgroundTask
from starlette.datastructures import UploadFile
from starlette.responses import (
  FileResponse,
  JSONResponse,
  Response,
)

from rcmed_jax.data import prompts
from rcmed_jax.serve import (
  api,
  asking,
  errors,
  events,
  forms,
  payload,
  scans,
  shelf,
  viewing,
  volume_jobs,
)
from rcmed_jax.serve.cleanup import Cleanup
from rcmed_jax.serve.engine import Engine

_MOST_CLASSES = 64

_ANSWERS: dict[int | str, dict[str, Any]] = {
  200: {"content": {"application/zip": {}, "text/event-stream": {}}},
  404: {"description": "There is no such session"},
  501: {"description": "Volumes are not answered here"},
}
_NIFTI = {200: {"content": {"application/gzip": {}}}}
_PNG = {200: {"content": {"image/png": {}}}}


class AskVolume(Protocol):
  """Answers a volume and writes the files of its answer."""

  def __call__(
    self,
    engine: Engine,
    scan: scans.Scan,
    text: str,
    out: pathlib.Path,
    *,
    describe: bool,
    looking: scans.Looking,
    cleanup: Cleanup,
    on_slice: Callable[[], None],
  ) -> dict[str, Any]:
    """What `answer.json` says; it and the files it names lie in `out`.

    Raises:
      DataError: the scan cannot be read to its end.
      ValueError: it cannot be asked so.
    """
    ...


class VolumeWanted(pydantic.BaseModel):
  """What is asked of a volume: the fields of a form."""

  model_config = pydantic.ConfigDict(extra="forbid")

  session: str | None = pydantic.Field(
    None, description="of PUT /session/, in the place of files"
  )
  prompt: str | None = None
  classes: (
    Annotated[
      list[api.Name], pydantic.Field(min_length=1, max_length=_MOST_CLASSES)
    ]
    | None
  ) = None
  modality: api.Name | None = pydantic.Field(
    None, description='in words, "computed tomography"; default: by the file'
  )
  describe: bool = pydantic.Field(
    False, description="ask for a description; needs no prompt"
  )
  axis: Literal["axial", "coronal", "sagittal"] = "axial"
  window: str = pydantic.Field("", description="of CT; default: by the request")
  smooth: bool = False
  min_mm3: float = pydantic.Field(0.0, ge=0, allow_inf_nan=False)
  largest: bool = pydantic.Field(False, description="keep the largest piece")
  output: Literal["json", "zip"] = pydantic.Field(
    "json", description="json holds the files as base64"
  )
  stream: bool = pydantic.Field(
    False, description="server-sent events: each slice, then the answer"
  )


def router(
  service: asking.Service,
  kept: shelf.Shelf,
  ask_volume: AskVolume | None = None,
) -> APIRouter:
  """The paths at the top of this file.

  Args:
    ask_volume: None: volumes are not answered, 501.
  """
  made = APIRouter()
  _add_segment(made, service, kept, ask_volume)
  _add_views(made, service, kept)
  return made


def _add_segment(
  made: APIRouter,
  service: asking.Service,
  kept: shelf.Shelf,
  ask_volume: AskVolume | None,
) -> None:
  form = VolumeWanted.model_json_schema()
  form["properties"]["image"] = {
    "type": "array",
    "items": {"type": "string", "format": "binary"},
    "description": "a NIfTI file, or the files of one DICOM series",
  }
  content = {"multipart/form-data": {"schema": form}}

  @made.post(
    "/v1/segment_volume",
    responses=errors.DOCUMENTED | _ANSWERS,
    openapi_extra={"requestBody": {"required": True, "content": content}},
  )
  async def segment(request: Request) -> Response:
    if ask_volume is None:
      raise NotImplementedError("volumes are not answered here")
    ask = ask_volume
    wanted, path, folder = await _read(request, service, kept)
    text = _text(wanted, service)
    looking = _looking(wanted)
    cleanup = Cleanup(wanted.smooth, wanted.min_mm3, wanted.largest)
    if service.log_prompts:
      request.state.prompt = text

    # The folder is the job's, so that nothing is removed under its hands.
    def answer(on_slice: volume_jobs.OnSlice) -> volume_jobs.Files:
      with folder, errors.blaming("prompt"):
        scan = open_volume(path, text, looking, service)
        if cleanup.min_mm3 and scan.voxel_mm3 is None:
          raise errors.BadFieldError("min_mm3", "nothing tells a voxel's size")
        depth = scan.view.shape[0]
        out = pathlib.Path(folder.name) / "answer"
        answered = ask(
          service.engine,
          scan,
          text,
          out,
          describe=wanted.describe,
          looking=looking,
          cleanup=cleanup,
          on_slice=lambda: on_slice(depth),
        )
        said = (target["class"] for target in answered["targets"])
        left = asking.unanswered(wanted.classes or (), said)
        return volume_jobs.Files.read(answered | {"unanswered": left}, out)

    try:
      job = await service.volumes.begin(answer)
    except BaseException:
      folder.cleanup()
      raise
    if wanted.stream:
      return events.response(job.events(volume_jobs.Files.json))
    files = await job.result(request, service.limits.volume_s)
    if wanted.output == "zip":
      return Response(files.zip(), media_type="application/zip")
    return JSONResponse(files.json())


def _add_views(
  made: APIRouter, service: asking.Service, kept: shelf.Shelf
) -> None:
  responses = errors.DOCUMENTED | {404: _ANSWERS[404]}

  async def scan_of(request: Request, session: str) -> scans.Scan:
    path = _session_path(kept, session, request)
    return await service.work(
      lambda: open_volume(path, "", scans.Looking(), service)
    )

  @made.get("/v1/volumes/{session}", responses=responses)
  async def told(request: Request, session: str) -> dict[str, Any]:
    scan = await scan_of(request, session)
    return {
      "kind": scan.kind,
      "slices": scan.view.shape[0],
      "shape": scan.grid.shape if scan.grid else scan.view.shape,
      "spacing_mm": scan.grid.spacing_mm if scan.grid else None,
    }

  @made.get("/v1/volumes/{session}/image", responses=responses | _NIFTI)
  async def image(request: Request, session: str) -> FileResponse:
    scan = await scan_of(request, session)
    if scan.kind != "dicom":
      return FileResponse(scan.path, media_type="application/octet-stream")
    folder = tempfile.TemporaryDirectory()
    out = pathlib.Path(folder.name) / "image.nii.gz"
    await service.work(lambda: viewing.image_nifti(scan, out))
    return FileResponse(
      out,
      media_type="application/gzip",
      background=BackgroundTask(folder.cleanup),
    )

  @made.get("/v1/volumes/{session}/picture", responses=responses | _PNG)
  async def shown(request: Request, session: str, number: int = 0) -> Response:
    scan = await scan_of(request, session)
    data = await service.work(lambda: viewing.slice_png(scan, number))
    return Response(data, media_type="image/png")

  @made.post("/v1/picture", responses=errors.DOCUMENTED | _PNG)
  async def picture(request: Request) -> Response:
    form = await forms.form_of(request)
    try:
      data = await forms.file_of(form, "image").read()
    finally:
      await form.close()
    image_IJC = await service.picture(data, "image")
    made = await service.work(lambda: viewing.picture_png(image_IJC))
    return Response(made, media_type="image/png")


def open_volume(
  path: pathlib.Path,
  text: str,
  looking: scans.Looking,
  service: asking.Service,
) -> scans.Scan:
  """A scan of slices; see `asking.open_scan`.

  Raises:
    BadFieldError: as there, or 422 if it is a picture.
    DataError: as there.
  """
  scan = asking.open_scan(path, text, looking, service.limits)
  if scan.kind == "picture":
    raise errors.BadFieldError(
      "image", "expected NIfTI or DICOM; POST /v1/segment takes pictures"
    )
  return scan


async def _read(
  request: Request, service: asking.Service, kept: shelf.Shelf
) -> tuple[VolumeWanted, pathlib.Path, tempfile.TemporaryDirectory[str]]:
  """What is wanted, of which file or folder, and what is to go afterwards."""
  form = await forms.form_of(request, files=shelf.MOST_FILES)
  folder = tempfile.TemporaryDirectory()
  try:
    try:
      wanted = VolumeWanted.model_validate(forms.fields_of(form, "image"))
    except pydantic.ValidationError as error:
      raise errors.first_fault(error) from None
    files = [one for one in form.getlist("image") if not isinstance(one, str)]
    if bool(files) == (wanted.session is not None):
      raise errors.BadFieldError(
        "image", "give files or a session, one of both"
      )
    if wanted.session is not None:
      return wanted, _session_path(kept, wanted.session, request), folder
    root = pathlib.Path(folder.name) / "image"
    path = await service.work(lambda: _lay_down(files, root))
    return wanted, path, folder
  except BaseException:
    folder.cleanup()
    raise
  finally:
    await form.close()


def _lay_down(files: list[UploadFile], root: pathlib.Path) -> pathlib.Path:
  """Writes what was sent; the file, or the folder where there are several.

  The name of one may tell its modality; of a series' files, names tell nothing
  and may be given twice. Files that systems lay beside them are left out.
  """
  root.mkdir()
  if len(files) > 1:
    told = [one for one in files if not payload.is_beside(one.filename or "")]
    files = told or files
  for number, file in enumerate(files):
    name = f"{number:05d}.dcm"
    if len(files) == 1:
      name = payload.base_name(file.filename or "", "image")
    _, write = forms.incoming_of(file)
    write(root / name)
  return root if len(files) > 1 else root / name


def _session_path(
  kept: shelf.Shelf, name: str, request: Request
) -> pathlib.Path:
  """The file of a session, or the folder of one that holds several."""
  return kept.session(name, request.state.caller).path


def _text(wanted: VolumeWanted, service: asking.Service) -> str:
  if wanted.describe and wanted.prompt is None and wanted.classes is None:
    return prompts.description_question(0)
  return asking.prompt_of(
    wanted.prompt, wanted.classes, wanted.modality, service.limits
  )


def _looking(wanted: VolumeWanted) -> scans.Looking:
  try:
    return scans.Looking(wanted.axis, wanted.window, wanted.modality or "")
  except ValueError as error:
    raise errors.BadFieldError("window", str(error)) from error
