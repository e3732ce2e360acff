"""Masks as NIfTI, with the header of the image that they are of."""

import pathlib

import numpy as np

from rcmed_jax.data import extras

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
