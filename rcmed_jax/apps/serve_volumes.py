"""The files of an answer about a volume that a client of the server sent."""

import pathlib
from typing import Any

import numpy as np

from rcmed_jax.apps import predict_one
from rcmed_jax.serve import (
  api,
  nifti_out,
  scans,
  viewing,
  volume_answers,
  volumes,
)


def write_answer(
  out: pathlib.Path,
  scan: scans.Scan,
  wanted: volume_answers.Wanted,
  said: volumes.VolumeAnswer,
) -> dict[str, Any]:
  """As `rcmed predict` writes it; see `volume_api.WriteAnswer`.

  Of DICOM, each mask also as NIfTI, and as PNG where it is of one picture, for
  viewers that show it so.
  """
  asked = predict_one.Asked(
    wanted.text, wanted.describe, wanted.looking, wanted.cleanup
  )
  answered = predict_one.write(out, scan.path, scan, asked, said)
  answered["image"] = scan.kind  # its path is ours
  if scan.kind == "dicom":
    for number, target in enumerate(said.targets):
      if target.mask is not None:
        answered["targets"][number] |= _shown(out, scan, target.mask, number)
  predict_one.write_json(out / predict_one.ANSWER, answered)
  return answered


def _shown(
  out: pathlib.Path, scan: scans.Scan, mask: np.ndarray, number: int
) -> dict[str, str]:
  """Writes a mask for viewers; the fields that name its files."""
  names = {"nifti": f"segment-{number}.nii.gz"}
  nifti_out.write_on(out / names["nifti"], mask, viewing.grid_of(scan))
  if scan.view.shape[0] == 1:
    names["png"] = f"segment-{number}.png"
    mask_IJ = np.ascontiguousarray(scan.view.picture(mask, 0))
    (out / names["png"]).write_bytes(api.png(mask_IJ))
  return names
