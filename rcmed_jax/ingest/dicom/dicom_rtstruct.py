"""DICOM structure sets: contours in millimetres become masks of slices.

A pixel belongs to a region if its centre lies inside an odd number of the
region's contours on its slice: inner contours are holes, and a contour that
runs in and out of a hole by one line (a keyhole) needs no care.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest.dicom import dicom_masks, dicom_seg, dicom_stack, privacy
from rcmed_jax.ingest.volumes import geometry

# Part of the distance between slices by which a contour may be off its slice.
_OFF_SLICE = 0.25

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


class Structures:
  """One open file.

  Args:
    dataset: a pydicom dataset. To be made in `privacy.attempt`.
    where: the file as faults name it.

  Raises:
    DataError: a region's name cannot be used as a class.
  """

  def __init__(self, dataset: Any, where: str):
    self._where = where
    identifiers = privacy.identifiers(dataset)
    names = {
      int(item.ROINumber): str(item.get("ROIName", ""))
      for item in dataset.StructureSetROISequence
    }
    self._regions: list[tuple[str, list[tuple[str, np.ndarray]]]] = []
    for item in dataset.get("ROIContourSequence") or []:
      number = int(item.ReferencedROINumber)
      if number not in names:
        raise DataError(
          where, "mask", "contours belong to no region", "Save it again"
        )
      name = dicom_seg.class_name(names[number], identifiers, where)
      self._regions.append((name, _contours(item)))

  @property
  def names(self) -> tuple[str, ...]:
    """See `dicom_masks.Reader`."""
    return tuple(dict.fromkeys(name for name, _ in self._regions))

  def pieces(self, stack: dicom_stack.Stack) -> Iterator[dicom_masks.Piece]:
    """See `dicom_masks.Reader`."""
    for name, contours in self._regions:
      try:
        yield from [
          dicom_masks.Piece(name, z, mask_IJ)
          for z, mask_IJ in self._region(contours, stack.grid)
        ]
      except DataError as error:
        yield dicom_masks.Piece(name, 0, None, error)

  def _region(
    self,
    contours: Sequence[tuple[str, np.ndarray]],
    grid: geometry.Grid | None,
  ) -> Iterator[tuple[int, np.ndarray]]:
    if grid is None:
      raise self._error("its series does not say where its slices lie")
    on_slice: dict[int, list[np.ndarray]] = {}
    for kind, points_N3 in contours:
      if kind not in _CLOSED:
        raise self._error("a region has contours that enclose nothing")
      if len(points_N3) < 3:
        raise self._error("a contour has fewer than three points")
      places_N3 = _in_voxels(points_N3, grid)
      z = int(np.rint(places_N3[:, 0].mean()))
      if np.abs(places_N3[:, 0] - z).max() > _OFF_SLICE:
        raise self._error("a contour lies between slices, or across them")
      if not 0 <= z < grid.shape[0]:
        raise self._error("a contour lies beyond the first or last slice")
      on_slice.setdefault(z, []).append(places_N3[:, 1:])
    for z, polygons in sorted(on_slice.items()):
      yield z, fill(polygons, (grid.shape[1], grid.shape[2]))

  def _error(self, what: str) -> DataError:
    return DataError(
      self._where,
      "mask",
      what,
      "Draw closed contours on the slices of the series, or leave the region "
      "out",
    )


def fill(polygons: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
  """bool[I, J]: pixels whose centres lie inside an odd number of polygons.

  Row by row, a centre is inside if the number of edges to its left is odd.

  Args:
    polygons: float[N, 2], row and column of their points; pixel (i, j) has its
      centre there.
    shape: rows and columns.
  """
  starts = np.concatenate(polygons)
  ends = np.concatenate([np.roll(points, -1, 0) for points in polygons])
  mask_IJ = np.zeros(shape, bool)
  low = np.minimum(starts[:, 0], ends[:, 0])
  high = np.maximum(starts[:, 0], ends[:, 0])
  # Edges hold their lower end and not their upper one, so that two that meet
  # on a row count once.
  first = max(int(np.ceil(low.min())), 0)
  last = min(int(np.ceil(high.max())), shape[0])
  for i in range(first, last):
    crossing = (low <= i) & (i < high)
    one, other = starts[crossing], ends[crossing]
    share = (i - one[:, 0]) / (other[:, 0] - one[:, 0])
    places = one[:, 1] + share * (other[:, 1] - one[:, 1])
    # The first column whose centre is not left of the edge.
    columns = np.clip(np.ceil(places), 0, shape[1]).astype(int)
    turns = np.bincount(columns, minlength=shape[1] + 1)[: shape[1]]
    mask_IJ[i] = np.cumsum(turns) % 2 == 1
  return mask_IJ


def _contours(item: Any) -> list[tuple[str, np.ndarray]]:
  """(kind, float64[N, 3]), in millimetres of DICOM, of a region's contours."""
  found = []
  for contour in item.get("ContourSequence") or []:
    numbers = np.array(contour.ContourData, np.float64)
    if not np.isfinite(numbers).all():
      raise ValueError("contour")
    found.append(
      (str(contour.get("ContourGeometricType", "")), numbers.reshape(-1, 3))
    )
  return found


def _in_voxels(points_N3: np.ndarray, grid: geometry.Grid) -> np.ndarray:
  """float[N, 3]: slice, row and column of points."""
  ras_N3 = points_N3 * (-1, -1, 1)
  return np.linalg.solve(grid.affine[:3, :3], (ras_N3 - grid.affine[:3, 3]).T).T
