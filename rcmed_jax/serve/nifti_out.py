"""Masks and images as NIfTI.

Masks of a NIfTI image get the header of that image; what comes from DICOM gets
one that says where its voxels lie and nothing else.
"""

import pathlib
from typing import Any

import numpy as np

from rcmed_jax.data import extras
from rcmed_jax.ingest.volumes import geometry

# Text of a header that may name a patient.
_TEXTS = ("descrip", "aux_file", "intent_name", "db_name")


def write(
  path: pathlib.Path, voxels: np.ndarray, image_path: pathlib.Path
) -> None:
  """Writes voxels, bool or unsigned, on the grid of the image's file.

  Shape, affine, the codes of its orientation and the units are the image's.
  Texts and extensions are left out: they may tell whom the image is of.

  Args:
    path: ends in .nii.gz.
    voxels: in the order of the image's axes; further axes of length 1 that the
      image has come back.
    image_path: NIfTI, or Analyze, whose masks are NIfTI.
  """
  nibabel = extras.load("nibabel", "NIfTI files", "dicom")
  image = nibabel.load(image_path)
  values = voxels.astype(np.uint8 if voxels.dtype == bool else voxels.dtype)
  values = values.reshape(image.shape, order="F")
  # In nibabel, both kinds of NIfTI-2 are kinds of NIfTI-1 pairs.
  if not isinstance(image, nibabel.Nifti1Pair):
    nibabel.save(nibabel.Nifti1Image(values, image.affine), path)
    return
  kind = nibabel.Nifti1Image
  if isinstance(image, (nibabel.Nifti2Image, nibabel.Nifti2Pair)):
    kind = nibabel.Nifti2Image
  header = kind.header_class.from_header(image.header)
  header.set_data_dtype(values.dtype)
  header.set_slope_inter(1, 0)
  header.set_intent("none")
  header["cal_min"] = header["cal_max"] = 0
  for name in _TEXTS:
    if name in header:
      header[name] = b""
  header.extensions.clear()
  made = kind(values, image.affine, header)
  nibabel.save(made, path)


def write_on(path: pathlib.Path, voxels: Any, grid: geometry.Grid) -> None:
  """Writes voxels on a grid, in millimetres.

  Args:
    path: ends in .nii or .nii.gz.
    voxels: bool, whole numbers or float32 in the order of the grid's axes, or
      what gives slices of them along the first when indexed; or uint8 with a
      fourth axis of red, green and blue. Whole numbers stay whole.
  """
  nibabel = extras.load("nibabel", "NIfTI files", "dicom")
  slices = (np.asarray(voxels[z]) for z in range(grid.shape[0]))
  if len(voxels.shape) == 4:
    made = np.zeros(grid.shape, [(name, np.uint8) for name in "RGB"])
    for z, values_IJC in enumerate(slices):
      for place, name in enumerate("RGB"):
        made[name][z] = values_IJC[..., place]
  else:
    made = np.zeros(grid.shape, _smallest(voxels, grid.shape[0]))
    for z, values_IJ in enumerate(slices):
      made[z] = values_IJ
  image = nibabel.Nifti1Image(made, grid.affine)
  image.set_qform(grid.affine, code="scanner")
  image.set_sform(grid.affine, code="scanner")
  image.header.set_xyzt_units("mm")
  nibabel.save(image, path)


def _smallest(voxels: Any, depth: int) -> np.dtype:
  """A kind that readers of NIfTI know, and that loses nothing."""
  if isinstance(voxels, np.ndarray) and voxels.dtype == bool:
    return np.dtype(np.uint8)
  low, high, whole = 0.0, 0.0, True
  for z in range(depth):
    values = np.asarray(voxels[z])
    low = min(low, float(values.min()))
    high = max(high, float(values.max()))
    whole = whole and bool((values == np.rint(values)).all())
  for kind in (np.uint8, np.int16, np.uint16, np.int32):
    span = np.iinfo(kind)
    if whole and span.min <= low and high <= span.max:
      return np.dtype(kind)
  return np.dtype(np.float32)
