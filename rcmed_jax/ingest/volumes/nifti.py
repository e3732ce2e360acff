"""NIfTI volumes with label maps: `.nii`, `.nii.gz`, or `.hdr` with `.img`.

See `pairs` for the layouts of folders, `volumes` for what becomes of slices. A
header that tells no orientation (both of its codes are 0) is taken as NIfTI's
first method has it, its first axis growing to the left.
"""

from collections.abc import Iterator
import contextlib
import math
import pathlib
import types
from typing import Any
import zlib

import numpy as np

from rcmed_jax.data import extras
from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import guards, sources
from rcmed_jax.ingest.volumes import geometry, pairs, volumes

SUFFIXES = (".nii.gz", ".nii", ".hdr")

# NIfTI's units -> millimetres. Unknown ones are taken for those.
_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001, "unknown": 1.0}

# nibabel's level of faults that change what a header says, such as the code of
# an orientation; below it are those that change nothing.
_DAMAGED = 30


def matches(path: pathlib.Path) -> bool:
  """Whether it is a NIfTI file, or a folder with one near its top."""
  return pairs.matches(path, SUFFIXES)


def open_source(path: pathlib.Path, options: sources.Options) -> sources.Source:
  """The volumes of a file or folder; see `pairs.Source`."""
  return pairs.Source(pathlib.Path(path), options, SUFFIXES, read)


def read(path: pathlib.Path, field: str) -> pairs.Stored:
  """A volume: mapped where the file is not compressed, else in memory.

  Args:
    path: the file.
    field: "image" or "labels", for the error.

  Raises:
    DataError: it is none, it breaks off, it is larger than `volumes.MAX_BYTES`
      unpacked, or it has more than three axes.
  """
  nibabel = extras.load("nibabel", "NIfTI files", "dicom")
  # What nibabel raises of files that are none, and of damaged ones.
  damaged = (
    nibabel.filebasedimages.ImageFileError,
    nibabel.spatialimages.HeaderDataError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    MemoryError,
    zlib.error,
  )
  try:
    with guards.NO_WARNINGS, _STRICT:
      return _read(nibabel, path, field)
  except DataError:
    raise
  except damaged as error:
    raise DataError(
      path,
      field,
      f"this is no sound NIfTI volume ({type(error).__name__}: {error})",
      "Get the file again, or leave it out",
    ) from error


@contextlib.contextmanager
def _damage_raises() -> Iterator[None]:
  """nibabel mends no header and says so in no log, as one thread would ask.

  What it puts in the place of a damaged code may be another orientation.
  """
  nibabel = extras.load("nibabel", "NIfTI files", "dicom")
  with (
    guards.without_logs(nibabel.imageglobals.logger.name),
    nibabel.imageglobals.ErrorLevel(_DAMAGED),
  ):
    yield


_STRICT = guards.Shared(_damage_raises)


def _read(
  nibabel: types.ModuleType, path: pathlib.Path, field: str
) -> pairs.Stored:
  image = nibabel.load(path)
  if not isinstance(
    image, (nibabel.Nifti1Pair, nibabel.Nifti2Pair, nibabel.AnalyzeImage)
  ):
    raise DataError(path, field, "this is no NIfTI file", "Save it as .nii.gz")
  shape = _shape(path, field, image.shape)
  stored = image.get_data_dtype()
  _check_size(path, field, image, math.prod(shape) * stored.itemsize)
  affine = np.array(image.affine, np.float64)
  units = getattr(image.header, "get_xyzt_units", lambda: ("mm",))()[0]
  affine[:3] *= _MM.get(units, 1.0)
  grid = geometry.Grid(shape, affine)
  voxels = image.dataobj.get_unscaled().reshape(shape, order="F")
  if stored.fields:
    return pairs.Stored(grid, _colours(path, field, voxels))
  if stored.kind not in "iuf":
    raise DataError(
      path, field, f"its voxels are {stored}", "Save real numbers"
    )
  slope, intercept = image.dataobj.slope, image.dataobj.inter
  if (slope, intercept) == (1, 0):
    return pairs.Stored(grid, voxels)
  return pairs.Stored(grid, volumes.Scaled(voxels, slope, intercept))


def _shape(
  path: pathlib.Path, field: str, shape: tuple[int, ...]
) -> tuple[int, int, int]:
  """Three axes: further ones of length 1 go, missing ones are added."""
  if any(side < 1 for side in shape) or not shape:
    raise DataError(path, field, f"its shape is {shape}", "Get the file again")
  if any(side != 1 for side in shape[3:]):
    raise DataError(
      path,
      field,
      f"it has {len(shape)} axes, {' x '.join(map(str, shape))}",
      "Save each of its volumes as a file of its own",
    )
  one, two, three = (*shape[:3], 1, 1)[:3]
  return int(one), int(two), int(three)


def _check_size(
  path: pathlib.Path, field: str, image: Any, needed: int
) -> None:
  """Before a voxel is read: whether the file can hold what its header says."""
  place = image.file_map["image"].filename
  packed = pathlib.Path(place).stat().st_size
  if str(place).endswith((".gz", ".bz2", ".zst")):
    volumes.check_bytes(path, field, needed, packed)
  elif packed - image.dataobj.offset < needed:
    raise DataError(
      path,
      field,
      f"its header announces {needed} bytes of voxels, the file has {packed}",
      "The file breaks off or is damaged: get it again",
    )


def _colours(path: pathlib.Path, field: str, voxels: np.ndarray) -> np.ndarray:
  """uint8 with a fourth axis of red, green and blue."""
  names = voxels.dtype.names or ()
  if names[:3] != ("R", "G", "B"):
    raise DataError(
      path, field, f"its voxels have parts {names}", "Save grey or RGB"
    )
  return np.stack([voxels[name] for name in "RGB"], axis=-1)
