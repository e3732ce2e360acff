"""The safetensors format: eight bytes of length, a JSON header, the numbers.

  {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, ...}

Offsets count from the header's end. Read here rather than by the safetensors
package because tensors are wanted by their place in the file, layer by layer.
Source: https://github.com/huggingface/safetensors#format
"""

from collections.abc import Sequence
import json
import pathlib
from typing import Any

import ml_dtypes
import numpy as np

from rcmed_jax.convert.tensors import Array, Stored, stored

DTYPES = {
  "F64": np.dtype(np.float64),
  "F32": np.dtype(np.float32),
  "F16": np.dtype(np.float16),
  "BF16": np.dtype(ml_dtypes.bfloat16),
  "I64": np.dtype(np.int64),
  "I32": np.dtype(np.int32),
  "I16": np.dtype(np.int16),
  "I8": np.dtype(np.int8),
  "U8": np.dtype(np.uint8),
  "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# The format's own bound; a longer header is no header.
_LONGEST_HEADER = 100_000_000
_LENGTH_BYTES = 8


def read(path: pathlib.Path) -> dict[str, Stored]:
  """The tensors of one file by name; reads its header only.

  Raises:
    ValueError: the file is cut short, or is no safetensors file.
  """
  size = path.stat().st_size
  with path.open("rb") as file:
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if length > min(size, _LONGEST_HEADER):
      raise ValueError(_unreadable(path, "it lacks a header"))
    header = file.read(length)
  start = _LENGTH_BYTES + length
  try:
    found = {
      name: _tensor(path, start, fields)
      for name, fields in json.loads(header).items()
      if name != "__metadata__"
    }
  except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
    raise ValueError(_unreadable(path, f"its header says {error}")) from error
  end = max((t.offset + t.span for t in found.values()), default=start)
  if end > size:
    raise ValueError(
      _unreadable(path, f"it has {size:,} bytes and should have {end:,}")
    )
  return found


def header(arrays: Sequence[Array]) -> tuple[bytes, list[int]]:
  """The first bytes of a file that holds these arrays in this order.

  Returns:
    The header with its length in front, and each array's offset in the file.
  """
  fields: dict[str, object] = {"__metadata__": {"format": "pt"}}
  at, offsets = 0, []
  for array in arrays:
    offsets.append(at)
    at += array.nbytes
    fields[array.name] = {
      "dtype": _NAMES[array.dtype],
      "shape": array.shape,
      "data_offsets": (offsets[-1], at),
    }
  text = json.dumps(fields, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # so that the numbers begin aligned
  first = len(text).to_bytes(_LENGTH_BYTES, "little") + text
  return first, [len(first) + offset for offset in offsets]


def _tensor(path: pathlib.Path, start: int, fields: dict[str, Any]) -> Stored:
  begin, end = fields["data_offsets"]
  tensor = stored(
    path, start + begin, DTYPES[fields["dtype"]], tuple(fields["shape"])
  )
  if min(begin, *tensor.shape, 0) < 0 or end - begin != tensor.span:
    raise ValueError(f"shape {tensor.shape} at {begin}..{end}")
  return tensor


def _unreadable(path: pathlib.Path, why: str) -> str:
  return f"{path} is cut short or no safetensors file: {why}; copy it again."
