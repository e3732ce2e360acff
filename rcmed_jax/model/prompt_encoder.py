"""SAM's prompt encoder: pixel positions and the embedding of "no mask given".

RCMed prompts the decoder with language states, so points, boxes and masks are
never embedded. Their parameters are kept, unused, so that a checkpoint of the
release goes in and comes out whole.
Source: "Segment Anything", arXiv 2304.02643.
"""

from flax import nnx
import jax
import jax.numpy as jnp

from rcmed_jax import axes
from rcmed_jax.model import layers

POINT_KINDS = 4  # background, foreground, a box's two corners
MASK_CHANNELS = 16  # within the mask embedding, the same at every width
UNIT_NORMAL = nnx.initializers.normal(1.0)


class Constant(nnx.Variable):
  """An array that belongs to a checkpoint and is never trained."""


class PromptEncoder(nnx.Module):
  """Parameters of width C, and the position of every pixel of the grid."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    vector = layers.named(UNIT_NORMAL, (axes.VECTOR,))
    points = layers.named(UNIT_NORMAL, (axes.TOKENS, axes.CHANNELS))
    frequencies = layers.named(UNIT_NORMAL, (axes.VECTOR, axes.VECTOR))
    self.frequencies = Constant(frequencies(rngs.params(), (2, width // 2)))
    self.no_mask = nnx.Param(vector(rngs.params(), (width,)))
    self.not_a_point = nnx.Param(vector(rngs.params(), (width,)))
    self.points = nnx.Param(points(rngs.params(), (POINT_KINDS, width)))
    self.mask = MaskEmbedding(width, rngs=rngs)

  def positions(self, grid: tuple[int, int]) -> jax.Array:
    """float32 [Y, X, C]: random Fourier features of each cell's centre.

    With (x, y) in -1..1 from left and top, [sin, cos](2 pi (x, y) G).
    The release rounds this to bfloat16, up to 0.12 away.
    """
    rows, columns = grid
    y_Y = (jnp.arange(rows, dtype=jnp.float32) + 0.5) / rows
    x_X = (jnp.arange(columns, dtype=jnp.float32) + 0.5) / columns
    y_YX, x_YX = jnp.meshgrid(2 * y_Y - 1, 2 * x_X - 1, indexing="ij")
    angles_YXF = (
      2
      * jnp.pi
      * jnp.einsum(
        "YXA,AF->YXF",
        jnp.stack([x_YX, y_YX], axis=-1),
        self.frequencies[...].astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,  # whole turns must not be rounded
      )
    )
    return jnp.concatenate([jnp.sin(angles_YXF), jnp.cos(angles_YXF)], -1)


class MaskEmbedding(nnx.Module):
  """SAM's embedding of a given mask; parameters only, see the file's top."""

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    quarter = MASK_CHANNELS // 4

    def convolution(inputs: int, outputs: int, side: int) -> nnx.Conv:
      names = (axes.SPACE, axes.SPACE, axes.VECTOR, axes.CHANNELS)
      return nnx.Conv(
        inputs,
        outputs,
        (side, side),
        strides=side,
        kernel_init=layers.named(layers.NORMAL, names),
        bias_init=layers.named(layers.ZEROS, (axes.VECTOR,)),
        rngs=rngs,
      )

    self.halve = convolution(1, quarter, 2)
    self.halve_norm = layers.layer_norm(quarter, eps=1e-6, rngs=rngs)
    self.quarter = convolution(quarter, MASK_CHANNELS, 2)
    self.quarter_norm = layers.layer_norm(MASK_CHANNELS, eps=1e-6, rngs=rngs)
    self.project = convolution(MASK_CHANNELS, width, 1)
