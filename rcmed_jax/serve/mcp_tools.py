"""Tools for language models: `segment` and `describe`, by MCP.

The Model Context Protocol, over standard input and output. An image comes as
base64, or by its path inside the one folder that may be read. What comes back
is structured, with a picture of the image and its masks for models that see.
What goes wrong with a request comes back as an error's text, which a model can
read and mend.
"""

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Callable, Sequence
import concurrent.futures
import contextlib
import pathlib
import threading
import time
from typing import Annotated, Any, Literal, TypeVar

import cv2
from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import CallToolResult, ImageContent, TextContent, ToolAnnotations
import numpy as np
import pydantic

import rcmed_jax
from rcmed_jax.data import prompts
from rcmed_jax.serve import (
  api,
  asking,
  engine,
  errors,
  payload,
  telemetry,
  viewing,
)
from rcmed_jax.serve.assistant import Answer, Found, Question

# Longest side of the picture that comes back; more tells a model nothing.
_SHOWN = 768

_ABOUT = """\
Finds what is asked for on medical images: pixel masks, boxes, and whether it is
there at all. Research software, not a medical device: its answers may be wrong.
"""
_READS = ToolAnnotations(
  read_only_hint=True, idempotent_hint=True, open_world_hint=False
)

# uint8[I, J, 3] and masks, bool[I, J] each -> the image with masks drawn.
Paint = Callable[[np.ndarray, Sequence[np.ndarray]], np.ndarray]
Result = TypeVar("Result")

Path = Annotated[
  str | None,
  pydantic.Field(description="image inside the folder that may be read"),
]
Image = Annotated[
  str | None,
  pydantic.Field(
    description="the image itself: base64 of PNG, JPEG, TIFF or DICOM"
  ),
]
Show = Annotated[
  bool, pydantic.Field(description="send a picture of the image and its masks")
]


class Target(pydantic.BaseModel):
  """One thing that the answer speaks of."""

  model_config = pydantic.ConfigDict(populate_by_name=True)

  name: str = pydantic.Field(alias="class")
  present: bool
  confidence: float = pydantic.Field(description="0 to 1")
  box: tuple[int, int, int, int] | None = pydantic.Field(
    description="pixels: x0, y0, x1, y1; x1 and y1 are outside"
  )
  share: float = pydantic.Field(description="part of the image that it covers")
  mask: str | None = pydantic.Field(
    None, description="base64 of a PNG, 255 where the target is"
  )


class Said(pydantic.BaseModel):
  """An answer."""

  text: str = pydantic.Field(description="in plain words")
  modality: str | None
  rows: int
  columns: int
  targets: list[Target]
  unanswered: list[str] = pydantic.Field(
    description="classes that were asked for and not spoken of"
  )


def make(
  load: Callable[[], asking.Service],
  *,
  folder: pathlib.Path | None = None,
  paint: Paint | None = None,
  log: Callable[..., None] = telemetry.write_line,
) -> MCPServer:
  """A server whose `run` answers over standard input and output.

  Args:
    load: gives what answers, its engine started. It is called in a thread once
      the client is being listened to: a large model takes longer to be read
      than clients wait for a server's first word. Tools wait for it.
    folder: whose images may be named by their paths; None: none may.
    paint: draws masks on an image; None: no picture comes back.
    log: takes the fields of an event.
  """
  tools = _Tools(load, folder and folder.resolve(), paint, log)
  made = MCPServer(
    "rcmed_jax",
    version=rcmed_jax.__version__,
    instructions=_ABOUT,
    log_level="CRITICAL",  # its own log quotes what was sent
    lifespan=tools.alive,
  )
  annotated = made.tool(annotations=_READS)
  annotated(tools.segment)
  annotated(tools.describe)
  return made


