"""What clients send, made into images, texts and names, and not trusted.

Nothing is ever fetched: an image is in the request or it is none. What a header
announces is checked before anything is decoded.
"""

import base64
import binascii
import dataclasses
import pathlib
import re
import tempfile
import zipfile
import zlib

import numpy as np
import PIL.Image

from rcmed_jax.data import images, modalities
from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.dicom import dicom, dicom_file
from rcmed_jax.serve.errors import BadFieldError, without_path

# Formats of Pillow's that are opened at all.
FORMATS = ("PNG", "JPEG", "TIFF")

_DATA_URL = re.compile(
  r"data:(?:image/[\w.+-]+|application/(?:dicom|octet-stream))"
  r"(?:;[\w.+-]+=[\w.+-]+)*;base64,",
  re.IGNORECASE,
)
_LONGEST_NAME = 255  # bytes that a file system takes
# Of a name in an archive, its end; a number stands before it.
_NAME_BYTES = 200
# What systems lay beside files, in lower case; as `page/files.js` has it.
_BESIDE = ("dicomdir", "thumbs.db", "desktop.ini", "autorun.inf")
_READ = 1 << 20  # bytes of an archive at a time
# Of a .zip: its end record, what may follow that, and the directory's bytes a
# file, of which a path may have most. Source: APPNOTE.TXT, 4.3.16.
_END, _ZIP64 = b"PK\x05\x06", b"PK\x06\x07"
_END_BYTES, _COMMENT, _ENTRY_BYTES = 22, 65_535, 1000
# Of a file of one picture: 16 bits of three colours, and what is said of it.
_BYTES_A_PIXEL = 8


def from_text(text: str, field: str, *, bare: bool) -> bytes:
  """The bytes of a data URL.

  Args:
    bare: base64 without "data:...;base64," is taken, too.

  Raises:
    BadFieldError: it is none, such as the address of an image elsewhere.
  """
  found = _DATA_URL.match(text)
  if found is None and (not bare or ":" in text[:16]):
    raise BadFieldError(
      field,
      'expected the image itself, "data:image/png;base64,..."; addresses are '
      "not fetched",
      400,
    )
  start = found.end() if found else 0
  try:
    return base64.b64decode(text[start:].encode("ascii"), validate=True)
  except (binascii.Error, UnicodeEncodeError) as error:
    raise BadFieldError(field, "it is no base64", 400) from error


def picture(data: bytes, field: str, most_pixels: int) -> np.ndarray:
  """uint8[I, J, 3], RGB, of a PNG, JPEG, TIFF or DICOM file of one picture.

  The same numbers as `rcmed predict` gets from the file.

  Raises:
    BadFieldError: 400 if it is none of these, 413 if it has too many pixels.
  """
  # Read from disk as everything is, under a name that says nothing.
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "image"
    path.write_bytes(data)
    return picture_of(path, field, most_pixels)


def picture_of(path: pathlib.Path, field: str, most_pixels: int) -> np.ndarray:
  """As `picture`, of a file."""
  check_bytes(path.stat().st_size, field, most_pixels)
  try:
    if dicom_file.is_dicom(path):
      return _dicom(path, field, most_pixels)
    _check_header(path, field, most_pixels)
    return images.read(path)
  except DataError as error:
    raise BadFieldError(field, without_path(error), 400) from error


def check_bytes(size: int, field: str, most_pixels: int) -> None:
  """Raises BadFieldError, 413, for more bytes than a picture can need."""
  most = _BYTES_A_PIXEL * most_pixels
  if size > most:
    raise BadFieldError(field, f"it is larger than {most / 1e6:g} MB", 413)


def base_name(name: str, field: str) -> str:
  """The last part of a path of any system, safe to be a file's name.

  Raises:
    BadFieldError: nothing is left of it, or it holds control characters.
  """
  last = re.split(r"[\\/]", name)[-1].strip()
  if (
    not last.strip(".")
    or len(last.encode("utf-8", "replace")) > _LONGEST_NAME
    or not last.isprintable()
    or last.startswith((".", "~"))
    or re.search(r'[<>:"|?*]', last)
  ):
    raise BadFieldError(field, "it is no plain file name", 400)
  return last


def is_beside(name: str) -> bool:
  """Whether systems lay such files beside a series, unasked and mostly unseen.

  Hidden ones such as .DS_Store, Finder's __MACOSX, DICOMDIR, Thumbs.db.
  """
  *folders, last = re.split(r"[\\/]", name)
  return (
    last.startswith(".") or last.lower() in _BESIDE or "__MACOSX" in folders
  )


