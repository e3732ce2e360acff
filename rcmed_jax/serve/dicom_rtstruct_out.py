"""Masks as a DICOM structure set: contours in millimetres, slice by slice.

A contour follows the edges of the mask's pixels, a hundredth of a pixel inside
of them. Two kinds of readers thus find the same pixels again: those that ask
which centres lie inside of an odd number of contours, and those that round
points to whole pixels and fill up to the line and with it. It encloses the area
of the pixels themselves. Holes, and parts, are contours of their own.

The file carries its series' patient and study, as an archive needs it to: it is
as confidential as the images.
"""

from collections.abc import Sequence
import datetime
import pathlib
from typing import Any

import cv2
import numpy as np

import rcmed_jax
from rcmed_jax.data import extras
from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest.dicom import dicom_header, privacy
from rcmed_jax.serve import dicom_seg_out, segment_codes

LABEL = "STRUCTURES"

# From the centre of a pixel to a contour around it, in pixels.
_EDGE = 0.49

# A series of its own, beside the images' and the segmentation's.
_SERIES = 901

# Of a study as a whole; retired, but what structure sets refer to (DICOM PS
# 3.3, C.8.8.5).
_STUDY_CLASS = "1.2.840.10008.3.1.2.3.1"


def write(
  path: pathlib.Path,
  masks: Sequence[tuple[str, np.ndarray]],
  files: Sequence[pathlib.Path],
  order: Sequence[int],
  colors: Sequence[tuple[int, int, int]],
) -> None:
  """Writes one region a class.

  Args:
    masks: (class, bool[slice, row, column]), in the order of the stack.
    files: of the series.
    order: frames of all files from the first slice to the last.
    colors: of each class, RGB.

  Raises:
    DataError: the images do not say where they lie, or the series is not one
      that a structure set can be of.
  """
  privacy.attempt(
    str(path),
    "structures",
    "no structure set can be made of this series",
    "Leave out --rtstruct, and take the segmentation",
    lambda: _make(path, masks, files, order, colors),
  )


