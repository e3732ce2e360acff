"""Checkpoints of the release's kind, small, and a writer of .pth files.

The writer stands in for torch.save: protocol 2, torch's globals by name, each
storage a member of an uncompressed zip.
"""

import collections
from collections.abc import Mapping
import json
import pathlib
import pickle
from typing import Any, ClassVar
import zipfile

import ml_dtypes
import numpy as np

from rcmed_jax.convert import fit, names, sizes, stream
from rcmed_jax.convert.tensors import Array
from rcmed_jax.model.config import ModelConfig

_STORAGES = {
  "float32": "FloatStorage",
  "float16": "HalfStorage",
  "bfloat16": "BFloat16Storage",
  "int64": "LongStorage",
}


def tensors(
  config: ModelConfig, kind: str = "syre", seed: int = 0
) -> dict[str, np.ndarray]:
  """Noise under the names of a kind: LLaMA in bfloat16, the rest float32."""
  rng = np.random.default_rng(seed)
  ours = {
    path: np.broadcast_to(np.float32(0), shape)
    for path, shape in fit.shapes(config).items()
  }
  found = {}
  for array in fit.to_release(names.entries(config, kind), ours):
    half = array.name.startswith(("model.layers", "model.embed", "lm_head"))
    dtype = ml_dtypes.bfloat16 if half else np.float32
    found[array.name] = rng.normal(0, 0.1, array.shape).astype(dtype)
  return found


def write(
  folder: pathlib.Path,
  held: Mapping[str, np.ndarray],
  told: Mapping[str, Any] | None = None,
  *,
  most: int = stream.SHARD_BYTES,
) -> pathlib.Path:
  """A folder of shards with their index, and config.json where it is told."""
  arrays = [
    Array(name, value.dtype, value.shape, {(): lambda value=value: value})
    for name, value in held.items()
  ]
  files = stream.split(arrays, "model", most)
  with stream.folder(folder) as partial:
    stream.write(partial, files, {})
    index = partial / "model.safetensors.index.json"
    index.write_text(json.dumps(stream.index(files)))
    if told is not None:
      (partial / "config.json").write_text(json.dumps(told))
  return folder


def write_release(
  folder: pathlib.Path, config: ModelConfig, **options: Any
) -> dict[str, np.ndarray]:
  """Writes a whole checkpoint of noise and returns its tensors."""
  held = tensors(config)
  write(folder, held, sizes.to_release(config), **options)
  return held


class _Global:
  """Pickles as a name, whether or not there is such a thing."""

  def __init__(self, module: str, name: str):
    self.text = f"{module}\n{name}\n".encode()


class _Call:
  """Pickles as the call of a global."""

  def __init__(self, module: str, name: str, arguments: tuple[Any, ...]):
    self.function, self.arguments = _Global(module, name), arguments


class _Storage:
  def __init__(self, key: str, values: np.ndarray):
    self.key, self.values = key, values


class Pickler(pickle._Pickler):
  """Writes globals by name: in pure Python, so that it can be taught to."""

  dispatch: ClassVar = dict(pickle._Pickler.dispatch)

  def persistent_id(self, value: Any) -> Any:
    if not isinstance(value, _Storage):
      return None
    kind = _Global("torch", _STORAGES[value.values.dtype.name])
    return "storage", kind, value.key, "cpu", value.values.size

  def _save_global(self, value: _Global) -> None:
    self.write(pickle.GLOBAL + value.text)

  def _save_call(self, value: _Call) -> None:
    self.save(value.function)
    self.save(value.arguments)
    self.write(pickle.REDUCE)

  dispatch[_Global] = _save_global
  dispatch[_Call] = _save_call


def call(module: str, name: str, *arguments: Any) -> Any:
  """A value that pickles as `module.name(*arguments)`."""
  return _Call(module, name, arguments)


def tensor(
  key: str,
  values: np.ndarray,
  first: int = 0,
  shape: tuple[int, ...] | None = None,
  strides: tuple[int, ...] = (1,),
) -> Any:
  """A value that pickles as a tensor of the storage `key`."""
  shape = values.shape if shape is None else shape
  return call(
    "torch._utils",
    "_rebuild_tensor_v2",
    _Storage(key, values),
    first,
    shape,
    strides,
    False,
    collections.OrderedDict(),
  )


def save(
  path: pathlib.Path,
  state: Mapping[str, Any],
  storages: Mapping[str, np.ndarray] | None = None,
  *,
  compress: int = zipfile.ZIP_STORED,
) -> pathlib.Path:
  """Writes a .pth; arrays keep their strides and share what they view.

  Args:
    path: of the file.
    state: arrays, or what `call` and `tensor` made, by name.
    storages: those that `tensor` named.
    compress: torch never does.
  """
  written = dict(storages or {})
  held = collections.OrderedDict()
  for name, value in state.items():
    if not isinstance(value, np.ndarray):
      held[name] = value
      continue
    whole = value if value.base is None else value.base
    start, begin = (a.__array_interface__["data"][0] for a in (value, whole))
    written[str(id(whole))] = whole
    held[name] = tensor(
      str(id(whole)),
      whole,
      (start - begin) // value.itemsize,
      value.shape,
      tuple(stride // value.itemsize for stride in value.strides),
    )
  with zipfile.ZipFile(path, "w", compress) as archive:
    with archive.open("archive/data.pkl", "w") as file:
      Pickler(file, 2).dump(held)
    archive.writestr("archive/byteorder", "little")
    for key, values in written.items():
      archive.writestr(f"archive/data/{key}", values.tobytes())
    archive.writestr("archive/version", "3\n")
  return path
