"""What a viewer is shown of files that it cannot read itself.

A DICOM series becomes NIfTI with the values that were measured, a picture PNG
as the model sees it.
"""

import pathlib

import cv2
import numpy as np

from rcmed_jax.ingest.volumes import geometry
from rcmed_jax.serve import errors, nifti_out
from rcmed_jax.serve.scans import Scan

# Of a file on its way to a screen, time matters more than size.
_PACKED = (cv2.IMWRITE_PNG_COMPRESSION, 1)


def picture_png(image_IJC: np.ndarray) -> bytes:
  """uint8[I, J, 3], RGB, as a PNG file."""
  done, data = cv2.imencode(".png", image_IJC[..., ::-1], _PACKED)
  if not done:
    raise RuntimeError("a picture could not be written as PNG")
  return data.tobytes()


def slice_png(scan: Scan, number: int) -> bytes:
  """A slice of a scan, as the model sees it.

  Raises:
    BadFieldError: 404, it has no such slice.
    DataError: the scan cannot be read.
  """
  depth = scan.view.shape[0]
  if not 0 <= number < depth:
    raise errors.BadFieldError("number", f"expected 0 to {depth - 1}", 404)
  return picture_png(scan.some({number})[number])


def image_nifti(scan: Scan, out: pathlib.Path) -> None:
  """Writes a DICOM series as NIfTI on `grid_of(scan)`.

  Raises:
    DataError: the scan cannot be read.
  """
  if scan.values is None:
    raise ValueError(f"Expected a DICOM series, received a {scan.kind}.")
  nifti_out.write_on(out, scan.values(), grid_of(scan))


def grid_of(scan: Scan) -> geometry.Grid:
  """Where its voxels lie; of frames that do not tell, as if seen from below.

  Rows then go to the back and columns to the left, so that viewers show frames
  upright, a millimetre a pixel where no distance is told either.
  """
  if scan.grid is not None:
    return scan.grid
  affine = np.zeros((4, 4))
  slices, rows, columns = scan.view.spacing_mm or (1.0, 1.0, 1.0)
  affine[2, 0], affine[1, 1], affine[0, 2] = slices, -rows, -columns
  affine[3, 3] = 1
  return geometry.Grid(scan.view.shape, affine)
