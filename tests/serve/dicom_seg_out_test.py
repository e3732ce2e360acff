"""DICOM segmentations, read back by highdicom and by the reader of training."""

import dicom_files
import fake_assistant
import highdicom
import numpy as np
import pydicom
import pytest
import volume_files

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.dicom import dicom
from rcmed_jax.serve import dicom_seg_out, scans, segment_codes, volumes

CODES = volume_files.CODES[::8]


def write(path, out, axis="axial"):
  scan = scans.open_scan(path, "kidney", scans.Looking(axis=axis))
  greys = fake_assistant.GREYS | {"body": fake_assistant.BODY}
  said = volumes.answer(fake_assistant.Fake(greys), scan, "kidney")
  masks = [(one.name, one.mask) for one in said.targets if one.present]
  dicom_seg_out.write(out, masks, scan.files, scan.order)
  return said, [name for name, _ in masks]


@pytest.mark.parametrize("code", CODES)
def test_segments_lie_on_the_frames_of_their_slices(tmp_path, code):
  labels, datasets = dicom_files.save_patient(tmp_path / "series", code)
  axis = ("axial", "coronal", "sagittal")[CODES.index(code) % 3]
  said, names = write(tmp_path / "series", tmp_path / "seg.dcm", axis)
  made = highdicom.seg.segread(tmp_path / "seg.dcm")
  assert made.SegmentationType == "BINARY"
  assert [one.SegmentLabel for one in made.SegmentSequence] == names
  found = made.get_pixels_by_source_instance(
    [dataset.SOPInstanceUID for dataset in datasets],
    assert_missing_frames_are_empty=True,
  )
  wanted = {"kidney": labels == 1, "spleen": labels == 2, "body": labels > 0}
  for number, name in enumerate(names):
    np.testing.assert_array_equal(found[..., number], wanted[name])
  kidney = next(one for one in said.targets if one.name == "kidney")
  ml = 150 * np.prod(volume_files.SPACING) / 1000
  assert kidney.ml == pytest.approx(ml)


def test_masks_apart_need_a_byte_a_voxel_in_all():
  masks = np.zeros((300, 2, 10, 20), bool)
  masks.reshape(300, -1)[np.arange(300), np.arange(300)] = True
  frames = dicom_seg_out._frames(masks[:200], [1, 0])
  assert frames.shape == (2, 10, 20) and frames.dtype == np.uint8
  np.testing.assert_array_equal(frames[1].ravel()[:200], np.arange(1, 201))
  frames = dicom_seg_out._frames(masks, [0, 1])
  np.testing.assert_array_equal(frames.ravel()[:300], np.arange(1, 301))
  frames = dicom_seg_out._frames([*masks[:2], masks[0]], [1, 0])
  assert frames.shape == (2, 10, 20, 3)
  np.testing.assert_array_equal(frames[::-1, ..., 2], masks[0])


def test_segments_that_do_not_overlap_are_read_back(tmp_path):
  labels, datasets = dicom_files.save_patient(tmp_path / "series", CODES[0])
  scan = scans.open_scan(tmp_path / "series", "kidney")
  said = volumes.answer(fake_assistant.Fake(), scan, "kidney")
  masks = [(one.name, one.mask) for one in said.targets if one.present]
  dicom_seg_out.write(tmp_path / "a.dcm", masks, scan.files, scan.order)
  found = highdicom.seg.segread(
    tmp_path / "a.dcm"
  ).get_pixels_by_source_instance(
    [dataset.SOPInstanceUID for dataset in datasets],
    assert_missing_frames_are_empty=True,
  )
  for number, (name, _) in enumerate(masks):
    value = {"kidney": 1, "spleen": 2}[name]
    np.testing.assert_array_equal(found[..., number], labels == value)


def test_what_reads_for_training_finds_the_same(tmp_path):
  dicom_files.save_patient(tmp_path)
  write(tmp_path, tmp_path / "seg.dcm")
  triplets, faults = volume_files.read(
    dicom.open_source(tmp_path, sources.Options())
  )
  labels_ZIJ = volume_files.axial(volume_files.patient()[1])
  assert len(triplets) == labels_ZIJ.any((1, 2)).sum() and len(faults) == 1
  for triplet in triplets:
    masks = dict(zip(triplet.classes, triplet.masks_GIJ, strict=True))
    z = int(triplet.id[-4:])
    np.testing.assert_array_equal(masks["body"], labels_ZIJ[z] > 0)


def test_the_standard_s_own_checker_finds_no_fault(tmp_path):
  dicom_files.save_patient(tmp_path / "series")
  write(tmp_path / "series", tmp_path / "seg.dcm")
  assert dicom_files.faults(tmp_path / "seg.dcm") == []


def test_frames_of_one_file_keep_their_order(tmp_path):
  image, labels, affine = volume_files.patient()
  voxels, turned = volume_files.turned(image, affine, "SPL")
  labels_ZIJ = volume_files.turned(labels, affine, "SPL")[0]
  order = np.random.default_rng(0).permutation(len(voxels))
  datasets = dicom_files.series(voxels, turned, "MR", intercept=0)
  made = dicom_files.enhanced(datasets, order)
  made.DimensionOrganizationSequence = []
  path = dicom_files.save(made, tmp_path / "all.dcm")
  _, names = write(path, tmp_path / "seg.dcm")
  found = highdicom.seg.segread(tmp_path / "seg.dcm")
  frames = found.get_pixels_by_source_frame(
    made.SOPInstanceUID,
    list(range(1, len(order) + 1)),
    assert_missing_frames_are_empty=True,
  )
  kidney = names.index("kidney")
  np.testing.assert_array_equal(frames[..., kidney], labels_ZIJ[order] == 1)


def test_images_without_names_get_segmentations_too(tmp_path):
  _, datasets = dicom_files.save_patient(tmp_path / "series")
  for number, dataset in enumerate(datasets):
    for name in ("PatientName", "AccessionNumber", "StudyID", "StudyTime"):
      delattr(dataset, name)
    dicom_files.save(dataset, tmp_path / f"bare/{number}.dcm")
  write(tmp_path / "bare", tmp_path / "seg.dcm")
  made = pydicom.dcmread(tmp_path / "seg.dcm")
  assert made.PatientID == "4711" and made.StudyID == ""


def test_a_folder_of_two_series_is_refused(tmp_path):
  dicom_files.save_patient(tmp_path / "one")
  dicom_files.save_patient(tmp_path / "two")
  with pytest.raises(DataError, match="found 2"):
    scans.open_scan(tmp_path, "kidney")


@pytest.mark.parametrize(
  ("name", "kind", "side", "organ"),
  [
    ("liver", "10200004", None, None),
    ("Left_Kidney", "64033007", "7771000", None),
    ("lungs", "39607008", None, None),
    ("left atrium", "82471001", None, None),
    ("liver tumors", "108369006", None, "10200004"),
    ("right lung nodule", "27925004", "24028007", "39607008"),
  ],
)
def test_common_classes_have_standard_codes(name, kind, side, organ):
  found = segment_codes.of(name)
  assert found.kind.scheme_designator == "SCT"
  assert found.kind.value == kind
  assert (found.side and found.side.value) == side
  assert (found.organ and found.organ.value) == organ


def test_other_classes_have_codes_of_our_own():
  one, other = map(segment_codes.of, ("foreign body", "mystery lesion"))
  assert {one.kind.scheme_designator, other.kind.scheme_designator} == {
    segment_codes.SCHEME
  }
  assert one.kind.value != other.kind.value
  assert len(one.kind.value) == 16
  assert one.kind.meaning == "foreign body"
