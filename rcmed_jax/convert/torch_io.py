"""Checkpoints under the release's names: found, and put in our places."""

from collections.abc import Mapping
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from rcmed_jax.convert import (
  fit,
  json_file,
  names,
  safetensors_file,
  torch_pickle,
)
from rcmed_jax.convert.tensors import Stored, Tensor
from rcmed_jax.model.config import ModelConfig
from rcmed_jax.model.rcmed import RCMed

INDEX = "model.safetensors.index.json"
TORCH_INDEX = "pytorch_model.bin.index.json"
# Low-rank updates that peft saved beside the weights, or alone.
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")

# In this order: the first kind that a folder holds is read. A file of training
# state beside the weights is none of them.
_PATTERNS = ("*.safetensors", "pytorch_model*.bin", "*.bin", "*.pth")
_READERS = {
  ".safetensors": safetensors_file.read,
  ".bin": torch_pickle.read,
  ".pth": torch_pickle.read,
}


def read(path: pathlib.Path) -> dict[str, Stored]:
  """The tensors of a checkpoint by name, none of them read yet.

  Args:
    path: a .safetensors, .bin or .pth file, or a folder of shards with or
      without their index; low-rank updates may lie beside them.

  Raises:
    ValueError: the path holds no tensors, a shard is missing, cut short or
      refused, or two shards hold the same name.
  """
  found: dict[str, Stored] = {}
  for shard in _shards(path):
    tensors = _READERS[shard.suffix](shard)
    twice = sorted(found.keys() & tensors.keys())
    if twice:
      raise ValueError(
        f"{shard} and {found[twice[0]].file} both hold {twice[0]}; leave one "
        "checkpoint in the folder."
      )
    found |= tensors
  return found


def load_into(
  config: ModelConfig, tensors: Mapping[str, Tensor]
) -> dict[str, Any]:
  """Every array that the release names, as they nest in `RCMed`.

  Arrays that the release lacks (LoRA, correlation steps) are not in the
  result; the model keeps its own start for them.

  Args:
    config: sizes of the model; they must be the checkpoint's.
    tensors: by the release's names.

  Returns:
    A nested dict of NumPy arrays, each of its tensor's dtype, for
    `nnx.update`.

  Raises:
    ValueError: one that lists every tensor that is missing, unknown,
      misshapen or of a wrong dtype.
  """
  arrays = fit.to_ours(names.entries(config), fit.shapes(config), tensors)
  return nested({array.name: np.asarray(array) for array in arrays})


def build(config: ModelConfig, arrays: Mapping[str, Any]) -> RCMed:
  """A model of these nested arrays; what they lack stays abstract."""
  model = nnx.eval_shape(lambda: RCMed(config, rngs=nnx.Rngs(0)))
  nnx.update(model, jax.tree.map(jnp.asarray, arrays))
  return model


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
  """Arrays by dotted path, as they nest in `nnx.to_pure_dict`; reads none."""
  return nnx.traversals.unflatten_mapping(
    {tuple(path.split(".")): array for path, array in arrays.items()}
  )


def indexed(index: pathlib.Path) -> list[pathlib.Path]:
  """The shards that an index names, in its folder; they may be missing.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no index, or names files elsewhere.
  """
  named = json_file.read(index).get("weight_map", {})
  values = named.values() if isinstance(named, dict) else [named]
  for name in values:
    if (
      not isinstance(name, str)
      or pathlib.PurePath(name).name != name
      or pathlib.PurePath(name).suffix not in _READERS
    ):
      raise ValueError(
        f"{index}: weight_map: expected {{tensor: file name}} of "
        f"{', '.join(_READERS)} files in its folder, received {name!r}; get "
        "the index again, or delete it where the folder holds all shards."
      )
  return sorted({index.parent / name for name in values})


def _shards(path: pathlib.Path) -> list[pathlib.Path]:
  if path.is_file() and path.suffix in _READERS:
    return [path]
  shards: list[pathlib.Path] = []
  for index in (path / INDEX, path / TORCH_INDEX):
    if index.is_file() and not shards:
      shards = indexed(index)
  adapters = [path / name for name in ADAPTERS if (path / name).is_file()]
  for pattern in _PATTERNS:
    shards = shards or sorted(set(path.glob(pattern)) - set(adapters))
  absent = [str(shard) for shard in shards if not shard.is_file()]
  if absent or not shards:
    raise ValueError(
      f"{path}: expected tensors, but {', '.join(absent) or 'no such file'} "
      "is missing; give a .safetensors, .bin or .pth file, or a folder with "
      "all its shards."
    )
  return shards + adapters[:1]
