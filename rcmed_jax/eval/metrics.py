"""Numbers: from two masks to integers, from integers to tables.

A mask is scored once, as three integers (`Counts`); every ratio and every
average is derived from them in float64. Intervals come from resampling whole
images, because the masks of one image are not independent.
"""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import itertools
from typing import Any

import numpy as np

from rcmed_jax.data import images
from rcmed_jax.eval.tasks import Task

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


@dataclasses.dataclass(frozen=True, slots=True)
class MaskScore:
  """One asked target of one image."""

  record: str  # the record's id
  dataset: str
  modality: str
  name: str  # the class
  counts: Counts
  box_iou: float
  present: bool  # the answer holds the target
  confidence: float  # 0..1, 0 where the answer does not hold the target

  @property
  def task(self) -> Task:
    return Task(self.modality, self.name)


@dataclasses.dataclass(frozen=True, slots=True)
class Aggregate:
  """One row of a table."""

  images: int
  masks: int
  dice: float  # mean over masks
  iou: float  # mean over masks
  ciou: float  # pooled over pixels: sum of inter / sum of union
  box_iou: float  # mean over masks
  dice_low: float | None  # 95% interval of dice; None without bootstrap
  dice_high: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class Named:
  """What an open question brought out for one image."""

  record: str
  modality: str  # reference
  said_modality: str | None
  classes: tuple[str, ...]  # reference
  said_classes: tuple[str, ...]  # in the order of the answer


@dataclasses.dataclass(frozen=True, slots=True)
class Recognition:
  """Classes named without being asked for, against the reference."""

  images: int
  accuracy: float  # TP / (TP + FP + FN) over all (image, class)
  exact: float  # share of images whose set of classes is right
  macro_f1: float  # mean over the classes of the reference
  modality: float  # share of images whose modality is right
  tp: int
  fp: int
  fn: int
  classes: Mapping[str, tuple[int, ...]]  # class -> tp, fp, fn
  confusions: Mapping[tuple[str, str], int]  # (missed, said instead) -> images


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
  width = min(pred[2], ref[2]) - max(pred[0], ref[0])
  height = min(pred[3], ref[3]) - max(pred[1], ref[1])
  inter = max(width, 0) * max(height, 0)
  areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (pred, ref)]
  return inter / (sum(areas) - inter)


def aggregate(
  scores: Sequence[MaskScore],
  by: Callable[[MaskScore], Any],
  *,
  draws: int,
  seed: int,
) -> dict[Any, Aggregate]:
  """Returns one row per value of `by`, in sorted order.

  Args:
    by: the group of a mask; its values can be hashed and sorted.
    draws, seed: of the bootstrap behind the interval.
  """
  groups: dict[Any, list[MaskScore]] = {}
  for score in scores:
    groups.setdefault(by(score), []).append(score)
  means_KG = bootstrap(
    [score.counts.dice for score in scores],
    [score.record for score in scores],
    [by(score) for score in scores],
    draws=draws,
    seed=seed,
  )
  return {
    key: _row(groups[key], *interval(means_KG[:, place]))
    for place, key in enumerate(sorted(groups))
  }


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


def recognition(answers: Sequence[Named]) -> Recognition:
  """Returns how well open answers name what is in the images.

  Names are compared in lower case. `macro_f1` averages over the classes of
  the reference; a name that no reference holds costs accuracy only.
  """
  table: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0])
  confusions: collections.Counter[tuple[str, str]] = collections.Counter()
  exact = modality = 0
  for answer in answers:
    ref = {name.lower() for name in answer.classes}
    said = {name.lower() for name in answer.said_classes}
    for column, names in enumerate((ref & said, said - ref, ref - said)):
      for name in names:
        table[name][column] += 1
    confusions.update(itertools.product(ref - said, (said - ref) or {""}))
    exact += ref == said
    said_modality = answer.said_modality or ""
    modality += said_modality.lower() == answer.modality.lower()
  classes = {name: tuple(table[name]) for name in sorted(table)}
  tp, fp, fn = np.sum([(0, 0, 0), *classes.values()], axis=0).tolist()
  f1 = [
    2 * right / (2 * right + wrong + missed)
    for right, wrong, missed in classes.values()
    if right + missed
  ]
  images = len(answers)
  return Recognition(
    images=images,
    accuracy=share(tp, tp + fp + fn),
    exact=share(exact, images),
    macro_f1=share(sum(f1), len(f1)),
    modality=share(modality, images),
    tp=tp,
    fp=fp,
    fn=fn,
    classes=classes,
    confusions=dict(
      sorted(confusions.items(), key=lambda item: (-item[1], item[0]))
    ),
  )


def share(part: int | float, whole: int) -> float:
  """Returns part / whole; 1 where there was nothing to get wrong."""
  return part / whole if whole else 1.0


def mean(values: Iterable[float]) -> float:
  """Returns the mean of at least one number."""
  return float(np.mean(np.fromiter(values, np.float64)))


def _row(
  scores: Sequence[MaskScore], low: float | None, high: float | None
) -> Aggregate:
  inter = sum(score.counts.inter for score in scores)
  union = sum(score.counts.pred + score.counts.ref for score in scores) - inter
  return Aggregate(
    images=len({score.record for score in scores}),
    masks=len(scores),
    dice=mean(score.counts.dice for score in scores),
    iou=mean(score.counts.iou for score in scores),
    ciou=share(inter, union),
    box_iou=mean(score.box_iou for score in scores),
    dice_low=low,
    dice_high=high,
  )


def _places(keys: Sequence[Any]) -> tuple[np.ndarray, int]:
  """Returns each key's place among the sorted distinct keys; how many."""
  places = {key: place for place, key in enumerate(sorted(set(keys)))}
  return np.array([places[key] for key in keys]), len(places)
