"""Pixels of a DICOM file as numbers with a meaning, or as colours."""

import dataclasses
import re
from typing import Any

import numpy as np

from rcmed_jax.data import images
from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest.dicom import dicom_header, privacy
from rcmed_jax.ingest.volumes import volumes

INVERTED = "MONOCHROME1"  # its lowest value is white
_GREY = ("MONOCHROME2", INVERTED)
_PALETTE = "PALETTE COLOR"
_COLOURS = (
  "RGB",
  "YBR_FULL",
  "YBR_FULL_422",
  "YBR_PARTIAL_420",
  "YBR_ICT",
  "YBR_RCT",
)

_JPEG, _JPEG_2000 = b"\xff\xd8", b"\xff\x4f"

# Start of a JPEG frame (ITU-T T.81, table B.1) or JPEG-LS frame (T.87), then
# two bytes of length, one of precision, and the rows and columns.
_JPEG_SIZE = re.compile(
  rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf\xf7]...(..)(..)", re.DOTALL
)
# JPEG 2000's SIZ (T.800, A.5.1): length, capabilities, columns, rows.
_JPEG_2000_SIZE = re.compile(rb"\xff\x51....(....)(....)", re.DOTALL)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Frames:
  """Frames of a file. Grey ones are stored * slope + intercept."""

  stored: np.ndarray  # [Z, I, J], or uint8[Z, I, J, 3]
  slope_Z: np.ndarray
  intercept_Z: np.ndarray


def decode(dataset: Any, header: dicom_header.Header, where: str) -> Frames:
  """All frames of an image file.

  Palettes are looked up, YBR becomes RGB, colours become 8 bits.

  Raises:
    DataError: too small or large, of a kind that is not known, compressed in a
      way that cannot be undone, or damaged.
  """
  _check(header, where)
  return privacy.attempt(
    where,
    "image",
    f"its pixels ({header.transfer}) cannot be decoded",
    "Save it uncompressed, or leave it out",
    lambda: _decode(dataset, header, where),
  )


def check_coded(dataset: Any, header: dicom_header.Header, where: str) -> None:
  """Whether compressed frames are whole, and as large as the header says.

  A decoder would make room for what they say themselves, which may be more
  than there is, and fill what is missing with grey.

  Raises:
    DataError: one of them is not.
  """
  data = dataset.get("PixelData")
  uid = dataset.file_meta.get("TransferSyntaxUID")
  if not isinstance(data, bytes) or uid is None or not uid.is_encapsulated:
    return
  jpeg = b""
  for fragment in dicom_header.pydicom().encaps.generate_fragments(data):
    sizes = []
    # Headers come first; the rest is noise, in which anything is found.
    if fragment.startswith(_JPEG):
      _check_end(jpeg, where)
      jpeg = fragment
      sizes = [found.groups() for found in _JPEG_SIZE.finditer(fragment[:4096])]
    elif fragment.startswith(_JPEG_2000):
      found = _JPEG_2000_SIZE.search(fragment[:4096])
      sizes = [found.groups()] if found else []
    elif jpeg:
      jpeg += fragment
    for one, other in sizes[:1]:
      coded = int.from_bytes(one) * int.from_bytes(other)
      # Sides may be filled up to whole blocks.
      if coded > 2 * header.rows * header.columns + 4096:
        raise DataError(
          where,
          "image",
          "its compressed frames say to be larger than its header does",
          "The file is damaged: get it again",
        )
  _check_end(jpeg, where)


def _check_end(jpeg: bytes, where: str) -> None:
  """Whether a JPEG's last start of scan (ff da) has an end of image (ff d9)."""
  if jpeg and jpeg.rfind(b"\xff\xd9") <= jpeg.rfind(b"\xff\xda"):
    raise DataError(
      where,
      "image",
      "a compressed frame breaks off before its end",
      "Get the file again",
    )


