"""Softmax against its formula in float64, its gradient against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcmed_jax.kernels.softmax import softmax


def _formula(scores, axis):
  powers = np.exp(scores - scores.max(axis, keepdims=True))
  return powers / powers.sum(axis, keepdims=True)


@pytest.mark.parametrize("axis", [-1, -2])
def test_values_and_slopes(axis):
  rng = np.random.default_rng(0)
  scores = rng.normal(0, 3, (2, 5, 7))
  direction, weight = rng.normal(size=(2, *scores.shape))
  found, pull = jax.vjp(
    lambda x: softmax(x, axis), jnp.asarray(scores, jnp.float32)
  )
  np.testing.assert_allclose(found, _formula(scores, axis), atol=1e-6)
  (gradient,) = pull(jnp.asarray(weight, jnp.float32))
  step = 1e-6
  ends = [
    (_formula(scores + sign * step * direction, axis) * weight).sum()
    for sign in (-1, 1)
  ]
  slope = (ends[1] - ends[0]) / (2 * step)
  along = float((np.float64(gradient) * direction).sum())
  assert along == pytest.approx(slope, rel=1e-5)


def test_scores_of_any_size_have_finite_gradients():
  scores = jnp.asarray([[1e4, -1e4, 0.0], [-1e30, -1e30, 2.0]])
  found, pull = jax.vjp(softmax, scores)
  np.testing.assert_allclose(found, [[1, 0, 0], [0, 0, 1]])
  assert np.isfinite(np.asarray(pull(jnp.ones_like(found))[0])).all()


def test_the_gradient_keeps_the_result_and_nothing_else():
  scores = jnp.ones((3, 4))
  _, pull = jax.vjp(softmax, scores)
  kept = [leaf.shape for leaf in jax.tree.leaves(pull)]
  assert kept == [(3, 4)]
