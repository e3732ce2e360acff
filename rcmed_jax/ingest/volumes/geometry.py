"""Where voxels lie in a patient, and slices as a radiologist looks at them.

A grid is a shape and an affine from voxel to millimetres, in RAS: x grows to
the patient's right, y to the front, z to the head. A `View` turns the voxels of
any grid into a stack of pictures and back, by turns and flips alone: nothing is
resampled. An oblique grid goes by its nearest axes, so its slices stay oblique.

  axis      slices          rows            columns
  axial     feet to head    front to back   right to left
  coronal   back to front   head to feet    right to left
  sagittal  right to left   head to feet    front to back

The patient's right is thus on the left of the screen; the front, or the head,
is up. Z counts slices; an array without axis letters lies as its grid does.
"""

from collections.abc import Iterable
import dataclasses
import itertools
from typing import Any

import numpy as np

from rcmed_jax.data.checks import DataError

# Towards which side slices, rows and columns grow. The convention of DICOM
# viewers; right, front and head have positive sense in RAS.
AXES = {
  "axial": "SPL",
  "coronal": "AIL",
  "sagittal": "LIP",
}

# Grids agree if no corner of one is further than this part of the smallest
# spacing from the other's: float32 headers round by a thousandth, while a tenth
# of a voxel moves no voxel to its neighbour.
TOLERANCE = 0.1

# Letter -> (side, sign).
_SIDES = {
  letter: (side, sign)
  for letters, sign in (("RAS", 1), ("LPI", -1))
  for side, letter in enumerate(letters)
}


@dataclasses.dataclass(frozen=True, eq=False)
class Grid:
  """A box of voxels in a patient.

  Raises:
    ValueError: the affine is not finite, or it maps voxels onto a plane.
  """

  shape: tuple[int, int, int]
  affine: np.ndarray  # float64[4, 4], voxel -> mm, RAS

  def __post_init__(self) -> None:
    affine = np.array(self.affine, np.float64)
    object.__setattr__(self, "affine", affine)
    object.__setattr__(self, "shape", tuple(int(side) for side in self.shape))
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
      raise ValueError("its affine is no 4 x 4 matrix of finite numbers")
    spacing = self.spacing_mm
    # Directions that span less than a thousandth of a cube.
    if min(spacing) <= 0 or not (
      abs(np.linalg.det(affine[:3, :3] / spacing)) >= 1e-3
    ):
      raise ValueError("its affine maps voxels onto a plane")

  @property
  def spacing_mm(self) -> tuple[float, float, float]:
    """Distance of neighbours along each axis of the array."""
    steps = np.linalg.norm(self.affine[:3, :3], axis=0)
    return _three(float(step) for step in steps)

  @property
  def origin_mm(self) -> tuple[float, float, float]:
    """Centre of the first voxel."""
    return _three(float(value) for value in self.affine[:3, 3])

  @property
  def code(self) -> str:
    """To which side each axis grows, by its nearest: "LAS"."""
    return "".join(
      ("RAS" if sign > 0 else "LPI")[side] for side, sign in self.sides
    )

  @property
  def sides(self) -> tuple[tuple[int, int], ...]:
    """(side, sign) for each axis of the array: 0 right, 1 front, 2 head.

    Each side goes to one axis, so that the sum of cosines is largest.
    """
    cosines = self.affine[:3, :3] / self.spacing_mm
    best = max(
      itertools.permutations(range(3)),
      key=lambda order: sum(abs(cosines[order[i], i]) for i in range(3)),
    )
    return tuple(
      (side, 1 if cosines[side, axis] > 0 else -1)
      for axis, side in enumerate(best)
    )

  def __str__(self) -> str:
    spacing = " x ".join(f"{step:.6g}" for step in self.spacing_mm)
    origin = ", ".join(f"{value:.6g}" for value in self.origin_mm)
    shape = " x ".join(map(str, self.shape))
    return f"{shape} voxels of {spacing} mm, {self.code}, origin ({origin})"


