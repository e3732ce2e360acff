"""POST /v1/segment: its bodies, and what an answer becomes in JSON."""

import base64
from collections.abc import Sequence
import time
from typing import Annotated, Literal

import cv2
from fastapi import APIRouter, Request
import numpy as np
import pydantic

from rcmed_jax.serve import asking, errors, forms, payload, reading
from rcmed_jax.serve.engine import Answered
from rcmed_jax.serve.questions import Answer, Found, Question

MASKS = ("png", "rle", "none")
# Of one request; an answer holds far fewer masks.
_MOST_CLASSES = 64

Name = Annotated[pydantic.StrictStr, pydantic.Field(min_length=1)]


class Wanted(pydantic.BaseModel):
  """What is asked of an image: a prompt, or classes."""

  model_config = pydantic.ConfigDict(extra="forbid", strict=True)

  prompt: str | None = None
  classes: (
    Annotated[
      list[Name], pydantic.Field(min_length=1, max_length=_MOST_CLASSES)
    ]
    | None
  ) = None
  modality: Name | None = pydantic.Field(
    None, description='in words, "computed tomography"; used with classes'
  )
  describe: pydantic.StrictBool = pydantic.Field(
    False, description="the prompt asks for a description, names no target"
  )
  masks: Literal["png", "rle", "none"] = "png"


class SegmentBody(Wanted):
  """The body as JSON."""

  image: str = pydantic.Field(
    description="PNG, JPEG, TIFF or DICOM: base64, or a data: URL"
  )


class Mask(pydantic.BaseModel):
  """A mask on the image's own grid."""

  format: Literal["png", "rle"]
  size: tuple[int, int]  # rows, columns
  # png: base64, 255 where the target is.
  data: str | None = None
  # rle: lengths of runs, down the columns, zeros first, as COCO's.
  counts: list[int] | None = None


class Target(pydantic.BaseModel):
  """One thing that the answer speaks of."""

  name: str = pydantic.Field(serialization_alias="class")
  present: bool
  box: tuple[int, int, int, int] | None  # x0, y0, x1, y1; x1, y1 exclusive
  confidence: float  # 0..1
  mask: Mask | None


class Timings(pydantic.BaseModel):
  """Seconds."""

  decode_s: float
  queue_s: float
  answer_s: float
  total_s: float
  shared: int  # requests that were answered together


class SegmentAnswer(pydantic.BaseModel):
  """What comes back."""

  text: str  # with <p> phrases, and a [SEG] for each mask
  modality: str | None
  targets: list[Target]
  unanswered: list[str]  # classes that were asked for and not spoken of
  timings: Timings


def router(service: asking.Service) -> APIRouter:
  """The path of `POST /v1/segment`."""
  made = APIRouter()
  form = forms.schema_of(Wanted)
  form["properties"]["image"] = forms.FILE
  form["required"] = ["image"]
  content = {
    "application/json": {"schema": forms.schema_of(SegmentBody)},
    "multipart/form-data": {"schema": form},
  }

  @made.post(
    "/v1/segment",
    responses=errors.DOCUMENTED,
    openapi_extra={"requestBody": {"required": True, "content": content}},
  )
  async def segment(request: Request) -> SegmentAnswer:
    began = time.monotonic()
    wanted, data = await _read(request, service.limits.pixels)
    texts, called = _texts(wanted, service)
    image_IJC = await service.picture(data, "image")
    decoded = time.monotonic()
    answered = await service.ask_all(
      request, [Question(image_IJC, text, wanted.describe) for text in texts]
    )
    spoken = (found.name for one in answered for found in one.answer.targets)
    left = set(asking.unanswered([*called.values()], spoken))
    said = {name: own for name, own in called.items() if own not in left}
    answer = answered[0].answer
    if len(answered) > 1:
      answer = reading.of_classes([one.answer for one in answered], said)
    made = await service.work(lambda: targets(answer, wanted.masks))
    now = time.monotonic()
    return SegmentAnswer(
      text=answer.text,
      modality=answer.modality,
      targets=made,
      unanswered=[name for name in called if name not in said],
      timings=_timings(answered, decoded - began, now - began),
    )

  return made


def _texts(
  wanted: Wanted, service: asking.Service
) -> tuple[list[str], dict[str, str]]:
  """The questions to ask, and what answers call each class.

  Raises:
    BadFieldError: see `asking.prompt_of`.
    NotReadyError: the assistant is not loaded yet.
  """
  if wanted.prompt is not None or wanted.classes is None:
    groups: list[list[str] | None] = [wanted.classes]
    called: dict[str, str] = {}
  else:
    for name in wanted.classes:
      asking.check_text(name, "classes", service.limits)
    called, parts = service.engine.groups(wanted.classes)
    groups = [*parts]
  texts = [
    asking.prompt_of(wanted.prompt, group, wanted.modality, service.limits)
    for group in groups
  ]
  return texts, called


def targets(answer: Answer, masks: str) -> list[Target]:
  """An answer's targets, in its order.

  Args:
    masks: one of `MASKS`.
  """
  return [_target(found, masks) for found in answer.targets]


def _target(found: Found, masks: str) -> Target:
  mask = None
  if found.mask_IJ is not None and masks != "none":
    rows, columns = found.mask_IJ.shape
    mask = Mask(format="png", size=(rows, columns))
    if masks == "rle":
      mask = Mask(format="rle", size=(rows, columns))
      mask.counts = runs(found.mask_IJ)
    else:
      mask.data = base64.b64encode(png(found.mask_IJ)).decode()
  return Target(
    name=found.name,
    present=found.present,
    box=found.box,
    confidence=round(found.confidence, 4),
    mask=mask,
  )


def png(mask_IJ: np.ndarray) -> bytes:
  """A PNG file, 255 where the mask is."""
  done, data = cv2.imencode(".png", mask_IJ.astype(np.uint8) * 255)
  if not done:
    raise RuntimeError("a mask could not be written as PNG")
  return data.tobytes()


def runs(mask_IJ: np.ndarray) -> list[int]:
  """Lengths of runs, which `ingest.pictures.rle.decode` undoes."""
  flat = mask_IJ.T.ravel()
  ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
  edges = np.concatenate(([0], ends, [len(flat)]))
  lengths = np.diff(edges).tolist()
  return [0, *lengths] if flat[0] else lengths


async def _read(request: Request, most_pixels: int) -> tuple[Wanted, bytes]:
  """What is wanted, and the image's bytes."""
  kind = request.headers.get("content-type", "").lower()
  try:
    if kind.startswith("multipart/"):
      return await _read_form(request, most_pixels)
    body = SegmentBody.model_validate_json(await forms.json_of(request))
  except pydantic.ValidationError as error:
    raise errors.first_fault(error) from None
  wanted = Wanted(**body.model_dump(exclude={"image"}))
  return wanted, payload.from_text(body.image, "image", bare=True)


async def _read_form(
  request: Request, most_pixels: int
) -> tuple[Wanted, bytes]:
  form = await forms.form_of(request)
  try:
    file = forms.file_of(form, "image")
    payload.check_bytes(file.size or 0, "image", most_pixels)
    data = await file.read()
    fields = forms.fields_of(form, "image")
  finally:
    await form.close()
  return Wanted.model_validate(fields), data


def _timings(
  answered: Sequence[Answered], decode_s: float, total_s: float
) -> Timings:
  return Timings(
    decode_s=round(decode_s, 4),
    queue_s=round(max(one.queue_s for one in answered), 4),
    answer_s=round(max(one.answer_s for one in answered), 4),
    total_s=round(total_s, 4),
    shared=max(one.shared for one in answered),
  )
