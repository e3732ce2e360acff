"""NRRD volumes with label maps: `.nrrd`, `.seg.nrrd`, `.nhdr` beside its data.

See `pairs` for the layouts of folders, `volumes` for what becomes of slices.
pynrrd reads the header. The data are unpacked here, no further than the header
announces: pynrrd would unpack all there is.
"""

import bz2
import math
import pathlib
import types
from typing import Any
import zlib

import numpy as np

from rcmed_jax.data import extras
from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.volumes import geometry, pairs, volumes

SUFFIXES = (".seg.nrrd", ".nrrd", ".nhdr")

# Spaces of three axes -> their signs in RAS.
_SPACES = {
  "right-anterior-superior": (1, 1, 1),
  "ras": (1, 1, 1),
  "left-anterior-superior": (-1, 1, 1),
  "las": (-1, 1, 1),
  "left-posterior-superior": (-1, -1, 1),
  "lps": (-1, -1, 1),
}

# Names of the format's number types. Source: the definition of NRRD, "type".
_TYPES = {
  **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
  **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
  **dict.fromkeys(
    ("short", "short int", "signed short", "signed short int"), "i2"
  ),
  **dict.fromkeys(("int16", "int16_t"), "i2"),
  **dict.fromkeys(("ushort", "unsigned short", "unsigned short int"), "u2"),
  **dict.fromkeys(("uint16", "uint16_t"), "u2"),
  **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
  **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
  **dict.fromkeys(("longlong", "long long", "int64", "int64_t"), "i8"),
  **dict.fromkeys(("ulonglong", "uint64", "uint64_t"), "u8"),
  "float": "f4",
  "double": "f8",
}

_COLOURS = ("rgb-color", "3-color")

# Segments of a file by 3D Slicer that are looked for; labels are 8 or 16 bits.
_MOST_SEGMENTS = 65536


def matches(path: pathlib.Path) -> bool:
  """Whether it is a NRRD file, or a folder with one near its top."""
  return pairs.matches(path, SUFFIXES)


def open_source(path: pathlib.Path, options: sources.Options) -> sources.Source:
  """The volumes of a file or folder; see `pairs.Source`."""
  return pairs.Source(pathlib.Path(path), options, SUFFIXES, read)


def read(path: pathlib.Path, field: str) -> pairs.Stored:
  """A volume: mapped where it is raw, else in memory.

  Args:
    path: the file with the header.
    field: "image" or "labels", for the error.

  Raises:
    DataError: it is none, it breaks off, it is larger than `volumes.MAX_BYTES`
      unpacked, it has more than three axes, or does not say where they point.
  """
  nrrd = extras.load("nrrd", "NRRD files", "dicom")
  damaged = (
    nrrd.NRRDError,
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
    StopIteration,
    zlib.error,
  )
  try:
    return _read(nrrd, path, field)
  except DataError:
    raise
  except damaged as error:
    raise DataError(
      path,
      field,
      f"this is no sound NRRD volume ({type(error).__name__}: {error})",
      "Get the file again, or leave it out",
    ) from error


def _read(
  nrrd: types.ModuleType, path: pathlib.Path, field: str
) -> pairs.Stored:
  with path.open("rb") as file:
    header = nrrd.read_header(file)
    place = file.tell()
  sizes = [int(side) for side in header["sizes"]]
  colours = _has_colours(header, sizes)
  if len(sizes) - colours != 3 or min(sizes) < 1:
    raise DataError(
      path,
      field,
      f"its axes are {' x '.join(map(str, sizes))}",
      "Save a volume of three axes, grey or RGB",
    )
  grid = _grid(path, field, header, sizes, colours)
  voxels = _data(path, field, header, sizes, place)
  if colours:
    voxels = np.moveaxis(voxels, 0, -1)
  return pairs.Stored(grid, voxels, _segments(path, header))


def _has_colours(header: Any, sizes: list[int]) -> bool:
  kinds = header.get("kinds") or ["space"]
  return str(kinds[0]).lower() in _COLOURS and sizes[0] == 3


