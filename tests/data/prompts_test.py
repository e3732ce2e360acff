import collections
import itertools
import re

import numpy as np
import pytest

from rcmed_jax.data import prompts

CLASSES = ["liver", "left kidney", "Aorta", "spleen"]
SIBLINGS = ["heart", "lung", "stomach"]


def draws(count, seed=0, **changes):
  rng = np.random.default_rng(seed)
  told = {
    "classes": CLASSES,
    "siblings": SIBLINGS,
    "modality": "computed tomography",
    "weights": (0.4, 0.4, 0.2),
    "described": True,
    "most": 8,
  }
  return [prompts.draw(rng, **(told | changes)) for _ in range(count)]


# Questions and conversations.


def test_the_conversation_is_the_released_one():
  asked = "Can you segment the liver in this computed tomography image?"
  assert prompts.question(["Liver"], "computed tomography", 0) == asked
  assert prompts.conversation(asked) == (
    "A chat between a curious human and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the human's "
    "questions. USER: The <im_start><image><im_end> provides an overview of "
    "the picture.\nCan you segment the liver in this computed tomography "
    "image?  ASSISTANT:"
  )


def test_a_description_has_one_space_before_assistant():
  text = prompts.conversation(" What is there?\n", describe=True)
  assert text.endswith("picture.\nWhat is there? ASSISTANT:")


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_a_prompt_without_text_says_what_to_write(text):
  with pytest.raises(ValueError, match=r"no text; write what.*Can you segment"):
    prompts.conversation(text)


def test_later_turns_follow_the_end_of_the_answer_before():
  text = prompts.conversation(
    "And the spleen?",
    earlier=[("Where is the liver? ", "It is <p> here </p> [SEG].</s>")],
  )
  assert text.endswith(
    "picture.\nWhere is the liver?  ASSISTANT: It is <p> here </p> [SEG].</s>"
    "USER: And the spleen?  ASSISTANT:"
  )
  assert text.count("<image>") == text.count("A chat between") == 1


@pytest.mark.parametrize(
  ("turn", "said"), [(("", "yes"), "no text; write"), (("a", "</s>"), "leave")]
)
def test_a_turn_without_text_is_refused(turn, said):
  with pytest.raises(ValueError, match=said):
    prompts.conversation("liver", earlier=[turn])


def test_a_question_may_leave_the_modality_out():
  for template in range(prompts.TEMPLATES):
    named = prompts.question(["Liver"], "pet", template)
    for modality in (None, ""):
      text = prompts.question(["Liver"], modality, template)
      assert text == named.replace("pet ", "")


def test_there_are_seven_and_six_templates():
  named = [prompts.question(CLASSES, "pet", t) for t in range(7)]
  assert len(set(named)) == prompts.TEMPLATES == 7
  for text in named:
    assert "liver, left kidney, aorta, spleen" in text
    assert "pet" in text
  described = [prompts.description_question(t) for t in range(6)]
  assert len(set(described)) == prompts.DESCRIPTION_TEMPLATES == 6
  for text in described:
    assert re.search("detail", text)
    assert re.search(r"\bmasks\b", text)
    assert "{" not in text


# Answers.


@pytest.mark.parametrize(
  ("present", "absent", "description", "expected"),
  [
    ([], [], None, ""),
    (["a"], [], None, " The image contains <p> a </p> [SEG]."),
    (
      ["a", "b"],
      [],
      None,
      " The image contains <p> a </p> [SEG] and <p> b </p> [SEG].",
    ),
    (
      ["a", "b", "C"],
      ["d", "e", "f"],
      None,
      " The image contains <p> a </p> [SEG], <p> b </p> [SEG] and <p> C </p> "
      "[SEG]. The image contains no <p> d </p>, no <p> e </p> and no "
      "<p> f </p>.",
    ),
    ([], ["d"], None, " The image contains no <p> d </p>."),
    (
      ["a"],
      [],
      "The a is red.",
      " The image contains <p> a </p> [SEG]. The a is red.",
    ),
  ],
)
def test_answers_word_by_word(present, absent, description, expected):
  said = prompts.answer("pet", present, absent, description)
  assert said == f"This is a <p> pet </p> image.{expected}</s>"


@pytest.mark.parametrize("present", range(4))
@pytest.mark.parametrize("absent", range(4))
@pytest.mark.parametrize("description", [None, "No <b>, no liver. [It] is no."])
def test_answers_of_every_form_are_understood(present, absent, description):
  has, lacks = tuple(CLASSES[:present]), tuple(SIBLINGS[:absent])
  said = prompts.answer("X-Ray", has, lacks, description)
  assert prompts.parse_answer(said) == prompts.ParsedAnswer("X-Ray", has, lacks)


@pytest.mark.parametrize(
  ("text", "modality", "present", "absent"),
  [
    ("", None, (), ()),
    ("Nothing here.", None, (), ()),
    ("[SEG] and [SEG]", None, ("", ""), ()),
    ("<p> pet </p> <p> liver", "pet", (), ()),
    ("<p> liver [SEG] <p> aorta </p> [SEG]", None, ("", "aorta"), ()),
    ("<p> liver </p> <p> aorta </p> [SEG]", "liver", ("aorta",), ()),
    ("<p>liver</p>[SEG]", None, ("liver",), ()),
    ("<p> </p> [SEG] <p> a </p> [SEG]", None, ("", "a"), ()),
    ("no <p> liver </p> [SEG]", None, ("",), ("liver",)),
    ("</p> [SEG] <p> <p> a </p> [SEG]", None, ("", "a"), ()),
    ("casino <p> a </p> [SEG]", None, ("a",), ()),
    ("<p> a </p> [SEG] <p> a </p> [SEG]", None, ("a", "a"), ()),
  ],
)
def test_malformed_answers_claim_less(text, modality, present, absent):
  parsed = prompts.parse_answer(text)
  assert parsed == prompts.ParsedAnswer(modality, present, absent)


