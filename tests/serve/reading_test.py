import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import toy

from rcmed_jax.data import prompts, tokens
from rcmed_jax.model.generate import Generation
from rcmed_jax.serve import reading
from rcmed_jax.serve.questions import Answer, Found, Timings

GRID = 16  # of the mask logits: a quarter of the toy's side
CLASSES = ("liver", "spleen", "heart")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  texts = [prompts.answer("pet", CLASSES[:2], CLASSES[2:])]
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
  return tokens.train_tokenizer(texts, 400, path)


@pytest.fixture
def read(tokenizer):
  """The answer that is read off a given generation.

  The image is 32 x 64, so that the lower half of the frame is padding. The
  answer claims a liver and a spleen and denies a heart; the liver's mask is
  the upper left quarter of the image, P = 0.8 in every pixel, and [SEG] has
  P = 0.5.
  """
  text = prompts.answer("pet", CLASSES[:2], CLASSES[2:])
  ids = tokenizer.encode(text)[1:]
  logits = np.full((1, 3, GRID, GRID), -9.0, np.float32)
  logits[0, 0, :4, :8] = np.log(4)

  def read(quality, spleen_shown=True, present_quality=0.0):
    shown = logits.copy()
    if spleen_shown:
      shown[0, 1, 4:, 8:] = np.log(4)  # into the padding
    said = Generation(
      tokens_BT=jnp.array([ids], jnp.int32),
      length_B=jnp.array([len(ids)]),
      seg_valid_BG=jnp.array([[True, True, False]]),
      masks_BGYX=jnp.asarray(shown),
      quality_BG=jnp.array([quality]),
      seg_log_prob_BG=jnp.log(jnp.array([[0.5, 0.5, 1.0]])),
      token_log_prob_BT=jnp.zeros((1, len(ids))),
    )
    reader = reading.Reader(tokenizer, toy.IMAGE_SIZE, present_quality)
    extent_2 = np.array([toy.IMAGE_SIZE // 2, toy.IMAGE_SIZE])
    return reader.answer(said, 0, extent_2, (32, 64, 3))

  return read


def test_a_mask_comes_back_on_the_grid_of_its_image(read):
  answer = read((0.0, 0.0, 0.0))
  assert answer.modality == "pet"
  assert [target.name for target in answer.targets] == list(CLASSES)
  liver, spleen, heart = answer.targets
  assert liver.mask_IJ.shape == (32, 64)
  # Bilinear: the edge of four grid cells lies between -9 and log 4.
  x0, y0, x1, y1 = liver.box
  assert (x0, y0) == (0, 0)
  assert abs(x1 - 32) <= 2
  assert abs(y1 - 16) <= 2
  assert spleen.box[2:] == (64, 32)
  assert (heart.present, heart.mask_IJ, heart.box) == (False, None, None)


def test_without_an_estimate_the_mask_itself_says_what_is_there(read):
  liver, spleen, _ = read((-1.0, -1.0, 0.0), spleen_shown=False).targets
  # P([SEG]) = 0.5 times pixels of 0.8 at most, less along the edge.
  assert liver.present
  assert 0.3 < liver.confidence < 0.4
  assert not spleen.present
  assert spleen.confidence == 0


def test_an_estimate_below_the_bar_says_that_nothing_is_there(read):
  liver, spleen, _ = read((0.7, 0.29, 0.0), present_quality=0.3).targets
  assert liver.present
  assert liver.confidence == pytest.approx(0.5 * 0.7)
  assert not spleen.present
  assert (spleen.mask_IJ, spleen.box, spleen.confidence) == (None, None, 0)


def test_an_estimate_above_one_is_no_more_than_certain(read):
  liver, spleen, _ = read((1.4, 0.31, 0.0), present_quality=0.3).targets
  assert liver.confidence == pytest.approx(0.5)
  assert spleen.present


def test_a_text_that_grows_is_the_begin_of_the_whole(tokenizer):
  """Its spaces, and bytes of a letter, wait for what they belong to."""
  text = prompts.answer("pet", ["liver", "Ö"], ["heart"], "It is \u96ea.")
  ids = np.array(tokenizer.encode(text)[1:])
  reader = reading.Reader(tokenizer, toy.IMAGE_SIZE)
  told = [reader.text(ids[:count]) for count in range(len(ids) + 1)]
  for one, other in itertools.pairwise(told):
    assert other.startswith(one)
  assert told[-1] == text.removesuffix("</s>")
  assert len(set(told)) > len(ids) / 2


def _found(name, left, right, confidence):
  mask_IJ = np.zeros((4, 8), bool)
  mask_IJ[:, left:right] = True
  return Found(name, True, mask_IJ, (left, 0, right, 4), confidence)


def test_every_class_gets_one_target_from_all_answers():
  absent = Found("spleen", False, None, None, 0.0)
  answers = [
    Answer("one", None, (_found("Left  Lung", 0, 2, 0.5), absent)),
    Answer(
      "two",
      "pet",
      (_found("left lung", 3, 4, 0.7), _found("other", 0, 1, 1.0)),
    ),
  ]
  asked = {"lung": "left lung", "spleen": "spleen", "heart": "heart"}
  answer = reading.of_classes(answers, asked)
  assert (answer.text, answer.modality) == ("one two", "pet")
  assert [one.name for one in answer.targets] == ["lung", "spleen", "heart"]
  lung, *others = answer.targets
  assert (lung.present, lung.box, lung.confidence) == (True, (0, 0, 4, 4), 0.7)
  np.testing.assert_array_equal(lung.mask_IJ[0], [1, 1, 0, 1, 0, 0, 0, 0])
  for one in others:
    assert (one.present, one.mask_IJ, one.confidence) == (False, None, 0.0)


def test_times_of_a_batch_count_once():
  """The first two answers shared a batch of 1 + 2 seconds."""
  times = (Timings(1, 2, 3), Timings(1, 2, 4), Timings(5, 6, 7))
  answers = [Answer("", None, (), one) for one in times]
  found = reading.of_classes(answers, {})
  assert found.timings == Timings(6, 8, 14)
  assert found == Answer("  ", None, ())  # they are not compared
