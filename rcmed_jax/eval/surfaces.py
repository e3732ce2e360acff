"""Distances between the surfaces of two masks: NSD and HD95.

One definition of each, because the libraries of the field disagree by more
than methods do (Podobnik and Vrtovec, arXiv 2410.02630). Ours is that of
Metrics Reloaded and of MONAI's defaults:

  surface  the elements of a mask that touch its outside with a side: 4
           neighbours in a picture, 6 in a volume; what lies beyond the grid
           is outside. The mask without its erosion by a cross.
  d        from the centre of a surface element of one mask to the nearest
           one of the other, in mm, anisotropic spacing included.
  NSD      share of all surface elements, of both masks in one sum, whose d is
           at most the tolerance. Each element counts as one; DeepMind's
           surface-distance weighs them by area instead.
  HD95     the larger of the two 95th percentiles of d, one per mask, between
           neighbouring values linearly. Pooling both sides before taking the
           percentile, as MedPy does, lets a large mask hide a small one.

Empty masks. Both empty: NSD 1, HD95 0, there was nothing to get wrong. One
empty: NSD 0, and HD95 the diagonal of the grid, the largest distance that it
holds. MONAI has NaN for both HD95 and for the first NSD; a mean leaves NaN out,
so that missing a target altogether would cost nothing.

Without a known spacing all lengths are pixels, and `SurfaceScore.unit` says so.

In the names of arrays P counts surface elements, A the axes of the grid.
"""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np
import scipy.ndimage
import scipy.spatial

PERCENTILE = 95
# Steps on the grid that are tried first, and how far they reach to a side.
NEAR, REACH = 48, 4
# Surface elements that tell whether any step is worth trying.
SOME = 64
# 3 pixels of 0.1 mm are 0.30000000000000004 mm; they lie within 0.3 mm.
SLACK = 1e-9
# Elements of the grid per surface element from which a tree of points is
# faster than a distance transform; see benchmarks/results/surfaces.md.
TREE_FROM = 3


@dataclasses.dataclass(frozen=True, slots=True)
class SurfaceScore:
  """The surfaces of one predicted mask and its reference."""

  unit: str  # of all lengths: "mm" or "px"
  tolerances: tuple[float, ...]
  within: tuple[int, ...]  # surface elements of both masks, per tolerance
  pred: int  # surface elements of the predicted mask
  ref: int
  hd95: float

  @property
  def nsd(self) -> tuple[float, ...]:
    """within / (pred + ref) per tolerance; 1 where both masks are empty."""
    total = self.pred + self.ref
    return tuple(part / total if total else 1.0 for part in self.within)

  @property
  def one_empty(self) -> bool:
    """Whether one mask is empty and `hd95` therefore the grid's diagonal."""
    return (self.pred == 0) != (self.ref == 0)


def compare(
  pred: np.ndarray,
  ref: np.ndarray,
  tolerances: Sequence[float],
  spacing_mm: Sequence[float] | None = None,
) -> SurfaceScore:
  """Returns NSD and HD95 of two masks by the definitions above.

  Args:
    pred, ref: bool, a picture's [I, J] or a volume's [slice, row, column].
    tolerances: of NSD, in mm; in pixels where the spacing is unknown.
    spacing_mm: between centres, in the order of the axes; None: unknown.

  Raises:
    ValueError: masks of different shapes, of other numbers than bool or of
      other than 2 or 3 axes; a spacing or tolerance that is not a length.

  Source: Maier-Hein et al., Metrics Reloaded, Nature Methods 2024; MONAI's
  compute_surface_dice and compute_hausdorff_distance, but for empty masks.
  """
  _check(pred, ref)
  tolerances = _checked_tolerances(tolerances)
  spacing_A = _checked_spacing(spacing_mm, pred.ndim)
  steps = _near(spacing_A)
  edges = _edges((pred, ref), margin_A=np.abs(steps[0]).max(axis=0))
  places = [np.flatnonzero(edge) for edge in edges]
  counts = [len(place_P) for place_P in places]
  if all(counts):
    sides = [
      _distances(place_P, other, spacing_A, steps)
      for place_P, other in zip(places, edges[::-1], strict=True)
    ]
    hd95 = max(float(np.percentile(d_P, PERCENTILE)) for d_P in sides)
    within = tuple(
      sum(int(np.count_nonzero(d_P <= length * (1 + SLACK))) for d_P in sides)
      for length in tolerances
    )
  else:
    hd95 = 0.0 if not any(counts) else _diagonal(pred.shape, spacing_A)
    within = (0,) * len(tolerances)
  return SurfaceScore(
    unit="px" if spacing_mm is None else "mm",
    tolerances=tolerances,
    within=within,
    pred=counts[0],
    ref=counts[1],
    hd95=hd95,
  )