class _Tools:
  def __init__(
    self,
    load: Callable[[], asking.Service],
    folder: pathlib.Path | None,
    paint: Paint | None,
    log: Callable[..., None],
  ):
    self._load = load
    self._loading: concurrent.futures.Future[asking.Service] = (
      concurrent.futures.Future()
    )
    self._folder = folder
    self._paint = paint
    self._log = log

  @contextlib.asynccontextmanager
  async def alive(self, server: Any) -> AsyncIterator[None]:
    """From when a client is listened to until it is gone."""

    def load() -> None:
      try:
        self._loading.set_result(self._load())
      except Exception as error:  # whatever it is, tools must not wait for it
        self._loading.set_exception(error)

    threading.Thread(target=load, name="loading", daemon=True).start()
    yield
    if self._loading.done() and self._loading.exception() is None:
      made = self._loading.result().engine
      if made.ready:
        made.stop()

  async def segment(
    self,
    classes: Annotated[
      list[api.Name] | None,
      pydantic.Field(description='what to find, ["liver", "spleen"]'),
    ] = None,
    prompt: Annotated[
      str | None,
      pydantic.Field(description="or a question, in the place of classes"),
    ] = None,
    path: Path = None,
    image: Image = None,
    masks: Annotated[
      Literal["none", "png"],
      pydantic.Field(description="png: each mask as base64, which is long"),
    ] = "none",
    show: Show = True,
  ) -> Annotated[CallToolResult, Said]:
    """Finds structures or lesions on one medical image.

    Says of each whether it is there, where, and how sure that is.
    """

    def question(service: asking.Service) -> str:
      return asking.prompt_of(prompt, classes, None, service.limits)

    return await self._answer(
      "segment", question, classes or [], path, image, masks == "png", show
    )

  async def describe(
    self, path: Path = None, image: Image = None, show: Show = True
  ) -> Annotated[CallToolResult, Said]:
    """Describes one medical image in words, and shows what it speaks of."""

    def question(service: asking.Service) -> str:
      return prompts.description_question(0)

    return await self._answer(
      "describe", question, [], path, image, False, show
    )

  async def _answer(
    self,
    tool: str,
    question: Callable[[asking.Service], str],
    classes: Sequence[str],
    path: str | None,
    image: str | None,
    masks: bool,
    show: bool,
  ) -> CallToolResult:
    began = time.monotonic()
    fault: str | None = None
    try:
      service = await self._loaded()
      text = question(service)
      most = service.limits.pixels
      image_IJC = await _aside(lambda: self._picture(path, image, most))
      asked = Question(image_IJC, text, tool == "describe")
      answer = await _ask(service, asked)
      return await _aside(
        lambda: self._result(image_IJC, answer, classes, masks, show)
      )
    except ToolError:
      raise
    except errors.BadFieldError as error:
      raise ToolError(f"{error.field}: {error.message}") from error
    except Exception as error:  # of any library; its text may quote the image
      fault = type(error).__name__
      raise ToolError("the image could not be answered") from error
    finally:
      seconds = round(time.monotonic() - began, 4)
      more = {} if fault is None else {"fault": fault}
      self._log(event="tool", tool=tool, seconds=seconds, **more)

  async def _loaded(self) -> asking.Service:
    try:
      return await asyncio.shield(asyncio.wrap_future(self._loading))
    except Exception as error:  # of any library
      message = "the model could not be loaded; the server's log tells why"
      raise ToolError(message) from error

  def _picture(
    self, path: str | None, image: str | None, most: int
  ) -> np.ndarray:
    if (path is None) == (image is None):
      raise ToolError("give path or image, one of the two")
    if image is not None:
      try:
        text = image.partition("base64,")[2] or image
        data = base64.b64decode("".join(text.split()), validate=True)
      except (binascii.Error, ValueError):
        raise ToolError("image: it is no base64") from None
      return payload.picture(data, "image", most)
    return payload.picture_of(self._found(path or ""), "path", most)

  def _found(self, path: str) -> pathlib.Path:
    """A file inside the folder, wherever links in it lead."""
    if self._folder is None:
      raise ToolError(
        "path: no folder may be read here; send the image as base64, or start "
        "the server with --mcp-images=FOLDER"
      )
    try:
      found = (self._folder / path).resolve()
      inside = found.is_relative_to(self._folder) and found.is_file()
    except (OSError, ValueError):  # too long, or with a NUL
      inside = False
    if not inside:
      raise ToolError("path: there is no such file in the folder of images")
    return found

  def _result(
    self,
    image_IJC: np.ndarray,
    answer: Answer,
    classes: Sequence[str],
    masks: bool,
    show: bool,
  ) -> CallToolResult:
    rows, columns = image_IJC.shape[:2]
    said = Said(
      text=_plain(answer.text),
      modality=answer.modality,
      rows=rows,
      columns=columns,
      targets=[_target(found, masks) for found in answer.targets],
      unanswered=asking.unanswered(
        classes, (found.name for found in answer.targets)
      ),
    )
    values = said.model_dump(mode="json", by_alias=True)
    # A model reads the text; masks in it would fill all that it can hold.
    short = said.model_dump_json(
      by_alias=True, exclude={"targets": {"__all__": {"mask"}}}
    )
    content: list[Any] = [TextContent(text=short)]
    if show and self._paint is not None:
      content.append(_shown(image_IJC, answer, self._paint))
    return CallToolResult(content=content, structured_content=values)


