import dicom_files
import numpy as np
import pytest
import volume_files

from rcmed_jax.ingest import sources
from rcmed_jax.ingest.dicom import dicom
from rcmed_jax.ingest.volumes import volumes

NAMES = ("kidney", "spleen")


def patient(code="SPL"):
  image, labels, affine = volume_files.patient()
  voxels, turned = volume_files.turned(image, affine, code)
  return voxels, turned, volume_files.turned(labels, affine, code)[0]


def write(folder, kind="BINARY", code="SPL", change=None, masks=None, **kwargs):
  voxels, affine, labels = patient(code)
  datasets = dicom_files.series(voxels, affine)
  dicom_files.save_series(datasets, folder / "images")
  if masks is None:
    masks = labels
    if kind == "FRACTIONAL":
      masks = np.stack([labels == 1, labels == 2], -1).astype(np.float32)
  made = dicom_files.segmentation(datasets, masks, kind, **kwargs)
  if change:
    change(made)
  dicom_files.save(made, folder / "seg.dcm")
  return datasets


def read(path, **options):
  return volume_files.read(dicom.open_source(path, sources.Options(**options)))


def check(triplets, *, names=NAMES):
  """Whether masks are those of the patient."""
  labels_ZIJ = volume_files.axial(volume_files.patient()[1])
  assert len(triplets) == labels_ZIJ.any((1, 2)).sum()
  for triplet in triplets:
    z = int(triplet.id[-4:])
    assert set(triplet.classes) == {
      name
      for value, name in enumerate(names, 1)
      if (labels_ZIJ[z] == value).any()
    }
    for name, mask_IJ in zip(triplet.classes, triplet.masks_GIJ, strict=True):
      value = names.index(name) + 1
      np.testing.assert_array_equal(mask_IJ, labels_ZIJ[z] == value)


@pytest.mark.parametrize("code", volume_files.CODES[::16])
@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_highdicom_s_segmentations_land_on_their_slices(tmp_path, kind, code):
  write(tmp_path, kind, code)
  triplets, faults = read(tmp_path)
  assert [type(fault) for fault in faults] == [volumes.EmptySlicesError]
  check(triplets)


def test_names_come_from_the_segments(tmp_path):
  write(tmp_path, names=("Right_Kidney", "gall bladder"))
  triplets, _ = read(tmp_path)
  check(triplets, names=("Right Kidney", "gallbladder"))


def test_fractions_count_from_a_half(tmp_path):
  _, _, labels = patient()
  fractions = np.zeros((*labels.shape, 2), np.float32)
  fractions[labels == 1, 0] = 0.6
  fractions[labels == 0, 0] = 0.4
  fractions[labels == 2, 1] = 1.0
  write(tmp_path, "FRACTIONAL", masks=fractions)
  check(read(tmp_path)[0])


def test_segments_may_overlap(tmp_path):
  _, _, labels = patient()
  masks = np.stack([labels > 0, labels == 2], -1).astype(np.uint8)
  write(tmp_path, masks=masks)
  triplets, _ = read(tmp_path)
  labels_ZIJ = volume_files.axial(volume_files.patient()[1])
  both = 0
  for triplet in triplets:
    z = int(triplet.id[-4:])
    found = dict(zip(triplet.classes, triplet.masks_GIJ, strict=True))
    np.testing.assert_array_equal(found["kidney"], labels_ZIJ[z] > 0)
    if "spleen" in found:
      np.testing.assert_array_equal(found["spleen"], labels_ZIJ[z] == 2)
      both += 1
  assert both == 8


def _no_images(made):
  for groups in made.PerFrameFunctionalGroupsSequence:
    del groups.DerivationImageSequence
  del made.ReferencedSeriesSequence


def _no_positions(made):
  for groups in made.PerFrameFunctionalGroupsSequence:
    del groups.PlanePositionSequence


@pytest.mark.parametrize("change", [_no_images, _no_positions])
def test_either_reference_is_enough(tmp_path, change):
  write(tmp_path, change=change)
  triplets, faults = read(tmp_path)
  assert len(faults) == 1
  check(triplets)


def _shifted(made):
  for groups in made.PerFrameFunctionalGroupsSequence:
    item = groups.PlanePositionSequence[0]
    x, y, z = item.ImagePositionPatient
    item.ImagePositionPatient = [x + 3, y, z]


def _coarser(made):
  shared = made.SharedFunctionalGroupsSequence[0]
  shared.PixelMeasuresSequence[0].PixelSpacing = [1.0, 2.0]


def _mirrored(made):
  shared = made.SharedFunctionalGroupsSequence[0]
  turned = shared.PlaneOrientationSequence[0].ImageOrientationPatient
  shared.PlaneOrientationSequence[0].ImageOrientationPatient = [
    -turned[0],
    -turned[1],
    -turned[2],
    *turned[3:],
  ]


