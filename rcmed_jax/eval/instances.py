"""Counts of instances found, such as nuclei: AJI, PQ, AP and F1.

An instance is one number of a label image, 0 is background. One table of how
many elements each predicted instance shares with each of the reference gives
everything; IoU is inter / union from whole numbers, so that ties are ties.

  TP(t)  most pairs of one predicted and one reference instance each whose IoU
         is at least t. Above 0.5 each instance has at most one such partner;
         at 0.5 two may tie, and only one of them counts.
  AP@t   TP / (TP + FP + FN), as cellpose defines it. No area under a curve:
         COCO's average precision of boxes is in `boxes`.
  F1@t   2 TP / (2 TP + FP + FN)
  PQ     DQ x SQ over pairs whose IoU is above 0.5, strictly, so that they
         are unique: DQ = F1 of these pairs, SQ = their mean IoU.
  AJI    sum of inter / sum of union: every reference instance with the
         predicted one of the largest IoU, which may serve several, its own
         elements if there is none; predicted instances that served none add
         all their elements to the union.

An image without any instance, predicted or reference, has 1 everywhere: there
was nothing to get wrong. With instances but without a pair PQ and SQ are 0.

A score holds whole numbers and the IoUs of pairs. `pool` adds images up, and
all ratios follow from the sums, the same for any order of the images.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import math

import cv2
import numpy as np
import scipy.sparse
import scipy.sparse.csgraph

from rcmed_jax.eval.metrics import share

# Of AP, as papers on cells report it.
THRESHOLDS = (0.5, 0.75, 0.9)
# Largest dense table, in cells; 500 x 500 nuclei take 250,000. Above it pairs
# are sorted, which needs memory for pixels only.
DENSE = 4_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class InstanceScore:
  """The instances of one image, or of several after `pool`."""

  preds: int
  refs: int
  thresholds: tuple[float, ...]
  tp: tuple[int, ...]  # per threshold
  # IoU of each pair of PQ, ascending.
  ious: tuple[float, ...] = dataclasses.field(repr=False)
  aji_inter: int
  aji_union: int

  @property
  def ap(self) -> tuple[float, ...]:
    """TP / (TP + FP + FN) per threshold."""
    total = self.preds + self.refs
    return tuple(share(tp, total - tp) for tp in self.tp)

  @property
  def f1(self) -> tuple[float, ...]:
    """2 TP / (2 TP + FP + FN) per threshold."""
    return tuple(share(2 * tp, self.preds + self.refs) for tp in self.tp)

  @property
  def dq(self) -> float:
    """2 pairs / (predicted + reference instances)."""
    return share(2 * len(self.ious), self.preds + self.refs)

  @property
  def sq(self) -> float:
    """Mean IoU of the pairs; without one 0, or 1 if there is no instance."""
    if not self.ious:
      return float(not self.preds + self.refs)
    return math.fsum(self.ious) / len(self.ious)

  @property
  def pq(self) -> float:
    """DQ x SQ."""
    return self.dq * self.sq

  @property
  def aji(self) -> float:
    """Sum of intersections / sum of unions."""
    return share(self.aji_inter, self.aji_union)


def score(
  pred: np.ndarray,
  ref: np.ndarray,
  thresholds: Sequence[float] = THRESHOLDS,
) -> InstanceScore:
  """Returns what an image of predicted instances shares with its reference.

  Args:
    pred, ref: whole numbers of any shape, one number an instance, 0 outside.
      The numbers need not follow one another, nor agree.
    thresholds: of AP and F1, above 0 and at most 1.

  Raises:
    ValueError: shapes differ, numbers are not whole or below 0, a threshold
      is no IoU.

  Source: AJI, Kumar et al., IEEE TMI 2017; PQ, Kirillov et al., CVPR 2019;
  AP, Stringer et al., Nature Methods 2021.
  """
  _check(pred, ref, thresholds)
  pred, pred_G = _consecutive(pred)
  ref, ref_G = _consecutive(ref)
  pred_at, ref_at, inter = _overlaps(pred, ref, len(pred_G), len(ref_G))
  union = pred_G[pred_at] + ref_G[ref_at] - inter
  iou = inter / union
  aji_inter, aji_union = _aji(
    (pred_at, ref_at, inter, union, iou), pred_G, ref_G
  )
  return InstanceScore(
    preds=len(pred_G),
    refs=len(ref_G),
    thresholds=tuple(float(least) for least in thresholds),
    tp=tuple(
      _most_pairs(pred_at[iou >= least], ref_at[iou >= least])
      for least in thresholds
    ),
    ious=tuple(np.sort(iou[2 * inter > union]).tolist()),
    aji_inter=aji_inter,
    aji_union=aji_union,
  )


def pool(scores: Iterable[InstanceScore]) -> InstanceScore:
  """Returns the sums over images; every instance weighs the same.

  Raises:
    ValueError: no score, or scores of different thresholds.
  """
  scores = list(scores)
  if len({score.thresholds for score in scores}) != 1:
    raise ValueError(
      "instances of images add up if there is at least one image and all have "
      f"the same thresholds, received {sorted({s.thresholds for s in scores})}."
    )
  return InstanceScore(
    preds=sum(score.preds for score in scores),
    refs=sum(score.refs for score in scores),
    thresholds=scores[0].thresholds,
    tp=tuple(sum(tp) for tp in zip(*(s.tp for s in scores), strict=True)),
    ious=tuple(sorted(iou for score in scores for iou in score.ious)),
    aji_inter=sum(score.aji_inter for score in scores),
    aji_union=sum(score.aji_union for score in scores),
  )


def from_mask_IJ(mask_IJ: np.ndarray) -> np.ndarray:
  """Returns int32[I, J]: the connected parts of a mask, numbered from 1.

  Pixels that touch with a side or a corner belong together (8 neighbours), and
  so do cells that touch: where the reference has instances of its own, use
  these. Nothing is removed, however small.

  Raises:
    ValueError: the mask is no bool[I, J].
  """
  if mask_IJ.dtype != bool or mask_IJ.ndim != 2:
    raise ValueError(
      f"Expected a bool[I, J] mask, received {mask_IJ.dtype}{mask_IJ.shape}; "
      "threshold it, one picture at a time."
    )
  _, labels_IJ = cv2.connectedComponents(
    np.ascontiguousarray(mask_IJ).view(np.uint8), connectivity=8
  )
  return labels_IJ


def _consecutive(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the labels as 0..G, flat, and the sizes int64[G] of 1..G."""
  labels = labels.ravel().astype(np.int64, copy=False)
  largest = int(labels.max(initial=0))
  if largest > labels.size:
    values, labels, sizes = np.unique(
      labels, return_inverse=True, return_counts=True
    )
    if values[0] == 0:
      return labels, sizes[1:]
    return labels + 1, sizes
  sizes = np.bincount(labels, minlength=largest + 1)
  used = sizes > 0
  used[0] = False
  return np.cumsum(used)[labels], sizes[used]


