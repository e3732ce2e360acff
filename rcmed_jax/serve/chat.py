"""The part of OpenAI's API that clients need: /v1/models, /v1/chat/completions.

A conversation is about one image, the newest; it begins with the message that
holds it. Questions before the last are told to the model with their answers.
System messages are not read: the model has its own, and knows no other. Without
a temperature the answer is what is most likely. Masks come as `targets` beside
`content`; a stream says the text as it grows and ends with them.
"""

import asyncio
from collections.abc import Sequence
import dataclasses
import time
from typing import Annotated, Any, Literal
import uuid

from fastapi import APIRouter, Request
import pydantic
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from rcmed_jax.data import tokens
from rcmed_jax.serve import (
  api,
  asking,
  chat_stream,
  errors,
  events,
  forms,
  payload,
  waiting,
)
from rcmed_jax.serve.engine import Answered
from rcmed_jax.serve.questions import Answer, Question, Sampling

# Turns and parts of one conversation; more are an accident or an attack.
_MOST = 200
# OpenAI's own bounds.
_HOTTEST = 2.0
_SEED = 2**31 - 1
# What answers are written with; an earlier one may be quoted with them.
_OF_ANSWERS = ("<p>", "</p>", "[SEG]")


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


class StreamOptions(pydantic.BaseModel):
  include_usage: pydantic.StrictBool = False


class ChatBody(pydantic.BaseModel):
  """A request; fields of OpenAI's that are not named here are ignored."""

  model_config = pydantic.ConfigDict(strict=True)

  model: str
  messages: list[Message] = pydantic.Field(min_length=1, max_length=_MOST)
  stream: pydantic.StrictBool = False
  stream_options: StreamOptions | None = None
  n: Literal[1] | None = None
  temperature: float | None = pydantic.Field(None, ge=0, le=_HOTTEST)
  top_p: float | None = pydantic.Field(None, gt=0, le=1)
  seed: int | None = pydantic.Field(None, ge=-_SEED - 1, le=_SEED)
  max_tokens: int | None = pydantic.Field(None, ge=1)
  max_completion_tokens: int | None = pydantic.Field(None, ge=1)
  # Ours.
  describe: pydantic.StrictBool = False
  grammar: pydantic.StrictBool = pydantic.Field(
    False, description="only well-formed answers: <p> ... </p> [SEG]"
  )
  masks: Literal["png", "rle", "none"] = "png"

  def sampling(self, most: int) -> Sampling:
    """How the answer's words are chosen.

    Args:
      most: tokens that an answer can have; who asks for more gets these.
    """
    asked = self.max_completion_tokens or self.max_tokens
    return Sampling(
      temperature=self.temperature or 0.0,
      top_p=1.0 if self.top_p is None else self.top_p,
      seed=(self.seed or 0) % (_SEED + 1),
      max_new=min(asked, most) if asked else None,
      grammar=self.grammar,
    )


@dataclasses.dataclass(frozen=True)
class Conversation:
  """What is asked, of which image, after what."""

  text: str
  url: str
  earlier: tuple[tuple[str, str], ...] = ()  # questions and their answers


def router(service: asking.Service) -> APIRouter:
  """The paths of `/v1/models` and `/v1/chat/completions`."""
  made = APIRouter()
  began = int(time.time())
  body = {"application/json": {"schema": forms.schema_of(ChatBody)}}
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
      asked = ChatBody.model_validate_json(await forms.json_of(request))
    except pydantic.ValidationError as error:
      raise errors.first_fault(error) from None
    if asked.model != service.name:
      raise HTTPException(
        404, f"there is no such model here, only {service.name}"
      )
    question = await _question(service, asked)
    head = {
      "id": f"chatcmpl-{uuid.uuid4().hex}",
      "created": int(time.time()),
      "model": service.name,
    }

    async def extra(answer: Answer) -> dict[str, Any]:
      found = await service.work(lambda: api.targets(answer, asked.masks))
      return {
        "modality": answer.modality,
        "targets": [one.model_dump(by_alias=True) for one in found],
      }

    if asked.stream:
      options = asked.stream_options or StreamOptions()
      told = chat_stream.Events(head, extra, with_usage=options.include_usage)
      return await _stream(service, request, question, told)
    answered = await service.ask(request, question)
    return JSONResponse(
      _completion(head, answered, await extra(answered.answer))
    )

  return made


