"""Both plain ones against the formula, entry by entry, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcmed_jax.kernels import relpos_attention_blocks
from rcmed_jax.kernels.relpos_attention import (
  refusals,
  relpos_attention,
  window_relpos_attention,
)

SCALE = 0.37
PLAIN = ("reference", "blocks")


def _arguments(heads, rows, columns, width, seed=0):
  """Float64 q, k, v, rel_h, rel_w of any grid."""
  rng = np.random.default_rng(seed)
  patches = rows * columns
  return [
    rng.standard_normal((heads, patches, size))
    for size in (width, width, width, rows, columns)
  ]


def _formula(q_MPH, k_MPH, v_MPH, rel_h_MPY, rel_w_MPX, scale=SCALE):
  """softmax(scale q k + rel_h[row of key] + rel_w[column of key]) v."""
  columns = rel_w_MPX.shape[-1]
  out_MPH = np.zeros_like(v_MPH)
  for head, query in np.ndindex(q_MPH.shape[:2]):
    scores_S = np.array(
      [
        scale * q_MPH[head, query] @ k_MPH[head, key]
        + rel_h_MPY[head, query, key // columns]
        + rel_w_MPX[head, query, key % columns]
        for key in range(k_MPH.shape[1])
      ]
    )
    weights_S = np.exp(scores_S - scores_S.max())
    out_MPH[head, query] = weights_S / weights_S.sum() @ v_MPH[head]
  return out_MPH


@pytest.fixture(params=[*PLAIN, "small blocks"])
def attend(request, monkeypatch):
  """One of the plain implementations; the last one with a rest to each map."""
  if request.param == "small blocks":
    monkeypatch.setattr(relpos_attention_blocks, "QUERIES", 4)
  implementation = request.param.removeprefix("small ")
  return functools.partial(relpos_attention, implementation=implementation)


@pytest.mark.parametrize(
  ("rows", "columns", "width"), [(3, 5, 7), (1, 4, 2), (1, 2, 3), (6, 6, 80)]
)
def test_matches_the_formula_on_any_grid(attend, rows, columns, width):
  arguments = _arguments(3, rows, columns, width)
  found = attend(*map(jnp.float32, arguments), SCALE)
  np.testing.assert_allclose(found, _formula(*arguments), atol=5e-6)


def test_bfloat16_keeps_scores_in_float32(attend):
  q, k, v, rel_h, rel_w = _arguments(2, 3, 5, 8)
  q, k, v = (
    np.asarray(array, jnp.bfloat16).astype(np.float64) for array in (q, k, v)
  )
  found = attend(
    *(jnp.asarray(array, jnp.bfloat16) for array in (q, k, v)),
    jnp.float32(rel_h),
    jnp.float32(rel_w),
    SCALE,
  )
  assert found.dtype == jnp.bfloat16
  expected = _formula(q, k, v, rel_h, rel_w)
  np.testing.assert_allclose(np.float64(found), expected, atol=1e-2)


def test_large_scores_do_not_overflow(attend):
  q, k, v, rel_h, rel_w = _arguments(1, 2, 3, 4)
  arguments = [q * 100, k * 100, v, rel_h * 1000, rel_w]
  found = attend(*map(jnp.float32, arguments), SCALE)
  np.testing.assert_allclose(found, _formula(*arguments), atol=1e-4)


def test_gradients_match_the_slope_of_the_formula(attend):
  arguments = _arguments(2, 3, 2, 4)
  rng = np.random.default_rng(1)
  weights = rng.standard_normal(arguments[2].shape)
  gradients = jax.grad(
    lambda *args: (attend(*args, SCALE) * weights).sum(),
    argnums=range(5),
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


def test_a_window_is_a_small_grid():
  arguments = [jnp.float32(array) for array in _arguments(3, 4, 4, 5)]
  np.testing.assert_array_equal(
    window_relpos_attention(*arguments, SCALE),
    relpos_attention(*arguments, SCALE, implementation="reference"),
  )


def test_many_scores_are_made_in_blocks():
  def first(*shape):
    shapes = [jax.ShapeDtypeStruct((*shape, n), jnp.float32) for n in (5, 64)]
    (q, rel) = shapes
    offered = refusals(q, q, q, rel, rel)
    return next(name for name, why in offered.items() if why is None)

  assert first(12, 4096) == "blocks"
  assert first(2, 64) == "reference"


@pytest.mark.parametrize("op", [relpos_attention, window_relpos_attention])
def test_refuses_an_implementation_that_does_not_exist(op):
  arguments = [jnp.float32(array) for array in _arguments(1, 2, 2, 3)]
  with pytest.raises(NotImplementedError, match=r"'pallas'.*choose one of"):
    op(*arguments, SCALE, implementation="pallas")


def test_refuses_what_is_no_grid():
  q, k, v, rel_h, _ = (jnp.float32(a) for a in _arguments(1, 2, 3, 4))
  with pytest.raises(ValueError, match=r"6 queries.*2 x 2 grid"):
    relpos_attention(q, k, v, rel_h, rel_h, SCALE)
