"""DICOM files made from arrays, for tests."""

import shutil
import subprocess

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
import pydicom.uid
import pytest
import volume_files

CLASSES = {
  "EMR": pydicom.uid.EnhancedMRImageStorage,
  "CT": pydicom.uid.CTImageStorage,
  "MR": pydicom.uid.MRImageStorage,
  "PT": pydicom.uid.PositronEmissionTomographyImageStorage,
  "DX": pydicom.uid.DigitalXRayImageStorageForPresentation,
  "US": pydicom.uid.UltrasoundImageStorage,
  "RTSTRUCT": pydicom.uid.RTStructureSetStorage,
}
_LPS = np.array([-1.0, -1.0, 1.0])


def new(modality, study=None, **attributes):
  """A dataset with what every image has."""
  meta = FileMetaDataset()
  meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
  meta.MediaStorageSOPClassUID = CLASSES[modality]
  meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
  dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
  dataset.SOPClassUID = meta.MediaStorageSOPClassUID
  dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
  dataset.Modality = modality
  dataset.StudyInstanceUID = study or pydicom.uid.generate_uid()
  dataset.SeriesInstanceUID = pydicom.uid.generate_uid()
  dataset.FrameOfReferenceUID = pydicom.uid.generate_uid()
  dataset.PatientName = "Doe^Jane"
  dataset.PatientID = "4711"
  dataset.PatientBirthDate = "19700101"
  dataset.PatientSex = "O"
  dataset.AccessionNumber = "A1"
  dataset.StudyID = "S1"
  dataset.StudyDate = "20200101"
  dataset.StudyTime = "120000"
  dataset.ReferringPhysicianName = "Roe^Richard"
  dataset.Manufacturer = "none"
  dataset.SeriesNumber = 1
  dataset.InstanceNumber = 1
  for name, value in attributes.items():
    setattr(dataset, name, value)
  return dataset


def put_pixels(dataset, pixels, photometric="MONOCHROME2"):
  """Sets integer pixels [I, J], [Z, I, J] or [..., 3] of a dataset."""
  colours = photometric not in ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")
  shape = pixels.shape[:-1] if colours else pixels.shape
  dataset.Rows, dataset.Columns = shape[-2:]
  if len(shape) == 3:
    dataset.NumberOfFrames = shape[0]
  dataset.SamplesPerPixel = 3 if colours else 1
  if colours:
    dataset.PlanarConfiguration = 0
  dataset.PhotometricInterpretation = photometric
  bits = pixels.dtype.itemsize * 8
  dataset.BitsAllocated = dataset.BitsStored = bits
  dataset.HighBit = bits - 1
  dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
  dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
  return dataset


def save(dataset, path):
  path.parent.mkdir(parents=True, exist_ok=True)
  dataset.save_as(path, enforce_file_format=True)
  return path


def series(voxels, affine, modality="CT", intercept=-1024, **attributes):
  """A dataset a slice of [slice, row, column] voxels with their RAS affine."""
  base = new(modality)
  spacing = np.linalg.norm(affine[:3, :3], axis=0)
  turned = affine[:3, :3] / spacing * _LPS[:, None]
  found = []
  for z, picture_IJ in enumerate(voxels):
    dataset = new(modality, study=base.StudyInstanceUID)
    dataset.SeriesInstanceUID = base.SeriesInstanceUID
    dataset.FrameOfReferenceUID = base.FrameOfReferenceUID
    dataset.InstanceNumber = z + 1
    dataset.PositionReferenceIndicator = ""
    place = (affine @ [z, 0, 0, 1])[:3] * _LPS
    dataset.ImagePositionPatient = [round(float(x), 6) for x in place]
    dataset.ImageOrientationPatient = [
      round(float(x), 8) for x in (*turned[:, 2], *turned[:, 1])
    ]
    dataset.PixelSpacing = [float(spacing[1]), float(spacing[2])]
    dataset.SliceThickness = float(spacing[0])
    dataset.RescaleSlope = 1
    dataset.RescaleIntercept = intercept
    if modality == "CT":
      dataset.RescaleType = "HU"
    put_pixels(dataset, picture_IJ)
    for name, value in attributes.items():
      setattr(dataset, name, value)
    found.append(dataset)
  return found


def save_series(datasets, folder):
  """Files whose names say nothing of the order of slices, the last first."""
  for number, dataset in enumerate(reversed(datasets)):
    save(dataset, folder / f"{number:03d}.dcm")


def save_patient(folder, code="SPL", **attributes):
  """Writes the patient of marks; its labels and datasets, as stored."""
  image, labels, affine = volume_files.patient()
  voxels, turned = volume_files.turned(image, affine, code)
  datasets = series(voxels, turned, "MR", intercept=0, **attributes)
  save_series(datasets, folder)
  return volume_files.turned(labels, affine, code)[0], datasets


