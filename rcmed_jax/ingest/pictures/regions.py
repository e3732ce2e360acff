"""Parts of large pictures, without decoding the rest where the file allows it.

A TIFF in tiles or strips, uncompressed, deflated or JPEG, is read by those that
a part touches. PNG, and TIFF of other compressions, are decoded whole, up to a
limit.
"""

import dataclasses
import pathlib
import struct
from typing import Any, Protocol
import zlib

import cv2
import numpy as np

from rcmed_jax.data import extras
from rcmed_jax.data.checks import DataError

# 750 MB as RGB. What is decoded whole may be no larger.
MAX_WHOLE_PIXELS = 250_000_000
# Nor may a tile or a strip that is decoded for a part of it.
MAX_SEGMENT_PIXELS = 80_000_000

SUFFIXES = (".tif", ".tiff", ".svs", ".png")
PNG_START = b"\x89PNG\r\n\x1a\n"

# TIFF's numbers for how pixels are packed and what they mean.
PLAIN, JPEG, DEFLATE = 1, 7, (8, 32946)
NO_PREDICTOR, DIFFERENCES = 1, 2
WHITE_IS_ZERO, PALETTE = 0, 3
RGB = 2

# JPEG's marker of Adobe that says: three channels are RGB as they stand.
RGB_MARKER = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"

# Millimetres of a pixel under a microscope; others are a printer's.
SPACING_MM = (1e-5, 0.02)
MM = {2: 25.4, 3: 10.0}  # of TIFF's units, inch and centimetre


class Picture(Protocol):
  """A picture of which parts are read."""

  shape: tuple[int, int]
  by_parts: bool  # or every part costs as much as all of it
  spacing_mm: tuple[float, float] | None

  def read(self, rows: slice, columns: slice) -> np.ndarray:
    """uint8 or uint16[I, J] or uint8[I, J, 3] of the part; see `open_picture`.

    Raises:
      DataError: it cannot be decoded.
    """
    ...

  def close(self) -> None:
    """Ends its use."""
    ...


def open_picture(path: pathlib.Path, field: str) -> Picture:
  """The picture; as field "mask" its numbers, as "image" its colours, RGB.

  Raises:
    DataError: it is missing, or of a kind that is not read.
    ImportError: it is a TIFF, and tifffile is not installed.
  """
  try:
    with path.open("rb") as file:
      start = file.read(26)
  except OSError as error:
    raise DataError(
      path, field, "it cannot be opened", "Correct the path"
    ) from error
  if start.startswith(PNG_START) and len(start) == 26:
    columns, rows, bits, kind = struct.unpack(">IIBB", start[16:26])
    # A palette's numbers are lost when it is decoded.
    if field == "mask" and kind == 3 and bits:
      raise DataError(path, field, "it has a palette", "Save it as grey")
    return _Whole(path, field, (rows, columns))
  return _Tiff(path, field)


class _Whole:
  """A picture that is decoded when a part of it is first read."""

  by_parts = False

  def __init__(
    self,
    path: pathlib.Path,
    field: str,
    shape: tuple[int, int],
    spacing_mm: tuple[float, float] | None = None,
  ):
    if shape[0] * shape[1] > MAX_WHOLE_PIXELS:
      raise DataError(
        path,
        field,
        f"it has {shape[0]} x {shape[1]} pixels and cannot be read in parts",
        "Save it as a tiled TIFF, deflated or JPEG",
      )
    self.shape, self.spacing_mm = shape, spacing_mm
    self._path, self._field = path, field
    self._pixels: np.ndarray | None = None

  def read(self, rows: slice, columns: slice) -> np.ndarray:
    """See `Picture`."""
    if self._pixels is None:
      grey = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH
      flags = cv2.IMREAD_COLOR if self._field == "image" else grey
      pixels = cv2.imread(
        str(self._path), flags | cv2.IMREAD_IGNORE_ORIENTATION
      )
      if pixels is None or pixels.shape[:2] != self.shape:
        raise DataError(
          self._path,
          self._field,
          "its pixels cannot be decoded",
          "Save it again as a tiled TIFF or PNG",
        )
      self._pixels = pixels[..., ::-1] if pixels.ndim == 3 else pixels
    return self._pixels[rows, columns]

  def close(self) -> None:
    """See `Picture`."""
    self._pixels = None


