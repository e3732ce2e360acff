"""Volumes answered slice by slice, and read back from what is written."""

import dicom_files
import fake_assistant
import nibabel
import numpy as np
import pytest
import volume_files

from rcmed_jax.data import modalities
from rcmed_jax.data.checks import DataError
from rcmed_jax.serve import cleanup, nifti_out, scans, volumes

LOOKING = scans.Looking(modality="magnetic resonance")
VOXEL_ML = np.prod(volume_files.SPACING) / 1000


def save(path, code="RAS", kind=nibabel.Nifti1Image, change=None):
  image, labels, affine = volume_files.patient()
  voxels, turned = volume_files.turned(image, affine, code)
  made = kind(voxels, turned)
  if change:
    change(made)
  nibabel.save(made, path)
  return volume_files.turned(labels, affine, code)[0]


def ask(path, greys=None, axis="axial", **kwargs):
  looking = scans.Looking(axis=axis, modality="magnetic resonance")
  scan = scans.open_scan(path, "the kidney", looking)
  fake = fake_assistant.Fake(greys)
  return volumes.answer(fake, scan, "the kidney", **kwargs)


@pytest.mark.parametrize("code", volume_files.CODES)
def test_masks_lie_on_the_grid_of_the_file(tmp_path, code):
  axis = ("axial", "coronal", "sagittal")[volume_files.CODES.index(code) % 3]
  path = tmp_path / "scan.nii.gz"
  labels = save(path, code)
  kidney, heart, spleen = sorted(
    ask(path, axis=axis).targets, key=lambda target: "khs".index(target.name[0])
  )
  assert not heart.present and heart.mask is None and heart.ml is None
  given = nibabel.load(path)
  for value, target in ((1, kidney), (2, spleen)):
    out = tmp_path / f"{target.name}.nii.gz"
    nifti_out.write(out, target.mask, path)
    found = nibabel.load(out)
    assert found.shape == given.shape
    np.testing.assert_array_equal(found.affine, given.affine)
    assert found.header.get_zooms() == given.header.get_zooms()
    assert found.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(found.get_fdata(), labels == value)
    assert target.ml == pytest.approx((labels == value).sum() * VOXEL_ML)
    first, last = target.box
    inside = tuple(
      slice(one, end) for one, end in zip(first, last, strict=True)
    )
    assert (labels[inside] == value).all()  # the marks are boxes
    assert target.confidence == pytest.approx(0.5)


def test_the_label_map_says_which_target_unless_they_overlap(tmp_path):
  path = tmp_path / "scan.nii"
  labels = save(path, "PIR")
  answered = ask(path)
  names = [target.name for target in answered.targets]
  found = volumes.label_map(answered.targets)
  np.testing.assert_array_equal(found == names.index("kidney") + 1, labels == 1)
  np.testing.assert_array_equal(found == names.index("spleen") + 1, labels == 2)
  greys = fake_assistant.GREYS | {"body": fake_assistant.BODY}
  answered = ask(path, greys)
  body = next(one for one in answered.targets if one.name == "body")
  np.testing.assert_array_equal(body.mask, labels > 0)  # nothing is lost
  assert volumes.label_map(answered.targets) is None


def test_the_answer_tells_what_all_slices_said(tmp_path):
  save(tmp_path / "scan.nii")
  answered = ask(tmp_path / "scan.nii")
  # Marks lie in slices 4 to 8 and 6 to 13 of 18.
  assert dict(answered.said) == {
    "nothing": 8,
    "kidney": 2,
    "kidney and spleen": 3,
    "spleen": 5,
  }
  assert answered.modality == "magnetic resonance"
  assert "<p> kidney </p> [SEG]" in answered.text
  assert "no <p> heart </p>" in answered.text
  assert answered.slices == 18


def test_what_clean_up_takes_away_is_absent(tmp_path):
  save(tmp_path / "scan.nii")
  least = cleanup.Cleanup(min_mm3=140 * VOXEL_ML * 1000)  # 150 voxels and 128
  answered = ask(tmp_path / "scan.nii", cleanup=least)
  present = [target.name for target in answered.targets if target.present]
  assert present == ["kidney"]
  assert "no <p> spleen </p>" in answered.text


