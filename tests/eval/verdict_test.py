"""Sentences say what the numbers show, and no more."""

import numpy as np
import pytest

from rcmed_jax.eval import verdict
from rcmed_jax.eval.compare import Change, compare
from rcmed_jax.eval.pairing import Pair
from rcmed_jax.eval.tasks import Task

LIVER, SPLEEN = Task("ct", "liver"), Task("ct", "spleen")


def _run(liver, spleen, images=40, noise=0.01, draws=400, spleens=None):
  random = np.random.default_rng(0)
  pairs = []
  for number in range(images):
    noises = random.normal(0, noise, 2)
    for task, shift, slip in zip(
      (LIVER, SPLEEN), (liver, spleen), noises, strict=True
    ):
      if task == LIVER or spleens is None or number < spleens:
        pairs.append(Pair(f"{number:03d}", task, 0.5, 0.5 + shift + slip))
  return compare(pairs, draws=draws)


def _text(result, names=("old", "new")):
  return " ".join(verdict.sentences(result, names))


def test_equal_runs():
  result = _run(0, 0, noise=0)
  assert verdict.sentences(result, ("old", "new")) == (
    "old and new have the same Dice on every one of 80 masks.",
  )


def test_gains_and_losses_that_cancel_in_each_image_are_not_equality():
  result = _run(0.1, -0.1, noise=0)
  assert result.signs.equal == result.images
  text = _text(result)
  assert "the same Dice" not in text
  assert "new is better in 1, worse in 1" in text
  assert "Neither run is better throughout" in text


def test_a_shown_difference_names_the_higher_run():
  up, down = _text(_run(0.05, 0.04)), _text(_run(-0.05, -0.04))
  assert up.startswith("new scores higher in macro Dice")
  assert down.startswith("old scores higher in macro Dice")
  assert "No difference is shown" not in up
  assert "new has 0.546 against 0.500, +0.046 (95% interval +0.04" in up
  assert "−0.04" in down
  assert "small" not in up
  assert "new is better in 2, worse in 0" in up
  assert "Wilcoxon p below 0.001, rank-biserial correlation +1.000" in up


def test_a_difference_that_is_not_shown_is_no_equality():
  text = _text(_run(0.001, -0.001, noise=0.1))
  assert text.startswith("No difference is shown in macro Dice")
  assert "no proof that there is none" in text
  assert "scores higher" not in text


def test_a_small_difference_is_called_small():
  text = _text(_run(0.003, 0.003, noise=0.001))
  assert "new scores higher" in text
  assert "The difference is small" in text


def test_averages_that_disagree_are_told():
  """Ten spleens lose much, forty livers gain a little."""
  result = _run(0.05, -0.1, spleens=10, draws=2000)
  assert verdict.direction(result.macro) == -1
  assert verdict.direction(result.micro) == 1
  text = _text(result)
  assert text.startswith("old scores higher in macro Dice")
  assert "the other way. Which run is better depends" in text


def test_without_intervals_nothing_is_claimed():
  text = _text(_run(0.05, 0.05, draws=0))
  assert "scores higher" not in text
  assert "Without an interval nothing is said of other images" in text


@pytest.mark.parametrize(("spleens", "few"), [(29, True), (30, False)])
def test_few_images_of_the_smallest_task_are_told(spleens, few):
  """40 images in all; what counts is the task of the fewest."""
  text = _text(_run(0.05, 0.05, spleens=spleens))
  told = "The smallest task, ct / spleen, has 29 images. That is few"
  assert (told in text) is few
  assert "no interval" not in text


def test_a_task_of_five_images_takes_the_interval_of_the_mean():
  text = _text(_run(0.05, 0.05, spleens=5))
  assert "Without an interval nothing is said of other images" in text
  assert "ct / spleen, has 5 images. Below 6 there is no interval" in text


def test_every_verdict_says_what_it_does_not_cover():
  for shift in (0.05, 0):
    text = _text(_run(shift, shift))
    assert "another seed of training" in text
    assert "where several are of one patient" in text


@pytest.mark.parametrize(
  ("low", "high", "expected"),
  [
    (0.01, 0.02, 1),
    (-0.02, -0.01, -1),
    (-0.01, 0.01, 0),
    (0.0, 0.01, 0),
    (-0.01, 0.0, 0),
    (None, None, 0),
  ],
)
def test_direction(low, high, expected):
  assert verdict.direction(Change(0.5, 0.5, 0.0, low, high)) == expected


def test_signed():
  values = (0.01234, -0.0127, 0.0, -0.0001, 0.0004)
  assert [verdict.signed(value) for value in values] == [
    "+0.012",
    "−0.013",
    "0.000",
    "0.000",
    "0.000",
  ]
