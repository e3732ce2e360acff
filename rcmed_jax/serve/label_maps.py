"""Label maps: what was found as one number a pixel or voxel, and their files.

Where targets overlap, the one that is named last is seen. Numbers run from 1
without a gap, and each of them is somewhere in the map: 3D Slicer names
segments by counting the values that it meets.
"""

from collections.abc import Iterable
import dataclasses
import pathlib

import cv2
import numpy as np

from rcmed_jax.data import extras
from rcmed_jax.serve import nifti_out, scans

# What they are written as.
PICTURES = (".png", ".nrrd")
VOLUMES = (".nii.gz", ".nrrd")

_MOST = np.iinfo(np.uint8).max
# Names that 3D Slicer's module takes for its own.
_RESERVED = ("background", "foreground_scribbles", "background_scribbles")
_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclasses.dataclass(frozen=True, eq=False)
class LabelMap:
  """Numbers and what they stand for."""

  labels: np.ndarray  # uint8, in the order of the masks' axes
  names: dict[str, int]  # class -> its number, ascending


def of(
  found: Iterable[tuple[str, np.ndarray]], shape: tuple[int, ...]
) -> LabelMap:
  """The label map of (class, bool mask) pairs; masks of one class are one.

  A class of which nothing is seen has no number. Of more than 255, the others
  are left out.
  """
  labels = np.zeros(shape, np.uint8)
  numbers: dict[str, int] = {}
  for name, mask in found:
    name = f"the {name}" if name in _RESERVED else name or "unnamed"
    if name not in numbers and len(numbers) == _MOST:
      continue
    labels[mask] = numbers.setdefault(name, len(numbers) + 1)
  seen = np.bincount(labels.ravel(), minlength=_MOST + 1) > 0
  names: dict[str, int] = {}
  turned = np.zeros(_MOST + 1, np.uint8)
  for name, number in numbers.items():
    if seen[number]:
      names[name] = turned[number] = len(names) + 1
  return LabelMap(turned[labels], names)


def write_picture(path: pathlib.Path, labels_IJ: np.ndarray) -> None:
  """Writes a picture's label map as PNG or NRRD, by the path's suffix.

  Raises:
    OSError: it could not be written.
  """
  if path.suffix == ".nrrd":  # one slice, as 3D Slicer holds a picture
    _write_nrrd(path, labels_IJ.T[:, :, None], _LPS, compressed=True)
  elif not cv2.imwrite(str(path), labels_IJ):
    raise OSError("a label map could not be written; is the disk full?")


def write_volume(
  path: pathlib.Path,
  labels: np.ndarray,
  scan: scans.Scan,
  *,
  compressed: bool = True,
) -> None:
  """Writes a volume's label map on the grid of its scan.

  That of a DICOM series has columns, rows and slices as its axes, the first
  slice as its origin, as other readers of series have them.

  Args:
    path: ends in one of `VOLUMES`.
    labels: uint8, in the order of the scan's axes.
    compressed: whether NRRD is.
  """
  if path.suffix != ".nrrd" and scan.kind == "nifti":
    nifti_out.write(path, labels, scan.path)
    return
  affine = _affine(scan)
  if scan.kind == "dicom":
    labels, affine = labels.transpose(2, 1, 0), affine[:, [2, 1, 0, 3]]
  if path.suffix == ".nrrd":
    _write_nrrd(path, labels, affine, compressed=compressed)
    return
  nibabel = extras.load("nibabel", "NIfTI files", "dicom")
  image = nibabel.Nifti1Image(labels, affine)
  image.header.set_xyzt_units("mm")
  nibabel.save(image, path)


def _affine(scan: scans.Scan) -> np.ndarray:
  """Voxels to millimetres, RAS, in the order of the scan's axes."""
  if scan.grid is not None:
    return scan.grid.affine
  # Of frames that do not say where they lie: one behind the other.
  affine = _LPS[:, [2, 1, 0, 3]].copy()
  affine[:3, :3] *= scan.view.spacing_mm or (1.0, 1.0, 1.0)
  return affine


def _write_nrrd(
  path: pathlib.Path,
  labels: np.ndarray,
  affine: np.ndarray,
  *,
  compressed: bool,
) -> None:
  nrrd = extras.load("nrrd", "Label maps as NRRD", "dicom")
  turned = _LPS @ affine
  nrrd.write(
    str(path),
    np.asfortranarray(labels),
    {
      "space": "left-posterior-superior",
      "space directions": turned[:3, :3].T,
      "space origin": turned[:3, 3],
      "encoding": "gzip" if compressed else "raw",
    },
  )