def contours(mask_IJ: np.ndarray) -> list[np.ndarray]:
  """Closed contours of a mask, float64[N, 2] each: rows and columns.

  Around a single pixel at (3, 5) they are (2.51, 4.51), (3.49, 4.51), (3.49,
  5.49), (2.51, 5.49). Pixels that touch by a corner share a contour.
  """
  # Of four parts of each pixel, the outermost ones tell the pixel and the side.
  parts_IJ = np.kron(mask_IJ.astype(np.uint8), np.ones((2, 2), np.uint8))
  found, _ = cv2.findContours(parts_IJ, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
  places = [points[:, 0, ::-1] for points in found]
  return [
    part // 2 + np.where(part % 2, _EDGE, -_EDGE)  # OpenCV: column, row
    for part in places
  ]


def _make(
  path: pathlib.Path,
  masks: Sequence[tuple[str, np.ndarray]],
  files: Sequence[pathlib.Path],
  order: Sequence[int],
  colors: Sequence[tuple[int, int, int]],
) -> None:
  images = [
    dicom_header.open_file(file, str(path), pixels=False) for file in files
  ]
  frames = _frames(images, str(path))
  slices = [frames[number] for number in order]
  made = _set(images[0])
  frame_of_reference = images[0].FrameOfReferenceUID
  made.ReferencedFrameOfReferenceSequence = [
    _dataset(
      FrameOfReferenceUID=frame_of_reference,
      RTReferencedStudySequence=[_study(images[0], [one for one, _ in slices])],
    )
  ]
  numbered = list(enumerate(masks, 1))
  made.StructureSetROISequence = [
    _dataset(
      ROINumber=number,
      ReferencedFrameOfReferenceUID=frame_of_reference,
      ROIName=name[:64] or "unnamed",  # the most that a name may have
      ROIGenerationAlgorithm="AUTOMATIC",
    )
    for number, (name, _) in numbered
  ]
  made.ROIContourSequence = [
    _dataset(
      ReferencedROINumber=number,
      ROIDisplayColor=list(color),
      ContourSequence=_region(mask, slices),
    )
    for (number, (_, mask)), color in zip(numbered, colors, strict=True)
  ]
  made.RTROIObservationsSequence = [
    _observation(number, name) for number, (name, _) in numbered
  ]
  made.save_as(path, enforce_file_format=True)


def _frames(
  images: Sequence[Any], where: str
) -> list[tuple[Any, dicom_header.Plane]]:
  """Of all frames, what refers to them and where they lie.

  Raises:
    DataError: they do not say where.
  """
  found = []
  for image in images:
    header = dicom_header.parse(image, where)
    if not header.planes or "FrameOfReferenceUID" not in image:
      raise DataError(
        where,
        "structures",
        "the images do not say where they lie, as contours must",
        "Leave out --rtstruct, and take the segmentation",
      )
    for number, plane in enumerate(header.planes, 1):
      reference = _dataset(
        ReferencedSOPClassUID=image.SOPClassUID,
        ReferencedSOPInstanceUID=image.SOPInstanceUID,
      )
      if header.frames > 1:
        reference.ReferencedFrameNumber = number
      found.append((reference, plane))
  return found


def _set(image: Any) -> Any:
  """A structure set of an image's patient and study, without any region."""
  pydicom = dicom_header.pydicom()
  now = datetime.datetime.now()
  made = pydicom.dataset.Dataset()
  made.file_meta = pydicom.dataset.FileMetaDataset()
  # With explicit types, contours of more than 64 kB have no place.
  made.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
  made.SOPClassUID = dicom_header.RTSTRUCT_CLASS
  made.SOPInstanceUID = pydicom.uid.generate_uid(prefix=None)
  if "SpecificCharacterSet" in image:
    made.SpecificCharacterSet = image.SpecificCharacterSet
  for name in dicom_seg_out.COPIED:
    setattr(made, name, image.get(name, ""))
  made.StudyInstanceUID = image.StudyInstanceUID
  made.Modality = "RTSTRUCT"
  made.SeriesInstanceUID = pydicom.uid.generate_uid(prefix=None)
  made.SeriesNumber = _SERIES
  made.SeriesDescription = "Structures by a model"
  made.InstanceNumber = 1
  made.OperatorsName = ""
  made.Manufacturer = dicom_seg_out.MAKER
  made.ManufacturerModelName = dicom_seg_out.MAKER
  made.SoftwareVersions = rcmed_jax.__version__
  made.FrameOfReferenceUID = image.FrameOfReferenceUID
  made.PositionReferenceIndicator = image.get("PositionReferenceIndicator", "")
  made.StructureSetLabel = LABEL
  made.StructureSetDescription = "Made by a model; not reviewed"
  made.StructureSetDate = made.InstanceCreationDate = now.strftime("%Y%m%d")
  made.StructureSetTime = made.InstanceCreationTime = now.strftime("%H%M%S")
  made.ApprovalStatus = "UNAPPROVED"
  return made


def _study(image: Any, references: Sequence[Any]) -> Any:
  """All images of the series, which no region need show."""
  series = _dataset(
    SeriesInstanceUID=image.SeriesInstanceUID,
    ContourImageSequence=list(references),
  )
  return _dataset(
    ReferencedSOPClassUID=_STUDY_CLASS,
    ReferencedSOPInstanceUID=image.StudyInstanceUID,
    RTReferencedSeriesSequence=[series],
  )


def _region(
  mask: np.ndarray, slices: Sequence[tuple[Any, dicom_header.Plane]]
) -> list[Any]:
  """The contours of a class."""
  decimal = extras.load("pydicom.valuerep", "DICOM files", "dicom")
  found = []
  for mask_IJ, (reference, plane) in zip(mask, slices, strict=True):
    for points_N2 in contours(mask_IJ):
      places_N3 = _in_mm(points_N2, plane)
      found.append(
        _dataset(
          ContourImageSequence=[reference],
          ContourGeometricType="CLOSED_PLANAR",
          NumberOfContourPoints=len(places_N3),
          ContourData=[
            decimal.format_number_as_ds(float(value))
            for value in places_N3.ravel()
          ],
        )
      )
  return found


def _in_mm(points_N2: np.ndarray, plane: dicom_header.Plane) -> np.ndarray:
  """float64[N, 3], in DICOM's millimetres, of rows and columns of a frame."""
  columns, rows = np.reshape(plane.orientation_6, (2, 3))
  steps = np.stack([rows * plane.spacing_2[0], columns * plane.spacing_2[1]])
  return np.array(plane.position_3) + points_N2 @ steps


def _observation(number: int, name: str) -> Any:
  made = _dataset(
    ObservationNumber=number,
    ReferencedROINumber=number,
    RTROIInterpretedType="",
    ROIInterpreter="",
  )
  code = segment_codes.of(name).kind
  made.RTROIIdentificationCodeSequence = [
    _dataset(
      CodeValue=code.value,
      CodingSchemeDesignator=code.scheme_designator,
      CodeMeaning=code.meaning,
    )
  ]
  return made


def _dataset(**values: Any) -> Any:
  made = dicom_header.pydicom().dataset.Dataset()
  for name, value in values.items():
    setattr(made, name, value)
  return made
