"""The closed loop: pixels and words refine each other, K times.

A step is one correlation attention with residual updates of both sides. Its
output projections start at zero, so any K starts from the model without the
loop. The soft mask of the step before gates where the words look.
"""

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rcmed_jax import axes
from rcmed_jax.kernels.correlation_attention import correlation_attention
from rcmed_jax.model import layers
from rcmed_jax.model.config import ModelConfig
from rcmed_jax.parallel import rules
from rcmed_jax.parallel.local import local

# Attention on each device's own images.
_ROWS = PartitionSpec(axes.BATCH)


class Step(nnx.Module):
  """One turn of the loop.

  S      = (P Wq)(T Wk)^T / sqrt(C / heads) + gate * mask
  pixels = P + softmax over words(S) (T Wv) Wo
  words  = T + softmax over pixels(S)^T (P Wv') Wo'
  """

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    width = config.decoder.width
    self.config = config.correlation

    def dense(names: tuple[str, str], init: layers.Initializer) -> nnx.Linear:
      return layers.linear(
        width,
        width,
        names,
        bias=False,
        init=init,
        dtype=jnp.dtype(config.dtype),
        rngs=rngs,
      )

    inward = (axes.CHANNELS, axes.HEADS)
    outward = (axes.HEADS, axes.CHANNELS)
    self.pixel_query = dense(inward, layers.FAN_IN)
    self.pixel_value = dense(inward, layers.FAN_IN)
    self.word_key = dense(inward, layers.FAN_IN)
    self.word_value = dense(inward, layers.FAN_IN)
    self.pixel_out = dense(outward, layers.ZEROS)
    self.word_out = dense(outward, layers.ZEROS)
    self.gate = nnx.Param(
      layers.named(layers.ZEROS, (axes.VECTOR,))(rngs.params(), (1,))
    )

  def __call__(
    self,
    pixels_BYXC: jax.Array,
    words_BTC: jax.Array,
    mask_BT: jax.Array,
    soft_mask_BYX: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """Refined pixels and words; a switched-off direction stays as it was."""
    batch, rows, columns, channels = pixels_BYXC.shape
    states = (axes.BATCH, axes.LENGTH, axes.WIDTH)
    pixels_BPC = rules.constrain(
      pixels_BYXC.reshape(batch, rows * columns, channels), *states
    )
    words_BTC = rules.constrain(words_BTC, *states)
    soft_mask_BP = soft_mask_BYX.reshape(batch, rows * columns)
    attend = local(self._attend, (_ROWS,) * 6, (_ROWS, _ROWS))
    from_words_BPC, from_pixels_BTC = attend(
      self.pixel_query(pixels_BPC),
      self.pixel_value(pixels_BPC),
      self.word_key(words_BTC),
      self.word_value(words_BTC),
      mask_BT,
      self.gate[...][:, None] * soft_mask_BP,
    )
    if self.config.language_to_vision:
      change_BPC = self.pixel_out(from_words_BPC)
      pixels_BYXC = pixels_BYXC + change_BPC.reshape(pixels_BYXC.shape)
    if self.config.vision_to_language:
      words_BTC = words_BTC + self.word_out(from_pixels_BTC)
    return pixels_BYXC, words_BTC

  def _attend(self, *operands: jax.Array) -> tuple[jax.Array, jax.Array]:
    *arrays, gate_BP = operands
    return correlation_attention(
      *arrays,
      heads=self.config.heads,
      gate_BP=gate_BP,
      kernel_from=self.config.kernel_from,
    )


class Correlation(nnx.Module):
  """The parameters of K >= 1 steps and of the words they work on."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.words = layers.linear(
      config.language.width,
      config.decoder.width,
      (axes.EMBED, axes.CHANNELS),
      init=layers.FAN_IN,
      dtype=jnp.dtype(config.dtype),
      rngs=rngs,
    )
    self.steps = nnx.List(
      [Step(config, rngs=rngs) for _ in range(config.correlation.steps)]
    )

  def begin(
    self, text_BTD: jax.Array, query_BGC: jax.Array, state_BG: jax.Array
  ) -> jax.Array:
    """The words [B, T, C] before the first step.

    Text states projected to C, except that the states which predict [SEG] are
    the queries themselves: the loop refines exactly what the decoder reads.

    Args:
      text_BTD: final states at text positions.
      query_BGC: one query a target.
      state_BG: index of the state of each query; T or more where invalid.
    """
    rows_B1 = jnp.arange(text_BTD.shape[0])[:, None]
    words_BTC = self.words(text_BTD)
    return words_BTC.at[rows_B1, state_BG].set(
      query_BGC.astype(words_BTC.dtype), mode="drop"
    )


def soft_mask(
  masks_BGYX: jax.Array, valid_BG: jax.Array, grid: int
) -> jax.Array:
  """float32[B, grid, grid]: how surely a cell belongs to any valid target.

  The targets share one image, so their soft masks are joined by the maximum;
  without a valid target all cells are zero.
  """
  logits_BYXG = jnp.moveaxis(masks_BGYX, 1, -1)
  soft_BYXG = jax.nn.sigmoid(layers.resize_bilinear(logits_BYXG, (grid, grid)))
  return jnp.max(soft_BYXG * valid_BG[:, None, None, :], axis=-1)