def is_archive(path: pathlib.Path) -> bool:
  """Whether it is a .zip by its name."""
  return path.suffix.lower() == ".zip"


def unpack(
  archive: pathlib.Path,
  folder: pathlib.Path,
  field: str,
  *,
  most_files: int,
  most_bytes: int,
) -> None:
  """Writes the files of a .zip into a folder, under numbers and base names.

  What an archive says of its sizes is not believed: bytes are counted as they
  come. Links become files; folders are left out, and what `is_beside`.

  Raises:
    BadFieldError: 400 if it is damaged, empty or locked, 413 if it holds more
      files or bytes than it may.
  """
  left = most_bytes
  if _directory_bytes(archive) > most_files * _ENTRY_BYTES:
    raise BadFieldError(field, f"more than {most_files} files", 413)
  try:
    with zipfile.ZipFile(archive) as packed:
      infos = [
        info
        for info in packed.infolist()
        if not (info.is_dir() or is_beside(info.filename))
      ]
      if len(infos) > most_files:
        raise BadFieldError(field, f"more than {most_files} files", 413)
      for number, info in enumerate(infos):
        path = folder / f"{number:05d}-{_plain(info.filename)}"
        with packed.open(info) as source, path.open("wb") as out:
          while part := source.read(_READ):
            left -= len(part)
            if left < 0:
              message = f"it unpacks to more than {most_bytes / 1e6:g} MB"
              raise BadFieldError(field, message, 413)
            out.write(part)
  # A locked one is a RuntimeError, an unknown packing a NotImplementedError.
  except (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    RuntimeError,
    UnicodeDecodeError,
  ) as error:
    raise BadFieldError(field, "it is no sound .zip file", 400) from error
  if not infos:
    raise BadFieldError(field, "it is an empty archive", 400)


def _plain(name: str) -> str:
  """The end of a path in an archive, as a file system takes it."""
  last = re.sub(r"[^\w.-]", "_", name.rpartition("/")[2])
  return last.encode()[-_NAME_BYTES:].decode(errors="ignore")


def _directory_bytes(archive: pathlib.Path) -> float:
  """Bytes of a .zip's directory, all of which would be read at once."""
  with archive.open("rb") as file:
    size = file.seek(0, 2)
    file.seek(max(size - _COMMENT - _END_BYTES - 20, 0))
    tail = file.read()
  place = len(tail) - _END_BYTES
  if not (tail[place:].startswith(_END) and tail.endswith(b"\0\0")):
    place = tail.rfind(_END)
  if place < 0 or len(tail) - place < _END_BYTES:
    return 0  # it is none, and will be refused
  # Sizes of another record count where there is one; none here is so large.
  if tail[max(place - 20, 0) : place].startswith(_ZIP64):
    return float("inf")
  return int.from_bytes(tail[place + 12 : place + 16], "little")


def _check_header(path: pathlib.Path, field: str, most_pixels: int) -> None:
  """Refuses other formats, and bombs, before a pixel is decoded."""
  try:
    with PIL.Image.open(path, formats=FORMATS) as header:
      columns, rows = header.size
  except PIL.Image.DecompressionBombError as error:
    raise _too_many(field, most_pixels) from error
  except Exception as error:  # Pillow raises what its parsers meet
    raise BadFieldError(
      field, f"it is no {', '.join(FORMATS)} or DICOM file", 400
    ) from error
  if rows * columns > most_pixels:
    raise _too_many(field, most_pixels)


def _dicom(path: pathlib.Path, field: str, most_pixels: int) -> np.ndarray:
  """The picture of a DICOM file of one frame, as training would see it."""
  header = dicom_file.read_header(dicom_file.File(path, field))
  if header.kind != "image" or header.frames > 1:
    raise BadFieldError(field, "expected a DICOM file of one picture", 400)
  if header.rows * header.columns > most_pixels:
    raise _too_many(field, most_pixels)
  faults: list[DataError] = []
  options = sources.Options(unlabelled="keep", dataset="request")
  source = dicom.open_source(path, options)
  for unit in source.units(faults.append):
    assert isinstance(unit, dicom.Unit)
    told = unit.modality or modalities.UNKNOWN
    unit = dataclasses.replace(unit, modality=told)
    for triplet in unit.triplets(faults.append):
      return triplet.image_IJC
  raise faults[0] if faults else BadFieldError(field, "it is empty", 400)


def _too_many(field: str, most_pixels: int) -> BadFieldError:
  return BadFieldError(
    field, f"it has more than {most_pixels / 1e6:g} million pixels", 413
  )
