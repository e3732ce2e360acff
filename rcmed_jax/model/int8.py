"""The language model's layers in 8 bits: half of bfloat16's memory, or less.

Each kernel of each layer becomes whole numbers of 8 bits and one float32 scale
an output channel; activations stay as they are. Embedding and head, a
thirtieth of the weights, stay as they are too. It is for answering only:
nothing trains through it.
Source: qwix, of the extra `int8`.
"""

import importlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from rcmed_jax.model.lora import LoraLinear
from rcmed_jax.model.rcmed import RCMed

# Of a language layer; the first four may carry a low-rank update.
KERNELS = ("q", "k", "v", "o", "gate", "up", "down")


class Int8Linear(nnx.Module):
  """x W of a kernel [..., inputs, outputs] held in 8 bits."""

  def __init__(self, kernel: jax.Array, dtype: jnp.dtype):
    self.dtype = dtype
    outputs = kernel.ndim - 1
    self.kernel = nnx.Param(
      _qwix().quantize(
        kernel,
        jnp.int8,
        channelwise_axes=(*range(kernel.ndim - 2), outputs),
        scale_dtype=jnp.float32,
      )
    )

  def __call__(
    self, values: jax.Array, dropout_key: jax.Array | None = None
  ) -> jax.Array:
    """[..., outputs] from [..., inputs]; takes a key as `LoraLinear` does."""
    del dropout_key  # nothing trains here
    kernel: Any = self.kernel.get_value()
    product = _qwix().dot(
      values.astype(self.dtype), kernel, preferred_element_type=jnp.float32
    )
    return product.astype(self.dtype)


def quantize(model: RCMed) -> None:
  """Puts the model's language layers in 8 bits; merges low-rank updates.

  Args:
    model: whose layers are replaced, one kernel in memory at a time.

  Raises:
    NotImplementedError: qwix is not installed.
  """
  layers = model.language.layers
  for name in KERNELS:
    dense = getattr(layers, name)
    low_rank = isinstance(dense, LoraLinear)
    kernel = dense.merged() if low_rank else dense.kernel[...]
    setattr(layers, name, Int8Linear(kernel, dense.dtype))


def _qwix() -> Any:
  try:
    return importlib.import_module("qwix")
  except ModuleNotFoundError as error:
    raise NotImplementedError(
      "8-bit weights need qwix; `pip install rcmed-jax[int8]` brings it."
    ) from error