async def _ask(service: asking.Service, question: Question) -> Answer:
  """The answer, once the model is ready."""
  limit_s = service.limits.answer_s
  until = time.monotonic() + limit_s
  while not service.engine.ready:
    if service.engine.failed is not None:
      raise ToolError("the model could not be made ready")
    if time.monotonic() > until:
      raise ToolError("the model is still being made ready; ask again later")
    await asyncio.sleep(0.1)
  try:
    waiting = asyncio.wrap_future(service.engine.submit(question, limit_s))
    answered = await asyncio.wait_for(waiting, limit_s)
  except engine.QueueFullError as error:
    raise ToolError(f"{error}; ask again later") from error
  except TimeoutError as error:
    raise ToolError("there was no answer in time") from error
  except ValueError as error:  # of the assistant: it cannot be asked so
    raise ToolError(f"prompt: {error}") from error
  return answered.answer


async def _aside(what: Callable[[], Result]) -> Result:
  """The result of what takes time, made beside the event loop."""
  return await asyncio.to_thread(what)


def _target(found: Found, masks: bool) -> Target:
  mask_IJ = found.mask_IJ
  data = None
  if masks and mask_IJ is not None:
    data = base64.b64encode(api.png(mask_IJ)).decode()
  return Target(
    **{"class": found.name},
    present=found.present,
    confidence=round(found.confidence, 4),
    box=found.box,
    share=0.0 if mask_IJ is None else round(float(mask_IJ.mean()), 6),
    mask=data,
  )


def _shown(image_IJC: np.ndarray, answer: Answer, paint: Paint) -> ImageContent:
  """The image with its masks, no larger than `_SHOWN`."""
  scale = min(1.0, _SHOWN / max(image_IJC.shape[:2]))
  size = [max(1, round(side * scale)) for side in image_IJC.shape[1::-1]]
  small_IJC = cv2.resize(image_IJC, size, interpolation=cv2.INTER_AREA)
  masks = []
  for found in answer.targets:
    if found.mask_IJ is not None:
      soft_IJ = cv2.resize(found.mask_IJ.astype(np.uint8) * 255, size)
      masks.append(soft_IJ > 127)
  painted_IJC = paint(small_IJC, masks)
  data = base64.b64encode(viewing.picture_png(painted_IJC)).decode()
  return ImageContent(data=data, mime_type="image/png")


def _plain(text: str) -> str:
  """An answer's text without its markers."""
  for marker in ("<p>", "</p>", "[SEG]", "</s>"):
    text = text.replace(marker, " ")
  return " ".join(text.split()).replace(" .", ".").replace(" ,", ",")
