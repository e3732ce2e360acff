"""Masks of a volume without what slices that were read alone leave behind."""

import dataclasses

import numpy as np
from scipy import ndimage

# Voxels that share a face, an edge or a corner belong together.
_TOUCHING = np.ones((3, 3, 3), bool)


@dataclasses.dataclass(frozen=True)
class Cleanup:
  """What is done, in this order; by default nothing."""

  smooth: bool = False  # each voxel as two of it and its two neighbours in Z
  min_mm3: float = 0.0  # smaller pieces go
  largest: bool = False  # only the largest piece stays

  def __post_init__(self) -> None:
    if not 0 <= self.min_mm3 < float("inf"):
      raise ValueError(
        f"min_mm3={self.min_mm3}: expected a volume of 0 mm^3 or more."
      )


def clean(
  mask_ZIJ: np.ndarray, voxel_mm3: float | None, cleanup: Cleanup
) -> np.ndarray:
  """bool[Z, I, J]: the mask after clean-up.

  Of pieces of one size, the one that comes first in the array is the largest.

  Args:
    voxel_mm3: volume of a voxel; None: unknown.

  Raises:
    ValueError: pieces are to be measured and nothing tells the voxel's size.
  """
  if cleanup.min_mm3 and voxel_mm3 is None:
    raise ValueError(
      "min_mm3 needs the size of a voxel, which this file does not tell; leave "
      "it out."
    )
  if cleanup.smooth:
    mask_ZIJ = _majority(mask_ZIJ)
  if not (cleanup.min_mm3 or cleanup.largest):
    return mask_ZIJ
  # Pieces lie in the box around all of them, a small part of a volume.
  inside = _around(mask_ZIJ)
  pieces_ZIJ = np.zeros(mask_ZIJ[inside].shape, np.int32)
  ndimage.label(mask_ZIJ[inside], _TOUCHING, output=pieces_ZIJ)
  sizes = np.bincount(pieces_ZIJ.ravel(), minlength=1)
  sizes[0] = 0
  kept = sizes > 0
  if cleanup.min_mm3 and voxel_mm3 is not None:
    kept &= sizes * voxel_mm3 >= cleanup.min_mm3
  if cleanup.largest and kept.any():
    kept &= np.arange(len(sizes)) == sizes.argmax()
  cleaned_ZIJ = np.zeros_like(mask_ZIJ)
  cleaned_ZIJ[inside] = kept[pieces_ZIJ]
  return cleaned_ZIJ


def _around(mask_ZIJ: np.ndarray) -> tuple[slice, ...]:
  """The box around all that is set; an empty one where nothing is."""
  inside = []
  for axis in range(3):
    others = tuple(other for other in range(3) if other != axis)
    there = np.flatnonzero(mask_ZIJ.any(others))
    inside.append(slice(there[0], there[-1] + 1) if len(there) else slice(0))
  return tuple(inside)


def _majority(mask_ZIJ: np.ndarray) -> np.ndarray:
  """Whether two of three slices hold a voxel; the outermost count twice."""
  below_ZIJ = np.concatenate([mask_ZIJ[:1], mask_ZIJ[:-1]])
  above_ZIJ = np.concatenate([mask_ZIJ[1:], mask_ZIJ[-1:]])
  return (
    (below_ZIJ & mask_ZIJ) | (mask_ZIJ & above_ZIJ) | (below_ZIJ & above_ZIJ)
  )
