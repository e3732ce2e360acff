"""The queue: who shares a batch, who is answered, who is not."""

import threading

import numpy as np
import pytest
import served

from rcmed_jax.serve import engine
from rcmed_jax.serve.questions import Question


@pytest.fixture
def make():
  made = []

  def make(assistant, **changes):
    made.append((engine.Engine(assistant, **changes), assistant))
    one = made[-1][0]
    one.start()
    served.until(lambda: one.ready)
    assistant.batches.clear()
    assistant.texts.clear()
    return one

  yield make
  for one, assistant in made:
    assistant.free.set()
    one.stop()


def _question(text="light"):
  return Question(served.image(), text)


def test_warm_up_asks_in_all_lengths_before_it_is_ready():
  assistant = served.Assistant()
  engine.warm_up(assistant)
  words = [len(one.text.split()) for one in assistant.questions]
  assert words == [1, 2, 4, 8, 16, 32, 64, 128, 256] + [1] * 9
  earlier = [len(one.earlier[0][0]) for one in assistant.questions[9:]]
  assert earlier == [2**n * 2 - 1 for n in range(9)]
  assistant.texts.clear()
  engine.warm_up(assistant, ["bone island"])
  assert assistant.texts[9:11] == ["bone island", "bone island a"]
  one = engine.Engine(assistant)
  with pytest.raises(engine.NotReadyError):
    one.submit(_question(), 1)


def test_a_model_that_cannot_answer_at_all_is_never_ready():
  assistant = served.Assistant()
  assistant.stream = lambda questions: 1 / 0
  one = engine.Engine(assistant)
  one.start()
  served.until(lambda: one.failed is not None)
  assert not one.ready
  assert isinstance(one.failed, ZeroDivisionError)


def test_those_that_wait_share_a_batch(make):
  assistant = served.Assistant(rows=4)
  counts = []
  one = make(assistant, batched=counts.append)
  assistant.free.clear()
  first = one.submit(_question(), 20)
  served.until(lambda: assistant.batches == [1])
  others = [one.submit(_question(str(n)), 20) for n in range(9)]
  assistant.free.set()
  assert first.result(20).shared == 1
  assert [other.result(20).shared for other in others] == [8] * 8 + [1]
  assert assistant.batches == counts == [1, 4, 4, 1]


def test_a_cancelled_request_gives_its_place_to_another(make):
  assistant = served.Assistant(rows=1)
  one = make(assistant, most=3)
  assistant.free.clear()
  first = one.submit(_question(), 20)
  served.until(lambda: assistant.batches == [1])
  left, leaves, stays = (
    one.submit(_question(text), 20) for text in ("left", "leaves", "stays")
  )
  with pytest.raises(engine.QueueFullError):
    one.submit(_question(), 20)
  assert left.cancel()
  comes = one.submit(_question("comes"), 20)
  assert leaves.cancel()
  assistant.free.set()
  for future in (first, stays, comes):
    assert future.result(20).answer.targets[0].present
  assert assistant.texts == ["light", "stays", "comes"]


def test_images_that_wait_are_bounded_in_bytes(make, monkeypatch):
  assistant = served.Assistant(rows=1)
  one = make(assistant)
  monkeypatch.setattr(engine, "MOST_BYTES", 2 * served.image().nbytes)
  assistant.free.clear()
  futures = [one.submit(_question(), 20)]
  served.until(lambda: assistant.batches == [1])
  futures += [one.submit(_question(), 20) for _ in range(2)]
  with pytest.raises(engine.QueueFullError):
    one.submit(_question(), 20)
  assistant.free.set()
  assert all(future.result(20) for future in futures)


def test_who_waited_too_long_is_not_computed(make):
  assistant = served.Assistant(rows=1)
  one = make(assistant)
  assistant.free.clear()
  first = one.submit(_question(), 20)
  served.until(lambda: assistant.batches == [1])
  late = one.submit(_question("late"), 0.0)
  assistant.free.set()
  first.result(20)
  with pytest.raises(TimeoutError):
    late.result(20)
  assert assistant.texts == ["light"]


def test_one_bad_question_spoils_no_other(make):
  assistant = served.Assistant(rows=4)
  one = make(assistant, fill_s=0.2)
  with pytest.raises(ValueError, match="longer than 600"):
    one.submit(_question("a" * 700), 20)
  futures = [one.submit(_question(text), 20) for text in ("a", "fault", "b")]
  kinds = [type(future.exception(20)) for future in futures]
  assert kinds == [type(None), RuntimeError, type(None)]