def _overlaps(
  pred: np.ndarray, ref: np.ndarray, preds: int, refs: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Returns the pairs that share an element, from 0, and how many they share.

  In the order of pred, then ref.
  """
  both = (pred > 0) & (ref > 0)
  code = (pred[both] - 1) * np.int64(refs) + ref[both] - 1
  if preds * refs <= DENSE:
    shared = np.bincount(code, minlength=preds * refs)
    pairs = np.flatnonzero(shared)
    inter = shared[pairs]
  else:
    pairs, inter = np.unique(code, return_counts=True)
  pred_at, ref_at = np.divmod(pairs, refs)
  return pred_at, ref_at, inter


def _most_pairs(pred_at: np.ndarray, ref_at: np.ndarray) -> int:
  """Returns the size of the largest one-to-one choice among pairs."""
  if not len(pred_at):
    return 0
  graph = scipy.sparse.csr_array(
    (np.ones(len(pred_at), bool), (pred_at, ref_at))
  )
  match = scipy.sparse.csgraph.maximum_bipartite_matching(graph)
  return int(np.count_nonzero(match >= 0))


def _aji(
  pairs: tuple[np.ndarray, ...], pred_G: np.ndarray, ref_G: np.ndarray
) -> tuple[int, int]:
  """Returns AJI's two sums.

  Of partners that tie in IoU the one that shares more counts, then the one
  that comes first, so that the images' order changes nothing.
  """
  pred_at, ref_at, inter, union, iou = pairs
  order = np.lexsort((pred_at, -inter, -iou, ref_at))
  found, first = np.unique(ref_at[order], return_index=True)
  best = order[first]
  missed = np.delete(ref_G, found)
  unused = np.delete(pred_G, pred_at[best])
  total = union[best].sum() + missed.sum() + unused.sum()
  return int(inter[best].sum()), int(total)


def _check(
  pred: np.ndarray, ref: np.ndarray, thresholds: Sequence[float]
) -> None:
  if pred.shape != ref.shape:
    raise ValueError(
      f"predicted instances have the shape {pred.shape} but their reference "
      f"{ref.shape}; resize predictions to the original image, by nearest."
    )
  for labels in (pred, ref):
    if not np.issubdtype(labels.dtype, np.integer) or labels.min(initial=0) < 0:
      raise ValueError(
        "instances must be whole numbers of 0 and more, received "
        f"{labels.dtype}, smallest {labels.min(initial=0)}; `from_mask_IJ` "
        "numbers the parts of a mask."
      )
  if not all(0 < least <= 1 for least in thresholds):
    raise ValueError(
      f"thresholds are IoUs, above 0 and at most 1, received {thresholds}."
    )
