"""Volumes that clients of the server send, answered slice by slice."""

from collections.abc import Callable
import pathlib
from typing import Any

import numpy as np

from rcmed_jax.apps import predict_one
from rcmed_jax.serve import api, nifti_out, scans, viewing, volumes
from rcmed_jax.serve.cleanup import Cleanup
from rcmed_jax.serve.engine import Engine


def ask_volume(
  engine: Engine,
  scan: scans.Scan,
  text: str,
  out: pathlib.Path,
  *,
  describe: bool,
  looking: scans.Looking,
  cleanup: Cleanup,
  on_slice: Callable[[], None],
) -> dict[str, Any]:
  """As `rcmed predict` answers and writes; see `volume_api.AskVolume`.

  Of DICOM, each mask also as NIfTI, and as PNG where it is of one picture, for
  viewers that show it so.
  """
  asked = predict_one.Asked(text, describe, looking, cleanup)
  said = volumes.answer(
    engine,
    scan,
    text,
    describe=describe,
    cleanup=cleanup,
    on_slice=on_slice,
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
