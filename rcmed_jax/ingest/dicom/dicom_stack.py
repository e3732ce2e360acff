"""Frames of a DICOM series in their order in the patient.

Names and numbers of files say nothing of it: frames are sorted along the normal
of their plane, and their distance is that of their positions. What is no
regular stack (gaps, two frames at one place, other sizes or directions) is
refused: masks could be right on its frames, but not between them.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest.dicom import dicom_header
from rcmed_jax.ingest.volumes import geometry

# Directions that differ by less, in radians, are the same: headers keep some
# six digits, while patients are never turned by so little on purpose.
_ANGLE = 1e-3
# Part of the distance between slices, or pixels, by which one may be off.
# Positions are rounded to a tenth of a millimetre; a gap is off by all of it.
_OFF = 0.1

_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Stack:
  """Frames in order. It has no repr: it holds UIDs."""

  order: tuple[int, ...]  # frames as given, from the first slice to the last
  grid: geometry.Grid | None  # slices, rows, columns; None: nothing tells
  view: geometry.View
  sops: tuple[tuple[str, int], ...]  # of each slice: SOP instance, its frame


def stack(
  headers: Sequence[dicom_header.Header], where: str, axis: str
) -> Stack:
  """The stack of all frames of files of one series.

  Frames that do not say where they lie come as they are, one file only. A
  single frame is looked at along its own normal, whatever the axis.

  Raises:
    DataError: they are no regular stack.
  """
  frames = [
    (header.sop, number)
    for header in headers
    for number in range(header.frames)
  ]
  first = headers[0]
  sizes = sorted({(header.rows, header.columns) for header in headers})
  if len(sizes) > 1:
    told = " and ".join(f"{rows} x {columns}" for rows, columns in sizes[:4])
    raise _irregular(where, f"its slices have {told} pixels")
  if not all(header.planes for header in headers):
    if len(headers) > 1:
      raise _irregular(where, "some of its slices do not say where they lie")
    return _flat(first, frames)
  planes = [plane for header in headers for plane in header.planes]
  if len(planes) != len(frames):
    raise _irregular(where, "it says of more or fewer frames where they lie")
  order, affine = _sorted(planes, where)
  grid = geometry.Grid((len(planes), first.rows, first.columns), affine)
  if len(planes) == 1:
    # Only along its own normal is it a picture.
    axis = ("sagittal", "coronal", "axial")[grid.sides[0][0]]
  return Stack(
    order=order,
    grid=grid,
    view=geometry.View.of(grid, axis),
    sops=tuple(frames[i] for i in order),
  )


def affine_of(plane: dicom_header.Plane, step_3: np.ndarray) -> np.ndarray:
  """(slice, row, column) -> mm in RAS, of slices that are a step apart."""
  columns = np.array(plane.orientation_6[:3])
  rows = np.array(plane.orientation_6[3:])
  affine = np.eye(4)
  affine[:3, 0] = step_3
  affine[:3, 1] = rows * plane.spacing_2[0]
  affine[:3, 2] = columns * plane.spacing_2[1]
  affine[:3, 3] = plane.position_3
  return _RAS @ affine


def normal_of(plane: dicom_header.Plane) -> np.ndarray:
  """float[3]: at right angles to rows and columns, of length 1."""
  normal = np.cross(plane.orientation_6[:3], plane.orientation_6[3:])
  return normal / np.linalg.norm(normal)


def parallel(one: dicom_header.Plane, other: dicom_header.Plane) -> bool:
  """Whether rows and columns point the same way, at the same distances."""
  turned = np.subtract(one.orientation_6, other.orientation_6)
  return bool(
    np.abs(turned).max() <= _ANGLE
    and np.allclose(one.spacing_2, other.spacing_2, rtol=1e-3)
  )


def _flat(header: dicom_header.Header, frames: list[tuple[str, int]]) -> Stack:
  spacing = header.spacing_2
  known = spacing is not None and min(spacing) > 0
  return Stack(
    order=tuple(range(len(frames))),
    grid=None,
    view=geometry.View(
      (len(frames), header.rows, header.columns),
      (1.0, spacing[0], spacing[1]) if spacing is not None and known else None,
    ),
    sops=tuple(frames),
  )


def _sorted(
  planes: Sequence[dicom_header.Plane], where: str
) -> tuple[tuple[int, ...], np.ndarray]:
  """The order of planes, and the affine of the stack that they make."""
  first = planes[0]
  if not all(parallel(first, plane) for plane in planes):
    raise _irregular(
      where, "its slices differ in direction, or in the spacing of pixels"
    )
  normal = normal_of(first)
  heights = np.array([normal @ plane.position_3 for plane in planes])
  order = np.argsort(heights, kind="stable")
  if len(planes) == 1:
    return (0,), affine_of(first, normal * first.thickness)
  steps = np.diff(heights[order])
  usual = float(np.median(steps))
  small = 1e-3 * min(first.spacing_2)
  if (steps <= small).any():
    raise _irregular(
      where,
      f"{int((steps <= small).sum())} of its {len(planes)} slices lie where "
      "others do",
    )
  off = np.abs(steps - usual) > _OFF * usual
  if off.any():
    raise _irregular(
      where,
      f"its slices are {usual:.4g} mm apart, but {int(off.sum())} gaps are of "
      f"{steps[off].min():.4g} to {steps[off].max():.4g} mm",
    )
  positions = np.array([planes[i].position_3 for i in order])
  step_3 = (positions[-1] - positions[0]) / (len(planes) - 1)
  line = positions[0] + np.arange(len(planes))[:, None] * step_3
  allowed = _OFF * max(usual, *first.spacing_2)
  if np.linalg.norm(positions - line, axis=1).max() > allowed:
    raise _irregular(where, "its slices are shifted against each other")
  return tuple(int(i) for i in order), affine_of(planes[order[0]], step_3)


def _irregular(where: str, what: str) -> DataError:
  return DataError(
    where,
    "series",
    what,
    "Sort it into series of one regular stack each, or get missing slices",
  )
