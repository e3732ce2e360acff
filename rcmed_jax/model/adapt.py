"""New classes from a few examples, without training.

What the supports say of a class is a prototype, the mean of the pixel features
under their masks, and a prior, the mean of the masks themselves:

  prototype = unit(mean over supports of sum(pixels m) / (sum(m) + 1e-6))
  likeness  = sigmoid((c - mean(c)) / (std(c) + 1e-6))
  c         = cos(pixels, prototype)

In an image where the class is asked for, the two turn up what is like it:

  pixels <- pixels (1 + 0.3 likeness)         before language's feedback
  tokens <- tokens (1 + 0.5 prior)            before they are halved
  logits <- logits + 0.5 (mean |logits| + 1e-6) prior

Source: the released code's inference for new classes, which reads a prior and
never shows how it is made; the mean of the masks is our reading.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rcmed_jax.model import layers

EPSILON = 1e-6
# Of a mask on the feature grid, in cells: a smaller one says nothing.
SMALLEST = 1.0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Adaptation:
  """What a batch knows of one new class a row. Strength 0 changes nothing."""

  prototype_BC: jax.Array  # float32, of length 1
  prior_BYX: jax.Array  # float32[B, 4g, 4g], 0..1, where the class lay
  pixel_strength_B: jax.Array  # float32; 0.3 in the release
  token_strength_B: jax.Array  # float32; 0.5
  logit_strength_B: jax.Array  # float32; 0.5


def prototypes(
  pixels_BYXC: jax.Array, masks_BIJ: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The mean feature under each support's mask, and whether there is one.

  Args:
    pixels_BYXC: features after the neck.
    masks_BIJ: 0..1, in the padded square frame, of any resolution.

  Returns:
    float32[B, C], and bool[B]: False where the mask covers less than a cell.
  """
  _, rows, columns, _ = pixels_BYXC.shape
  weights_BYX1 = layers.resize_bilinear(masks_BIJ[..., None], (rows, columns))
  area_B1 = weights_BYX1.sum(axis=(1, 2))
  sum_BC = (pixels_BYXC.astype(jnp.float32) * weights_BYX1).sum(axis=(1, 2))
  return sum_BC / (area_B1 + EPSILON), area_B1[:, 0] >= SMALLEST


def prior(masks_SIJ: jax.Array, size: int) -> jax.Array:
  """float32[size, size]: the mean of masks in the padded square frame.

  Args:
    masks_SIJ: float32, 0..1, of S supports.
    size: 4 g, that of the mask logits.
  """
  mean_1IJ1 = masks_SIJ.mean(axis=0)[None, ..., None]
  return layers.resize_bilinear(mean_1IJ1, (size, size))[0, ..., 0]


def likeness(pixels_BYXC: jax.Array, prototype_BC: jax.Array) -> jax.Array:
  """float32[B, Y, X], 0..1: how much more a cell is like it than the others.

  Args:
    pixels_BYXC: features after the neck.
    prototype_BC: float32, of length 1.
  """
  pixels_BYXC = pixels_BYXC.astype(jnp.float32)
  product_BYX = jnp.einsum(
    "BYXC,BC->BYX",
    pixels_BYXC,
    prototype_BC,
    precision=jax.lax.Precision.HIGHEST,
  )
  length_BYX = jnp.linalg.norm(pixels_BYXC, axis=-1)
  cosine_BYX = product_BYX / jnp.maximum(length_BYX, EPSILON)
  mean_B11 = cosine_BYX.mean(axis=(1, 2), keepdims=True)
  deviation_B11 = cosine_BYX.std(axis=(1, 2), ddof=1, keepdims=True)
  return jax.nn.sigmoid((cosine_BYX - mean_B11) / (deviation_B11 + EPSILON))


def turn_up_pixels(pixels_BYXC: jax.Array, given: Adaptation) -> jax.Array:
  """Pixel features, larger where they are like the class."""
  gain_BYX = given.pixel_strength_B[:, None, None] * likeness(
    pixels_BYXC, given.prototype_BC
  )
  return (pixels_BYXC * (1 + gain_BYX[..., None])).astype(pixels_BYXC.dtype)


def turn_up_tokens(tokens_BYXD: jax.Array, given: Adaptation) -> jax.Array:
  """Visual tokens, larger where the class lay in the supports."""
  _, rows, columns, _ = tokens_BYXD.shape
  prior_BYX1 = layers.resize_bilinear(
    given.prior_BYX[..., None], (rows, columns)
  )
  gain_BYX1 = given.token_strength_B[:, None, None, None] * prior_BYX1
  return (tokens_BYXD * (1 + gain_BYX1)).astype(tokens_BYXD.dtype)


def turn_up_logits(
  masks_BGQYX: jax.Array, valid_BG: jax.Array, given: Adaptation
) -> jax.Array:
  """float32[B, G, Y, X]: the first mask, higher where the class lay.

  Args:
    masks_BGQYX: float32 logits of every mask token: their mean magnitude over
      the valid targets is what a logit of this image weighs.
    valid_BG: bool, which targets exist.
    given: with a prior of the logits' resolution.
  """
  size_BG = jnp.abs(masks_BGQYX).mean(axis=(2, 3, 4))
  targets_B = jnp.maximum(valid_BG.sum(axis=1), 1)
  mean_B = jnp.where(valid_BG, size_BG, 0.0).sum(axis=1) / targets_B
  weight_B = given.logit_strength_B * (mean_B + EPSILON)
  raise_BYX = weight_B[:, None, None] * given.prior_BYX
  return masks_BGQYX[:, :, 0] + raise_BYX[:, None]
