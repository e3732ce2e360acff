"""Which position reads which, and with what weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcmed_jax.kernels import language_attention


def _inputs(length: int = 5) -> list[np.ndarray]:
  rng = np.random.default_rng(0)
  return [
    rng.normal(size=(2, length, 3, 4)).astype(np.float32) for _ in range(3)
  ]


def _formula(query, key, value, allowed_BSS) -> np.ndarray:
  """Softmax attention in float64 where `allowed_BSS`."""
  scores = np.einsum("bsnh,btnh->bnst", *map(np.float64, (query, key)))
  weights = np.exp(scores / np.sqrt(query.shape[-1])) * allowed_BSS[:, None]
  weights /= weights.sum(-1, keepdims=True)
  return np.einsum("bnst,btnh->bsnh", weights, value)


def test_causal_matches_the_formula():
  allowed_BSS = np.tril(np.ones((5, 5)))[None]
  np.testing.assert_allclose(
    language_attention.causal_attention(*_inputs()),
    _formula(*_inputs(), allowed_BSS),
    atol=1e-6,
  )


def test_prefix_matches_the_picture_of_the_docstring():
  picture = np.float64(
    [
      [1, 1, 1, 0, 0],
      [1, 1, 1, 0, 0],
      [1, 1, 1, 0, 0],
      [1, 1, 1, 1, 0],
      [1, 1, 1, 1, 1],
    ]
  )
  mixed = language_attention.causal_attention(
    *_inputs(), prefix_B=jnp.array([3, 0])
  )
  allowed_BSS = np.stack([picture, np.tril(np.ones((5, 5)))])
  np.testing.assert_allclose(
    mixed, _formula(*_inputs(), allowed_BSS), atol=1e-6
  )


def test_cached_attention_is_a_row_of_the_causal_one():
  query, key, value = _inputs()
  whole = language_attention.causal_attention(query, key, value)
  length_B = np.array([5, 3])
  for row, length in enumerate(length_B):
    key[row, length:] = 1e4  # what the cache holds there must not matter
    value[row, length:] = 1e4
  last = language_attention.cached_attention(
    query[np.arange(2), length_B - 1], key, value, jnp.asarray(length_B)
  )
  np.testing.assert_allclose(
    last, np.asarray(whole)[np.arange(2), length_B - 1], atol=1e-6
  )


def test_scores_of_bfloat16_are_summed_in_float32():
  inputs = [jnp.asarray(array, jnp.bfloat16) for array in _inputs(64)]
  mixed = language_attention.causal_attention(*inputs)
  assert mixed.dtype == jnp.bfloat16
  exact = _formula(
    *(np.asarray(array, np.float64) for array in inputs),
    np.tril(np.ones((64, 64)))[None],
  )
  np.testing.assert_allclose(np.asarray(mixed, np.float64), exact, atol=2e-2)


def test_refuses_an_unknown_implementation():
  with pytest.raises(NotImplementedError, match="'splash'"):
    language_attention.causal_attention(*_inputs(), implementation="splash")
  with pytest.raises(NotImplementedError, match="'splash'"):
    jax.eval_shape(
      lambda q, k, v: language_attention.cached_attention(
        q[:, 0], k, v, jnp.array([1, 1]), implementation="splash"
      ),
      *_inputs(),
    )
