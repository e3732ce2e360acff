import dataclasses
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


REGISTRY = Registry.load()


def _asks(record, config=None, controls=True, **more):
  found = protocols.asks(
    record,
    record.load(),
    config or EvalConfig(),
    **{
      "siblings": SIBLINGS,
      "vocabulary": VOCABULARY,
      "modalities": ("X-Ray", "computed tomography"),
      **more,
    },
    words=WORDS,
    registry=REGISTRY,
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
  assert set(found) == {
    *(*protocols.PROTOCOLS, *protocols.CONTROLS, protocols.PRESENT)
  }
  here = found["named"][0].triplet.classes
  (absent,) = found["negative"]
  assert {*here, absent.target} == set(SIBLINGS)
  assert absent.request.classes == (absent.target,)
  assert absent.target in absent.request.question
  assert found["open"][0].request.classes is None
  assert set(_asks(record, everything, controls=False)) == {
    *("named", "open", "negative", protocols.PRESENT)
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
  (modality,) = found["wrong_modality"]
  assert modality.modality == "X-Ray"  # the only other one of the records
  assert modality.request.question == named.request.question.replace(
    "computed tomography", "X-Ray"
  )
  assert modality.request.image_IJC is named.request.image_IJC


def test_an_index_of_one_modality_has_wrong_ones_too(world):
  found = _asks(world[0], modalities=("computed tomography",))
  (ask,) = found["wrong_modality"]
  assert ask.modality != "computed tomography"
  assert f"{ask.modality} image" in ask.request.question


def test_a_present_class_is_asked_as_absent_ones_are(world):
  """But for the name, the questions are the same; one of each image."""
  places, classes = set(), set()
  for number, record in enumerate(world[:4] * 5):
    record = dataclasses.replace(record, id=f"{number}")
    found = _asks(record, controls=False, siblings=(*SIBLINGS, "stomach"))
    (present,) = found["present"]
    here = present.triplet.classes
    assert present.target in here
    assert present.request.classes == (present.target,)
    forms = {
      ask.request.question.replace(ask.target, "...")
      for ask in (present, *found["negative"])
    }
    assert len(forms) == 1
    places.add(here.index(present.target))
    classes |= forms
  assert places == {0, 1}  # drawn, not the first
  assert len(classes) > 3  # templates
  # Without an absent class there is nothing to compare with.
  assert "present" not in _asks(world[0], siblings=here)


def test_no_question_names_more_classes_than_an_answer_has_masks(world):
  def named(most, at_once=0):
    config = EvalConfig(classes_per_question=at_once)
    found = _asks(world[0], config, controls=False, most=most)["named"]
    return [len(ask.request.classes) for ask in found]

  assert named(0) == [2]
  assert named(1) == [1, 1]
  assert named(1, at_once=2) == [1, 1]
  assert named(2, at_once=1) == [1, 1]
  assert named(8) == [2]


def test_other_names_of_a_class_that_is_there_are_not_absent(world):
  """The registry knows the postcava as the inferior vena cava."""
  triplet = world[0].load()
  here = ("postcava", *triplet.classes[1:])
  names = ("inferior vena cava", "IVC", "postcava", "hepar", "liver", "Spleen")
  found = list(
    protocols.asks(
      world[0],
      dataclasses.replace(triplet, classes=here),
      EvalConfig(absent_per_image=9),
      siblings=names,
      vocabulary=names,
      modalities=(triplet.modality,),
      words=WORDS,
      registry=REGISTRY,
      controls=True,
    )
  )
  absent = [ask.target for ask in found if ask.kind == "negative"]
  tasks = [REGISTRY.canonical(name, "ct") for name in absent]
  assert absent
  assert len(set(tasks)) == len(tasks)
  assert "inferior vena cava" not in tasks
  (wrong,) = (ask for ask in found if ask.kind == "wrong_name")
  assert wrong.request.classes[0] in ("hepar", "liver", "Spleen")


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