def _grid(
  path: pathlib.Path, field: str, header: Any, sizes: list[int], colours: bool
) -> geometry.Grid:
  space = str(header.get("space", "")).lower()
  if space not in _SPACES or header.get("space directions") is None:
    raise DataError(
      path,
      field,
      "it does not say to which side of the patient its axes point",
      "Save it with space, space directions and origin, as 3D Slicer does",
    )
  directions = np.array(
    [
      row if row is not None else [np.nan] * 3
      for row in header["space directions"]
    ],
    np.float64,
  )[int(colours) :]
  signs = np.array(_SPACES[space], np.float64)
  affine = np.eye(4)
  affine[:3, :3] = directions.T * signs[:, None]
  affine[:3, 3] = np.array(header.get("space origin", [0, 0, 0])) * signs
  one, two, three = sizes[int(colours) :]
  return geometry.Grid((one, two, three), affine)


def _data(
  path: pathlib.Path, field: str, header: Any, sizes: list[int], place: int
) -> np.ndarray:
  """The array, its axes as the header lists them."""
  kind = _TYPES.get(str(header["type"]).lower())
  encoding = str(header["encoding"]).lower()
  if kind is None or encoding not in ("raw", "gzip", "gz", "bzip2", "bz2"):
    raise DataError(
      path,
      field,
      f"its numbers are {header['type']}, {encoding}",
      "Save whole or real numbers, raw or gzip",
    )
  order = ">" if str(header.get("endian", "little")).lower() == "big" else "<"
  dtype = np.dtype(kind).newbyteorder(order)
  needed = math.prod(sizes) * dtype.itemsize
  source, place = _data_file(path, field, header, place)
  packed = source.stat().st_size - place
  if encoding == "raw":
    if packed < needed:
      raise _too_short(path, field, needed, packed)
    return np.memmap(source, dtype, "r", place, tuple(sizes), "F")
  # bzip2 packs zeros far tighter than deflate: only the size limits it.
  gzip = encoding.startswith("gz")
  volumes.check_bytes(path, field, needed, packed if gzip else needed)
  with source.open("rb") as file:
    file.seek(place)
    unpacker: Any = zlib.decompressobj(31) if gzip else bz2.BZ2Decompressor()
    content = unpacker.decompress(file.read(), needed)
  if len(content) < needed:
    raise _too_short(path, field, needed, len(content))
  return np.frombuffer(content, dtype).reshape(sizes, order="F")


def _data_file(
  path: pathlib.Path, field: str, header: Any, place: int
) -> tuple[pathlib.Path, int]:
  """The file with the data, and where in it they begin."""
  other = header.get("data file", header.get("datafile"))
  skip = int(header.get("byte skip", header.get("byteskip", 0)))
  lines = int(header.get("line skip", header.get("lineskip", 0)))
  if other is None:
    if skip or lines:
      raise DataError(path, field, "it skips bytes", "Save it without")
    return path, place
  name = str(other)
  if lines or skip < 0 or "%" in name or name != pathlib.Path(name).name:
    raise DataError(
      path,
      field,
      "its data are in several files, in another folder, or behind a header",
      "Save it as one .nrrd file",
    )
  return path.parent / name, skip


def _too_short(
  path: pathlib.Path, field: str, needed: int, there: int
) -> DataError:
  return DataError(
    path,
    field,
    f"its header announces {needed} bytes of voxels, there are {there}",
    "The file breaks off or is damaged: get it again",
  )


def _segments(path: pathlib.Path, header: Any) -> volumes.Classes:
  """Names that 3D Slicer writes beside the labels of a segmentation."""
  names = []
  for number in range(_MOST_SEGMENTS):
    name = header.get(f"Segment{number}_Name")
    if name is None:
      break
    value = int(header.get(f"Segment{number}_LabelValue", number + 1))
    names.append((value, str(name)))
  return volumes.classes_of(path, names)
