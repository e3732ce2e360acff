"""The assistant around a toy that has learnt nothing: what does not change."""

import dataclasses

import cv2
from flax import nnx
import jax
import numpy as np
import parts
import pytest
import toy

import rcmed_jax
from rcmed_jax.apps import answering
from rcmed_jax.data import prompts, tokens
from rcmed_jax.model import rcmed
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.parallel import rules
from rcmed_jax.serve import assistant as assistants
from rcmed_jax.serve import programs
from rcmed_jax.serve.assistant import Answer, Found, Question, Sampling

CLASSES = ("liver", "spleen", "heart")
LENGTH = 208  # holds a turn of twelve tokens before the question
HOT = Sampling(temperature=100.0, seed=3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  texts = [
    prompts.conversation(prompts.question(CLASSES, "pet", 0)),
    prompts.answer("pet", CLASSES[:2], CLASSES[2:]),
  ]
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
  return tokens.train_tokenizer(texts, 400, path)


def make(tokenizer, model=None, **changes):
  config = toy.model_config(correlation_steps=1)
  language = dataclasses.replace(
    config.language, vocabulary=tokenizer.vocabulary
  )
  config = dataclasses.replace(config, language=language)
  build = lambda: rcmed.RCMed(config, rngs=nnx.Rngs(0))  # noqa: E731
  model = parts.at_random(build) if model is None else model(build)
  told = dict(image_size=toy.IMAGE_SIZE, lengths=(LENGTH,), rows=2, max_new=12)
  return assistants.Assistant(model, tokenizer, **told | changes)


@pytest.fixture(scope="module")
def shared_assistant(tokenizer):
  return make(tokenizer, max_targets=2)


@pytest.fixture
def assistant(shared_assistant, monkeypatch):
  """With nothing kept; `looks` counts the images that were looked at."""
  run = shared_assistant._programs
  monkeypatch.setattr(run, "_kept", programs._Kept(2))
  shared_assistant.looks = 0
  look = run._look

  def counted(*inputs):
    shared_assistant.looks += 1
    return look(*inputs)

  monkeypatch.setattr(run, "_look", counted)
  return shared_assistant


def image(seed=0, shape=(32, 64, 3)):
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def generation(assistant, pictures, text, choice):
  """All numbers of one batch."""
  ids_T = assistant._runner.row(Question(pictures[0], text), None).ids_T
  inputs = tokens.pad([ids_T] * len(pictures), (LENGTH,))
  run = assistant._programs
  asked, _ = run.begin(pictures, *inputs, choice)
  return jax.device_get(run.finish(run.decode(asked, 12)))


# What is kept of images.


def test_what_is_kept_changes_no_bit(assistant, monkeypatch):
  choice = programs.choice([Sampling(), HOT], 12)
  first, second, third = (image(seed) for seed in range(3))
  text = "Where is the liver?"
  wanted = generation(assistant, [first, second], text, choice)
  assert assistant.looks == 2
  found = generation(assistant, [first, second], text, choice)
  assert assistant.looks == 2
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  generation(assistant, [third, second], text, choice)  # the first is dropped
  assert assistant.looks == 3
  found = generation(assistant, [first, second], text, choice)
  assert assistant.looks == 4
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  monkeypatch.setattr(assistant._programs, "_kept", programs._Kept(0))
  found = generation(assistant, [first, second], text, choice)
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
  other = generation(assistant, [third, second], text, choice)
  assert np.any(other.masks_BGYX[0] != wanted.masks_BGYX[0])


def test_an_image_is_looked_at_once_in_a_batch(assistant, monkeypatch):
  monkeypatch.setattr(assistant._programs, "_kept", programs._Kept(0))
  questions = [Question(image(), "liver"), Question(image(), "heart")]
  assistant.ask_many(questions)
  assert assistant.looks == 1


def test_a_conversation_looks_at_its_image_once_and_knows_its_turns(assistant):
  talk = assistant.conversation(image())
  short = Sampling(max_new=4)
  one = talk.ask("Where is the liver?", sampling=short)
  two = talk.ask("And the heart?", sampling=short)
  assert assistant.looks == 1
  assert talk.turns == [
    ("Where is the liver?", one.text),
    ("And the heart?", two.text),
  ]
  earlier = (("Where is the liver?", one.text),)
  asked = assistant.ask(
    image(), "And the heart?", earlier=earlier, sampling=short
  )
  assert asked == two
  # What the model read is the conversation as prompts joins it.
  row = assistant._runner.row(
    Question(image(), "And the heart?", earlier=earlier), None
  )
  joined = prompts.conversation("And the heart?", earlier=earlier)
  np.testing.assert_array_equal(
    row.ids_T, assistant._runner._tokenizer.encode_prompt(joined)
  )


def test_only_a_conversation_may_be_longer_than_the_lengths(assistant):
  turn = ("Where is the liver? " * 9, "It is here. " * 9)
  row = assistant._runner.row(Question(image(), "a", earlier=(turn,)), None)
  assert row.width == 2 * LENGTH
  with pytest.raises(ValueError, match=f"is {LENGTH}; shorten"):
    assistant.ask(image(), "Where is the liver? " * 30)
  with pytest.raises(ValueError, match=f"is {4 * LENGTH}; shorten"):
    assistant.ask(image(), "a", earlier=(turn,) * 20)


# How words are chosen.


def test_rows_are_sampled_by_themselves_beside_greedy_ones(assistant):
  text = "Where is the liver?"
  plain = Question(image(), text)
  hot = Question(image(), text, sampling=HOT)
  other = dataclasses.replace(hot, sampling=dataclasses.replace(HOT, seed=4))
  plain_said, hot_said = assistant.ask_many([plain, hot])
  assert assistant.ask_many([hot, plain]) == [hot_said, plain_said]
  assert assistant.ask_many([hot, hot]) == [hot_said, hot_said]
  (other_said,) = assistant.ask_many([other])
  assert len({plain_said.text, hot_said.text, other_said.text}) == 3


def test_the_grammar_makes_random_answers_well_formed(assistant):
  """With max_new = 12, few would end by themselves, and fewer be closed."""
  questions = [
    Question(
      image(),
      "liver",
      sampling=dataclasses.replace(HOT, seed=seed, grammar=True),
    )
    for seed in range(40)
  ]
  phrases = []
  for answer in assistant.ask_many(questions):
    text = answer.text
    found = prompts.parse_answer(text)
    phrases.append(text.count("<p>"))
    assert text.count("</p>") == phrases[-1]
    assert found.modality and all(found.present) and all(found.absent)
    assert len(found.present) == text.count("[SEG]")
    assert phrases[-1] == 1 + len(found.present) + len(found.absent)
  free = [
    dataclasses.replace(
      one, sampling=dataclasses.replace(one.sampling, grammar=False)
    )
    for one in questions
  ]
  assert not any(one.modality for one in assistant.ask_many(free[:6]))


@pytest.mark.parametrize(
  ("sampling", "said"),
  [
    (Sampling(max_new=13), "max_new=13: this assistant's answers have 12"),
    (Sampling(max_new=3, grammar=True), "at least 4 tokens"),
  ],
)
def test_what_cannot_be_said_is_refused(assistant, sampling, said):
  with pytest.raises(ValueError, match=said):
    assistant.ask(image(), "liver", sampling=sampling)


@pytest.mark.parametrize(
  "told", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.1}, {"max_new": 0}]
)
def test_settings_out_of_range_are_named(told):
  (name,) = told
  with pytest.raises(ValueError, match=f"{name}: expected"):
    Sampling(**told)


