"""Masks as a DICOM segmentation, on the frames of the series they are of.

The file carries its series' patient and study, as an archive needs it to: it is
as confidential as the images.
"""

from collections.abc import Sequence
import pathlib
from typing import Any

import numpy as np

import rcmed_jax
from rcmed_jax.data import extras
from rcmed_jax.ingest.dicom import dicom_header, privacy
from rcmed_jax.serve import segment_codes

MAKER = "rcmed_jax"
LABEL = "SEGMENTATION"

# A series of its own beside the images'. Numbers below are taken by scanners.
_SERIES = 900
_MOST_IN_A_BYTE = 255  # segments, whose numbers run from 1
# Elements that a file of masks copies; an image may lack them, where somebody
# has removed who it is of. They may be empty (type 2, DICOM PS 3.3, C.7).
COPIED = (
  "PatientID",
  "PatientName",
  "PatientBirthDate",
  "PatientSex",
  "AccessionNumber",
  "StudyID",
  "StudyDate",
  "StudyTime",
  "ReferringPhysicianName",
)


def write(
  path: pathlib.Path,
  masks: Sequence[tuple[str, np.ndarray]],
  files: Sequence[pathlib.Path],
  order: Sequence[int],
) -> None:
  """Writes one segment a class, kind BINARY, without empty frames.

  BINARY since more readers know it than label maps, and classes may overlap.

  Args:
    masks: (class, bool[slice, row, column]), in the order of the stack.
    files: of the series.
    order: frames of all files from the first slice to the last.

  Raises:
    DataError: the series is not one that a segmentation can be of.
  """
  extras.load("highdicom", "DICOM segmentations", "dicom")
  privacy.attempt(
    str(path),
    "segmentation",
    "no segmentation can be made of this series",
    "Convert the series to NIfTI, and ask about that",
    lambda: _make(masks, files, order).save_as(path),
  )


def _make(
  masks: Sequence[tuple[str, np.ndarray]],
  files: Sequence[pathlib.Path],
  order: Sequence[int],
) -> Any:
  highdicom = extras.load("highdicom", "DICOM segmentations", "dicom")
  places = range(len(order))
  if len(files) == 1:  # its frames, in its own order
    places, sources = order, [_source(files[0])]
  else:
    sources = [_source(files[number]) for number in order]
  uid = highdicom.UID
  return highdicom.seg.Segmentation(
    source_images=sources,
    pixel_array=_frames([mask for _, mask in masks], list(places)),
    segmentation_type="BINARY",
    segment_descriptions=[
      _description(number, name) for number, (name, _) in enumerate(masks, 1)
    ],
    series_instance_uid=uid(),
    series_number=_SERIES,
    sop_instance_uid=uid(),
    instance_number=1,
    manufacturer=MAKER,
    manufacturer_model_name=MAKER,
    software_versions=rcmed_jax.__version__,
    device_serial_number="0",  # there is no device; the element is required
    content_label=LABEL,
    content_description="Made by a model; not reviewed",
    series_description="Segmentation by a model",
  )


def _frames(masks: Sequence[np.ndarray], places: Sequence[int]) -> np.ndarray:
  """All masks as highdicom takes them, in as little memory as may be.

  Numbers of segments, a byte a voxel; of masks that overlap, one beside the
  other, a byte a voxel and mask.

  Args:
    masks: bool[slice, row, column] each.
    places: of each slice, the frame that it becomes.
  """
  kind = np.uint8 if len(masks) <= _MOST_IN_A_BYTE else np.uint16
  numbers = np.zeros(masks[0].shape, kind)
  for number, mask in enumerate(masks, 1):
    for z, frame in enumerate(places):
      if numbers[frame][mask[z]].any():
        return _stacked(masks, places)
      numbers[frame][mask[z]] = number
  return numbers


def _stacked(masks: Sequence[np.ndarray], places: Sequence[int]) -> np.ndarray:
  """uint8[frame, row, column, mask]."""
  stacked = np.empty((*masks[0].shape, len(masks)), np.uint8)
  for number, mask in enumerate(masks):
    for z, frame in enumerate(places):
      stacked[frame, ..., number] = mask[z]
  return stacked


def _source(path: pathlib.Path) -> Any:
  """The header of an image, with what a segmentation copies of it."""
  dataset = dicom_header.open_file(path, str(path), pixels=False)
  for name in COPIED:
    if name not in dataset:
      setattr(dataset, name, "")
  return dataset


def _description(number: int, name: str) -> Any:
  highdicom = extras.load("highdicom", "DICOM segmentations", "dicom")
  codes = segment_codes.of(name)
  family = extras.load("pydicom.sr.codedict", "DICOM codes", "dicom").codes
  made = highdicom.seg.SegmentDescription(
    segment_number=number,
    segment_label=name[:64] or "unnamed",  # the most that a label may have
    segmented_property_category=codes.category,
    segmented_property_type=codes.kind,
    algorithm_type="AUTOMATIC",
    algorithm_identification=highdicom.AlgorithmIdentificationSequence(
      name=MAKER,
      version=rcmed_jax.__version__,
      family=family.DCM.ArtificialIntelligence,
    ),
    anatomic_regions=[codes.organ] if codes.organ else None,
  )
  if codes.side:
    kind = made.SegmentedPropertyTypeCodeSequence[0]
    kind.SegmentedPropertyTypeModifierCodeSequence = [
      highdicom.sr.CodedConcept.from_code(codes.side)
    ]
  return made
