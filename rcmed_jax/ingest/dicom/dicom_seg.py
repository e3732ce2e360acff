"""DICOM segmentations: binary, fractional and label maps.

A frame is placed by the image that it refers to, and by its position; where
both are there, they must agree, so that a mask on another grid is never laid
over an image of the same size.
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

import numpy as np

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest.dicom import (
  dicom_header,
  dicom_masks,
  dicom_pixels,
  dicom_stack,
  privacy,
)
from rcmed_jax.ingest.volumes import geometry, volumes

# Part of a fraction's full scale from which a pixel is in the mask.
_INSIDE = 0.5


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class _Frame:
  """Where a frame belongs."""

  segment: int | None  # None: its values are the numbers of segments
  sops: frozenset[tuple[str, int | None]]  # images, and frames of them from 1
  plane: dicom_header.Plane | None


class Segmentation:
  """One open file.

  Args:
    dataset: a pydicom dataset, with pixels. To be made in `privacy.attempt`.
    header: of it.
    where: the file as faults name it.
    assume_same: its frames fit the images they refer to pixel for pixel.

  Raises:
    DataError: a segment's name cannot be used as a class, or the file is too
      large.
  """

  def __init__(
    self,
    dataset: Any,
    header: dicom_header.Header,
    where: str,
    *,
    assume_same: bool,
  ):
    self._dataset = dataset
    self._header = header
    self._where = where
    self._assume_same = assume_same
    self._classes = self._segments()
    self._frames = self._read_frames()
    pixels = header.rows * header.columns
    if pixels * header.bits // 8 > volumes.MAX_BYTES or pixels < 1:
      raise DataError(
        where, "mask", "its frames are of no usable size", "Leave it out"
      )
    kind = str(dataset.get("SegmentationType", "BINARY"))
    full = float(dataset.get("MaximumFractionalValue", 1) or 1)
    self._least = _INSIDE * full if kind == "FRACTIONAL" else 1

  @property
  def names(self) -> tuple[str, ...]:
    """See `dicom_masks.Reader`."""
    return tuple(dict.fromkeys(self._classes.values()))

  def pieces(self, stack: dicom_stack.Stack) -> Iterator[dicom_masks.Piece]:
    """See `dicom_masks.Reader`."""
    slices = {sop: z for z, sop in enumerate(stack.sops)}
    for frame, values_IJ in zip(self._frames, self._pixels(), strict=True):
      if not values_IJ.any():
        continue
      error = None
      z = None
      try:
        z = self._place(frame, stack, slices)
      except DataError as caught:
        error = caught
      if z is None and error is None:
        continue
      for name, mask_IJ in self._masks(frame, values_IJ):
        yield dicom_masks.Piece(name, z or 0, mask_IJ, error)

  def _segments(self) -> dict[int, str]:
    """Number -> class."""
    identifiers = privacy.identifiers(self._dataset)
    found = {}
    for item in self._dataset.SegmentSequence:
      number = int(item.SegmentNumber)
      if number:  # label maps describe their background as 0
        name = str(item.get("SegmentLabel", ""))
        found[number] = class_name(name, identifiers, self._where)
    return found

  def _read_frames(self) -> list[_Frame]:
    dataset, header = self._dataset, self._header
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dicom_header.first(dataset, "SharedFunctionalGroupsSequence")
    if len(own) != header.frames:
      raise DataError(
        self._where,
        "mask",
        f"it has {header.frames} frames and says of {len(own)} what they are",
        "Save it again",
      )
    return [
      _Frame(
        segment=_segment(groups, shared),
        sops=_sources(groups),
        plane=header.planes[i] if header.planes else None,
      )
      for i, groups in enumerate(own)
    ]

  def _pixels(self) -> Iterator[np.ndarray]:
    """Frame after frame: one at a time in memory, unpacked from their bits."""
    package = dicom_header.pydicom()
    dicom_pixels.check_coded(self._dataset, self._header, self._where)
    frames = package.pixels.iter_pixels(self._dataset, raw=True)
    for _ in range(self._header.frames):
      yield privacy.attempt(
        self._where,
        "mask",
        "its pixels cannot be decoded",
        "Save it uncompressed, or leave it out",
        lambda: next(frames),
      )

  def _masks(
    self, frame: _Frame, values_IJ: np.ndarray
  ) -> Iterator[tuple[str, np.ndarray]]:
    if frame.segment is not None:
      if frame.segment not in self._classes:
        raise DataError(
          self._where,
          "mask",
          f"nothing names its segment {frame.segment}",
          "Save it with a name for each segment",
        )
      yield self._classes[frame.segment], values_IJ >= self._least
      return
    for number in np.unique(values_IJ[values_IJ > 0]):
      if int(number) in self._classes:
        yield self._classes[int(number)], values_IJ == number

  def _place(
    self,
    frame: _Frame,
    stack: dicom_stack.Stack,
    slices: dict[tuple[str, int], int],
  ) -> int | None:
    """The slice of a frame; None where its image is not in this stack.

    Raises:
      DataError: it is on another grid, or nowhere.
    """
    rows, columns = self._header.rows, self._header.columns
    told = {
      z
      for (sop, number), z in slices.items()
      if frame.sops & {(sop, None), (sop, number + 1)}
    }
    shape = stack.grid.shape if stack.grid else stack.view.shape
    same_size = shape[1:] == (rows, columns)
    if len(told) == 1 and same_size and (self._assume_same or not frame.plane):
      return told.pop()
    if stack.grid is None:
      if len(told) == 1 and same_size:
        return told.pop()
      if not told:
        return None
    if stack.grid is not None and frame.plane is not None:
      z = _slice_of(frame.plane, (rows, columns), stack.grid)
      if z is not None and (not told or z in told):
        return z
      grid = _grid(frame.plane, (rows, columns))
      raise DataError(
        self._where,
        "grid",
        f"a frame has {grid}; the series has {stack.grid}",
        "Save it on the series' own grid, or say --assume-same-grid if frames "
        "fit the images that they refer to pixel for pixel",
      )
    raise DataError(
      self._where,
      "mask",
      f"a frame of {rows} x {columns} says of no slice of {shape[1]} x "
      f"{shape[2]} that it belongs there",
      "Save it with references to its images, or with positions",
    )


def class_name(name: str, identifiers: frozenset[str], where: str) -> str:
  """A class named in a DICOM file.

  Raises:
    DataError: it is empty, holds a marker, or an identifier of the file.
  """
  if privacy.gives_away(name, identifiers):
    raise DataError(
      where,
      "class",
      "a class's name holds a name or number that identifies somebody",
      "Rename it, or clear that name or number in the file",
    )
  return volumes.class_name(where, name)


def _segment(groups: Any, shared: Any) -> int | None:
  for place in (groups, shared):
    item = dicom_header.first(place, "SegmentIdentificationSequence")
    if item is not None:
      return int(item.ReferencedSegmentNumber)
  return None


def _sources(groups: Any) -> frozenset[tuple[str, int | None]]:
  found = set()
  for derived in groups.get("DerivationImageSequence") or []:
    for source in derived.get("SourceImageSequence") or []:
      numbers = source.get("ReferencedFrameNumber")
      if numbers is None or numbers == "":
        numbers = [None]
      elif not hasattr(numbers, "__iter__"):
        numbers = [numbers]
      for number in numbers:
        found.add(
          (
            str(source.get("ReferencedSOPInstanceUID", "")),
            None if number is None else int(number),
          )
        )
  return frozenset(found)


def _grid(plane: dicom_header.Plane, size: tuple[int, int]) -> geometry.Grid:
  step = dicom_stack.normal_of(plane) * plane.thickness
  return geometry.Grid((1, *size), dicom_stack.affine_of(plane, step))


def _slice_of(
  plane: dicom_header.Plane, size: tuple[int, int], grid: geometry.Grid
) -> int | None:
  """The slice of a grid that a frame's pixels are those of."""
  rows, columns = size
  if grid.shape[1:] != size:
    return None
  frame = dicom_stack.affine_of(plane, dicom_stack.normal_of(plane))
  corners_4N = np.array(
    [(0, i, j, 1) for i in (0, rows - 1) for j in (0, columns - 1)], float
  ).T
  # Where the corners of the frame are among the voxels of the series.
  place_3N = (np.linalg.solve(grid.affine, frame @ corners_4N))[:3]
  z = int(np.rint(place_3N[0].mean()))
  expected_3N = corners_4N[:3].copy()
  expected_3N[0] = z
  off_mm = (place_3N - expected_3N) * np.array(grid.spacing_mm)[:, None]
  allowed = geometry.TOLERANCE * min(grid.spacing_mm)
  near = np.linalg.norm(off_mm, axis=0).max() <= allowed
  return z if near and 0 <= z < grid.shape[0] else None
