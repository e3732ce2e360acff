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

from collections.abc import AsyncIterator
import contextlib
import pathlib
import tempfile
from typing import Annotated, Any, Literal, Protocol

from fastapi import APIRouter, Depends, Request
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
  volume_answers,
  volume_jobs,
  volumes,
)
from rcmed_jax.serve.cleanup import Cleanup

_MOST_CLASSES = 64

_ANSWERS: dict[int | str, dict[str, Any]] = {
  200: {"content": {"application/zip": {}, "text/event-stream": {}}},
  404: {"description": "There is no such session"},
  501: {"description": "Volumes are not answered here"},
}
_NIFTI = {200: {"content": {"application/gzip": {}}}}
_PNG = {200: {"content": {"image/png": {}}}}


class WriteAnswer(Protocol):
  """Writes the files of a volume's answer."""

  def __call__(
    self,
    out: pathlib.Path,
    scan: scans.Scan,
    wanted: volume_answers.Wanted,
    said: volumes.VolumeAnswer,
  ) -> dict[str, Any]:
    """What `answer.json` says; it and the files it names lie in `out`.

    Raises:
      DataError: the scan is not one that they can be of.
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
  write_answer: WriteAnswer | None = None,
) -> APIRouter:
  """The paths at the top of this file.

  Args:
    write_answer: None: volumes are not answered, 501.
  """
  made = APIRouter()
  _add_segment(made, service, kept, write_answer)
  _add_views(made, service, kept)
  return made


def _add_segment(
  made: APIRouter,
  service: asking.Service,
  kept: shelf.Shelf,
  write_answer: WriteAnswer | None,
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
    if write_answer is None:
      raise NotImplementedError("volumes are not answered here")
    write = write_answer
    # What the job reads is the job's: it goes at its end, not under its hands.
    with contextlib.ExitStack() as held:
      fields, path, out = await _read(request, service, kept, held)
      wanted = _wanted(fields, service)
      if service.log_prompts:
        request.state.prompt = wanted.text

      def render(
        scan: scans.Scan, said: volumes.VolumeAnswer
      ) -> volume_jobs.Files:
        answered = write(out, scan, wanted, said)
        spoken = (target["class"] for target in answered["targets"])
        left = asking.unanswered(fields.classes or (), spoken)
        return volume_jobs.Files.read(answered | {"unanswered": left}, out)

      job = await volume_answers.begin(
        service, path, wanted, render, held=held.pop_all()
      )
    if fields.stream:
      return events.response(job.events(volume_jobs.Files.json))
    files = await job.result(request)
    if fields.output == "zip":
      return Response(files.zip(), media_type="application/zip")
    return JSONResponse(files.json())


def _add_views(
  made: APIRouter, service: asking.Service, kept: shelf.Shelf
) -> None:
  responses = errors.DOCUMENTED | {404: _ANSWERS[404]}

  async def scan_of(
    request: Request, session: str
  ) -> AsyncIterator[scans.Scan]:
    """The scan of a session, whose files stay until the response is sent."""
    with kept.use(session, request.state.caller) as found:
      yield await service.work(
        lambda: volume_answers.open_volume(
          found.path, "", scans.Looking(), service.limits
        )
      )

  opened = Depends(scan_of)

  @made.get("/v1/volumes/{session}", responses=responses)
  async def told(scan: scans.Scan = opened) -> dict[str, Any]:
    return {
      "kind": scan.kind,
      "slices": scan.view.shape[0],
      "shape": scan.grid.shape if scan.grid else scan.view.shape,
      "spacing_mm": scan.grid.spacing_mm if scan.grid else None,
    }

  @made.get("/v1/volumes/{session}/image", responses=responses | _NIFTI)
  async def image(scan: scans.Scan = opened) -> FileResponse:
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
  async def shown(scan: scans.Scan = opened, number: int = 0) -> Response:
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


async def _read(
  request: Request,
  service: asking.Service,
  kept: shelf.Shelf,
  held: contextlib.ExitStack,
) -> tuple[VolumeWanted, pathlib.Path, pathlib.Path]:
  """What is wanted, of which file or folder, and where its answer goes.

  Args:
    held: gets what is to be left once the answer is there.
  """
  form = await forms.form_of(request, files=shelf.MOST_FILES)
  try:
    try:
      fields = VolumeWanted.model_validate(forms.fields_of(form, "image"))
    except pydantic.ValidationError as error:
      raise errors.first_fault(error) from None
    files = [one for one in form.getlist("image") if not isinstance(one, str)]
    if bool(files) == (fields.session is not None):
      raise errors.BadFieldError(
        "image", "give files or a session, one of both"
      )
    folder = pathlib.Path(held.enter_context(tempfile.TemporaryDirectory()))
    if fields.session is not None:
      use = kept.use(fields.session, request.state.caller)
      path = held.enter_context(use).path
    else:
      path = await service.work(lambda: _lay_down(files, folder / "image"))
    return fields, path, folder / "answer"
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


def _wanted(
  fields: VolumeWanted, service: asking.Service
) -> volume_answers.Wanted:
  """What is asked of the volume.

  Raises:
    BadFieldError: a field cannot be used.
  """
  alone = fields.prompt is None and fields.classes is None
  if fields.describe and alone:
    text = prompts.description_question(0)
  else:
    text = asking.prompt_of(
      fields.prompt, fields.classes, fields.modality, service.limits
    )
  try:
    looking = scans.Looking(fields.axis, fields.window, fields.modality or "")
  except ValueError as error:
    raise errors.BadFieldError(
      str(error).partition("=")[0], str(error)
    ) from error
  cleanup = Cleanup(fields.smooth, fields.min_mm3, fields.largest)
  return volume_answers.Wanted(text, fields.describe, looking, cleanup)
