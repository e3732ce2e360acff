"""Reading shards, and refusing a checkpoint that does not fit."""

import json

import numpy as np
import pytest
import released
import safetensors.numpy

from rcmed_jax.convert import torch_io


@pytest.fixture(scope="module")
def tensors(shared):
  path = shared / "vectors/a/model.safetensors"
  found = torch_io.read(path)
  return {name: np.asarray(tensor) for name, tensor in found.items()}


def _write_shards(folder, tensors):
  """Two shards and the index that names them."""
  where = {
    name: f"model-{1 + at % 2}.safetensors" for at, name in enumerate(tensors)
  }
  for shard in set(where.values()):
    part = {name: tensors[name] for name in tensors if where[name] == shard}
    safetensors.numpy.save_file(part, folder / shard)
  index = {"weight_map": where}
  (folder / torch_io.INDEX).write_text(json.dumps(index), encoding="utf-8")


def test_shards_read_like_one_file(tensors, tmp_path):
  _write_shards(tmp_path, tensors)
  found = torch_io.read(tmp_path)
  assert set(found) == set(tensors) and len(found) == len(tensors)
  for name, tensor in tensors.items():
    np.testing.assert_array_equal(found[name], tensor)
  (tmp_path / torch_io.INDEX).unlink()
  assert set(torch_io.read(tmp_path)) == set(tensors)


def test_a_missing_shard_is_named(tensors, tmp_path):
  _write_shards(tmp_path, tensors)
  (tmp_path / "model-2.safetensors").unlink()
  with pytest.raises(ValueError, match=r"model-2\.safetensors is missing"):
    torch_io.read(tmp_path)


@pytest.mark.parametrize(
  "where", [{"a": 5}, ["x"], "x", {"a": "x.txt"}, {"a": "../x.bin"}, {"a": ""}]
)
def test_an_index_that_is_none_is_named(where, tmp_path):
  (tmp_path / "x.txt").write_text("x")
  (tmp_path / torch_io.INDEX).write_text(json.dumps({"weight_map": where}))
  with pytest.raises(ValueError, match=r"weight_map: expected.*get the index"):
    torch_io.read(tmp_path)


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_a_place_without_tensors_is_named(name, tmp_path):
  with pytest.raises(ValueError, match="expected tensors"):
    torch_io.read(tmp_path / name)


def test_one_error_lists_every_fault(shared, tensors):
  faulty = dict(tensors)
  del faulty["model.norm.weight"]
  faulty["lm_head.weight"] = np.zeros((3, 4), np.float32)
  faulty["model.surprise"] = np.zeros(1, np.float32)
  with pytest.raises(ValueError) as error:
    torch_io.load_into(released.model_config(shared), faulty)
  message = str(error.value)
  assert "(3 tensors)" in message
  assert "model.norm.weight: missing, expected (48,)" in message
  assert "lm_head.weight: expected (107, 48), received (3, 4)" in message
  assert "model.surprise: unknown" in message


def test_rotary_frequencies_are_ignored(shared, tensors):
  name = "model.layers.0.self_attn.rotary_emb.inv_freq"
  config = released.model_config(shared)
  arrays = torch_io.load_into(config, {**tensors, name: np.ones(6)})
  assert set(arrays) == set(torch_io.load_into(config, tensors))


def test_arrays_keep_the_dtype_of_their_tensors(shared, tensors):
  half = {
    name: tensor.astype(np.float16) if "layers" in name else tensor
    for name, tensor in tensors.items()
  }
  arrays = torch_io.load_into(released.model_config(shared), half)
  assert arrays["language"]["layers"]["up"]["kernel"].dtype == np.float16
  assert arrays["language"]["norm"]["scale"].dtype == np.float32
