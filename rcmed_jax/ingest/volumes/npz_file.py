"""Arrays of an npz file, one at a time and no larger than they may be."""

import math
import pathlib
import zipfile

import numpy as np

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest.volumes import volumes


def member(path: pathlib.Path, name: str) -> np.ndarray | None:
  """An array of an npz, its size checked before it is unpacked.

  Objects are refused: to unpickle them is to run what they say.

  Args:
    path: the file.
    name: the array's.

  Raises:
    DataError: it is too large, or no array of numbers.
    npz.DAMAGED: the file is damaged.
  """
  with zipfile.ZipFile(path) as archive:
    try:
      info = archive.getinfo(f"{name}.npy")
    except KeyError:
      return None
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      raise DataError(path, name, "it is not deflated", "Save it by numpy")
    with archive.open(info) as file:
      version = np.lib.format.read_magic(file)
      read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
      }.get(version)
      if read is None:
        raise ValueError(f"version {version} of the npy format")
      shape, _, dtype = read(file)
    if dtype.hasobject:
      raise DataError(
        path, name, "it holds Python objects", "Save plain arrays of numbers"
      )
    needed = math.prod(shape) * dtype.itemsize
    volumes.check_bytes(path, name, needed, info.compress_size + 1)
    with archive.open(info) as file:
      return np.lib.format.read_array(file, allow_pickle=False)