# Texts that grow.


def test_texts_are_told_as_they_grow_and_change_no_bit(assistant):
  questions = [
    Question(image(), "liver", sampling=Sampling(max_new=3)),
    Question(image(1), "heart", sampling=HOT),
    Question(image(2), "spleen"),
  ]
  told = {number: [""] for number in range(3)}
  answers = dict(
    assistant.stream(
      questions, told=lambda number, text: told[number].append(text)
    )
  )
  assert [answers[number] for number in range(3)] == assistant.ask_many(
    questions
  )
  for number, texts in told.items():
    for one, other in zip(
      texts, [*texts[1:], answers[number].text], strict=True
    ):
      assert other.startswith(one)
    assert len(texts) > 1
  assert max(map(len, told.values())) > 2


# What may be asked.


def test_classes_are_asked_as_many_at_a_time_as_there_are_masks(
  assistant, monkeypatch
):
  """Two; what the answers name in other letters is found."""
  asked = []

  def ask_many(questions):
    asked.extend(one.text for one in questions)
    mask_IJ = np.ones((2, 2), bool)
    liver = Found("liver", True, mask_IJ, (0, 0, 2, 2), 0.5)
    return [Answer("a", "pet", (liver,)), Answer("b", "pet", ())]

  monkeypatch.setattr(assistant, "ask_many", ask_many)
  answer = assistant.segment(
    image(), ["Heart", "Liver", "spleen"], modality="pet"
  )
  assert asked == [
    "Can you segment the heart, liver in this pet image?",
    "Can you segment the spleen in this pet image?",
  ]
  names = [(one.name, one.present) for one in answer.targets]
  assert names == [("Heart", False), ("Liver", True), ("spleen", False)]
  with pytest.raises(ValueError, match="expected classes"):
    assistant.segment(image(), [])


