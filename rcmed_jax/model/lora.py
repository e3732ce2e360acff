"""A dense layer with an optional low-rank update.

  y = x W + (alpha / R) (dropout(x) A) B

B starts at zero, so a new update changes nothing. The update's arrays are of
the class `Lora`, by which the trainer tells them from the frozen kernel.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from rcmed_jax import axes
from rcmed_jax.model import layers
from rcmed_jax.model.config import LoraConfig


class Lora(nnx.Param):
  """An array of a low-rank update."""


class LoraLinear(nnx.Module):
  """x W without bias, plus the low-rank update if config.rank > 0.

  Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models".
  """

  def __init__(
    self,
    inputs: int,
    outputs: int,
    names: tuple[str, str],
    config: LoraConfig,
    *,
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    """A kernel [inputs, outputs] with the logical axes `names`."""
    self.dtype = dtype
    self.dropout = config.dropout
    self.kernel = nnx.Param(
      layers.named(layers.UNIT, names)(rngs.params(), (inputs, outputs))
    )
    self.rank = config.rank
    if config.rank:
      self.scale = config.alpha / config.rank
      down_init = layers.named(layers.FAN_IN, (names[0], axes.RANK))
      up_init = layers.named(layers.ZEROS, (axes.RANK, names[1]))
      self.down = Lora(down_init(rngs.params(), (inputs, config.rank)))
      self.up = Lora(up_init(rngs.params(), (config.rank, outputs)))

  def __call__(
    self, values: jax.Array, dropout_key: jax.Array | None = None
  ) -> jax.Array:
    """[..., outputs] from [..., inputs], computed in `dtype`."""
    result = layers.product(values, self.kernel[...], self.dtype)
    if self.rank:
      values = layers.dropout(values, self.dropout, dropout_key)
      low_rank = layers.product(values, self.down[...], self.dtype)
      result += layers.product(low_rank, self.up[...], self.dtype) * self.scale
    return result

  def merged(self) -> jax.Array:
    """The kernel and its update in one, of the kernel's dtype."""
    kernel = self.kernel[...]
    if not self.rank:
      return kernel
    update = self.down[...].astype(jnp.float32) @ self.up[...]
    return (kernel + self.scale * update).astype(kernel.dtype)