def faults(path):
  """What David Clunie's checker of the standard holds to be wrong."""
  checker = shutil.which("dciodvfy")
  if checker is None:
    pytest.skip("dciodvfy is not there; it is part of Debian's dicom3tools")
  said = subprocess.run(
    [checker, "-new", path], capture_output=True, text=True, check=False
  )
  lines = (said.stdout + said.stderr).splitlines()
  assert lines, "it said nothing, not even what it read"
  return [line for line in lines if "Error" in line or "not found" in line]


def structures(datasets, regions):
  """A structure set: (name, [(kind, float[N, 3] in mm, LPS), ...]), ..."""
  first = datasets[0]
  dataset = new("RTSTRUCT", study=first.StudyInstanceUID)
  dataset.FrameOfReferenceUID = first.FrameOfReferenceUID
  series_item = Dataset()
  series_item.SeriesInstanceUID = first.SeriesInstanceUID
  series_item.ContourImageSequence = Sequence()
  for image in datasets:
    item = Dataset()
    item.ReferencedSOPClassUID = image.SOPClassUID
    item.ReferencedSOPInstanceUID = image.SOPInstanceUID
    series_item.ContourImageSequence.append(item)
  study_item = Dataset()
  study_item.RTReferencedSeriesSequence = Sequence([series_item])
  frame_item = Dataset()
  frame_item.FrameOfReferenceUID = first.FrameOfReferenceUID
  frame_item.RTReferencedStudySequence = Sequence([study_item])
  dataset.ReferencedFrameOfReferenceSequence = Sequence([frame_item])
  dataset.StructureSetROISequence = Sequence()
  dataset.ROIContourSequence = Sequence()
  for number, (name, contours) in enumerate(regions, 1):
    roi = Dataset()
    roi.ROINumber = number
    roi.ROIName = name
    dataset.StructureSetROISequence.append(roi)
    item = Dataset()
    item.ReferencedROINumber = number
    item.ContourSequence = Sequence()
    for kind, points_N3 in contours:
      contour = Dataset()
      contour.ContourGeometricType = kind
      contour.NumberOfContourPoints = len(points_N3)
      contour.ContourData = [round(float(x), 5) for x in np.ravel(points_N3)]
      item.ContourSequence.append(contour)
    dataset.ROIContourSequence.append(item)
  return dataset


def segmentation(datasets, masks, kind="BINARY", names=("kidney", "spleen")):
  """A segmentation by highdicom of masks [Z, I, J, G] or labels [Z, I, J]."""
  import highdicom
  from pydicom.sr.codedict import codes

  described = [
    highdicom.seg.SegmentDescription(
      segment_number=number,
      segment_label=name,
      segmented_property_category=codes.SCT.Organ,
      segmented_property_type=codes.SCT.Liver,
      algorithm_type="MANUAL",
    )
    for number, name in enumerate(names, 1)
  ]
  return highdicom.seg.Segmentation(
    source_images=datasets,
    pixel_array=masks,
    segmentation_type=kind,
    segment_descriptions=described,
    series_instance_uid=pydicom.uid.generate_uid(),
    series_number=2,
    sop_instance_uid=pydicom.uid.generate_uid(),
    instance_number=1,
    manufacturer="none",
    manufacturer_model_name="none",
    software_versions="1",
    device_serial_number="1",
  )


def enhanced(datasets, order):
  """One multi-frame file of a series' slices, in another order."""
  first = datasets[0]
  made = new("EMR", study=first.StudyInstanceUID, Modality="MR")
  made.FrameOfReferenceUID = first.FrameOfReferenceUID
  put_pixels(made, np.stack([datasets[z].pixel_array for z in order]))
  shared, turned, measures = Dataset(), Dataset(), Dataset()
  turned.ImageOrientationPatient = first.ImageOrientationPatient
  measures.PixelSpacing = first.PixelSpacing
  measures.SliceThickness = first.SliceThickness
  shared.PlaneOrientationSequence = Sequence([turned])
  shared.PixelMeasuresSequence = Sequence([measures])
  made.SharedFunctionalGroupsSequence = Sequence([shared])
  frames = []
  for z in order:
    groups, place, scale = Dataset(), Dataset(), Dataset()
    place.ImagePositionPatient = datasets[z].ImagePositionPatient
    scale.RescaleSlope = datasets[z].RescaleSlope
    scale.RescaleIntercept = datasets[z].RescaleIntercept
    groups.PlanePositionSequence = Sequence([place])
    groups.PixelValueTransformationSequence = Sequence([scale])
    frames.append(groups)
  made.PerFrameFunctionalGroupsSequence = Sequence(frames)
  return made