def test_a_new_class_is_asked_alone_and_gets_the_name_it_was_asked_by(
  assistant, monkeypatch
):
  half_IJ = np.zeros((32, 64), bool)
  half_IJ[:, :32] = True
  new = assistant.learn("island", "pet", [(image(), half_IJ)])
  monkeypatch.setattr(assistant, "_classes", (new,))
  names = ["the island", "liver"]
  answer = assistant.segment(image(), names, sampling=Sampling(max_new=4))
  assert [one.name for one in answer.targets] == names
  shown = assistant.show(Question(image(), "where?"), new).targets[0]
  assert answer.targets[0].present == shown.present
  np.testing.assert_array_equal(answer.targets[0].mask_IJ, shown.mask_IJ)


def test_pictures_come_from_files_or_arrays(assistant, tmp_path):
  path = tmp_path / "scan.png"
  cv2.imwrite(str(path), image()[..., ::-1])
  short = Sampling(max_new=4)
  answer = assistant.ask(path, "liver", sampling=short)
  assert answer == assistant.ask(image(), "liver", sampling=short)
  assert answer == assistant.ask(str(path), "liver", sampling=short)
  assert assistant.looks == 1
  assert answer.timings.model_s > 0
  for wrong in (image()[..., 0], image().astype(np.float32)):
    with pytest.raises(ValueError, match=r"expected uint8\[rows, columns, 3\]"):
      assistant.ask(wrong, "liver")


def test_a_volume_is_no_picture(assistant, tmp_path):
  nibabel = pytest.importorskip("nibabel")
  path = tmp_path / "scan.nii.gz"
  nibabel.save(nibabel.Nifti1Image(np.zeros((20, 20, 3)), np.eye(4)), path)
  with pytest.raises(ValueError, match="holds 3 slices; `rcmed predict`"):
    assistant.ask(path, "liver")


def test_a_description_is_asked_in_its_own_form(assistant, monkeypatch):
  asked = []
  monkeypatch.setattr(
    assistant, "ask_many", lambda questions: asked.extend(questions) or [None]
  )
  assistant.describe(image())
  assert asked[0].describe
  assert asked[0].text in prompts.DESCRIPTION_QUESTIONS


# Where it runs, and whence it comes.


def test_it_works_on_the_mesh_of_its_weights(tokenizer, monkeypatch):
  sizes = meshes.MeshConfig(data=2, fsdp=2, tensor=2)
  whole = rules.replicated(meshes.make_mesh(sizes))

  def abstract(build):
    graphdef, weights = nnx.split(nnx.eval_shape(build))
    weights = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
      weights,
    )
    return nnx.merge(graphdef, weights)

  def encode(*_):
    raise RuntimeError(str(dict(jax.sharding.get_abstract_mesh().shape)))

  monkeypatch.setattr(rcmed.RCMed, "encode_image", encode)
  with pytest.raises(RuntimeError, match="'fsdp': 2, 'tensor': 2"):
    make(tokenizer, abstract).ask(image(), "liver")


def test_the_package_shows_it():
  assert rcmed_jax.Assistant is answering.Assistant
  assert rcmed_jax.Assistant.load is answering.load_assistant
  assert rcmed_jax.Sampling is Sampling and rcmed_jax.Question is Question
  assert {"Assistant", "Question", "Sampling"} <= set(dir(rcmed_jax))
  with pytest.raises(AttributeError, match="Assistent"):
    _ = rcmed_jax.Assistent
