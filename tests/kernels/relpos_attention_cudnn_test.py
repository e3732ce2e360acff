"""The concatenated form against the formula and its slopes, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcmed_jax.kernels import relpos_attention_cudnn

SCALE = 0.37
GRID = (3, 5)


def _arguments(width: int = 7) -> list[np.ndarray]:
  """Float64 q, k, v, rel_h, rel_w of two heads."""
  rng = np.random.default_rng(0)
  sizes = (width, width, width, *GRID)
  return [rng.standard_normal((2, GRID[0] * GRID[1], size)) for size in sizes]


def _formula(q, k, v, rel_h, rel_w) -> np.ndarray:
  """The bias laid out in full, key by key."""
  rows, columns = np.divmod(np.arange(k.shape[1]), GRID[1])
  scores = SCALE * q @ k.transpose(0, 2, 1)
  scores += rel_h[:, :, rows] + rel_w[:, :, columns]
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True) @ v


def _attend(*arrays) -> jax.Array:
  return relpos_attention_cudnn.attend(*arrays, SCALE, implementation="xla")


def test_matches_the_formula():
  arguments = _arguments()
  found = _attend(*map(jnp.float32, arguments))
  np.testing.assert_allclose(found, _formula(*arguments), atol=5e-6)


def test_bfloat16_rounds_the_bias_and_no_more():
  q, k, v, rel_h, rel_w = _arguments()
  q, k, v = (jnp.asarray(array, jnp.bfloat16) for array in (q, k, v))
  found = _attend(q, k, v, jnp.float32(rel_h), jnp.float32(rel_w))
  assert found.dtype == jnp.bfloat16
  rounded = [np.asarray(array, np.float64) for array in (q, k, v)]
  expected = _formula(*rounded, rel_h, rel_w)
  np.testing.assert_allclose(np.float64(found), expected, atol=2e-2)


def test_gradients_match_the_slopes_of_the_formula():
  arguments = _arguments()
  rng = np.random.default_rng(1)
  weights = rng.standard_normal(arguments[2].shape)
  gradients = jax.grad(
    lambda *arrays: (_attend(*arrays) * weights).sum(), argnums=range(5)
  )(*map(jnp.float32, arguments))
  step = 1e-5
  for index, gradient in enumerate(gradients):
    direction = rng.standard_normal(arguments[index].shape)
    ends = []
    for sign in (-1, 1):
      moved = list(arguments)
      moved[index] = moved[index] + sign * step * direction
      ends.append((_formula(*moved) * weights).sum())
    slope = (ends[1] - ends[0]) / (2 * step)
    along = float((np.float64(gradient) * direction).sum())
    assert along == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_widths_are_what_cudnn_takes():
  assert relpos_attention_cudnn.width(80, 64, 64) == 208
  assert relpos_attention_cudnn.width(80, 14, 14) == 112


def test_refusal_names_its_reason_without_a_gpu():
  q_MPH = jax.ShapeDtypeStruct((1, 4096, 80), jnp.bfloat16)
  assert "NVIDIA GPU" in str(relpos_attention_cudnn.refusal(q_MPH, (64, 64)))


def test_refusals_on_a_gpu(monkeypatch):
  monkeypatch.setattr(
    relpos_attention_cudnn.choice, "device", lambda: ("gpu", "NVIDIA H200")
  )
  q_MPH = jax.ShapeDtypeStruct((1, 4096, 80), jnp.bfloat16)
  assert relpos_attention_cudnn.refusal(q_MPH, (64, 64)) is None
  wide = str(relpos_attention_cudnn.refusal(q_MPH, (128, 64)))
  assert "256 or less, not 272" in wide
  exact = jax.ShapeDtypeStruct((1, 4096, 80), jnp.float32)
  assert "float32" in str(relpos_attention_cudnn.refusal(exact, (64, 64)))
  odd = jax.ShapeDtypeStruct((1, 49, 80), jnp.bfloat16)
  assert "even" in str(relpos_attention_cudnn.refusal(odd, (7, 7)))
