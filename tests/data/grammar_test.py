"""The grammar of answers against the parser that reads them."""

import numpy as np
import pytest

from rcmed_jax.data import grammar, prompts

MOST = 24


@pytest.fixture(scope="module")
def table(tokenizer):
  return grammar.table(tokenizer)


def follow(table, ids):
  """The state after the ids; -1 once one may not come."""
  state = 0
  for id in ids:
    state = int(table[0][state, id])
    if state < 0:
      break
  return state


@pytest.mark.parametrize("present", [(), ("liver",), ("no man", "left lung")])
@pytest.mark.parametrize("absent", [(), ("heart",), ("[ ]", "nodule", "n")])
@pytest.mark.parametrize("description", [None, "It is a non-round node, no?"])
def test_every_answer_of_training_is_allowed(
  table, tokenizer, present, absent, description
):
  absent = tuple(name for name in absent if "[" not in name)
  said = prompts.answer("X-Ray", present, absent, description)
  assert table[1][follow(table, tokenizer.encode(said)[1:])] == 0


@pytest.mark.parametrize(
  "said",
  [
    "</s>",  # names no modality
    "This is no <p> pet",
    "<p> pet </p> [SEG]",
    "<p> </p>",
    "<p> pet </s>",
    "<p> pet </p> <p> liver </p> </s>",
    "<p> pet </p> <p> liver </p> . [SEG]",
    "<p> pet </p> no <p> liver </p> [SEG]",
    "<p> pet </p> <p> liver <p>",
    "<p> pet </p> [SEG]",
    "<p> pet </p> <im_start>",
    "<p> pet </p> is <unk>",
    "<p> pet </p> is [",
    "<p> pet </p> <p> a\nb",
    "<p> pet </p> ok </s> ok",
  ],
)
def test_what_is_malformed_is_forbidden(table, tokenizer, said):
  assert follow(table, tokenizer.encode(said)[1:]) == -1


def test_no_is_known_however_it_is_spelt(table, tokenizer):
  """n and o as two pieces, in the middle of words, and before spaces."""
  ids = {letters: id for id, letters in tokenizer.pieces()}
  n, o, space = ids["n"], ids["o"], ids[" "]
  opened = tokenizer.encode("<p> pet </p>")[1:]
  p, q, seg = (tokenizer.id_of(name) for name in ("<p>", "</p>", "[SEG]"))
  for spelt, absent in (
    ([n, o], True),
    ([n, o, space, space], True),
    ([o, n, o], False),
    ([n, o, n], False),
    ([n, o, n, o], False),
    ([n, o, space, n, o], True),
    ([n, space, o], False),
  ):
    ids = [*opened, *spelt, p, o, q]
    text = tokenizer.decode(ids)
    assert bool(prompts.parse_answer(text).absent) == absent, text
    assert (follow(table, [*ids, seg]) < 0) == absent, text
    assert (follow(table, [*ids, tokenizer.end_id]) < 0) != absent, text


def test_random_tokens_make_answers_that_parse_to_their_markers(
  table, tokenizer
):
  """2,000 answers, markers and the letters of "no" a hundred times as likely.

  The last tokens are those that still lead to an end, as in decoding.
  """
  next_UV, left_U = table
  rng = np.random.default_rng(0)
  weights_V = np.ones(tokenizer.vocabulary)
  weights_V[[tokenizer.end_id, *range(tokenizer.base_size, len(weights_V))]] = (
    100
  )
  for id, letters in tokenizer.pieces():
    if letters.strip() in ("n", "o", "no", ""):
      weights_V[id] = 30
  lengths = set()
  for _ in range(2000):
    ids, state = [], 0
    while not ids or ids[-1] != tokenizer.end_id:
      after_V = next_UV[state].astype(int)
      fits_V = (after_V >= 0) & (left_U[after_V] < MOST - len(ids))
      chances_V = np.where(fits_V, weights_V, 0.0)
      ids.append(int(rng.choice(len(chances_V), p=chances_V / chances_V.sum())))
      state = int(after_V[ids[-1]])
    assert len(ids) <= MOST
    lengths.add(len(ids))
    text = tokenizer.decode(ids)
    found = prompts.parse_answer(text)
    phrases = ids.count(tokenizer.id_of("<p>"))
    assert found.modality, text
    assert all(found.present) and all(found.absent), text
    assert len(found.present) == ids.count(tokenizer.seg_id), text
    assert phrases == 1 + len(found.present) + len(found.absent), text
  assert len(lengths) > 10


def test_an_answer_has_four_tokens_at_least(table):
  assert table[1][0] == 4  # <p>, a name, </p>, </s>
