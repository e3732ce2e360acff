"""BLEU and ROUGE by hand, where their libraries are installed."""

import importlib
import math

import pytest

from rcmed_jax.eval import wording


@pytest.fixture
def libraries():
  for name in ("sacrebleu", "rouge_score"):
    pytest.importorskip(name, reason="the extra 'wording' is not installed")


def test_the_same_words_are_perfect(libraries):
  texts = ["the liver shows a small cyst", "no effusion is seen today"]
  found = wording.compare(texts, texts)
  assert found.texts == 2
  assert found.bleu == pytest.approx(1)
  assert found.rouge1 == found.rouge2 == found.rougeL == 1
  assert "tok:13a" in found.signature


def test_by_hand(libraries):
  """One word of six differs.

  Shared: 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples; in
  order, 5 of 6 words. BLEU is the fourth root of the product, lengths equal.
  """
  found = wording.compare(
    ["the liver shows a large cyst"], ["the liver shows a small cyst"]
  )
  assert found.rouge1 == pytest.approx(5 / 6)
  assert found.rouge2 == pytest.approx(3 / 5)
  assert found.rougeL == pytest.approx(5 / 6)
  precisions = 5 / 6 * 3 / 5 * 2 / 4 * 1 / 3
  assert found.bleu == pytest.approx(math.sqrt(math.sqrt(precisions)))


def test_bleu_is_pooled_and_rouge_is_averaged(libraries):
  same, other = "the liver shows a small cyst", "one two three four five six"
  found = wording.compare([same, same], [same, other])
  # Of all n-grams half are right, whatever their length.
  assert found.bleu == pytest.approx(1 / 2)
  assert found.rouge1 == pytest.approx(1 / 2)
  back = wording.compare([same, same], [other, same])
  assert back == found


def test_an_empty_text_scores_nothing(libraries):
  found = wording.compare([""], ["the liver"])
  assert (found.bleu, found.rouge1, found.rougeL) == (0, 0, 0)


def test_what_has_no_reference_is_refused():
  with pytest.raises(ValueError, match="one reference each"):
    wording.compare(["a"], [])
  with pytest.raises(ValueError, match="at least one text"):
    wording.compare([], [])
  with pytest.raises(ValueError, match="1 of 2 references are empty"):
    wording.compare(["a", "b"], ["a", " "])


def test_a_missing_library_is_named(monkeypatch):
  def missing(name):
    raise ModuleNotFoundError(name=name)

  monkeypatch.setattr(importlib, "import_module", missing)
  with pytest.raises(NotImplementedError, match=r"rcmed-jax\[wording\]"):
    wording.compare(["a"], ["a"])
  with pytest.raises(NotImplementedError, match=r"rcmed-jax\[wording\]"):
    wording.require()
