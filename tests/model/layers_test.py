"""Building blocks against formulas worked in float64."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcmed_jax import axes
from rcmed_jax.model import layers


@pytest.fixture(autouse=True)
def unplaced():
  with nnx.use_eager_sharding(False):
    yield


def _resize_formula(values_YX, size):
  """Bilinear at half-pixel centres, the edge repeated, nothing averaged."""
  result = np.zeros(size)
  for out in np.ndindex(*size):
    near, share = [], []
    for at, count, grid in zip(out, size, values_YX.shape, strict=True):
      place = np.clip((at + 0.5) * grid / count - 0.5, 0, grid - 1)
      low = min(int(place), grid - 1)
      near.append((low, min(low + 1, grid - 1)))
      share.append(place - low)
    top = (1 - share[1]) * values_YX[near[0][0], near[1][0]]
    top += share[1] * values_YX[near[0][0], near[1][1]]
    bottom = (1 - share[1]) * values_YX[near[0][1], near[1][0]]
    bottom += share[1] * values_YX[near[0][1], near[1][1]]
    result[out] = (1 - share[0]) * top + share[0] * bottom
  return result


@pytest.mark.parametrize(
  ("grid", "size"), [((4, 6), (8, 12)), ((7, 5), (3, 4)), ((9, 9), (2, 20))]
)
def test_resize_matches_the_formula(grid, size):
  values = np.random.default_rng(0).standard_normal((2, *grid, 3))
  found = layers.resize_bilinear(jnp.asarray(values, jnp.bfloat16), size)
  assert found.dtype == jnp.float32
  values = np.float64(jnp.asarray(values, jnp.bfloat16))
  for row, channel in np.ndindex(2, 3):
    expected = _resize_formula(values[row, :, :, channel], size)
    np.testing.assert_allclose(found[row, :, :, channel], expected, atol=1e-5)


def test_halving_is_the_mean_of_four():
  values = np.random.default_rng(0).standard_normal((1, 6, 8, 2), np.float32)
  means = values.reshape(1, 3, 2, 4, 2, 2).mean((2, 4))
  found = layers.resize_bilinear(jnp.asarray(values), (3, 4))
  np.testing.assert_allclose(found, means, atol=1e-6)


def test_norms_match_the_formulas_far_from_zero():
  """A mean of 1000 must not eat the digits of a deviation of 1."""
  values = 1000 + np.random.default_rng(0).standard_normal((4, 32))
  single = jnp.float32(values)
  values = np.float64(single)
  rngs = nnx.Rngs(0)
  found = layers.layer_norm(32, eps=1e-6, rngs=rngs)(single)
  centred = values - values.mean(-1, keepdims=True)
  deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(found, centred / deviation, atol=1e-3)
  found = layers.rms_norm(32, eps=1e-6, rngs=rngs)(single)
  size = np.sqrt((values**2).mean(-1, keepdims=True) + 1e-6)
  np.testing.assert_allclose(found, values / size, rtol=1e-5)


def test_norms_of_bfloat16_give_float32():
  values = jnp.ones((2, 8), jnp.bfloat16)
  rngs = nnx.Rngs(0)
  assert layers.layer_norm(8, eps=1e-6, rngs=rngs)(values).dtype == jnp.float32
  assert layers.rms_norm(8, eps=1e-6, rngs=rngs)(values).dtype == jnp.float32


def test_linear_computes_in_its_dtype_and_keeps_float32():
  names = (axes.EMBED, axes.MLP)
  layer = layers.linear(3, 5, names, rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
  assert layer(jnp.ones((2, 3))).dtype == jnp.bfloat16
  assert layer.kernel.dtype == layer.bias.dtype == jnp.float32
  assert layer.kernel.get_metadata()["out_sharding"] == names
  assert layers.linear(3, 5, names, rngs=nnx.Rngs(0), bias=False).bias is None


def test_dropout_keeps_the_mean_and_needs_a_key():
  values = jnp.ones((200, 200), jnp.bfloat16)
  assert layers.dropout(values, 0.5, None) is values
  assert layers.dropout(values, 0.0, jax.random.key(0)) is values
  dropped = np.float32(layers.dropout(values, 0.25, jax.random.key(0)))
  assert set(np.unique(dropped)) == {0.0, np.float32(jnp.bfloat16(4 / 3))}
  assert dropped.mean() == pytest.approx(1.0, abs=0.02)


def test_stack_names_its_axis_and_differs_by_layer():
  stacked = layers.stack(
    lambda rngs: layers.linear(4, 4, (axes.EMBED, axes.MLP), rngs=rngs),
    3,
    axes.LAYERS,
    rngs=nnx.Rngs(0),
  )
  assert stacked.kernel.shape == (3, 4, 4)
  assert stacked.kernel.get_metadata()["out_sharding"] == (
    axes.LAYERS,
    axes.EMBED,
    axes.MLP,
  )
  assert not np.allclose(stacked.kernel[0], stacked.kernel[1])

  values = jnp.ones((2, 4))
  scanned, _ = jax.lax.scan(lambda x, layer: (layer(x), None), values, stacked)
  expected = np.ones((2, 4))
  for kernel in np.float64(stacked.kernel[...]):
    expected = expected @ kernel
  np.testing.assert_allclose(scanned, expected, rtol=1e-5)


def test_the_gradient_of_a_weight_is_not_rounded_to_the_product_s_dtype():
  rng = np.random.default_rng(0)
  values, kernel, slope = (
    jnp.asarray(rng.normal(size=size), jnp.float32)
    for size in ((3, 5, 4), (4, 2, 6), (3, 5, 2, 6))
  )

  def total(values, kernel):
    result = layers.product(values, kernel, jnp.bfloat16)
    assert result.dtype == jnp.bfloat16
    return jnp.sum(result * slope.astype(jnp.bfloat16))

  d_values, d_kernel = jax.grad(total, argnums=(0, 1))(values, kernel)
  # What the product reads is rounded; what comes out for the kernel is not.
  values, kernel, slope = (
    np.float64(array.astype(jnp.bfloat16)) for array in (values, kernel, slope)
  )
  np.testing.assert_allclose(
    d_kernel, np.einsum("BTI,BTNO->INO", values, slope), rtol=1e-5, atol=1e-5
  )
  np.testing.assert_allclose(
    d_values, np.einsum("BTNO,INO->BTI", slope, kernel), rtol=1e-2, atol=1e-2
  )
