"""Volumes that clients of the server send, answered slice by slice."""

import pathlib

import numpy as np

from rcmed_jax.serve import nifti_out, scans, volumes
from rcmed_jax.serve.engine import Engine


def answer_volume(
  engine: Engine,
  path: pathlib.Path,
  text: str,
  out: pathlib.Path,
  *,
  describe: bool,
) -> dict[str, int]:
  """Class -> its value in the label map; see `monailabel.AnswerVolume`.

  Where classes overlap, the one that is named last is seen.
  """
  scan = scans.open_scan(path, text)
  if scan.kind != "nifti":
    raise NotImplementedError("of volumes, NIfTI files are answered here")
  found = volumes.answer(engine, scan, text, describe=describe)
  labels = scan.view.restore(np.zeros(scan.view.shape, np.uint8))
  names: dict[str, int] = {}
  for target in found.targets:
    if target.mask is not None and len(names) < np.iinfo(np.uint8).max:
      names[target.name] = len(names) + 1
      labels[target.mask] = names[target.name]
  nifti_out.write(out, labels, path)
  return names
