"""The language model in 8 bits: its kernels, and what is left as it was."""

import importlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import parts
import pytest
import toy

from rcmed_jax.model import int8
from rcmed_jax.model.rcmed import RCMed


def _held(dense: int8.Int8Linear) -> np.ndarray:
  """The kernel that the whole numbers and their scales stand for."""
  kernel = dense.kernel.get_value()
  assert kernel.qvalue.dtype == jnp.int8
  return np.float64(kernel.qvalue) * np.float64(kernel.scale)


def test_a_kernel_is_rounded_to_a_127th_of_each_output_s_largest():
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(3, 16, 5)) * rng.uniform(0.1, 9, (3, 1, 5))
  values = rng.normal(size=(4, 16))
  dense = int8.Int8Linear(jnp.float32(kernel), jnp.dtype("float32"))
  step = np.abs(kernel).max(axis=1, keepdims=True) / 127
  assert (np.abs(_held(dense) - kernel) <= 0.51 * step).all()
  # The scan over layers hands a layer its own slice.
  one = jax.tree.map(lambda leaf: leaf[1], dense)
  found = one(jnp.float32(values))
  np.testing.assert_allclose(found, values @ _held(dense)[1], 1e-4, 1e-4)


@pytest.fixture(scope="module")
def pair():
  """A model with low-rank updates, and the same in 8 bits."""
  config = toy.model_config(lora_rank=2)

  def build():
    return parts.at_random(lambda: RCMed(config, rngs=nnx.Rngs(0)))

  eight = build()
  int8.quantize(eight)
  return build(), eight


def test_the_model_answers_as_with_the_rounded_kernels(pair):
  whole, eight = pair
  graph, weights = nnx.split(whole)
  rounded = nnx.merge(graph, jax.tree.map(jnp.copy, weights))
  for name in int8.KERNELS:
    dense = getattr(rounded.language.layers, name)
    held = _held(getattr(eight.language.layers, name))
    if hasattr(dense, "up"):  # merged before rounding
      merged = np.asarray(dense.merged())
      assert np.abs(held - merged).max() < 0.01 * np.abs(merged).max()
      dense.up[...] = jnp.zeros_like(dense.up[...])
    dense.kernel[...] = jnp.float32(held)
  batch = toy.batch(2)
  del batch["record_B"], batch["masks_BGIJ"]
  batch = jax.tree.map(jnp.asarray, batch)
  run = jax.jit(lambda model, batch: model(batch).masks_KBGYX)
  found, expected = run(eight, batch), run(rounded, batch)
  assert parts.relative_error(found, np.asarray(expected)) < 1e-4


def test_only_the_layers_are_smaller(pair):
  whole, eight = (nnx.state(model, nnx.Param) for model in pair)
  sizes = [
    sum(leaf.nbytes for leaf in jax.tree.leaves(state["language"]["layers"]))
    for state in (whole, eight)
  ]
  assert sizes[1] < 0.4 * sizes[0]
  for part in ("image_encoder", "mask_decoder", "projector"):
    jax.tree.map(np.testing.assert_array_equal, whole[part], eight[part])


def test_without_qwix_the_extra_is_named(monkeypatch):
  def missing(name):
    raise ModuleNotFoundError(name)

  monkeypatch.setattr(importlib, "import_module", missing)
  with pytest.raises(NotImplementedError, match=r"rcmed-jax\[int8\]"):
    int8.Int8Linear(jnp.ones((2, 2)), jnp.dtype("float32"))
