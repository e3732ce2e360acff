"""Numbers: from two masks to integers, from values to means and intervals.

A mask is scored once, as three integers (`Counts`); every ratio and every
average is derived from them in float64. Intervals come from resampling whole
images, because the masks of one image are not independent.
"""

from collections.abc import Iterable, Sequence
import dataclasses
from typing import Any

import numpy as np

from rcmed_jax.data import images
from rcmed_jax.eval import boxes

EPSILON = 1e-7  # of Dice, as in the release
INTERVAL = (2.5, 97.5)  # percentiles of the bootstrap


@dataclasses.dataclass(frozen=True, slots=True)
class Counts:
  """Pixels of one predicted mask, its reference, and both at once."""

  inter: int
  pred: int
  ref: int

  @property
  def dice(self) -> float:
    """(2 inter + e) / (pred + ref + e); 1 where both are empty."""
    return (2 * self.inter + EPSILON) / (self.pred + self.ref + EPSILON)

  @property
  def iou(self) -> float:
    """inter / union; 1 where both are empty."""
    union = self.pred + self.ref - self.inter
    return self.inter / union if union else 1.0


def count(pred_IJ: np.ndarray, ref_IJ: np.ndarray) -> Counts:
  """Returns the pixel counts of two bool masks of one size.

  Raises:
    ValueError: the masks differ in size or are not bool.
  """
  if pred_IJ.shape != ref_IJ.shape:
    raise ValueError(
      f"a predicted mask has the shape {pred_IJ.shape} but its reference "
      f"{ref_IJ.shape}; resize predictions to the original image."
    )
  if pred_IJ.dtype != bool or ref_IJ.dtype != bool:
    raise ValueError(
      f"masks must be bool, received {pred_IJ.dtype} and {ref_IJ.dtype}; "
      "threshold them first."
    )
  return Counts(
    inter=int(np.count_nonzero(pred_IJ & ref_IJ)),
    pred=int(np.count_nonzero(pred_IJ)),
    ref=int(np.count_nonzero(ref_IJ)),
  )


def box_iou(pred_IJ: np.ndarray, ref_IJ: np.ndarray) -> float:
  """Returns the IoU of the boxes around two masks; 1 where both are empty."""
  pred, ref = images.box(pred_IJ), images.box(ref_IJ)
  if pred is None or ref is None:
    return float(pred is ref)
  return boxes.iou(pred, ref)


def bootstrap(
  values: Sequence[float],
  images: Sequence[str],
  groups: Sequence[Any],
  *,
  draws: int,
  seed: int,
) -> np.ndarray:
  """Returns each group's mean value in each resampling of the images.

  A draw takes as many images as there are, with replacement, and all the
  values of each. One seed means the same images for every grouping.

  Args:
    values: one number per mask.
    images: the image of each mask.
    groups: the group of each mask.

  Returns:
    float64[draws, groups], groups sorted; NaN where a draw misses a group.
  """
  values_N = np.array(values, np.float64)
  image_N, image_count = _places(images)
  group_N, group_count = _places(groups)
  random = np.random.default_rng(seed)
  means_KG = np.full((draws, group_count), np.nan)
  for means_G in means_KG:
    drawn = random.integers(0, image_count, image_count)
    weight_N = np.bincount(drawn, minlength=image_count)[image_N]
    total_G = np.bincount(group_N, weight_N * values_N, group_count)
    weight_G = np.bincount(group_N, weight_N, group_count)
    np.divide(total_G, weight_G, out=means_G, where=weight_G > 0)
  return means_KG


def interval(means_K: np.ndarray) -> tuple[float | None, float | None]:
  """Returns the 95% interval of resampled means; None without resamplings."""
  if not means_K.size:
    return None, None
  low, high = np.nanpercentile(means_K, INTERVAL)
  return float(low), float(high)


def share(part: int | float, whole: int) -> float:
  """Returns part / whole; 1 where there was nothing to get wrong."""
  return part / whole if whole else 1.0


def mean(values: Iterable[float]) -> float:
  """Returns the mean of at least one number."""
  return float(np.mean(np.fromiter(values, np.float64)))


def _places(keys: Sequence[Any]) -> tuple[np.ndarray, int]:
  """Returns each key's place among the sorted distinct keys; how many."""
  places = {key: place for place, key in enumerate(sorted(set(keys)))}
  return np.array([places[key] for key in keys]), len(places)
