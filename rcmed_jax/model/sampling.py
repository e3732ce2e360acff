"""How the next token is chosen, row by row: likeliest, drawn, or by a grammar.

One program serves all: the settings are arrays. What a row draws depends on its
own seed and logits, not on its place or on the other rows.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Choice:
  """How each row's answer is chosen."""

  temperature_B: jax.Array | np.ndarray  # float32; 0 takes the likeliest token
  top_p_B: jax.Array | np.ndarray  # float32; see `keep_likely`
  seed_B: jax.Array | np.ndarray  # uint32
  max_new_B: jax.Array | np.ndarray  # int32, most tokens
  grammar_B: jax.Array | np.ndarray  # bool, whether a grammar binds the row


@dataclasses.dataclass(frozen=True)
class Grammar:
  """Which tokens may follow in which state, U of them; 0 begins an answer."""

  next_UV: np.ndarray  # int8, the state after a token; -1: it may not come
  left_U: np.ndarray  # int32, fewest tokens to the end of the answer


def greedy(rows: int, max_new: int) -> Choice:
  """The likeliest tokens in every row."""
  return Choice(
    temperature_B=np.zeros(rows, np.float32),
    top_p_B=np.ones(rows, np.float32),
    seed_B=np.zeros(rows, np.uint32),
    max_new_B=np.full(rows, max_new, np.int32),
    grammar_B=np.zeros(rows, bool),
  )


def choose(logits_BV: jax.Array, step: jax.Array, choice: Choice) -> jax.Array:
  """int32[B]: each row's next token.

  Args:
    logits_BV: float32, -inf where a token may not come.
    step: int32, tokens decided.
    choice: the seed of a row and the step make its draw.
  """
  likeliest_B = jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  draws_B = jnp.asarray(choice.temperature_B) > 0

  def draw() -> jax.Array:
    heat_B = jnp.where(draws_B, choice.temperature_B, 1.0)
    kept_BV = keep_likely(logits_BV / heat_B[:, None], choice.top_p_B)
    drawn_B = jax.vmap(
      lambda seed, logits_V: jax.random.categorical(
        jax.random.fold_in(jax.random.key(seed), step), logits_V
      )
    )(choice.seed_B, kept_BV)
    return jnp.where(draws_B, drawn_B.astype(jnp.int32), likeliest_B)

  # Sorting a vocabulary takes longer than all else that is done here.
  return jax.lax.cond(jnp.any(draws_B), draw, lambda: likeliest_B)


def keep_likely(
  logits_BV: jax.Array, top_p_B: jax.Array | np.ndarray
) -> jax.Array:
  """The logits, -inf outside the fewest tokens that hold top_p together."""
  falling_BV = -jnp.sort(-logits_BV, axis=-1)
  chance_BV = jax.nn.softmax(falling_BV, axis=-1)
  before_BV = jnp.cumsum(chance_BV, axis=-1) - chance_BV
  top_p_B1 = jnp.asarray(top_p_B)[:, None]
  floor_B1 = jnp.min(
    jnp.where(before_BV < top_p_B1, falling_BV, jnp.inf), axis=-1, keepdims=True
  )
  # All of them at 1, whatever the sums were rounded to.
  kept_BV = (logits_BV >= floor_B1) | (top_p_B1 >= 1)
  return jnp.where(kept_BV, logits_BV, -jnp.inf)


def allow(
  logits_BV: jax.Array,
  state_B: jax.Array,
  step: jax.Array,
  choice: Choice,
  grammar: Grammar,
) -> jax.Array:
  """The logits, -inf where the grammar forbids a token.

  That is also one from which the answer could not end in time, so that no
  answer is cut off in the middle of a phrase.

  Args:
    state_B: int32, of the grammar, in each row.
    step, choice: as in `choose`.
  """
  next_BV = jnp.asarray(grammar.next_UV)[state_B].astype(jnp.int32)
  after_BV = jnp.asarray(grammar.left_U)[jnp.maximum(next_BV, 0)]
  room_B = choice.max_new_B - step - 1
  allowed_BV = (next_BV >= 0) & (after_BV <= room_B[:, None])
  free_B1 = ~jnp.asarray(choice.grammar_B)[:, None]
  return jnp.where(allowed_BV | free_B1, logits_BV, -jnp.inf)


def follow(
  state_B: jax.Array, token_B: jax.Array, choice: Choice, grammar: Grammar
) -> jax.Array:
  """int32[B]: the state of each row after its token; 0 of unbound rows."""
  after_B = jnp.asarray(grammar.next_UV)[state_B, token_B].astype(jnp.int32)
  return jnp.where(choice.grammar_B, jnp.maximum(after_B, 0), 0)