def test_headers_keep_their_codes_and_lose_their_texts(tmp_path):
  def change(image):
    image.header["descrip"] = b"Doe, Jane"
    image.header["aux_file"] = b"Doe"
    image.header["cal_max"] = 90
    image.header.set_slope_inter(2, -5)
    image.header.set_xyzt_units("mm", "sec")
    image.set_qform(image.affine, code=1)
    image.set_sform(image.affine, code=4)
    image.header.extensions.append(
      nibabel.nifti1.Nifti1Extension("comment", b"Doe^Jane")
    )

  labels = save(tmp_path / "scan.nii", "LIP", nibabel.Nifti2Image, change)
  nifti_out.write(tmp_path / "mask.nii.gz", labels == 1, tmp_path / "scan.nii")
  found = nibabel.load(tmp_path / "mask.nii.gz")
  assert isinstance(found, nibabel.Nifti2Image)
  assert (found.header["qform_code"], found.header["sform_code"]) == (1, 4)
  assert found.header.get_xyzt_units() == ("mm", "sec")
  assert not found.header.extensions
  raw = found.header.structarr.tobytes()
  assert b"Doe" not in raw
  np.testing.assert_array_equal(found.get_fdata(), labels == 1)


def test_an_image_of_two_axes_or_of_one_volume_keeps_its_shape(tmp_path):
  for shape in ((20, 24), (20, 24, 18, 1)):
    path = tmp_path / "scan.nii"
    nibabel.save(
      nibabel.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)), path
    )
    mask = np.arange(np.prod(shape)).reshape((*shape, 1)[:3]) % 7 == 0
    nifti_out.write(tmp_path / "mask.nii.gz", mask, path)
    found = nibabel.load(tmp_path / "mask.nii.gz")
    assert found.shape == shape
    np.testing.assert_array_equal(found.get_fdata().reshape(mask.shape), mask)


def save_ct(path):
  hounsfield = np.full((20, 24, 18), -1000, np.int16)
  hounsfield[5:10] = 30
  nibabel.save(nibabel.Nifti1Image(hounsfield, np.eye(4)), path)


def test_windows_follow_what_is_asked(tmp_path):
  path = tmp_path / "ct_scan.nii"
  save_ct(path)

  def shown(text, **looking):
    scan = scans.open_scan(path, text, scans.Looking(**looking))
    return next(iter(scan.pictures())).max()

  assert shown("Where is the liver?") == 128  # the middle of its window
  assert shown("Please, where is the liver?") == 128
  assert shown("the liver and the lung") == 115  # 30 of -150 to 250
  assert shown("the liver", window="bone") == 75  # 30 of -500 to 1300
  assert shown("the liver", trained=("soft tissue",)) == 115
  assert shown("the liver", window="percentiles") == 255
  other = tmp_path / "scan.nii"
  path.rename(other)
  path = other
  assert shown("the liver in this CT image") == 128
  for said in modalities.CT, "CT", "Computed Tomography":
    assert shown(f"the liver in this {said} image") == 128
    assert shown("the liver", modality=said) == 128
  assert shown("the liver", modality="MRI") == 255
  with pytest.raises(ValueError, match="did you mean 'computed tomography'"):
    scans.Looking(modality="computed tomograhy")


def test_a_scan_says_how_it_is_shown(tmp_path):
  path = tmp_path / "scan.nii"
  save_ct(path)
  scan = scans.open_scan(path, "the liver in this CT image")
  assert scan.shown().json() == {
    "modality": modalities.CT,
    "window": "liver",
    "why": "of the liver in this CT image",
  }
  shown = scans.open_scan(path, "the liver").shown()
  assert shown.doubtful and "-1000, looks like Hounsfield units" in shown.why
  assert (shown.modality, shown.window) == ("unknown", "percentiles")


def test_what_lies_beside_a_series_is_no_slice_of_it(tmp_path):
  dicom_files.save_patient(tmp_path)
  for name in (".DS_Store", "DICOMDIR", "notes.txt"):
    (tmp_path / name).write_bytes(b"\0\0\0\1Bud1")
  scan = scans.open_scan(tmp_path, "the kidney")
  assert not scan.faults
  assert scan.shown().modality == "magnetic resonance"
  assert scan.shown().window == "percentiles"
  (tmp_path / "IM17").write_bytes(b"\0" * 50)
  (fault,) = scans.open_scan(tmp_path, "the kidney").faults
  assert "no DICOM file" in fault.message


def test_a_volume_that_breaks_off_is_a_fault(tmp_path):
  path = tmp_path / "scan.nii"
  save(path)
  path.write_bytes(path.read_bytes()[:-100])
  with pytest.raises(DataError, match="breaks off"):
    ask(path)
  with pytest.raises(DataError, match="no DICOM series"):
    ask(tmp_path)