def _check(header: dicom_header.Header, where: str) -> None:
  rows, columns = header.rows, header.columns
  if min(rows, columns) < images.MIN_SIDE or rows * columns > images.MAX_PIXELS:
    raise DataError(
      where,
      "image",
      f"it has {rows} x {columns} pixels; expected sides of at least "
      f"{images.MIN_SIDE} and at most {images.MAX_PIXELS // 10**6} million",
      "Leave it out",
    )
  needed = rows * columns * header.frames * header.samples * header.bits // 8
  if needed > volumes.MAX_BYTES:
    raise DataError(
      where,
      "image",
      f"its {header.frames} frames take {needed / 1e6:,.0f} MB, and at most "
      f"{volumes.MAX_BYTES / 1e6:,.0f} are decoded",
      "Cut it into parts",
    )
  grey = header.photometric in (*_GREY, _PALETTE) and header.samples == 1
  colour = header.photometric in _COLOURS and header.samples == 3
  if not grey and not colour:
    raise DataError(
      where,
      "image",
      "its photometric interpretation and samples are of no known picture",
      f"Save it as one of {', '.join((*_GREY, _PALETTE, *_COLOURS))}",
    )


def _decode(dataset: Any, header: dicom_header.Header, where: str) -> Frames:
  package = dicom_header.pydicom()
  check_coded(dataset, header, where)
  frames = package.pixels.pixel_array(dataset)
  if header.frames == 1:
    frames = frames[None]
  slope_Z = np.ones(header.frames, np.float32)
  intercept_Z = np.zeros(header.frames, np.float32)
  if header.photometric == _PALETTE:
    frames = package.pixels.apply_color_lut(frames, dataset)
  if frames.ndim == 4:
    if frames.shape[3] != 3:
      raise DataError(where, "image", "it has no three colours", "Save as RGB")
    frames = _eight_bits(frames, int(dataset.get("BitsStored", 8)))
  elif dataset.get("ModalityLUTSequence"):
    frames = package.pixels.apply_modality_lut(frames, dataset)
  else:
    slope_Z, intercept_Z = _rescale(dataset, header.frames)
  if frames.shape[:3] != (header.frames, header.rows, header.columns):
    raise DataError(
      where, "image", "its pixels are of another size", "Get the file again"
    )
  return Frames(frames, slope_Z, intercept_Z)


def _eight_bits(frames_ZIJC: np.ndarray, stored: int) -> np.ndarray:
  """Colours as uint8: of more bits, the upper eight of those that are used."""
  if frames_ZIJC.dtype == np.uint8:
    return frames_ZIJC
  used = frames_ZIJC.dtype.itemsize * 8
  if stored > 8 and frames_ZIJC.max() < 1 << stored:
    used = stored
  return (frames_ZIJC >> (used - 8)).astype(np.uint8)


def _rescale(dataset: Any, frames: int) -> tuple[np.ndarray, np.ndarray]:
  """Slope and intercept of each frame.

  Raises:
    ValueError: they are no finite numbers, or there is a slope of 0.
  """
  shared = dataset.get("SharedFunctionalGroupsSequence") or [None]
  own = dataset.get("PerFrameFunctionalGroupsSequence") or []
  pairs = []
  for z in range(frames):
    groups = [own[z] if z < len(own) else None, shared[0]]
    places = [
      items[0]
      for group in groups
      if group is not None
      and (items := group.get("PixelValueTransformationSequence"))
    ]
    place = places[0] if places else dataset
    slope, intercept = place.get("RescaleSlope"), place.get("RescaleIntercept")
    pairs.append(
      (
        1.0 if slope in (None, "") else float(slope),
        0.0 if intercept in (None, "") else float(intercept),
      )
    )
  pairs_Z2 = np.array(pairs, np.float32)
  if not np.isfinite(pairs_Z2).all() or (pairs_Z2[:, 0] == 0).any():
    raise ValueError("slope")
  return pairs_Z2[:, 0], pairs_Z2[:, 1]
