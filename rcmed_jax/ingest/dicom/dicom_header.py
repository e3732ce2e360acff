"""What is known of a DICOM file before its pixels are decoded.

All that is taken from a pydicom dataset is taken here, at once, and turned into
plain values: a dataset converts its elements as they are asked for, and damaged
ones raise then.
"""

import dataclasses
import pathlib
import types
from typing import Any

import numpy as np

from rcmed_jax.data import extras
from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest.volumes import volumes

SEG_CLASSES = (
  "1.2.840.10008.5.1.4.1.1.66.4",  # segmentation
  "1.2.840.10008.5.1.4.1.1.66.7",  # label map segmentation
)
RTSTRUCT_CLASS = "1.2.840.10008.5.1.4.1.1.481.3"

# Modalities of files with pixels that are no picture: doses, weights.
_NO_PICTURE = ("RTDOSE", "RWV", "REG", "PR")

_DEFLATED = "1.2.840.10008.1.2.1.99"


@dataclasses.dataclass(frozen=True)
class Plane:
  """Where a frame lies, in DICOM's millimetres: left, back and head grow."""

  position_3: tuple[float, ...]  # centre of the first pixel
  # Directions in which columns grow, then rows.
  orientation_6: tuple[float, ...]
  spacing_2: tuple[float, ...]  # between rows, between columns
  thickness: float = 1.0  # of the slice; the distance where there is but one


@dataclasses.dataclass(frozen=True, repr=False)
class Header:
  """Plain values. It has no repr: they identify a patient."""

  kind: str  # image, seg or rtstruct
  sop: str
  series: str
  study: str
  patient: str
  frame_of_reference: str
  modality: str
  rows: int
  columns: int
  frames: int
  samples: int
  bits: int  # allocated a sample
  photometric: str
  transfer: str  # the syntax's name
  planes: tuple[Plane, ...]  # one a frame; (): it says of none where it lies
  spacing_2: tuple[float, ...] | None  # where no plane tells it
  # Of masks, the images and series that they are of.
  images: frozenset[str]
  of_series: frozenset[str]


def pydicom() -> types.ModuleType:
  """The package, or what to install."""
  return extras.load("pydicom", "DICOM files", "dicom")


def open_file(path: pathlib.Path, where: str, *, pixels: bool) -> Any:
  """The pydicom dataset of a file. To be called by `privacy.attempt`.

  A file without preamble is taken for DICOM if its name says so.

  Raises:
    DataError: it is none.
  """
  package = pydicom()
  _check_deflated(package, path, where)
  try:
    return package.dcmread(path, stop_before_pixels=not pixels)
  except package.errors.InvalidDicomError:
    if path.suffix.lower() == ".dcm":
      dataset = package.dcmread(path, stop_before_pixels=not pixels, force=True)
      if "SOPClassUID" in dataset:
        if "TransferSyntaxUID" not in dataset.file_meta:
          # What DICOM takes where nothing is said: PS 3.5, 10.1.
          dataset.file_meta.TransferSyntaxUID = (
            package.uid.ImplicitVRLittleEndian
          )
        return dataset
  raise DataError(
    where, "file", "this is no DICOM file", "Leave it out of the folder"
  )


def parse(dataset: Any, where: str) -> Header:
  """The header of a dataset. To be called by `privacy.attempt`.

  Raises:
    DataError: it is neither picture nor mask, or cannot be used as such.
  """
  modality = _text(dataset, "Modality")
  sop_class = _text(dataset, "SOPClassUID")
  kind = "image"
  if sop_class in SEG_CLASSES or modality == "SEG":
    kind = "seg"
  elif sop_class == RTSTRUCT_CLASS or modality == "RTSTRUCT":
    kind = "rtstruct"
  elif "Rows" not in dataset or modality in _NO_PICTURE:
    raise DataError(
      where,
      "file",
      "it holds no picture",
      "Leave it out; images, segmentations and structure sets are read",
    )
  planes = _planes(dataset) if kind != "rtstruct" else ()
  return Header(
    kind=kind,
    sop=_text(dataset, "SOPInstanceUID"),
    series=_text(dataset, "SeriesInstanceUID"),
    study=_text(dataset, "StudyInstanceUID"),
    patient=_text(dataset, "PatientID"),
    frame_of_reference=_text(dataset, "FrameOfReferenceUID"),
    modality=modality,
    rows=int(dataset.get("Rows", 0) or 0),
    columns=int(dataset.get("Columns", 0) or 0),
    frames=max(int(dataset.get("NumberOfFrames", 1) or 1), 1),
    samples=int(dataset.get("SamplesPerPixel", 1) or 1),
    bits=int(dataset.get("BitsAllocated", 0) or 0),
    photometric=_text(dataset, "PhotometricInterpretation"),
    transfer=_transfer(dataset),
    planes=planes,
    spacing_2=_numbers(dataset, "PixelSpacing", 2),
    images=_references(dataset, "ReferencedSOPInstanceUID")
    if kind != "image"
    else frozenset(),
    of_series=_references(dataset, "SeriesInstanceUID")
    if kind != "image"
    else frozenset(),
  )


