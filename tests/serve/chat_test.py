"""OpenAI's API, asked by OpenAI's own client."""

import base64
import json

import numpy as np
import openai
import pytest
import requests
import served

from rcmed_jax.ingest.pictures import rle
from rcmed_jax.serve.questions import Sampling

URL = "data:image/png;base64," + base64.b64encode(served.png()).decode()

_UNPROCESSABLE = openai.UnprocessableEntityError


@pytest.fixture(scope="module")
def at():
  with served.running(keys={"ward": served.KEY}) as found:
    yield found


@pytest.fixture(scope="module")
def client(at):
  return openai.OpenAI(
    base_url=at.url + "/v1", api_key=served.KEY, max_retries=0, timeout=20
  )


@pytest.fixture(autouse=True)
def _nothing_is_held(at):
  yield
  at.assistant.said.set()


def _messages(text="Where is the light?", url=URL):
  parts = [
    {"type": "text", "text": text},
    {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
  ]
  return [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": parts},
  ]


def _turn(answer):
  """An answer and a question after it."""
  return [
    {"role": "assistant", "content": answer},
    {"role": "user", "content": "And now?"},
  ]


def _twice():
  """One message with two images."""
  messages = _messages()
  parts = messages[1]["content"]
  return [{"role": "user", "content": [*parts, parts[1]]}]


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


def _opened(at, text="Where is the light?"):
  """A response whose events come one by one."""
  return requests.post(
    at.url + "/v1/chat/completions",
    json={"model": served.NAME, "messages": _messages(text), "stream": True},
    headers={"Authorization": f"Bearer {served.KEY}"},
    stream=True,
    timeout=20,
  )


def test_words_come_while_the_answer_is_written(at, client):
  whole = _ask(client).choices[0].message.content
  at.assistant.said.clear()
  count = len(at.assistant.questions)
  text = ""
  with _opened(at) as reply:
    for line in reply.iter_lines():
      if line.startswith(b"data: {"):
        delta = json.loads(line[6:])["choices"][0]["delta"]
        text += delta.get("content", "")
      if text == "This is" and not at.assistant.said.is_set():
        # The others are not even said yet.
        assert len(at.assistant.questions) == count + 1
        at.assistant.said.set()
  assert at.assistant.said.is_set()
  assert text == whole


def test_a_client_that_leaves_a_stream_is_noticed(at, client):
  at.assistant.said.clear()
  reply = _opened(at)
  assert next(reply.iter_lines())
  assert at.app.gate.inside == 1
  reply.close()
  served.until(lambda: at.app.gate.inside == 0)
  at.assistant.said.set()
  assert _ask(client).choices[0].finish_reason == "stop"


def test_a_fault_on_the_way_is_an_event(at, client):
  with pytest.raises(openai.APIError) as caught:
    list(_ask(client, _messages("break"), stream=True))
  assert "log tells why" in caught.value.message
  assert "memory" not in str(caught.value)
  # Before the first word it is a status, which clients try again.
  with pytest.raises(openai.InternalServerError):
    _ask(client, _messages("fault"), stream=True)


def test_a_stream_ends_in_time():
  with served.running(answer_s=0.5) as at:
    at.assistant.said.clear()
    text = _opened(at).text
    assert "no answer in time" in text
    assert text.endswith("data: [DONE]\n\n")
    at.assistant.said.set()


def test_tokens_are_counted(client):
  made = _ask(client)
  words = len(made.choices[0].message.content.split())
  assert made.usage.prompt_tokens == 4
  assert made.usage.completion_tokens == words
  assert made.usage.total_tokens == 4 + words
  chunks = list(
    _ask(client, stream=True, stream_options={"include_usage": True})
  )
  assert chunks[-1].choices == []
  assert chunks[-1].usage == made.usage
  assert all(chunk.usage is None for chunk in chunks[:-1])
  assert _ask(client, max_tokens=3).choices[0].finish_reason == "length"


def test_what_is_drawn_by_chance_is_asked_for(at, client):
  _ask(client)
  assert at.assistant.questions[-1].sampling == Sampling()
  _ask(
    client,
    temperature=0.5,
    top_p=0.9,
    seed=7,
    max_completion_tokens=20,
    extra_body={"grammar": True, "describe": True},
  )
  assert at.assistant.questions[-1].describe
  assert at.assistant.questions[-1].sampling == Sampling(
    temperature=0.5, top_p=0.9, seed=7, max_new=20, grammar=True
  )
  _ask(client, max_tokens=4096)  # as clients do by themselves
  assert at.assistant.questions[-1].sampling.max_new == 50


def test_earlier_turns_about_the_image_are_told(at, client):
  other = base64.b64encode(served.png(served.image(0, 0, 3, 3))).decode()
  messages = [
    *_messages("First?"),
    {"role": "assistant", "content": "A <p> heart </p> [SEG]."},
    *_messages("Second?", "data:image/png;base64," + other)[1:],
    {"role": "assistant", "content": "No <p> lung </p>."},
    {"role": "user", "content": "And"},
    {"role": "user", "content": "now?"},
  ]
  made = _ask(client, messages)
  assert made.choices[0].message.targets[0]["box"] == [0, 0, 3, 3]
  asked = at.assistant.questions[-1]
  assert asked.text == "And\nnow?"
  # The first turn was about another image.
  assert asked.earlier == (("Second?", "No <p> lung </p>."),)
  assert len(asked.image_IJC) == 32


@pytest.mark.parametrize(
  ("more", "error"),
  [
    ({"model": "gpt"}, openai.NotFoundError),
    ({"n": 2}, _UNPROCESSABLE),
    ({"extra_body": {"stream": 0}}, _UNPROCESSABLE),
    ({"messages": _messages("")}, _UNPROCESSABLE),
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
    (
      {"messages": [*_messages(), {"role": "assistant", "content": "No."}]},
      openai.BadRequestError,
    ),
    ({"messages": [*_messages(), *_turn("a <image> b")]}, _UNPROCESSABLE),
    ({"messages": [*_messages(), *_turn("b" * 5000)]}, _UNPROCESSABLE),
    ({"messages": _twice()}, openai.BadRequestError),
    ({"temperature": 3}, _UNPROCESSABLE),
    ({"top_p": 0}, _UNPROCESSABLE),
    ({"max_tokens": 0}, _UNPROCESSABLE),
    ({"extra_body": {"seed": "1"}}, _UNPROCESSABLE),
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
