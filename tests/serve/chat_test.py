"""OpenAI's API, asked by OpenAI's own client."""

import base64
import json

import numpy as np
import openai
import pytest
import requests
import served

from rcmed_jax.ingest.pictures import rle

URL = "data:image/png;base64," + base64.b64encode(served.png()).decode()


@pytest.fixture(scope="module")
def at():
  with served.running(keys={"ward": served.KEY}) as found:
    yield found


@pytest.fixture(scope="module")
def client(at):
  return openai.OpenAI(
    base_url=at.url + "/v1", api_key=served.KEY, max_retries=0, timeout=20
  )


def _messages(text="Where is the light?", url=URL):
  parts = [
    {"type": "text", "text": text},
    {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
  ]
  return [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": parts},
  ]


def _ask(client, messages=None, **more):
  more = {"model": served.NAME, **more}
  return client.chat.completions.create(
    messages=messages or _messages(), **more
  )


def test_the_model_is_listed(client):
  assert [model.id for model in client.models.list()] == [served.NAME]


def test_text_comes_with_masks_beside_it(client):
  made = _ask(client, temperature=0.2, extra_body={"masks": "rle"})
  (choice,) = made.choices
  assert choice.finish_reason == "stop"
  assert choice.message.content.startswith("This is a <p> X-Ray </p> image.")
  (target,) = choice.message.targets
  assert target["class"] == "bright"
  assert target["box"] == [4, 8, 20, 16]
  mask_IJ = rle.decode(target["mask"]["counts"], tuple(target["mask"]["size"]))
  np.testing.assert_array_equal(mask_IJ, served.image()[..., 0] > 0)


def test_a_stream_says_the_same(client):
  whole = _ask(client)
  chunks = list(_ask(client, stream=True))
  assert len({chunk.id for chunk in chunks}) == 1
  deltas = [chunk.choices[0].delta for chunk in chunks]
  assert deltas[0].role == "assistant"
  text = "".join(delta.content or "" for delta in deltas)
  assert text == whole.choices[0].message.content
  assert deltas[-1].targets == whole.choices[0].message.targets
  assert chunks[-1].choices[0].finish_reason == "stop"


def test_a_stream_ends_in_done(at):
  reply = requests.post(
    at.url + "/v1/chat/completions",
    json={"model": served.NAME, "messages": _messages(), "stream": True},
    headers={"Authorization": f"Bearer {served.KEY}"},
    timeout=20,
  )
  assert reply.headers["content-type"].startswith("text/event-stream")
  events = reply.text.split("\n\n")
  assert events[-2:] == ["data: [DONE]", ""]
  assert all(json.loads(event[6:]) for event in events[:-2])


def test_the_newest_question_and_image_count(at, client):
  other = base64.b64encode(served.png(served.image(0, 0, 3, 3))).decode()
  messages = [
    *_messages("First?"),
    {"role": "assistant", "content": "This is ..."},
    *_messages("Second?", "data:image/png;base64," + other)[1:],
    {"role": "assistant", "content": "This is ..."},
    {"role": "user", "content": "And now?"},
  ]
  made = _ask(client, messages)
  assert made.choices[0].message.targets[0]["box"] == [0, 0, 3, 3]
  assert at.assistant.texts[-1] == "And now?"


@pytest.mark.parametrize(
  ("more", "error"),
  [
    ({"model": "gpt"}, openai.NotFoundError),
    ({"n": 2}, openai.UnprocessableEntityError),
    ({"extra_body": {"stream": 0}}, openai.UnprocessableEntityError),
    ({"messages": _messages("")}, openai.UnprocessableEntityError),
    (
      {"messages": _messages(url="https://example.org/a.png")},
      openai.BadRequestError,
    ),
    (
      {"messages": _messages(url="data:image/png;base64,####")},
      openai.BadRequestError,
    ),
    (
      {"messages": [{"role": "user", "content": "No image?"}]},
      openai.BadRequestError,
    ),
    (
      {"messages": [{"role": "system", "content": "Nobody asks."}]},
      openai.BadRequestError,
    ),
    ({"messages": _messages("fault")}, openai.InternalServerError),
  ],
)
def test_errors_have_the_form_of_openai(client, more, error):
  with pytest.raises(error) as caught:
    _ask(client, **more)
  assert caught.value.body["message"]
  assert caught.value.body["type"].endswith("_error")


def test_a_wrong_key_is_refused(at):
  stranger = openai.OpenAI(
    base_url=at.url + "/v1", api_key=served.OTHER_KEY, max_retries=0
  )
  with pytest.raises(openai.AuthenticationError):
    stranger.models.list()
