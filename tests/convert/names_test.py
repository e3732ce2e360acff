"""The table covers both sides whole, and goes both ways."""

import collections

from flax import nnx
import numpy as np
import pytest
import released
import toy

from rcmed_jax.convert import names
from rcmed_jax.convert.torch_io import load_into, read
from rcmed_jax.model.config import ModelConfig
from rcmed_jax.model.rcmed import RCMed


def _shapes(config):
  model = nnx.eval_shape(lambda: RCMed(config, rngs=nnx.Rngs(0)))
  return {
    ".".join(map(str, path)): variable.shape
    for path, variable in nnx.to_flat_state(nnx.state(model))
  }


@pytest.mark.parametrize(
  "config", [toy.model_config(), ModelConfig()], ids=["toy", "full"]
)
def test_every_place_of_the_model_is_filled_once(config):
  """No array, and no layer of a stacked one, is left over or taken twice."""
  shapes = _shapes(config)
  entries = names.entries(config)
  assert len({entry.release for entry in entries}) == len(entries)
  places = collections.Counter((entry.path, entry.index) for entry in entries)
  assert set(places.values()) == {1}
  taken = collections.Counter(entry.path for entry in entries)
  slots = {
    entry.path: shapes[entry.path][: len(entry.index)] for entry in entries
  }
  assert taken == {path: int(np.prod(slots.get(path, ()))) for path in shapes}


def test_release_and_back_is_the_identity(shared):
  """Every tensor of the checkpoint comes back from our arrays as it was."""
  config = released.model_config(shared)
  tensors = read(shared / "vectors/a/model.safetensors")
  arrays = nnx.traversals.flatten_mapping(load_into(config, tensors))
  entries = names.entries(config)
  assert {entry.release for entry in entries} == set(tensors)
  for entry in entries:
    array = arrays[tuple(entry.path.split("."))][entry.index]
    back = entry.transform.to_release(array)
    np.testing.assert_array_equal(back, tensors[entry.release], entry.release)
