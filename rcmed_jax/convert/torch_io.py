"""Checkpoints under the release's names: read, and put in our places."""

from collections.abc import Iterator, Mapping, Sequence
import json
import pathlib
from typing import Any

from flax import nnx
import numpy as np
import safetensors

from rcmed_jax.convert import names
from rcmed_jax.convert.entry import Entry
from rcmed_jax.model.config import ModelConfig
from rcmed_jax.model.rcmed import RCMed

INDEX = "model.safetensors.index.json"
# Stored by some writers, computed here.
IGNORED_SUFFIX = "rotary_emb.inv_freq"


class SafeTensors(Mapping[str, np.ndarray]):
  """Tensors by name, each read from its file when it is asked for."""

  def __init__(self, files: Mapping[str, pathlib.Path]):
    """Takes the file of every tensor, by the tensor's name."""
    self._files = files
    self._open = {}

  def __getitem__(self, name: str) -> np.ndarray:
    path = self._files[name]
    if path not in self._open:
      self._open[path] = safetensors.safe_open(path, framework="numpy")
    return self._open[path].get_tensor(name)

  def __iter__(self) -> Iterator[str]:
    return iter(self._files)

  def __len__(self) -> int:
    return len(self._files)


def read_safetensors(path: pathlib.Path) -> SafeTensors:
  """The tensors of a .safetensors file, or of a folder of shards.

  Raises:
    ValueError: the path holds no safetensors, or its index names a shard that
      is not there.
  """
  if path.is_file():
    shards = [path]
  elif (path / INDEX).is_file():
    index = json.loads((path / INDEX).read_text(encoding="utf-8"))
    shards = sorted({path / name for name in index["weight_map"].values()})
  else:
    shards = sorted(path.glob("*.safetensors"))
  absent = [str(shard) for shard in shards if not shard.is_file()]
  if absent or not shards:
    raise ValueError(
      f"{path}: expected safetensors, but "
      f"{', '.join(absent) or 'no such file'} is missing; give a .safetensors "
      "file, or a folder with all its shards."
    )
  files = {}
  for shard in shards:
    with safetensors.safe_open(shard, framework="numpy") as tensors:
      files.update(dict.fromkeys(tensors.keys(), shard))
  return SafeTensors(files)


def load_into(
  config: ModelConfig, tensors: Mapping[str, np.ndarray]
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
    ValueError: one that lists every missing, unknown or misshapen tensor.
  """
  model = nnx.eval_shape(lambda: RCMed(config, rngs=nnx.Rngs(0)))
  shapes = {
    ".".join(map(str, path)): variable.shape
    for path, variable in nnx.to_flat_state(nnx.state(model))
  }
  return place(names.entries(config), shapes, tensors)


def place(
  entries: Sequence[Entry],
  shapes: Mapping[str, tuple[int, ...]],
  tensors: Mapping[str, np.ndarray],
) -> dict[str, Any]:
  """A nested dict with every entry's tensor in its array.

  Args:
    entries: which tensor goes where.
    shapes: of our arrays, by path.
    tensors: by the release's names.

  Raises:
    ValueError: one that lists every missing, unknown or misshapen tensor.
  """
  known = {entry.release for entry in entries}
  faults = [
    f"{name}: unknown to a model of this configuration"
    for name in sorted(tensors)
    if name not in known and not name.endswith(IGNORED_SUFFIX)
  ]
  arrays: dict[str, np.ndarray] = {}
  for entry in entries:
    expected = _release_shape(entry, shapes[entry.path])
    if entry.release not in tensors:
      faults.append(f"{entry.release}: missing, expected {expected}")
      continue
    tensor = tensors[entry.release]
    if tensor.shape != expected:
      faults.append(
        f"{entry.release}: expected {expected}, received {tensor.shape}"
      )
      continue
    if entry.path not in arrays:
      arrays[entry.path] = np.empty(shapes[entry.path], tensor.dtype)
    arrays[entry.path][entry.index] = entry.transform.to_ours(tensor)
  if faults:
    raise ValueError(
      f"the checkpoint does not fit the model ({len(faults)} tensors); "
      "compare its config.json with the model's settings:\n  "
      + "\n  ".join(faults)
    )
  return nnx.traversals.unflatten_mapping(
    {tuple(path.split(".")): array for path, array in arrays.items()}
  )


def _release_shape(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
  """The shape of the entry's tensor, found by sending an empty array back."""
  slot = shape[len(entry.index) :]
  # A broadcast zero takes no memory, whatever its shape.
  return entry.transform.to_release(np.broadcast_to(np.float32(0), slot)).shape