def conversation_in(messages: Sequence[Message]) -> Conversation:
  """What the messages ask; see the top of this file.

  Messages of one role in a row are one.

  Raises:
    BadFieldError: 400, none is of the user, the last is not, none or one of
      them holds no image or more than one.
  """
  turns = [one for one in messages if one.role in ("user", "assistant")]
  if not any(one.role == "user" for one in turns):
    raise errors.BadFieldError("messages", "none is of the user", 400)
  if turns[-1].role != "user":
    raise errors.BadFieldError("messages", "the last is not of the user", 400)
  held = [(place, _urls(one)) for place, one in enumerate(turns)]
  held = [(place, urls) for place, urls in held if urls]
  if not held:
    raise errors.BadFieldError(
      "messages", 'none holds an image, {"type": "image_url", ...}', 400
    )
  first, urls = held[-1]
  if len(urls) > 1:
    raise errors.BadFieldError(
      "messages", "one holds several images; ask about one at a time", 400
    )
  said: list[tuple[str, str]] = []  # role and text
  for one in turns[first:]:
    if said and said[-1][0] == one.role:
      text = f"{said.pop()[1]}\n{_text(one)}"
    else:
      text = _text(one)
    said.append((one.role, text.strip()))
  pairs = zip(said[::2], said[1::2], strict=False)
  return Conversation(
    text=said[-1][1],
    url=urls[0],
    earlier=tuple((asked, answer) for (_, asked), (_, answer) in pairs),
  )


async def _question(service: asking.Service, asked: ChatBody) -> Question:
  """The question, its texts checked and its image decoded."""
  found = conversation_in(asked.messages)
  asking.check_text(found.text, "messages", service.limits)
  length = len(found.text)
  for question, answer in found.earlier:
    asking.check_text(question, "messages", service.limits)
    for marker in _OF_ANSWERS:
      answer = answer.replace(marker, "")
    if any(marker in answer for marker in tokens.MARKERS):
      raise errors.BadFieldError("messages", "an answer holds other markers")
    length += len(question) + len(answer)
  if length > service.limits.text:
    raise errors.BadFieldError(
      "messages", f"they are longer than {service.limits.text} characters"
    )
  data = payload.from_text(found.url, "image_url", bare=False)
  return Question(
    await service.picture(data, "image_url"),
    found.text,
    asked.describe,
    found.earlier,
    asked.sampling(service.engine.max_new),
  )


async def _stream(
  service: asking.Service,
  request: Request,
  question: Question,
  told: chat_stream.Events,
) -> Response:
  """The response to a request that streams, once its first words are there.

  Until then it may still end in an error's status.
  """
  future = service.submit(request, question, told.said)
  most_s = service.limits.answer_s
  first = asyncio.ensure_future(told.first())
  try:
    await waiting.first(request, future, first, most_s=most_s)
    if future.done():
      future.result()
  except BaseException:
    future.cancel()
    raise
  finally:
    first.cancel()
  return events.response(told.events(future, most_s))


def _text(message: Message) -> str:
  if isinstance(message.content, str):
    return message.content
  return " ".join(
    part.text for part in message.content or () if isinstance(part, TextPart)
  )


def _urls(message: Message) -> list[str]:
  if message.role != "user" or not isinstance(message.content, list):
    return []
  return [
    part.image_url.url
    for part in message.content
    if isinstance(part, ImagePart)
  ]


def _completion(
  head: dict[str, Any], answered: Answered, extra: dict[str, Any]
) -> dict[str, Any]:
  answer = answered.answer
  message = {"role": "assistant", "content": answer.text, **extra}
  choice = {
    "index": 0,
    "message": message,
    "finish_reason": chat_stream.reason(answer),
  }
  return {
    **head,
    "object": "chat.completion",
    "choices": [choice],
    "usage": chat_stream.usage(answer),
  }