@dataclasses.dataclass(frozen=True)
class View:
  """A grid as a stack of pictures.

  `of` makes one; with its defaults a view leaves an array as it is. Arrays may
  have more axes behind these three, such as colours.
  """

  shape: tuple[int, int, int]  # slices, rows, columns
  spacing_mm: tuple[float, float, float] | None  # of the same three
  order: tuple[int, int, int] = (0, 1, 2)  # the array's axes that they are
  flipped: tuple[bool, bool, bool] = (False, False, False)

  @classmethod
  def of(cls, grid: Grid, axis: str) -> "View":
    """The view along an axis, one of `AXES`."""
    check_axis(axis)
    place = {side: (i, sign) for i, (side, sign) in enumerate(grid.sides)}
    found = [(*place[_SIDES[to][0]], _SIDES[to][1]) for to in AXES[axis]]
    order = _three(i for i, _, _ in found)
    return cls(
      shape=_three(grid.shape[i] for i in order),
      spacing_mm=_three(grid.spacing_mm[i] for i in order),
      order=order,
      flipped=_three(sign != wanted for _, sign, wanted in found),
    )

  def stack(self, voxels: np.ndarray) -> np.ndarray:
    """volume_ZIJ: the voxels as pictures. It shares their memory."""
    rest = range(3, voxels.ndim)
    turned_ZIJ = voxels.transpose(*self.order, *rest)
    return turned_ZIJ[_steps(self.flipped)]

  def restore(self, volume_ZIJ: np.ndarray) -> np.ndarray:
    """The voxels of pictures: what `stack` undoes. It shares their memory."""
    back = [self.order.index(axis) for axis in range(3)]
    return volume_ZIJ[_steps(self.flipped)].transpose(
      *back, *range(3, volume_ZIJ.ndim)
    )

  def picture(self, voxels: Any, z: int) -> np.ndarray:
    """picture_IJ: slice z alone.

    Args:
      voxels: an array, or what reads its parts from a file when indexed.
    """
    depth = voxels.shape[self.order[0]]
    index: list[slice | int] = [slice(None)] * 3
    index[self.order[0]] = depth - 1 - z if self.flipped[0] else z
    flat = np.asarray(voxels[tuple(index)])
    if self.order[1] > self.order[2]:
      flat = flat.swapaxes(0, 1)
    return flat[_steps(self.flipped[1:])]

  def grid(self, grid: Grid) -> Grid:
    """The grid of the stack, of which `grid` is the array's."""
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    for new, (axis, flip) in enumerate(
      zip(self.order, self.flipped, strict=True)
    ):
      turn[axis, new] = -1 if flip else 1
      turn[axis, 3] = grid.shape[axis] - 1 if flip else 0
    return Grid(self.shape, grid.affine @ turn)


def check_axis(axis: str) -> None:
  """Raises ValueError if it is none of `AXES`."""
  if axis not in AXES:
    raise ValueError(f"axis={axis!r} is none of {', '.join(AXES)}.")


def fit(
  image: Grid, labels: Grid, axis: str, path: object, *, assume_same: bool
) -> tuple[View, View]:
  """The views of an image and of its labels, whose pictures then agree.

  Labels may be stored in another order of axes than the image, so long as
  their voxels are the same ones.

  Args:
    path: of the labels, for the error.
    assume_same: the arrays fit voxel for voxel whatever their affines say.

  Raises:
    DataError: the grids differ; both are named.
  """
  view = View.of(image, axis)
  if assume_same and image.shape == labels.shape:
    return view, view
  other = View.of(labels, axis)
  if not assume_same and same(view.grid(image), other.grid(labels)):
    return view, other
  remedy = "Save the labels on the image's own grid"
  if image.shape == labels.shape:
    remedy += ", or say --assume-same-grid if they fit voxel for voxel"
  raise DataError(
    path,
    "grid",
    f"the labels have {labels}, their image has {image}",
    remedy,
  )


def same(one: Grid, other: Grid) -> bool:
  """Whether their voxels are the same, in the same order; see `TOLERANCE`."""
  if one.shape != other.shape:
    return False
  ends = np.array(
    [
      (*corner, 1)
      for corner in itertools.product(*((0, n - 1) for n in one.shape))
    ]
  )
  apart = (ends @ (one.affine - other.affine).T)[:, :3]
  largest = np.linalg.norm(apart, axis=1).max()
  return bool(largest <= TOLERANCE * min(*one.spacing_mm, *other.spacing_mm))


def _three(values: Iterable[Any]) -> tuple[Any, Any, Any]:
  one, two, three = values
  return one, two, three


def _steps(flipped: tuple[bool, ...]) -> tuple[slice, ...]:
  return tuple(slice(None, None, -1 if flip else 1) for flip in flipped)