@dataclasses.dataclass(frozen=True)
class _Segments:
  """Tiles or strips: how large, and how many side by side."""

  rows: int
  columns: int
  across: int


class _Tiff:
  """A TIFF's first page."""

  def __init__(self, path: pathlib.Path, field: str):
    tifffile = extras.load("tifffile", "Slides", "dicom")
    self._path, self._field = path, field
    self._file: Any = None
    try:
      self._file = tifffile.TiffFile(path)
      self._page: Any = self._file.pages[0]
      self.shape = self._page.imagelength, self._page.imagewidth
      self._segments = _segments(self._page)
      self.spacing_mm = _spacing(self._page)
    except Exception as error:
      # Its parser raises what it meets: struct.error, KeyError, IndexError...
      if self._file:
        self._file.close()
      raise DataError(
        path,
        field,
        f"it is no TIFF that can be read ({error})",
        "Save it again",
      ) from error
    self._whole: _Whole | None = None
    try:
      if self._check():
        self._whole = _Whole(path, field, self.shape, self.spacing_mm)
    except DataError:
      self._file.close()
      raise
    self.by_parts = self._whole is None

  def read(self, rows: slice, columns: slice) -> np.ndarray:
    """See `Picture`."""
    if self._whole:
      return self._whole.read(rows, columns)
    size = self._segments
    rows_, columns_ = rows.stop - rows.start, columns.stop - columns.start
    part = None
    for r in range(rows.start // size.rows, -(-rows.stop // size.rows)):
      for c in range(
        columns.start // size.columns, -(-columns.stop // size.columns)
      ):
        pixels = self._segment(r * size.across + c)
        if part is None:
          part = np.zeros((rows_, columns_, *pixels.shape[2:]), pixels.dtype)
        top, left = r * size.rows - rows.start, c * size.columns - columns.start
        inside = pixels[max(-top, 0) :, max(-left, 0) :][
          : rows_ - max(top, 0), : columns_ - max(left, 0)
        ]
        top, left = max(top, 0), max(left, 0)
        part[top : top + inside.shape[0], left : left + inside.shape[1]] = (
          inside
        )
    if part is None:
      raise ValueError(f"Expected a part of the picture, received {rows}.")
    return part

  def close(self) -> None:
    """See `Picture`."""
    self._file.close()
    if self._whole:
      self._whole.close()

  def _check(self) -> bool:
    """Whether it must be decoded whole; refuses what is not read at all."""
    page, size = self._page, self._segments
    bits, samples = page.bitspersample, page.samplesperpixel
    if page.sampleformat not in (1, None) or bits not in (1, 8, 16):
      raise DataError(
        self._path,
        self._field,
        f"it has {bits} bits a number, of TIFF's kind {page.sampleformat}",
        "Save it with 8 bits",
      )
    if self._field == "image" and bits == 16:
      raise DataError(
        self._path,
        self._field,
        "it has 16 bits, of which nothing says how many are in use",
        "Save it with 8 bits",
      )
    if self._field == "mask" and samples != 1:
      raise DataError(
        self._path, self._field, "it is in colour", "Save it as grey"
      )
    packing = (
      page.compression in (PLAIN, *DEFLATE)
      and bits != 1
      and page.predictor in (NO_PREDICTOR, DIFFERENCES)
      and page.fillorder == 1
    )
    jpeg = page.compression == JPEG and bits == 8
    plain = page.planarconfig == 1 and samples in (1, 3, 4)
    small = size.rows * size.columns <= MAX_SEGMENT_PIXELS
    return not ((packing or jpeg) and plain and small)

  def _segment(self, index: int) -> np.ndarray:
    """The pixels of a tile or strip, its own rows and columns."""
    page = self._page
    try:
      length = page.databytecounts[index]
      if not length:  # A tile that the scanner did not visit.
        fill = 255 if self._field == "image" else 0
        channels = (3,) if self._field == "image" else ()
        size = self._segments
        return np.full((size.rows, size.columns, *channels), fill, np.uint8)
      handle = page.parent.filehandle
      handle.seek(page.dataoffsets[index])
      data = handle.read(length)
      if page.compression == JPEG:
        pixels = _jpeg(data, page)
      else:
        size = self._segments
        top = index // size.across * size.rows
        # A tile is always whole, the last strip is not.
        left = size.rows if page.is_tiled else self.shape[0] - top
        pixels = _unpacked(data, page, min(size.rows, left), size.columns)
    except Exception as error:
      raise DataError(
        self._path,
        self._field,
        f"its tile or strip {index} cannot be decoded ({error})",
        "Save it again",
      ) from error
    return self._shown(pixels)

  def _shown(self, pixels: np.ndarray) -> np.ndarray:
    """Numbers of a mask, colours of an image."""
    if self._field == "mask":
      return pixels[..., 0]
    page = self._page
    if page.photometric == PALETTE:
      # Its colours have 16 bits.
      return (
        (page.colormap[:, pixels[..., 0]] >> 8)
        .astype(np.uint8)
        .transpose(1, 2, 0)
      )
    if page.photometric == WHITE_IS_ZERO:
      pixels = 255 - pixels
    if pixels.shape[2] == 1:
      return np.repeat(pixels, 3, axis=2)
    return pixels[..., :3]


def _segments(page: Any) -> _Segments:
  if page.is_tiled:
    size = page.tilelength, page.tilewidth
  else:
    size = min(page.rowsperstrip, page.imagelength), page.imagewidth
  if min(size) < 1 or min(page.imagelength, page.imagewidth) < 1:
    raise ValueError("it has no pixels")
  return _Segments(*size, -(-page.imagewidth // size[1]))


def _unpacked(data: bytes, page: Any, rows: int, columns: int) -> np.ndarray:
  """The numbers of a tile or strip, uncompressed or deflated."""
  samples, bits = page.samplesperpixel, page.bitspersample
  kind = np.dtype(f"{page.parent.byteorder}u{bits // 8}")
  count = rows * columns * samples
  if page.compression != PLAIN:
    # No more than belongs there, whatever a few bytes may blow up to.
    data = zlib.decompressobj().decompress(data, count * kind.itemsize)
  values = np.frombuffer(data, kind, count).reshape(rows, columns, samples)
  values = values.astype(kind.newbyteorder("="))
  if page.predictor == DIFFERENCES:
    values = np.cumsum(values, axis=1, dtype=values.dtype)
  return values


def _jpeg(data: bytes, page: Any) -> np.ndarray:
  """The pixels of a JPEG stream whose tables may stand in the page."""
  # SOI, then what comes first: the marker, the tables without SOI and EOI.
  head = RGB_MARKER if page.photometric == RGB else b""
  tables = page.jpegtables[2:-2] if page.jpegtables else b""
  stream = data[:2] + head + tables + data[2:]
  grey = page.samplesperpixel == 1
  pixels = cv2.imdecode(
    np.frombuffer(stream, np.uint8),
    (cv2.IMREAD_GRAYSCALE if grey else cv2.IMREAD_COLOR)
    | cv2.IMREAD_IGNORE_ORIENTATION,
  )
  if pixels is None:
    raise ValueError("it is no JPEG")
  return pixels[..., None] if grey else pixels[..., ::-1]


def _spacing(page: Any) -> tuple[float, float] | None:
  """Millimetres of a row and a column, where they are a microscope's."""
  tags = [
    page.tags.get(name)
    for name in ("YResolution", "XResolution", "ResolutionUnit")
  ]
  if not all(tags):
    return None
  (y, y_of), (x, x_of), unit = (tag.value for tag in tags)
  if not (y and x and y_of and x_of) or int(unit) not in MM:
    return None
  found = MM[int(unit)] * y_of / y, MM[int(unit)] * x_of / x
  low, high = SPACING_MM
  return found if all(low <= value <= high for value in found) else None
