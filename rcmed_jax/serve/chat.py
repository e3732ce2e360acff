"""The part of OpenAI's API that clients need: /v1/models, /v1/chat/completions.

The newest user message is the question; the newest image of the conversation is
the image. Earlier turns and system messages are not read: the model answers one
question about one image. It always says what is most likely, so that fields of
sampling are taken and change nothing. Masks come as `targets` beside `content`.
A stream begins once the answer is there, since masks need all of its text.
"""

from collections.abc import Iterator, Sequence
import json
import re
import time
from typing import Annotated, Any, Literal
import uuid

from fastapi import APIRouter, Request
import pydantic
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response, StreamingResponse

from rcmed_jax.serve import api, asking, errors, payload

# Turns and parts of one conversation; more are an accident or an attack.
_MOST = 200


class TextPart(pydantic.BaseModel):
  type: Literal["text"]
  text: str


class ImageUrl(pydantic.BaseModel):
  url: str = pydantic.Field(description="a data: URL; nothing is fetched")
  detail: str | None = None


class ImagePart(pydantic.BaseModel):
  type: Literal["image_url"]
  image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, pydantic.Field(discriminator="type")]


class Message(pydantic.BaseModel):
  role: Literal["system", "developer", "user", "assistant"]
  content: (
    str | Annotated[list[Part], pydantic.Field(max_length=_MOST)] | None
  ) = None


class ChatBody(pydantic.BaseModel):
  """A request; fields of OpenAI's that are not named here are ignored."""

  model_config = pydantic.ConfigDict(strict=True)

  model: str
  messages: list[Message] = pydantic.Field(min_length=1, max_length=_MOST)
  stream: pydantic.StrictBool = False
  n: Literal[1] | None = None
  # Ours.
  describe: pydantic.StrictBool = False
  masks: Literal["png", "rle", "none"] = "png"


def router(service: asking.Service) -> APIRouter:
  """The paths of `/v1/models` and `/v1/chat/completions`."""
  made = APIRouter()
  began = int(time.time())
  body = {"application/json": {"schema": ChatBody.model_json_schema()}}
  answers = {200: {"content": {"text/event-stream": {}}}}

  @made.get("/v1/models")
  def models() -> dict[str, Any]:
    entry = {
      "id": service.name,
      "object": "model",
      "created": began,
      "owned_by": "rcmed",
    }
    return {"object": "list", "data": [entry]}

  @made.post(
    "/v1/chat/completions",
    responses=errors.DOCUMENTED | answers,
    openapi_extra={"requestBody": {"required": True, "content": body}},
  )
  async def complete(request: Request) -> Response:
    try:
      asked = ChatBody.model_validate_json(await request.body())
    except pydantic.ValidationError as error:
      raise errors.first_fault(error) from None
    if asked.model != service.name:
      raise HTTPException(
        404, f"there is no such model here, only {service.name}"
      )
    text, url = question_in(asked.messages)
    asking.check_text(text, "messages", service.limits)
    data = payload.from_text(url, "image_url", bare=False)
    image_IJC = await service.picture(data, "image_url")
    answered = await service.ask(
      request, image_IJC, text, describe=asked.describe
    )
    answer = answered.answer
    found = await service.work(lambda: api.targets(answer, asked.masks))
    extra = {
      "modality": answer.modality,
      "targets": [one.model_dump(by_alias=True) for one in found],
    }
    head = {
      "id": f"chatcmpl-{uuid.uuid4().hex}",
      "created": int(time.time()),
      "model": service.name,
    }
    if asked.stream:
      return StreamingResponse(
        _events(head, answer.text, extra),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
      )
    return JSONResponse(_completion(head, answer.text, extra))

  return made


def question_in(messages: Sequence[Message]) -> tuple[str, str]:
  """The newest user message's text and the newest image's URL.

  Raises:
    BadFieldError: there is no user message, or no image.
  """
  asked = [one for one in messages if one.role == "user"]
  if not asked:
    raise errors.BadFieldError("messages", "none is of the user", 400)
  newest = asked[-1].content
  text = (
    newest
    if isinstance(newest, str)
    else " ".join(
      part.text for part in newest or () if isinstance(part, TextPart)
    )
  )
  urls = [
    part.image_url.url
    for message in asked
    if isinstance(message.content, list)
    for part in message.content
    if isinstance(part, ImagePart)
  ]
  if not urls:
    raise errors.BadFieldError(
      "messages", 'none holds an image, {"type": "image_url", ...}', 400
    )
  return text, urls[-1]


def _completion(
  head: dict[str, Any], text: str, extra: dict[str, Any]
) -> dict[str, Any]:
  message = {"role": "assistant", "content": text, **extra}
  choice = {"index": 0, "message": message, "finish_reason": "stop"}
  return {**head, "object": "chat.completion", "choices": [choice]}


def _events(
  head: dict[str, Any], text: str, extra: dict[str, Any]
) -> Iterator[str]:
  """Server-sent events: the role, the text word by word, the targets, DONE."""
  deltas: list[tuple[dict[str, Any], str | None]] = [
    ({"role": "assistant", "content": ""}, None)
  ]
  deltas += [
    ({"content": word}, None) for word in re.findall(r"\s*\S+|\s+$", text)
  ]
  deltas.append((extra, "stop"))
  for delta, reason in deltas:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    chunk = {**head, "object": "chat.completion.chunk", "choices": [choice]}
    yield f"data: {json.dumps(chunk)}\n\n"
  yield "data: [DONE]\n\n"
