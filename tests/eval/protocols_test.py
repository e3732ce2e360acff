import itertools

import numpy as np
import pytest

from rcmed_jax.eval import phrases, protocols
from rcmed_jax.eval.protocols import EvalConfig
from rcmed_jax.eval.registry import Registry
from rcmed_jax.eval.tasks import Task

SIBLINGS = ("liver", "right kidney", "spleen")
VOCABULARY = (*SIBLINGS, "heart", "hair")
WORDS = phrases.Phrases(
  Registry.load(), [Task("ct", name) for name in SIBLINGS], seed=0
)


def _asks(record, config=None, controls=True):
  found = protocols.asks(
    record,
    record.load(),
    config or EvalConfig(),
    siblings=SIBLINGS,
    vocabulary=VOCABULARY,
    words=WORDS,
    controls=controls,
  )
  return {
    kind: list(group)
    for kind, group in itertools.groupby(found, key=lambda ask: ask.kind)
  }


def test_every_protocol_and_control_is_asked(world):
  record = world[0]  # holds two of the three classes of its dataset
  everything = EvalConfig(protocols=protocols.PROTOCOLS)
  found = _asks(record, everything)
  assert set(found) == {*protocols.PROTOCOLS, *protocols.CONTROLS}
  here = found["named"][0].triplet.classes
  (absent,) = found["negative"]
  assert {*here, absent.target} == set(SIBLINGS)
  assert absent.request.classes == (absent.target,)
  assert absent.target in absent.request.question
  assert found["open"][0].request.classes is None
  assert set(_asks(record, everything, controls=False)) == {
    *("named", "open", "negative")
  }


def test_other_words_are_asked_in_one_and_the_same_question(world):
  config = EvalConfig(protocols=protocols.PROTOCOLS)
  own, *others = _asks(world[1], config)["phrases"]
  assert own.variant.kind == "name"
  assert len({ask.variant.kind for ask in others}) == len(others) > 1
  for ask in others:
    assert ask.target == own.target
    question = own.request.question
    reworded = question.replace(own.variant.text, ask.variant.text)
    assert ask.request.question == reworded != question


def test_named_question_names_all_and_open_question_none(world):
  for record in world:
    found = _asks(record)
    (named,) = found["named"]
    assert all(name in named.request.question for name in named.request.classes)
    (opened,) = found["open"]
    for name in (*VOCABULARY, named.triplet.modality):
      assert name not in opened.request.question


def test_controls_change_one_thing_each(world):
  found = _asks(world[0])
  (named,) = found["named"]
  (noise,) = found["noise"]
  (shuffled,) = found["shuffled_text"]
  (wrong,) = found["wrong_name"]
  assert noise.request.question == named.request.question
  assert noise.request.image_IJC.shape == named.request.image_IJC.shape
  assert noise.request.image_IJC.dtype == np.uint8
  assert abs(noise.request.image_IJC.mean() - 127.5) < 2
  words = named.request.question.split()
  assert sorted(shuffled.request.question.split()) == sorted(words)
  assert shuffled.request.question != named.request.question
  assert shuffled.request.image_IJC is named.request.image_IJC
  assert wrong.request.classes[0] not in named.triplet.classes
  assert wrong.target in named.triplet.classes


def test_questions_depend_on_seed_and_record_only(world):
  def questions(seed):
    return [
      ask.request.question
      for record in world
      for group in _asks(record, EvalConfig(seed=seed)).values()
      for ask in group
    ]

  assert questions(1) == questions(1)
  assert questions(1) != questions(2)
  assert len(set(questions(1))) > len(world)  # several templates are in use


def test_draw_is_independent_of_order(world):
  drawn = protocols.draw(world, 5, seed=3)
  assert len(drawn) == 5
  assert drawn == protocols.draw(world[::-1], 5, seed=3)
  assert drawn != protocols.draw(world, 5, seed=4)
  assert len(protocols.draw(world, 0, seed=3)) == len(world)


@pytest.mark.parametrize(
  "settings, message",
  [
    ({"protocols": ("named", "opne")}, "opne.*choose from"),
    ({"controls": ("noize",)}, "noize.*choose from"),
    ({"protocols": ("open",)}, "lacks 'named'"),
    ({"batch_size": 0}, "at least 1"),
    ({"bootstrap": 10}, "at least 100"),
    ({"bootstrap": -1}, r"eval\.bootstrap=-1 must be at least 0"),
    ({"limit": -5}, r"eval\.limit=-5 must be at least 0"),
    ({"confident": -0.5}, r"eval\.confident=-0\.5 must be at least 0"),
    ({"present_quality": float("nan")}, r"eval\.present_quality=nan must"),
  ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    EvalConfig(**settings)


def test_classes_can_be_asked_a_few_at_a_time(world):
  config = EvalConfig(classes_per_question=1)
  named = _asks(world[0], config, controls=False)["named"]
  assert [ask.request.classes for ask in named] == [
    (name,) for name in named[0].triplet.classes
  ]
  for ask in named:
    assert ask.request.classes[0] in ask.request.question