def first(dataset: Any, name: str) -> Any:
  """The first item of a sequence, or None; also of no dataset."""
  items = dataset.get(name) if dataset is not None else None
  return items[0] if items else None


def _check_deflated(
  package: types.ModuleType, path: pathlib.Path, where: str
) -> None:
  """Refuses what could unpack to more than memory, before pydicom does so."""
  if path.stat().st_size * volumes.MAX_RATIO <= volumes.MAX_BYTES:
    return
  try:
    meta = package.filereader.read_file_meta_info(path)
  except package.errors.InvalidDicomError:
    return
  if str(meta.get("TransferSyntaxUID", "")) == _DEFLATED:
    raise DataError(
      where,
      "file",
      f"it is deflated and larger than {volumes.MAX_BYTES // volumes.MAX_RATIO}"
      " bytes; what it unpacks to cannot be told beforehand",
      "Save it in another transfer syntax",
    )


def _planes(dataset: Any) -> tuple[Plane, ...]:
  """Where each frame lies; () where it is not said of all of them."""
  shared = first(dataset, "SharedFunctionalGroupsSequence")
  frames = dataset.get("PerFrameFunctionalGroupsSequence") or []
  if not frames:
    plane = _plane(position=dataset, orientation=dataset, measures=dataset)
    many = int(dataset.get("NumberOfFrames", 1) or 1) > 1
    return (plane,) if plane and not many else ()
  planes = []
  for own in frames:
    plane = _plane(
      position=first(own, "PlanePositionSequence")
      or first(shared, "PlanePositionSequence"),
      orientation=first(own, "PlaneOrientationSequence")
      or first(shared, "PlaneOrientationSequence"),
      measures=first(own, "PixelMeasuresSequence")
      or first(shared, "PixelMeasuresSequence"),
    )
    if plane is None:
      return ()
    planes.append(plane)
  return tuple(planes)


def _plane(position: Any, orientation: Any, measures: Any) -> Plane | None:
  where = _numbers(position, "ImagePositionPatient", 3)
  turned = _numbers(orientation, "ImageOrientationPatient", 6)
  spacing = _numbers(measures, "PixelSpacing", 2)
  if where is None or turned is None or spacing is None:
    return None
  columns, rows = np.array(turned[:3]), np.array(turned[3:])
  # Directions of length 1, at right angles: anything else is damaged.
  lengths = np.linalg.norm(columns), np.linalg.norm(rows)
  if not np.allclose(lengths, 1, atol=0.01) or abs(columns @ rows) > 0.01:
    return None
  if min(spacing) <= 0:
    return None
  thickness = _numbers(measures, "SliceThickness", 1) or (1.0,)
  return Plane(
    where, turned, spacing, thickness[0] if thickness[0] > 0 else 1.0
  )


def _numbers(dataset: Any, name: str, count: int) -> tuple[float, ...] | None:
  """Finite numbers of an element; None unless there are so many."""
  value = dataset.get(name) if dataset is not None else None
  if value is None or value == "":
    return None
  parts = value if hasattr(value, "__iter__") else [value]
  numbers = tuple(float(part) for part in parts)
  if len(numbers) != count or not np.isfinite(numbers).all():
    return None
  return numbers


def _text(dataset: Any, name: str) -> str:
  return str(dataset.get(name, "") or "").strip()


def _transfer(dataset: Any) -> str:
  """The name of its transfer syntax, if DICOM knows it."""
  meta = getattr(dataset, "file_meta", None)
  uid = meta.get("TransferSyntaxUID") if meta is not None else None
  known = uid is not None and uid.is_transfer_syntax and not uid.is_private
  return str(uid.name) if uid is not None and known else "unknown"


def _references(dataset: Any, name: str) -> frozenset[str]:
  """Values of an element anywhere below the dataset, itself excepted."""
  found: set[str] = set()
  waiting = _items(dataset)
  while waiting:
    item = waiting.pop()
    value = item.get(name)
    if value:
      found.add(str(value))
    waiting.extend(_items(item))
  return frozenset(found)


def _items(dataset: Any) -> list[Any]:
  return [
    item for element in dataset if element.VR == "SQ" for item in element.value
  ]
