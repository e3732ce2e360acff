"""One DICOM file: its header, its pictures, its masks."""

import dataclasses
import pathlib

from rcmed_jax.ingest.dicom import (
  dicom_header,
  dicom_masks,
  dicom_pixels,
  dicom_rtstruct,
  dicom_seg,
  privacy,
)

_SUFFIXES = (".dcm", ".dicom", ".ima")
_PREAMBLE = 128  # bytes, and then DICM


@dataclasses.dataclass(frozen=True)
class File:
  """A file and how faults name it."""

  path: pathlib.Path = dataclasses.field(repr=False)
  where: str


def is_dicom(path: pathlib.Path) -> bool:
  """Whether its name says so, or its first bytes."""
  if path.suffix.lower() in _SUFFIXES:
    return True
  try:
    with path.open("rb") as file:
      return file.read(_PREAMBLE + 4)[_PREAMBLE:] == b"DICM"
  except OSError:
    return False


def read_header(file: File) -> dicom_header.Header:
  """The header of a file.

  Raises:
    DataError: it is no DICOM file, or one that cannot be used.
  """
  return privacy.attempt(
    file.where,
    "header",
    "its header cannot be read",
    "Get the file again, or leave it out",
    lambda: dicom_header.parse(
      dicom_header.open_file(file.path, file.where, pixels=False), file.where
    ),
  )


def read_frames(file: File, header: dicom_header.Header) -> dicom_pixels.Frames:
  """The frames of an image file.

  Raises:
    DataError: they cannot be decoded.
  """
  return privacy.attempt(
    file.where,
    "image",
    "it cannot be read",
    "Get the file again, or leave it out",
    lambda: dicom_pixels.decode(
      dicom_header.open_file(file.path, file.where, pixels=True),
      header,
      file.where,
    ),
  )


def read_masks(file: File, *, assume_same: bool) -> dicom_masks.Reader:
  """A segmentation or structure set.

  Raises:
    DataError: it is none, or cannot be used.
  """

  def work() -> dicom_masks.Reader:
    dataset = dicom_header.open_file(file.path, file.where, pixels=True)
    header = dicom_header.parse(dataset, file.where)
    if header.kind == "seg":
      return dicom_seg.Segmentation(
        dataset, header, file.where, assume_same=assume_same
      )
    return dicom_rtstruct.Structures(dataset, file.where)

  return privacy.attempt(
    file.where,
    "mask",
    "its masks cannot be read",
    "Get the file again, or leave it out",
    work,
  )
