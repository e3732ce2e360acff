"""Choosing tokens, by hand-worked logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcmed_jax.model import sampling

# Chances 0.2, 0.5, 0.3.
CHANCES = (0.2, 0.5, 0.3)


def _choice(rows, **changes):
  arrays = vars(sampling.greedy(rows, 4)) | {
    name: np.asarray(values) for name, values in changes.items()
  }
  return sampling.Choice(**arrays)


@pytest.mark.parametrize(
  ("top_p", "kept"),
  [
    (1e-6, [False, True, False]),
    (0.6, [False, True, True]),  # two tokens are needed to hold 0.6
    (0.8, [False, True, True]),
    (0.81, [True, True, True]),
    (1.0, [True, True, True]),
  ],
)
def test_nucleus_by_hand(top_p, kept):
  logits_BV = jnp.log(jnp.array([CHANCES, CHANCES[::-1]]))
  found = sampling.keep_likely(logits_BV, np.float32([top_p, 1.0]))
  np.testing.assert_array_equal(np.isfinite(found), [kept, [True] * 3])


def test_draws_come_as_often_as_they_are_likely():
  """4,000 rows; halving the temperature squares the chances."""
  rows = 4000
  logits_BV = jnp.log(jnp.tile(jnp.array([CHANCES]), (rows, 1)))
  for temperature in (1.0, 0.5):
    choice = _choice(
      rows,
      temperature_B=np.full(rows, temperature, np.float32),
      seed_B=np.arange(rows, dtype=np.uint32),
    )
    drawn_B = sampling.choose(logits_BV, jnp.int32(3), choice)
    wanted = np.power(CHANCES, 1 / temperature)
    np.testing.assert_allclose(
      np.bincount(drawn_B, minlength=3) / rows, wanted / wanted.sum(), atol=0.03
    )


def test_a_draw_depends_on_seed_and_step_and_not_on_the_row():
  logits_BV = jax.random.normal(jax.random.key(0), (1, 500))
  seeds = np.uint32([7, 8, 7, 9])
  hot_B = np.ones(4, np.float32)
  many, alone, later = (
    np.asarray(
      sampling.choose(
        jnp.tile(logits_BV, (len(seeds), 1)),
        jnp.int32(step),
        _choice(len(seeds), temperature_B=hot_B[: len(seeds)], seed_B=seeds),
      )
    )
    for seeds, step in ((seeds, 0), (seeds[:1], 0), (seeds, 1))
  )
  assert many[0] == many[2] == alone[0]
  assert len({*many.tolist()}) == 3
  assert np.any(many != later)


def test_a_grammar_forbids_what_it_does_not_know_and_what_leads_too_far():
  """State 0 goes to 1 by token 0 and ends (2) by token 1; 1 is far off."""
  grammar = sampling.Grammar(
    next_UV=np.int8([[1, 2, -1], [-1, 0, -1], [-1, -1, -1]]),
    left_U=np.int32([1, 2, 0]),
  )
  logits_BV = jnp.zeros((4, 3))
  state_B = jnp.int32([0, 0, 1, 0])
  choice = _choice(
    4, max_new_B=np.int32([9, 2, 9, 2]), grammar_B=[True, True, True, False]
  )
  found = sampling.allow(logits_BV, state_B, jnp.int32(0), choice, grammar)
  np.testing.assert_array_equal(
    np.isfinite(found),
    [
      [True, True, False],
      [False, True, False],  # after token 0 two more would have to come
      [False, True, False],
      [True, True, True],  # not bound
    ],
  )
  after_B = sampling.follow(state_B, jnp.int32([0, 1, 1, 0]), choice, grammar)
  np.testing.assert_array_equal(after_B, [1, 2, 0, 0])
