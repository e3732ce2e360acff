"""Tensors of a .bin or .pth file, without torch and without trust.

torch.save writes a zip, nothing in it compressed:

  archive/data.pkl       a pickle: names, shapes, strides, storages' keys
  archive/data/0, 1 ...  the storages, raw numbers
  archive/byteorder      "little", since torch 2

A pickle is a program. The one here may name an ordered dictionary, the two
functions that build tensors, and the storage types; whatever else it names is
refused before it is called. All that it gets to hold is immutable, so that it
cannot change afterwards what was checked.
"""

import collections
from collections.abc import Callable
import pathlib
import pickle
import struct
from typing import Any, NamedTuple
import zipfile

import ml_dtypes
import numpy as np

from rcmed_jax.convert.tensors import Stored

# torch's names of its storage types.
STORAGES = {
  "DoubleStorage": np.dtype(np.float64),
  "FloatStorage": np.dtype(np.float32),
  "HalfStorage": np.dtype(np.float16),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "LongStorage": np.dtype(np.int64),
  "IntStorage": np.dtype(np.int32),
  "ShortStorage": np.dtype(np.int16),
  "CharStorage": np.dtype(np.int8),
  "ByteStorage": np.dtype(np.uint8),
  "BoolStorage": np.dtype(np.bool_),
}

# A member's local header: 26 bytes, then the lengths of its name and extras.
_LENGTHS = struct.Struct("<26xHH")
# What a broken zip or pickle raises, its opcodes calling nothing but our own.
_BROKEN = (
  *(zipfile.BadZipFile, struct.error, pickle.UnpicklingError, EOFError),
  *(AttributeError, LookupError, TypeError, OverflowError, MemoryError),
  *(ImportError, RuntimeError),
)


class _Storage(NamedTuple):
  """A run of numbers in the file."""

  offset: int
  nbytes: int
  dtype: np.dtype


class _Tensor(NamedTuple):
  """What `Stored` says, its file aside."""

  offset: int
  dtype: np.dtype
  shape: tuple[int, ...]
  strides: tuple[int, ...]


def read(path: pathlib.Path) -> dict[str, Stored]:
  """The tensors of one file by name, none of them read yet.

  Raises:
    ValueError: the file is cut short or of the format before torch 1.6, its
      pickle names something other than tensors, or it holds other things.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      found = _Unpickler(path, archive).load()
    if not isinstance(found, dict):
      raise ValueError(_no_state(type(found).__name__))
    tensors = {}
    # Its own `items` may be an attribute that the pickle has set.
    for name, value in dict.items(found):
      if not isinstance(value, _Tensor):
        raise ValueError(_no_state(f"{type(value).__name__} at {name!r}"))
      tensors[str(name)] = Stored(path, *value)
  except _BROKEN as error:
    raise ValueError(
      f"{path} is cut short or broken ({error}); copy it again, or save it "
      "again with torch 1.6 or newer."
    ) from error
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  return tensors


class _Unpickler(pickle.Unpickler):
  """Builds `_Tensor`, by name, and nothing else."""

  def __init__(self, path: pathlib.Path, archive: zipfile.ZipFile):
    pickles = [n for n in archive.namelist() if n.endswith("/data.pkl")]
    if len(pickles) != 1:
      raise ValueError(_no_state(f"{len(pickles)} data.pkl"))
    self._root = pickles[0].removesuffix("data.pkl")
    self._path, self._archive = path, archive
    order = self._root + "byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
      raise ValueError(
        "its numbers are big-endian; save it on another machine."
      )
    super().__init__(archive.open(pickles[0]))

  def find_class(self, module: str, name: str) -> Any:
    """One of the few things that a pickle may name."""
    allowed: dict[str, Callable[..., Any]] = {
      "collections.OrderedDict": collections.OrderedDict,
      "torch._utils._rebuild_tensor_v2": self._tensor,
      "torch._utils._rebuild_parameter": self._parameter,
    }
    asked = f"{module}.{name}"
    if module == "torch" and name in STORAGES:
      return name
    if asked not in allowed:
      raise ValueError(
        f"its pickle asks for {asked}, which is no tensor; it was refused and "
        "nothing was run. Do not trust this file; ask for safetensors, or save "
        "model.state_dict() alone."
      )
    return allowed[asked]

  def persistent_load(self, pid: Any) -> _Storage:
    """A storage from torch's ("storage", type, key, device, elements)."""
    kind, name, key, _, _ = pid
    if kind != "storage":
      raise ValueError(f"its pickle refers to {kind!r}, which is no storage.")
    member = self._archive.getinfo(f"{self._root}data/{key}")
    if member.compress_type != zipfile.ZIP_STORED:
      raise ValueError(
        f"{member.filename} is compressed; save the file again with torch.save."
      )
    with self._path.open("rb") as file:
      file.seek(member.header_offset)
      lengths = _LENGTHS.unpack(file.read(_LENGTHS.size))
    start = member.header_offset + _LENGTHS.size + sum(lengths)
    return _Storage(start, member.file_size, STORAGES[name])

  def _tensor(
    self,
    storage: _Storage,
    first: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *_: Any,
  ) -> _Tensor:
    """torch's _rebuild_tensor_v2; `first` and strides count elements."""
    numbers = (first, *shape, *strides)
    if (
      not isinstance(storage, _Storage)
      or len(shape) != len(strides)
      or any(type(number) is not int or number < 0 for number in numbers)
    ):
      raise ValueError(
        f"it holds a tensor of shape {shape}, strides {strides}."
      )
    size = storage.dtype.itemsize
    tensor = _Tensor(
      storage.offset + first * size,
      storage.dtype,
      tuple(shape),
      tuple(stride * size for stride in strides),
    )
    end = tensor.offset + Stored(self._path, *tensor).span
    if end > storage.offset + storage.nbytes:
      raise ValueError(f"a tensor of shape {shape} is larger than its storage.")
    return tensor

  def _parameter(self, tensor: _Tensor, *_: Any) -> _Tensor:
    """torch's _rebuild_parameter: the tensor, whether it trains, hooks."""
    return tensor


def _no_state(found: str) -> str:
  return (
    f"expected tensors by name, found {found}; save model.state_dict() alone."
  )