def test_those_of_a_kind_share_a_batch_and_the_oldest_is_first(make):
  assistant = served.Assistant(rows=2)
  one = make(assistant)
  assistant.free.clear()
  one.submit(_question("begin"), 20)
  served.until(lambda: assistant.batches == [1])
  long = "b" * 100
  texts = ("a1", long, "a2", "a3", "a4", long, "a5")
  futures = [one.submit(_question(text), 20) for text in texts]
  assistant.free.set()
  for future in futures:
    future.result(20)
  # Two rounds of two full batches; what is left over is of one kind.
  assert assistant.texts[1:] == ["a1", "a2", long, long, "a3", "a4", "a5"]
  assert assistant.batches == [1, 2, 2, 2, 1]


def test_who_asks_alone_is_not_passed_over_by_many(make):
  assistant = served.Assistant(rows=2)
  one = make(assistant)
  assistant.free.clear()
  one.submit(_question("begin"), 20)
  served.until(lambda: assistant.batches == [1])
  alone = "c" * 100
  texts = [*"12345", alone, *map(str, range(6, 30))]
  futures = [one.submit(_question(text), 20) for text in texts]
  assistant.free.set()
  for future in futures:
    future.result(20)
  # Those that came before it, and the one that filled the last one's batch.
  assert assistant.texts[1:8] == ["1", "2", "3", "4", "5", "6", alone]


def test_words_are_told_to_those_who_listen(make):
  assistant = served.Assistant(rows=4)
  one = make(assistant, fill_s=0.2)
  heard = []
  silent = one.submit(_question("silent"), 20)
  loud = one.submit(_question("loud"), 20, heard.append)
  text = loud.result(20).answer.text
  assert silent.result(20).answer.text == text
  assert heard[-1] == text
  assert len(heard) == len(text.split(" "))
  assert all(text.startswith(part) for part in heard)


def test_a_full_queue_says_by_when_it_may_be_answered(make):
  assistant = served.Assistant(rows=2, batch_s=0.2)
  one = make(assistant, most=4)
  one.submit(_question(), 20).result(20)  # it learns what a batch takes
  assistant.free.clear()
  futures = [one.submit(_question(), 20)]
  served.until(lambda: assistant.batches == [1, 1])
  futures += [one.submit(_question(), 20) for _ in range(4)]
  with pytest.raises(engine.QueueFullError) as caught:
    one.submit(_question(), 20)
  # A fifth of 0.2 s for the first batch of all, and two batches to come.
  assert 0.05 < caught.value.wait_s < 1
  assistant.free.set()
  assert all(future.result(20) for future in futures)


def test_a_stream_is_in_order_and_lets_others_in_between(make):
  assistant = served.Assistant(rows=2)
  one = make(assistant)
  asked = threading.Event()

  def slices():
    for x in range(20):
      if x == 10:
        one.submit(_question("other"), 20).result(20)
        asked.set()
      yield Question(served.image(x, 0, x + 5, 5), "slice")

  answers = list(one.stream(slices()))
  assert [number for number, _ in answers] == list(range(20))
  boxes = [answer.targets[0].box for _, answer in answers]
  assert boxes == [(x, 0, x + 5, 5) for x in range(20)]
  assert asked.is_set()
  assert assistant.texts.index("other") < 15


def test_a_stream_waits_for_a_place(make):
  assistant = served.Assistant(rows=1, batch_s=0.01)
  one = make(assistant, most=1)
  assistant.free.clear()
  others = [one.submit(_question(), 20)]
  served.until(lambda: assistant.batches == [1])
  others.append(one.submit(_question(), 20))
  threading.Timer(0.2, assistant.free.set).start()
  assert len(list(one.stream(_question() for _ in range(5)))) == 5
  assert all(other.done() for other in others)


def test_stop_answers_what_waits_and_refuses_the_rest(make):
  assistant = served.Assistant(rows=1, batch_s=0.01)
  one = make(assistant)
  futures = [one.submit(_question(str(n)), 20) for n in range(5)]
  one.stop()
  assert all(future.done() for future in futures)
  assert np.sum([f.result().shared > 0 for f in futures]) == 5
  with pytest.raises(engine.NotReadyError):
    one.submit(_question(), 20)
