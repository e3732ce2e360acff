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


def test_a_kernel_is_rounded_to_a_127th_of_each_output_s_largest():
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(3, 16, 5)) * rng.uniform(0.1, 9, (3, 1, 5))
  values = rng.normal(size=(4, 16))
  dense = int8.Int8Linear(jnp.float32(kernel), jnp.dtype("float32"))
  held = dense.kernel.get_value()
  assert held.qvalue.dtype == jnp.int8
  step = np.abs(kernel).max(axis=1, keepdims=True) / 127
  rounded = np.round(kernel / step) * step
  # The scan over layers hands a layer its own slice.
  one = jax.tree.map(lambda leaf: leaf[1], dense)
  found = one(jnp.float32(values))
  np.testing.assert_allclose(found, values @ rounded[1], rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def pair():
  """A model with low-rank updates, and the same in 8 bits."""
  config = toy.model_config(lora_rank=2)

  def build():
    return parts.at_random(lambda: RCMed(config, rngs=nnx.Rngs(0)))

  eight = build()
  int8.quantize(eight)
  return build(), eight


def test_the_model_says_about_the_same(pair):
  batch = toy.batch(2)
  del batch["record_B"], batch["masks_BGIJ"]
  batch = jax.tree.map(jnp.asarray, batch)
  run = jax.jit(lambda model, batch: model(batch))
  whole, eight = (run(model, batch) for model in pair)
  error = parts.relative_error(eight.logits_BTV, np.asarray(whole.logits_BTV))
  assert 1e-5 < error < 5e-2


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
