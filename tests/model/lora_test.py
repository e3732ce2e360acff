"""The dense layer with a low-rank update against its formula."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from rcmed_jax import axes
from rcmed_jax.model.config import LoraConfig
from rcmed_jax.model.lora import Lora, LoraLinear


def _dense(**settings) -> LoraLinear:
  with nnx.use_eager_sharding(False):
    return LoraLinear(
      6,
      4,
      (axes.EMBED, axes.HEADS),
      LoraConfig(**settings),
      dtype=jnp.dtype("float32"),
      rngs=nnx.Rngs(0),
    )


def _values() -> jax.Array:
  return jax.random.normal(jax.random.key(1), (2, 3, 6))


def test_new_update_changes_nothing():
  dense = _dense(rank=2)
  np.testing.assert_array_equal(dense(_values()), _values() @ dense.kernel[...])


def test_matches_the_formula():
  dense = _dense(rank=2, alpha=3.0)
  dense.up[...] = jax.random.normal(jax.random.key(2), (2, 4))
  kernel, down, up = (
    np.float64(array[...]) for array in (dense.kernel, dense.down, dense.up)
  )
  np.testing.assert_allclose(
    dense(_values()),
    np.float64(_values()) @ (kernel + 3.0 / 2 * down @ up),
    atol=1e-6,
  )


def test_dropout_needs_a_key_and_spares_the_kernel():
  dense = _dense(rank=2, dropout=0.5)
  key = jax.random.key(3)
  np.testing.assert_array_equal(dense(_values(), key), dense(_values()))
  dense.up[...] = jnp.ones((2, 4))
  assert np.any(np.asarray(dense(_values(), key) != dense(_values())))
  np.testing.assert_array_equal(
    dense(_values(), key), dense(_values(), jax.random.key(3))
  )


def test_update_is_told_from_the_kernel_by_its_class():
  _, updates, rest = nnx.split(_dense(rank=2), Lora, ...)
  assert set(nnx.to_pure_dict(updates)) == {"down", "up"}
  assert set(nnx.to_pure_dict(rest)) == {"kernel"}
  _, updates, _ = nnx.split(_dense(rank=0), Lora, ...)
  assert not nnx.to_pure_dict(updates)


def test_arrays_carry_logical_axes():
  dense = _dense(rank=2)
  assert dense.down.get_metadata("out_sharding") == (axes.EMBED, axes.RANK)
  assert dense.up.get_metadata("out_sharding") == (axes.RANK, axes.HEADS)