@pytest.mark.parametrize("change", [_shifted, _coarser, _mirrored])
def test_another_grid_is_refused_with_both_named(tmp_path, change):
  write(tmp_path, change=change)
  triplets, faults = read(tmp_path)
  assert not triplets
  told = [str(f) for f in faults if f.field == "grid"]
  assert len(told) == 2  # a class each
  assert (
    "the series has 18 x 24 x 20 voxels of 4 x 0.75 x 1.5 mm, SPL" in told[0]
  )
  assert "1 x 24 x 20 voxels" in told[0]
  assert "--assume-same-grid" in told[0]
  triplets, _ = read(tmp_path, assume_same_grid=True)
  check(triplets)


def test_one_frame_astray_leaves_its_class_out(tmp_path):
  def change(made):
    for groups in made.PerFrameFunctionalGroupsSequence:
      item = groups.SegmentIdentificationSequence[0]
      if item.ReferencedSegmentNumber == 2:
        place = groups.PlanePositionSequence[0]
        x, y, z = place.ImagePositionPatient
        place.ImagePositionPatient = [x, y, z + 2]
        break

  write(tmp_path, change=change)
  triplets, faults = read(tmp_path)
  assert {t.classes for t in triplets} == {("kidney",)}
  assert [f.field for f in faults] == ["grid", "empty slices"]


def test_masks_of_images_that_are_not_here_are_a_fault(tmp_path):
  datasets = write(tmp_path)
  del datasets
  for path in (tmp_path / "images").iterdir():
    path.unlink()
  triplets, faults = read(tmp_path)
  assert not triplets
  assert "not here" in str(faults[0])


def test_masks_go_to_the_series_that_they_are_of(tmp_path):
  write(tmp_path / "a")
  voxels, affine, _ = patient()
  dicom_files.save_series(
    dicom_files.series(voxels, affine, "MR"), tmp_path / "b"
  )
  triplets, faults = read(tmp_path)
  check(triplets)
  assert {t.modality for t in triplets} == {"computed tomography"}
  assert sorted(f.field for f in faults) == ["empty slices", "labels"]


def test_two_files_of_masks_are_added(tmp_path):
  voxels, affine, labels = patient()
  datasets = dicom_files.series(voxels, affine)
  dicom_files.save_series(datasets, tmp_path)
  for number, name in enumerate(NAMES, 1):
    made = dicom_files.segmentation(
      datasets, (labels == number).astype(np.uint8), names=(name,)
    )
    dicom_files.save(made, tmp_path / f"{name}.dcm")
  check(read(tmp_path)[0])


def test_other_axes_show_the_same_volume(tmp_path):
  write(tmp_path)
  triplets, _ = read(tmp_path, axis="sagittal")
  _, labels, _ = volume_files.patient()
  # Right to left, rows from the head down, columns from the front back.
  labels_ZIJ = labels[::-1, ::-1, ::-1].transpose(0, 2, 1)
  assert len(triplets) == labels_ZIJ.any((1, 2)).sum()
  for triplet in triplets:
    z = int(triplet.id[-4:])
    for name, mask_IJ in zip(triplet.classes, triplet.masks_GIJ, strict=True):
      np.testing.assert_array_equal(
        mask_IJ, labels_ZIJ[z] == NAMES.index(name) + 1
      )


def test_a_radiograph_s_masks_are_found_by_its_number(tmp_path):
  """Neither says where it lies in a patient."""
  voxels, affine, labels = patient()
  one = dicom_files.series(voxels[6:7], affine)
  made = dicom_files.segmentation(one, labels[6:7])
  shared = made.SharedFunctionalGroupsSequence[0]
  del shared.PlaneOrientationSequence
  for name in ("a", "b"):
    dataset = dicom_files.new("DX", PixelSpacing=[0.75, 1.5])
    dicom_files.put_pixels(dataset, voxels[6].astype(np.uint16))
    dicom_files.save(dataset, tmp_path / f"{name}.dcm")
  for groups in made.PerFrameFunctionalGroupsSequence:
    source = groups.DerivationImageSequence[0].SourceImageSequence[0]
    source.ReferencedSOPInstanceUID = dataset.SOPInstanceUID
    del groups.PlanePositionSequence
  dicom_files.save(made, tmp_path / "seg.dcm")
  triplets, faults = read(tmp_path)
  assert len(triplets) == 1
  for name, mask_IJ in zip(
    triplets[0].classes, triplets[0].masks_GIJ, strict=True
  ):
    np.testing.assert_array_equal(mask_IJ, labels[6] == NAMES.index(name) + 1)
  assert [f.field for f in faults] == ["labels"]