def surface(mask: np.ndarray) -> np.ndarray:
  """Returns bool: the elements of a mask that touch its outside with a side.

  The worked case, a square of three by three in its own grid:

    1 1 1      1 1 1
    1 1 1  ->  1 0 1
    1 1 1      1 1 1
  """
  # Neighbours by shifts: the erosion's set in a tenth of its time.
  inner = mask.copy()
  for axis in range(mask.ndim):
    ours, theirs = np.moveaxis(inner, axis, 0), np.moveaxis(mask, axis, 0)
    ours[1:] &= theirs[:-1]
    ours[:-1] &= theirs[1:]
    ours[[0, -1]] = False
  return mask & ~inner


def _near(spacing_A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns int[N, A], steps on the grid, and their lengths, shortest first.

  No step that is left out is shorter than one of them.
  """
  sides = [2 * REACH + 1] * len(spacing_A)
  offset_NA = np.indices(sides).reshape(len(spacing_A), -1).T - REACH
  length_N = np.sqrt(((offset_NA * spacing_A) ** 2).sum(axis=1))
  order_N = np.argsort(length_N, kind="stable")[:NEAR]
  order_N = order_N[length_N[order_N] < (REACH + 1) * spacing_A.min()]
  return offset_NA[order_N], length_N[order_N]


def _edges(
  masks: Sequence[np.ndarray], margin_A: np.ndarray
) -> list[np.ndarray]:
  """Returns bool: the surfaces, in a box around both and an empty margin."""
  boxes = [_box_A2(mask) for mask in masks]
  filled = [box_A2 for box_A2 in boxes if box_A2 is not None]
  if not filled:
    return [np.zeros([0] * mask.ndim, bool) for mask in masks]
  low_A = np.min(filled, axis=0)[:, 0] - margin_A
  shape_A = np.max(filled, axis=0)[:, 1] + margin_A - low_A
  edges = [np.zeros(shape_A, bool) for _ in masks]
  for mask, edge, box_A2 in zip(masks, edges, boxes, strict=True):
    if box_A2 is not None:
      part = mask[tuple(slice(*bounds) for bounds in box_A2)]
      moved_A2 = box_A2 - low_A[:, None]
      edge[tuple(slice(*bounds) for bounds in moved_A2)] = surface(part)
  return edges


def _box_A2(mask: np.ndarray) -> np.ndarray | None:
  """Returns int[A, 2]: from and to where there is any of it; None: nowhere."""
  bounds = []
  for axis in range(mask.ndim):
    others = tuple(other for other in range(mask.ndim) if other != axis)
    filled = np.flatnonzero(mask.any(axis=others))
    if not filled.size:
      return None
    bounds.append((filled[0], filled[-1] + 1))
  return np.array(bounds)


def _distances(
  from_P: np.ndarray,
  edge: np.ndarray,
  spacing_A: np.ndarray,
  steps: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
  """Returns float64[P] in no order: from each place to the nearest of an edge.

  Most masks lie close to each other: what meets the edge within the `steps` of
  `_near` is found step by step, all at once. For the rest there is a tree of
  points or a distance transform. All are exact.

  Args:
    from_P: places in the grid of `edge` as one row, in which a step is a
      number; the margin keeps them on it.
  """
  there, reach_N = edge.reshape(-1), steps[0] @ np.array(edge.strides)
  left_P, found = from_P, []
  some_P = from_P[:: -(-len(from_P) // SOME)]
  if there.take(some_P[:, None] + reach_N).any():  # else most are far
    for reach, length in zip(reach_N, steps[1], strict=True):
      missed_P = ~there.take(left_P + reach)
      before, left_P = len(left_P), left_P.compress(missed_P)
      found.append(np.full(before - len(left_P), length))
      if not len(left_P):
        break
  if len(left_P):
    from_AP, to_AP = (
      np.stack(np.unravel_index(place_P, edge.shape))
      for place_P in (left_P, np.flatnonzero(edge))
    )
    found.append(_far(from_AP, to_AP, spacing_A))
  return np.concatenate(found)


def _far(
  from_AP: np.ndarray, to_AP: np.ndarray, spacing_A: np.ndarray
) -> np.ndarray:
  """Returns float64[P]: to the nearest point, found the faster way."""
  both_AP = np.concatenate([from_AP, to_AP], axis=1)
  low_A1 = both_AP.min(axis=1, keepdims=True)
  elements = math.prod((both_AP.max(axis=1) + 1 - low_A1[:, 0]).tolist())
  dense = TREE_FROM * both_AP.shape[1] > elements
  from_AP, to_AP = from_AP - low_A1, to_AP - low_A1
  nearest = _by_transform if dense else _by_tree
  step_AP = from_AP - nearest(from_AP, to_AP, spacing_A)
  return np.sqrt(((step_AP * spacing_A[:, None]) ** 2).sum(axis=0))


def _by_tree(
  from_AP: np.ndarray, to_AP: np.ndarray, spacing_A: np.ndarray
) -> np.ndarray:
  """Returns int[A, P]: of `to_AP` the one nearest to each of `from_AP`."""
  # Split at the middle, without boxes drawn tight around their points, trees
  # of surfaces build and search faster, a small shell within a large one, every
  # point of it about as near, 9 times. Nothing else changes.
  tree = scipy.spatial.KDTree(
    to_AP.T * spacing_A, leafsize=32, balanced_tree=False, compact_nodes=False
  )
  _, place_P = tree.query(from_AP.T * spacing_A)
  return to_AP[:, place_P]


def _by_transform(
  from_AP: np.ndarray, to_AP: np.ndarray, spacing_A: np.ndarray
) -> np.ndarray:
  outside = np.ones(
    np.maximum(from_AP.max(axis=1), to_AP.max(axis=1)) + 1, bool
  )
  outside[tuple(to_AP)] = False
  # Which is nearest; how far that is, is asked of few of them.
  nearest = scipy.ndimage.distance_transform_edt(
    outside, sampling=spacing_A, return_distances=False, return_indices=True
  )
  return np.asarray(nearest)[(slice(None), *from_AP)]


def _diagonal(shape: Sequence[int], spacing_A: np.ndarray) -> float:
  """Returns the distance between the centres of opposite corners."""
  return math.hypot(*((np.array(shape) - 1) * spacing_A).tolist())


def _check(pred: np.ndarray, ref: np.ndarray) -> None:
  if pred.shape != ref.shape:
    raise ValueError(
      f"a predicted mask has the shape {pred.shape} but its reference "
      f"{ref.shape}; resize predictions to the original image."
    )
  if pred.dtype != bool or ref.dtype != bool:
    raise ValueError(
      f"masks must be bool, received {pred.dtype} and {ref.dtype}; "
      "threshold them first."
    )
  if pred.ndim not in (2, 3):
    raise ValueError(
      f"masks must have 2 or 3 axes, received the shape {pred.shape}; compare "
      "them one at a time."
    )


def _checked_tolerances(tolerances: Sequence[float]) -> tuple[float, ...]:
  if not all(0 <= length < math.inf for length in tolerances):
    raise ValueError(
      f"tolerances must be lengths of 0 or more, received {tolerances}."
    )
  return tuple(float(length) for length in tolerances)


def _checked_spacing(
  spacing_mm: Sequence[float] | None, axes: int
) -> np.ndarray:
  if spacing_mm is None:
    return np.ones(axes)
  if len(spacing_mm) != axes or not all(
    0 < length < math.inf for length in spacing_mm
  ):
    raise ValueError(
      f"spacing_mm must hold {axes} positive lengths, one per axis in their "
      f"order, received {spacing_mm}; None stands for an unknown spacing."
    )
  return np.array(spacing_mm, np.float64)
