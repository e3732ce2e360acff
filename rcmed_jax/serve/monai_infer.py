"""MONAI Label's `POST /infer/{model}`: a label map of an image.

What to look for stands in `params` as `prompt`; without one the model is asked
to describe the image. The image is in the request, in a session, or kept: a
picture, a volume, or a DICOM series as files or as a .zip.

  output=all        params and the label map, a multipart body (the default)
  output=image      the label map alone, as OHIF asks for it
  output=json       params alone
  output=dicom_seg  a DICOM segmentation, of a DICOM series
"""

from collections.abc import Iterator
import contextlib
import dataclasses
import json
import pathlib
import secrets
import tempfile
from typing import Any, Literal

from fastapi import APIRouter, Request
from starlette.datastructures import FormData
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from rcmed_jax.data import prompts
from rcmed_jax.ingest.dicom import dicom_file
from rcmed_jax.serve import (
  asking,
  dicom_seg_out,
  errors,
  forms,
  label_maps,
  payload,
  scans,
  shelf,
  volume_answers,
  volumes,
)
from rcmed_jax.serve.cleanup import Cleanup
from rcmed_jax.serve.questions import Question

Output = Literal["all", "image", "json", "dicom_seg", ""]

# Of a file: whether it is a volume and no picture.
_VOLUMES = (".nii", ".nii.gz", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd", ".npz")


@dataclasses.dataclass(frozen=True)
class Wanted:
  """What `params` say."""

  asked: volume_answers.Wanted
  suffix: str  # "": as fits the image
  compressed: bool


def add(made: APIRouter, service: asking.Service, kept: shelf.Shelf) -> None:
  """Adds the path."""
  kinds = ("multipart/form-data", "application/octet-stream")
  content: dict[str, Any] = {kind: {} for kind in (*kinds, "application/dicom")}

  @made.post(
    "/infer/{model}",
    responses=errors.DOCUMENTED
    | {200: {"content": content}}
    | {501: {"description": "What this needs is not installed"}},
    openapi_extra=forms.body("file", required=False),
  )
  async def infer(
    request: Request,
    model: str,
    image: str = "",
    session_id: str = "",
    output: Output = "",
  ) -> Response:
    if model != service.name:
      raise HTTPException(404, f"there is no such model, only {service.name}")
    with tempfile.TemporaryDirectory(dir=kept.scratch) as folder:
      scratch = pathlib.Path(folder)
      form = await forms.form_of(request)
      with contextlib.ExitStack() as held:
        try:
          wanted = _wanted(forms.params_of(form), service)
          path = await service.work(
            lambda: held.enter_context(
              _found(kept, form, scratch, request, session_id, image)
            )
          )
        finally:
          await form.close()
        return await _answer(service, request, wanted, path, scratch, output)


async def _answer(
  service: asking.Service,
  request: Request,
  wanted: Wanted,
  path: pathlib.Path,
  scratch: pathlib.Path,
  output: Output,
) -> Response:
  if output == "dicom_seg" and not (path.is_dir() or dicom_file.is_dicom(path)):
    raise errors.BadFieldError("output", "dicom_seg needs a DICOM image")
  if output == "dicom_seg" or await service.work(lambda: _is_volume(path)):
    out = scratch / f"label{_suffix(wanted, label_maps.VOLUMES)}"
    if output == "dicom_seg":
      out = scratch / "segmentation.dcm"
    job = await volume_answers.begin(
      service,
      path,
      wanted.asked,
      lambda scan, found: _volume(out, scan, found, wanted.compressed),
      fields="params.",
    )
    said = await job.result(request)
  else:
    out = scratch / f"label{_suffix(wanted, label_maps.PICTURES)}"
    said = await _picture(service, request, wanted, path, out)
  if output == "json":
    return JSONResponse(said)
  data = await service.work(out.read_bytes)
  if output in ("image", "dicom_seg"):
    kind = "dicom" if output == "dicom_seg" else "octet-stream"
    return Response(
      data,
      media_type=f"application/{kind}",
      headers={"Content-Disposition": f'attachment; filename="{out.name}"'},
    )
  return multipart(said, out.name, data)


def _volume(
  out: pathlib.Path,
  scan: scans.Scan,
  found: volumes.VolumeAnswer,
  compressed: bool,
) -> dict[str, Any]:
  """Writes a volume's label map or segmentation; what is said comes back."""
  masks = [
    (one.name, one.mask) for one in found.targets if one.mask is not None
  ]
  names: dict[str, int] = {}
  if out.suffix == ".dcm":
    if not masks:
      raise HTTPException(404, "nothing was found to make segments of")
    dicom_seg_out.write(out, masks, scan.files, scan.order)
  else:
    shape = scan.grid.shape if scan.grid else scan.view.shape
    map_ = label_maps.of(masks, shape)
    names = map_.names
    label_maps.write_volume(out, map_.labels, scan, compressed=compressed)
  return {
    "label_names": names,
    "text": found.text,
    "modality": found.modality,
    "targets": [
      _told(one, turned=scan.kind == "dicom") for one in found.targets
    ],
    "timings": {
      "slices": found.slices,
      "seconds": round(found.seconds, 3),
      "seconds_per_slice": round(found.seconds / found.slices, 4),
    },
  }


async def _picture(
  service: asking.Service,
  request: Request,
  wanted: Wanted,
  path: pathlib.Path,
  out: pathlib.Path,
) -> dict[str, Any]:
  """Writes a picture's label map; what is said beside it comes back."""
  asked = wanted.asked
  service.engine.require_room()
  most = service.limits.pixels
  image_IJC = await service.work(
    lambda: payload.picture_of(path, "image", most)
  )
  answered = await service.ask(
    request, Question(image_IJC, asked.text, asked.describe)
  )
  answer = answered.answer
  masks = [
    (one.name, one.mask_IJ) for one in answer.targets if one.mask_IJ is not None
  ]
  map_ = label_maps.of(masks, image_IJC.shape[:2])
  await service.work(lambda: label_maps.write_picture(out, map_.labels))
  return {
    "label_names": map_.names,
    "text": answer.text,
    "modality": answer.modality,
    "targets": [
      {
        "class": found.name,
        "present": found.present,
        "box": found.box,
        "confidence": round(found.confidence, 4),
      }
      for found in answer.targets
    ],
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


@contextlib.contextmanager
def _found(
  kept: shelf.Shelf,
  form: FormData,
  scratch: pathlib.Path,
  request: Request,
  session_id: str,
  image: str,
) -> Iterator[pathlib.Path]:
  """What is asked about: a file in the request, a session's, or one kept.

  The folder of a session, or of an image, that holds several.
  """
  if "file" in form:
    file = forms.file_of(form, "file")
    yield kept.unpacked(forms.incoming_of(file), scratch / "file")
  elif session_id:
    with kept.use(session_id, request.state.caller) as session:
      yield session.path
  elif image:
    yield kept.image(image)
  else:
    raise errors.BadFieldError(
      "file", "give a file, a session or an image", 400
    )


def _is_volume(path: pathlib.Path) -> bool:
  if path.is_dir() or path.name.lower().endswith(_VOLUMES):
    return True
  if not dicom_file.is_dicom(path):
    return False
  return dicom_file.read_header(dicom_file.File(path, "image")).frames > 1


def _wanted(params: dict[str, Any], service: asking.Service) -> Wanted:
  """What `params` say.

  Raises:
    BadFieldError: one of them is not what it should be.
  """

  def read(name: str, kind: type | tuple[type, ...], default: Any) -> Any:
    value = params.get(name)
    if value is None:
      return default
    if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
      raise errors.BadFieldError(f"params.{name}", "it is of another kind")
    return value

  text, describe = read("prompt", str, ""), False
  if text.strip():
    asking.check_text(text, "params.prompt", service.limits)
  else:
    text, describe = prompts.description_question(0), True
  try:
    looking = scans.Looking(
      axis=read("axis", str, "") or "axial",
      window=read("window", str, ""),
      modality=read("modality", str, ""),
    )
    cleanup = Cleanup(
      smooth=read("smooth", bool, False),
      min_mm3=read("min_mm3", (int, float), 0.0),
      largest=read("largest", bool, False),
    )
    return Wanted(
      asked=volume_answers.Wanted(text, describe, looking, cleanup),
      suffix=read("result_extension", str, ""),
      compressed=read("result_compress", bool, True),
    )
  except errors.BadFieldError:
    raise
  except ValueError as error:
    raise errors.BadFieldError("params", str(error)) from error


def _suffix(wanted: Wanted, suffixes: tuple[str, ...]) -> str:
  """What a label map is to be written as."""
  if wanted.suffix and wanted.suffix not in suffixes:
    raise errors.BadFieldError(
      "params.result_extension", f"expected {' or '.join(suffixes)}"
    )
  return wanted.suffix or suffixes[0]


def _told(target: volumes.Target, *, turned: bool) -> dict[str, Any]:
  """A target of a volume; its box in the order of the label map's axes."""
  box = target.box
  if box is not None and turned:
    box = box[0][::-1], box[1][::-1]
  return {
    "class": target.name,
    "present": target.present,
    "box": box,
    "confidence": round(target.confidence, 4),
    "ml": None if target.ml is None else round(target.ml, 4),
  }
