"""Numbers: from two masks to integers, from values to means.

A mask is scored once, as three integers (`Counts`); every ratio and every
average is derived from them in float64. Intervals are in `resampling`.
"""

from collections.abc import Iterable
import dataclasses

import numpy as np

from rcmed_jax.data import images
from rcmed_jax.eval import boxes

EPSILON = 1e-7  # of Dice, as in the release


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


def share(part: int | float, whole: int) -> float:
  """Returns part / whole; 1 where there was nothing to get wrong."""
  return part / whole if whole else 1.0


def mean(values: Iterable[float]) -> float:
  """Returns the mean of at least one number."""
  return float(np.mean(np.fromiter(values, np.float64)))