def test_there_is_one_name_for_each_seg_whatever_is_said():
  words = ["<p>", "</p>", "[SEG]", "no", "liver", "."]
  for said in itertools.product(words, repeat=5):
    text = " ".join(said)
    assert len(prompts.parse_answer(text).present) == said.count("[SEG]"), text


# Drawing.


def test_forms_come_as_often_as_weighted():
  drawn = draws(3000, classes=CLASSES[:2])
  described = [asked for asked in drawn if asked.describe]
  assert len(described) / 3000 == pytest.approx(0.4, abs=0.03)
  assert all(asked.present == ("liver", "left kidney") for asked in described)
  assert {asked.question for asked in described} == set(
    prompts.DESCRIPTION_QUESTIONS
  )
  # A subset of 2 has 1 or 2 with equal chance: 0.1 of the draws have 1.
  alone = [asked for asked in drawn if len(asked.present) == 1]
  assert len(alone) / 3000 == pytest.approx(0.1, abs=0.02)
  assert {asked.present[0] for asked in alone} == {"liver", "left kidney"}


def test_subsets_are_uniform_in_size_and_keep_the_order():
  drawn = draws(4000, weights=(0, 0, 1))
  sizes = collections.Counter(len(asked.present) for asked in drawn)
  for size in (1, 2, 3, 4):
    assert sizes[size] / 4000 == pytest.approx(0.25, abs=0.03)
  for asked in drawn:
    places = [CLASSES.index(name) for name in asked.present]
    assert places == sorted(places)
    assert ", ".join(asked.present).lower() in asked.question


def test_without_a_description_targets_are_named():
  drawn = draws(300, described=False)
  assert not any(asked.describe for asked in drawn)
  assert all(asked.present for asked in drawn)
  templates = {asked.question.split(" the ")[0] for asked in drawn}
  assert len(templates) >= 5


def test_no_negatives_unless_asked_for():
  assert not any(asked.absent for asked in draws(300))


def test_negatives_are_half_of_them_alone():
  drawn = draws(4000, weights=(0, 1, 0), negative_share=0.5)
  negative = [asked for asked in drawn if asked.absent]
  assert len(negative) / 4000 == pytest.approx(0.5, abs=0.03)
  alone = [asked for asked in negative if not asked.present]
  assert len(alone) / len(negative) == pytest.approx(0.5, abs=0.04)
  for asked in negative:
    assert set(asked.absent) <= set(SIBLINGS)
    assert all(name in asked.question for name in asked.absent)
  sizes = collections.Counter(len(asked.absent) for asked in negative)
  assert set(sizes) == {1, 2, 3}


def test_noise_is_asked_for_what_it_lacks():
  for asked in draws(200, classes=(), only_absent=True):
    assert not asked.describe
    assert not asked.present
    assert asked.absent


def test_an_image_without_targets_is_asked_for_what_it_lacks():
  drawn = draws(200, classes=())
  assert all(asked.absent and not asked.present for asked in drawn)


def test_with_no_name_at_all_the_question_is_open():
  drawn = draws(50, classes=(), siblings=(), described=False)
  assert {(a.describe, a.present, a.absent) for a in drawn} == {(True, (), ())}


def test_of_many_classes_some_are_asked_each_time():
  many = [f"class {i}" for i in range(20)]
  others = [f"other {i}" for i in range(20)]
  drawn = draws(400, classes=many, siblings=others, most=3, negative_share=0.3)
  assert not any(asked.describe for asked in drawn)  # it could not tell all
  assert max(len(asked.present) for asked in drawn) == 3
  assert max(len(asked.absent) for asked in drawn) == 3
  assert {name for asked in drawn for name in asked.present} == set(many)


def test_shuffled_names_are_answered_in_the_order_of_the_question():
  drawn = draws(
    500, weights=(0, 1, 0), shuffle=True, negative_share=0.5, seed=3
  )
  orders = set()
  for asked in drawn:
    for names in (asked.present, asked.absent):
      places = [asked.question.index(name.lower()) for name in names]
      assert places == sorted(places)
    orders.add(asked.present)
  assert len(orders) > 15
  # Absent names do not always come last.
  assert any(
    asked.absent
    and asked.present
    and asked.question.index(asked.absent[0])
    < asked.question.index(asked.present[-1].lower())
    for asked in drawn
  )


def test_the_same_generator_draws_the_same():
  assert draws(20, seed=5, negative_share=0.5) == draws(
    20, seed=5, negative_share=0.5
  )
  assert draws(20, seed=5) != draws(20, seed=6)


def test_single_questions_name_one_class_present_or_absent():
  for asked in draws(
    200, weights=(0, 1, 0), single_share=1, negative_share=0.5
  ):
    assert len(asked.present) + len(asked.absent) == 1
  some = draws(400, weights=(0, 1, 0), single_share=0.5, negative_share=0)
  alone = sum(len(asked.present) == 1 for asked in some)
  assert 150 < alone < 250
