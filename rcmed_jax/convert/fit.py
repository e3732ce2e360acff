"""A checkpoint's tensors fitted to our arrays by the table, and back.

Both ways give `Array`s: what is to be written, with a piece for each tensor.
"""

from collections.abc import Callable, Mapping, Sequence
import functools
import types

from flax import nnx
import ml_dtypes
import numpy as np

from rcmed_jax.convert.entry import Entry
from rcmed_jax.convert.tensors import Array, Tensor
from rcmed_jax.model.config import ModelConfig
from rcmed_jax.model.rcmed import RCMed

# Of weights. Kept bit for bit, so no number is ever rounded on its way.
DTYPES = (np.float32, ml_dtypes.bfloat16, np.float16)
# Stored by some writers, computed here.
IGNORED_SUFFIX = "rotary_emb.inv_freq"

Shape = tuple[int, ...]


@functools.cache  # tracing a model takes half a second
def shapes(config: ModelConfig) -> Mapping[str, Shape]:
  """The shape of every array of a model of these sizes, by dotted path."""
  model = nnx.eval_shape(lambda: RCMed(config, rngs=nnx.Rngs(0)))
  found = {
    ".".join(map(str, path)): variable.shape
    for path, variable in nnx.to_flat_state(nnx.state(model))
  }
  return types.MappingProxyType(found)


def to_ours(
  entries: Sequence[Entry],
  shapes: Mapping[str, Shape],
  tensors: Mapping[str, Tensor],
) -> list[Array]:
  """Our arrays, made of the release's tensors.

  Args:
    entries: which tensor goes where.
    shapes: of our arrays, by path.
    tensors: by the release's names.

  Raises:
    ValueError: one that lists every tensor that is missing, unknown,
      misshapen, of a wrong dtype, or of another than the layers before it.
  """
  known = {entry.release for entry in entries}
  faults = [
    f"{name}: unknown to a model of this configuration"
    for name in sorted(tensors)
    if name not in known and not name.endswith(IGNORED_SUFFIX)
  ]
  arrays: dict[str, Array] = {}
  for entry in entries:
    shape = shapes[entry.path]
    expected = _release_shape(entry, shape)
    tensor = tensors.get(entry.release)
    if tensor is None:
      faults.append(f"{entry.release}: missing, expected {expected}")
      continue
    if tensor.shape != expected:
      faults.append(
        f"{entry.release}: expected {expected}, received {tensor.shape}"
      )
      continue
    if tensor.dtype not in DTYPES:
      wanted = ", ".join(str(np.dtype(dtype)) for dtype in DTYPES)
      faults.append(
        f"{entry.release}: expected one of {wanted}, received {tensor.dtype}"
      )
      continue
    array = arrays.setdefault(
      entry.path, Array(entry.path, np.dtype(tensor.dtype), shape, {})
    )
    if tensor.dtype != array.dtype:
      faults.append(
        f"{entry.release}: expected {array.dtype} like the layers before it, "
        f"received {tensor.dtype}"
      )
      continue
    array.pieces[entry.index] = _reader(entry.transform.to_ours, tensor)
  if faults:
    raise ValueError(
      f"the checkpoint does not fit the model ({len(faults)} tensors); "
      "compare its config.json with the model's settings:\n  "
      + "\n  ".join(faults)
    )
  return list(arrays.values())


def to_release(
  entries: Sequence[Entry], tensors: Mapping[str, Tensor]
) -> list[Array]:
  """The release's tensors, made of our arrays.

  Args:
    entries: which tensor comes from where.
    tensors: our arrays by path; all that the entries name.
  """
  found = []
  for entry in entries:
    ours = tensors[entry.path]
    shape = _release_shape(entry, ours.shape)
    back = _reader(entry.transform.to_release, ours, entry.index)
    found.append(Array(entry.release, ours.dtype, shape, {(): back}))
  return found


def _reader(
  change: Callable[[np.ndarray], np.ndarray], tensor: Tensor, index: Shape = ()
) -> Callable[[], np.ndarray]:
  return lambda: change(np.asarray(tensor[index]))


def _release_shape(entry: Entry, shape: Shape) -> Shape:
  """The shape of the entry's tensor, found by sending an empty array back."""
  slot = shape[len(entry.index) :]
  # A broadcast zero takes no memory, whatever its shape.
  return entry.transform.to_release(np.broadcast_to(np.float32(0), slot)).shape
