"""What training minimises: text, masks in three views, and their estimate.

  total = text * CE + dice * Dice + bce * BCE + boundary * Boundary
          + quality * Quality

CE is the mean over all labelled tokens of the micro-batch; each mask term is
the mean over all its masks, sum / (n + 1e-8). Everything is float32.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rcmed_jax.data.tokens import IGNORE_LABEL
from rcmed_jax.model.config import ModelConfig
from rcmed_jax.model.rcmed import Prediction

MASK_TERMS = ("dice", "bce", "boundary")

# The release scales the pixel sums of Dice down, then adds 1e-6 to both.
DICE_SCALE = 1000.0
DICE_EPS = 1e-6
COUNT_EPS = 1e-8
# torch's binary_cross_entropy holds the logarithm of a probability above this.
MIN_LOG = -100.0


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """Weights of the terms. Source: the release, ds-config of its training."""

  text: float = 1.0
  dice: float = 2.0
  bce: float = 0.5
  boundary: float = 0.2
  # Not in the release, which leaves SAM's estimate of the IoU as it was. From
  # nothing it has to be learned, and with it which targets are there at all.
  quality: float = 0.0
  # Weight of each correlation step's mask before the last, where
  # model.correlation.deep_supervision is on.
  deep_supervision: float = 0.5

  def for_model(self, model: ModelConfig) -> "LossConfig":
    """The weights that count for a model of this config."""
    on = model.correlation.deep_supervision
    return self if on else dataclasses.replace(self, deep_supervision=0.0)


def names(config: LossConfig) -> tuple[str, ...]:
  """What `losses` gives, by name: the total, "loss", and its terms."""
  return (
    *("loss", "text", *MASK_TERMS),
    *(("quality",) if config.quality else ()),
    *(("earlier",) if config.deep_supervision else ()),
  )


def losses(
  prediction: Prediction,
  text: jax.Array,
  batch: dict[str, Any],
  config: LossConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """The total loss of one micro-batch and its terms by name, all float32[].

  Args:
    prediction: of the model for this batch.
    text: float32[], of its text: `cross_entropy.text_loss`.
    batch: as made by the data pipeline; `masks_BGIJ`, `valid_BG` and
      `extent_B2` are read.
    config: weights.

  Returns:
    (total, {"text", "dice", "bce", "boundary"} of the final masks, unweighted,
    "quality" where it counts, and "earlier" with the weighted mask terms of
    earlier correlation steps where they count).
  """
  reference_BGIJ = batch["masks_BGIJ"]
  inside_BIJ = inside(
    batch["extent_B2"],
    image_size=batch["pixels_BIJC"].shape[1],
    mask_size=reference_BGIJ.shape[-1],
  )

  masks = reference_BGIJ, inside_BIJ[:, None], batch["valid_BG"]

  def resized(logits_BGYX: jax.Array) -> jax.Array:
    return jax.image.resize(
      logits_BGYX, reference_BGIJ.shape, "bilinear", antialias=False
    )

  def terms_of(logits_BGYX: jax.Array) -> dict[str, jax.Array]:
    return mask_terms(resized(logits_BGYX), *masks)

  def weighted(terms: dict[str, jax.Array]) -> jax.Array:
    return (
      config.dice * terms["dice"]
      + config.bce * terms["bce"]
      + config.boundary * terms["boundary"]
    )

  terms = terms_of(prediction.masks_KBGYX[-1])
  terms["text"] = text
  total = config.text * terms["text"] + weighted(terms)
  if config.quality:
    terms["quality"] = quality_loss(
      prediction.quality_BG, resized(prediction.masks_KBGYX[-1]), *masks
    )
    total += config.quality * terms["quality"]
  if config.deep_supervision and prediction.masks_KBGYX.shape[0] > 1:
    earlier = [weighted(terms_of(m)) for m in prediction.masks_KBGYX[:-1]]
    terms["earlier"] = config.deep_supervision * sum(earlier[1:], earlier[0])
    total += terms["earlier"]
  return total, terms


def text_loss(logits_BTV: jax.Array, labels_BT: jax.Array) -> jax.Array:
  """float32[]: mean cross-entropy of the labelled tokens, 0 where none is.

  From logits, where they are at hand. Training never holds them all:
  `cross_entropy.text_loss` is the same from states.

  Args:
    logits_BTV: float32; `[:, t]` predicts the token at t.
    labels_BT: int32, `IGNORE_LABEL` where unsupervised.
  """
  labelled_BT = labels_BT != IGNORE_LABEL
  loss_BT = optax.softmax_cross_entropy_with_integer_labels(
    logits_BTV.astype(jnp.float32), jnp.where(labelled_BT, labels_BT, 0)
  )
  total = jnp.sum(loss_BT, where=labelled_BT)
  return total / jnp.maximum(jnp.sum(labelled_BT), 1)


def mask_terms(
  logits_BGIJ: jax.Array,
  reference_BGIJ: jax.Array,
  inside_BGIJ: jax.Array,
  valid_BG: jax.Array,
) -> dict[str, jax.Array]:
  """Dice, BCE and boundary loss, each averaged over the valid masks.

  Dice leaves out masks whose reference is empty (of a class that is not
  there): no overlap says how wrong they are, and BCE does.

  Per mask, with s = sigmoid(logits), t = reference, over the pixels inside:

    dice     = 1 - (2 sum(s t) / 1000 + 1e-6) / (sum(s + t) / 1000 + 1e-6)
    bce      = mean BCE of the logits
    boundary = mean BCE of edge(s) against edge(t), where edge is the
               morphological gradient: 3x3 maximum minus 3x3 minimum

  Args:
    logits_BGIJ: float32 at the reference's resolution.
    reference_BGIJ: 0/1, or soft in 0..1.
    inside_BGIJ: bool, broadcastable; False pixels are as if cut off.
    valid_BG: bool, masks that count.

  Returns:
    float32[] each; 0 where no mask is valid.
  Source: data_train_eval, Losses; the release, where masks have one size each.
  """
  logits_BGIJ = logits_BGIJ.astype(jnp.float32)
  reference_BGIJ = reference_BGIJ.astype(jnp.float32)
  inside_BGIJ = jnp.broadcast_to(inside_BGIJ, logits_BGIJ.shape)
  soft_BGIJ = jax.nn.sigmoid(logits_BGIJ)

  def total(values_BGIJ: jax.Array) -> jax.Array:
    return jnp.sum(values_BGIJ, axis=(-2, -1), where=inside_BGIJ)

  pixels_BG = jnp.maximum(jnp.sum(inside_BGIJ, axis=(-2, -1)), 1)
  overlap_BG = 2 * total(soft_BGIJ * reference_BGIJ) / DICE_SCALE
  size_BG = total(soft_BGIJ + reference_BGIJ) / DICE_SCALE
  bce_BGIJ = optax.sigmoid_binary_cross_entropy(logits_BGIJ, reference_BGIJ)
  edges_BGIJ = _probability_bce(
    _edges(soft_BGIJ, inside_BGIJ), _edges(reference_BGIJ, inside_BGIJ)
  )
  terms_BG = {
    "dice": 1 - (overlap_BG + DICE_EPS) / (size_BG + DICE_EPS),
    "bce": total(bce_BGIJ) / pixels_BG,
    "boundary": total(edges_BGIJ) / pixels_BG,
  }
  shown_BG = valid_BG & (total(reference_BGIJ) > 0)
  counted_BG = dict.fromkeys(terms_BG, valid_BG) | {"dice": shown_BG}
  return {
    name: jnp.sum(term_BG, where=counted_BG[name])
    / (jnp.sum(counted_BG[name]) + COUNT_EPS)
    for name, term_BG in terms_BG.items()
  }


def quality_loss(
  quality_BG: jax.Array,
  logits_BGIJ: jax.Array,
  reference_BGIJ: jax.Array,
  inside_BGIJ: jax.Array,
  valid_BG: jax.Array,
) -> jax.Array:
  """float32[]: mean squared error of the decoder's estimate of the IoU.

  The IoU is that of the mask, logits > 0, with the reference, > 0.5: a fixed
  number, no gradient reaches the mask through it. An empty reference has 0, so
  that the estimate also tells whether the target is there.

  Args: as of `mask_terms`; quality_BG float32.
  Source: Kirillov et al., "Segment Anything", appendix A.
  """
  mask_BGIJ = (logits_BGIJ > 0) & inside_BGIJ
  true_BGIJ = (reference_BGIJ > 0.5) & inside_BGIJ
  overlap_BG = jnp.sum(mask_BGIJ & true_BGIJ, axis=(-2, -1))
  union_BG = jnp.sum(mask_BGIJ | true_BGIJ, axis=(-2, -1))
  error_BG = quality_BG.astype(jnp.float32) - overlap_BG / jnp.maximum(
    union_BG, 1
  )
  total = jnp.sum(error_BG**2, where=valid_BG)
  return total / (jnp.sum(valid_BG) + COUNT_EPS)


def inside(
  extent_B2: jax.Array, *, image_size: int, mask_size: int
) -> jax.Array:
  """bool[B, mask_size, mask_size]: pixels whose centre is not padding.

  Worked example: extent 5 of image_size 8 at mask_size 4. Mask pixels have
  their centres at 1, 3, 5, 7 image pixels; 1 and 3 lie below 5.
  """
  centres_1I = (jnp.arange(mask_size)[None] + 0.5) * (image_size / mask_size)
  rows_BI = centres_1I < extent_B2[:, :1]
  columns_BJ = centres_1I < extent_B2[:, 1:]
  return rows_BI[:, :, None] & columns_BJ[:, None, :]


def original_size_logits(
  logits_GYX: jax.Array,
  *,
  image_size: int,
  extent: tuple[int, int],
  original: tuple[int, int],
) -> jax.Array:
  """float32[G, *original]: low-resolution logits back on the image's grid.

  Bilinear to image_size, the padding cut off, bilinear to the original size.
  The release computes its losses here; training computes them in the padded
  frame, where shapes are static.

  Source: model, section 6.
  """
  targets = logits_GYX.shape[0]
  logits_GIJ = jax.image.resize(
    logits_GYX.astype(jnp.float32),
    (targets, image_size, image_size),
    "bilinear",
    antialias=False,
  )
  rows, columns = extent
  return jax.image.resize(
    logits_GIJ[:, :rows, :columns],
    (targets, *original),
    "bilinear",
    antialias=False,
  )


def _edges(soft_BGIJ: jax.Array, inside_BGIJ: jax.Array) -> jax.Array:
  """3x3 maximum minus 3x3 minimum of values in 0..1; 0 outside.

  Pixels outside count as 0 for the maximum and as 1 for the minimum, which
  changes neither: the same as -inf and +inf, but safe under the gradient.
  """
  highest = _pool(jnp.where(inside_BGIJ, soft_BGIJ, 0.0), jnp.maximum, 0.0)
  lowest = _pool(jnp.where(inside_BGIJ, soft_BGIJ, 1.0), jnp.minimum, 1.0)
  return jnp.where(inside_BGIJ, highest - lowest, 0.0)


def _pool(values_BGIJ: jax.Array, reduce: Any, fill: float) -> jax.Array:
  """3x3 window reduction, rows then columns; `fill` beyond the border."""
  for axis in (-2, -1):
    size = values_BGIJ.shape[axis]
    pad = [(0, 0)] * values_BGIJ.ndim
    pad[axis] = (1, 1)
    padded = jnp.pad(values_BGIJ, pad, constant_values=fill)
    before, here, after = (
      jax.lax.slice_in_dim(padded, start, start + size, axis=axis)
      for start in range(3)
    )
    values_BGIJ = reduce(reduce(before, here), after)
  return values_BGIJ


def _probability_bce(probability: jax.Array, target: jax.Array) -> jax.Array:
  """-t log p - (1 - t) log(1 - p), logarithms held above -100."""
  return -(
    target * _safe_log(probability) + (1 - target) * _safe_log(1 - probability)
  )


def _safe_log(values: jax.Array) -> jax.Array:
  """log, MIN_LOG where values <= 0, with gradient 0 and not NaN there."""
  positive = values > 0
  return jnp.where(
    positive,
    jnp.maximum(jnp.log(jnp.where(positive, values, 1.0)), MIN_LOG),
    MIN_LOG,
  )
