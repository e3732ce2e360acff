"""COCO's average precision of the boxes around masks.

One row per asked target: the box around the predicted mask, if the answer
holds one, against the box around its reference, if the image holds it. With
at most one box on each side matching is no choice: a predicted box is right if
its IoU is at least the threshold.

  precision, recall  over all predicted boxes of a class whose confidence is at
                     least c, for every c that occurs
  AP at an IoU       mean over the recalls 0, 0.01, .. 1 of the best precision
                     that reaches that recall; 0 where none does
  AP                 mean over the IoUs 0.5, 0.55, .. 0.95
  mean over classes  of those that the reference holds

COCO takes boxes of equal confidence in the order of its files. Here they count
together, since no threshold parts them: the order of the rows changes nothing.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

# As pycocotools rounds them; 0.57 as written is one bit less than its 0.57.
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)

Box = tuple[int, int, int, int]  # x0, y0, x1, y1; x1 and y1 lie outside


@dataclasses.dataclass(frozen=True, slots=True)
class BoxPair:
  """One asked target of one image; without either box it counts for nothing."""

  pred: Box | None  # around the predicted mask
  ref: Box | None  # around the reference
  confidence: float  # of the predicted box; any scale

  @property
  def iou(self) -> float:
    """inter / union of the boxes; 0 where one is missing."""
    if self.pred is None or self.ref is None:
      return 0.0
    return iou(self.pred, self.ref)


@dataclasses.dataclass(frozen=True, slots=True)
class BoxAp:
  """Average precision of one class, or the mean over classes."""

  preds: int
  refs: int
  ap: float | None  # IoU 0.5 to 0.95; None without a reference
  ap50: float | None
  ap75: float | None


def iou(pred: Box, ref: Box) -> float:
  """Returns the area that two boxes share / the area that they cover."""
  width = min(pred[2], ref[2]) - max(pred[0], ref[0])
  height = min(pred[3], ref[3]) - max(pred[1], ref[1])
  inter = max(width, 0) * max(height, 0)
  areas = [(x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (pred, ref)]
  return inter / (sum(areas) - inter)


def average_precision(pairs: Iterable[BoxPair]) -> BoxAp:
  """Returns the average precision of one class over its images.

  Raises:
    ValueError: a confidence that is no number.

  Source: pycocotools' COCOeval, area "all"; but for equal confidences.
  """
  pairs = list(pairs)
  refs = sum(pair.ref is not None for pair in pairs)
  held = [pair for pair in pairs if pair.pred is not None]
  if not np.isfinite([pair.confidence for pair in held]).all():
    raise ValueError(
      "a predicted box has a confidence that is not finite; boxes are ranked "
      "by it."
    )
  if not refs:
    return BoxAp(len(held), 0, None, None, None)
  confidence_P = np.array([pair.confidence for pair in held], np.float64)
  iou_P = np.array([pair.iou for pair in held], np.float64)
  order = np.argsort(-confidence_P, kind="stable")
  ranked_P = confidence_P[order]
  # The last box of each run of equal confidences.
  ends = np.flatnonzero(np.diff(ranked_P, append=-np.inf))
  aps = [
    _interpolated(np.cumsum(iou_P[order] >= least)[ends], ends + 1, refs)
    for least in IOUS
  ]
  return BoxAp(
    preds=len(held),
    refs=refs,
    ap=float(np.mean(aps)),
    ap50=aps[0],
    ap75=aps[5],
  )


def by_class(
  pairs: Mapping[Any, Sequence[BoxPair]],
) -> tuple[BoxAp, dict[Any, BoxAp]]:
  """Returns the mean over classes, and each class on its own, sorted.

  Args:
    pairs: class -> its rows over all images. A class without any reference
      takes no part in the mean, as in COCO; its boxes are counted.
  """
  rows = {name: average_precision(pairs[name]) for name in sorted(pairs)}
  held = [row for row in rows.values() if row.refs]

  def mean(field: str) -> float | None:
    values = [getattr(row, field) for row in held]
    return float(np.mean(values)) if values else None

  return BoxAp(
    preds=sum(row.preds for row in rows.values()),
    refs=sum(row.refs for row in rows.values()),
    ap=mean("ap"),
    ap50=mean("ap50"),
    ap75=mean("ap75"),
  ), rows


def _interpolated(tp_P: np.ndarray, count_P: np.ndarray, refs: int) -> float:
  """Returns the mean over `RECALLS` of the best precision from there on.

  Args:
    tp_P: right boxes down to each confidence that occurs.
    count_P: boxes down to there.
  """
  best_P = np.maximum.accumulate((tp_P / count_P)[::-1])[::-1]
  place = np.searchsorted(tp_P / refs, RECALLS)
  return float(np.append(best_P, 0.0)[place].mean())
