"""Structure sets, read back by the reader of training and by two others."""

import dicom_files
import fake_assistant
import numpy as np
import pydicom
import pytest
from skimage import measure
import volume_files

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.dicom import dicom, dicom_rtstruct
from rcmed_jax.serve import dicom_rtstruct_out, scans, volumes

COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))


def drawn(rng, shape=(24, 30)):
  """Parts, holes, lone pixels and corners, also at the border."""
  noise_IJ = rng.random(shape)
  smooth_IJ = sum(np.roll(noise_IJ, k, axis=k % 2) for k in range(3)) / 3
  mask_IJ = smooth_IJ > 0.45
  mask_IJ[rng.random(shape) < 0.05] ^= True
  return mask_IJ


def rastered(polygons, shape):
  """Even-odd, by scikit-image."""
  found_IJ = np.zeros(shape, bool)
  for points in polygons:
    found_IJ ^= measure.grid_points_in_poly(shape, points)
  return found_IJ


def area(points_N2):
  """With the sign of its direction: holes run the other way round."""
  i, j = points_N2.T
  return (i @ np.roll(j, -1) - j @ np.roll(i, -1)) / 2


def test_a_contour_runs_just_inside_the_edges_of_pixels():
  mask_IJ = np.zeros((6, 8), bool)
  mask_IJ[3, 5] = True
  (points,) = dicom_rtstruct_out.contours(mask_IJ)
  expected = {(2.51, 4.51), (3.49, 4.51), (3.49, 5.49), (2.51, 5.49)}
  assert {tuple(np.round(point, 6)) for point in points} == expected
  assert dicom_rtstruct_out.contours(np.zeros((6, 8), bool)) == []


def test_a_hole_is_a_contour_of_its_own():
  mask_IJ = np.ones((5, 5), bool)
  mask_IJ[2, 2] = False
  outer, hole = dicom_rtstruct_out.contours(mask_IJ)
  if abs(area(outer)) < abs(area(hole)):
    outer, hole = hole, outer
  assert np.abs(outer - 2).max() == pytest.approx(2.49)
  assert np.abs(hole - 2).max() == pytest.approx(0.51)


@pytest.mark.parametrize("seed", range(10))
def test_contours_enclose_the_mask_and_its_area(seed):
  mask_IJ = drawn(np.random.default_rng(seed))
  polygons = dicom_rtstruct_out.contours(mask_IJ)
  assert len(polygons) > 3
  np.testing.assert_array_equal(rastered(polygons, mask_IJ.shape), mask_IJ)
  np.testing.assert_array_equal(
    dicom_rtstruct.fill(polygons, mask_IJ.shape), mask_IJ
  )
  enclosed = abs(sum(area(points) for points in polygons))
  edges = sum(np.abs(np.diff(mask_IJ, axis=k)).sum() for k in (0, 1))
  assert enclosed == pytest.approx(mask_IJ.sum(), abs=0.02 * (edges + 108))


# Files.


def write(path, out, axis="axial"):
  """What was asked; its names are those of the regions."""
  scan = scans.open_scan(path, "kidney", scans.Looking(axis=axis))
  greys = fake_assistant.GREYS | {"body": fake_assistant.BODY}
  said = volumes.answer(fake_assistant.Fake(greys), scan, "kidney")
  masks = [(one.name, one.mask) for one in said.targets if one.present]
  dicom_rtstruct_out.write(out, masks, scan.files, scan.order, COLORS)
  return [name for name, _ in masks]


def read(path, datasets):
  """Name -> mask on the datasets, each contour on the image it names."""
  made = pydicom.dcmread(path)
  place = {one.SOPInstanceUID: z for z, one in enumerate(datasets)}
  found = {}
  for roi, item in zip(
    made.StructureSetROISequence, made.ROIContourSequence, strict=True
  ):
    assert roi.ROINumber == item.ReferencedROINumber
    shape = (len(datasets), datasets[0].Rows, datasets[0].Columns)
    mask = found[roi.ROIName] = np.zeros(shape, bool)
    for contour in item.ContourSequence:
      z = place[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
      image = datasets[z]
      points_N3 = np.reshape(contour.ContourData, (-1, 3)).astype(float)
      assert len(points_N3) == contour.NumberOfContourPoints
      away_N3 = points_N3 - np.array(image.ImagePositionPatient, float)
      along, down = np.reshape(image.ImageOrientationPatient, (2, 3))
      assert np.abs(away_N3 @ np.cross(along, down)).max() < 1e-4
      rows, columns = image.PixelSpacing
      polygon = np.stack(
        [away_N3 @ down / rows, away_N3 @ along / columns], axis=-1
      )
      mask[z] ^= measure.grid_points_in_poly(shape[1:], polygon)
  return found


@pytest.mark.parametrize("code", volume_files.CODES[::8])
def test_regions_lie_on_the_images_of_their_slices(tmp_path, code):
  labels, datasets = dicom_files.save_patient(tmp_path / "series", code)
  axis = ("axial", "coronal", "sagittal")[volume_files.CODES.index(code) % 3]
  names = write(tmp_path / "series", tmp_path / "rs.dcm", axis)
  found = read(tmp_path / "rs.dcm", datasets)
  assert list(found) == names
  wanted = {"kidney": labels == 1, "spleen": labels == 2, "body": labels > 0}
  for name in names:
    np.testing.assert_array_equal(found[name], wanted[name])


def random_masks(datasets):
  rng = np.random.default_rng(1)
  shape = (datasets[0].Rows, datasets[0].Columns)
  return np.array([drawn(rng, shape) for _ in datasets])


def save_masks(folder, code="SPL", **attributes):
  """A series, a structure set of it, and the mask, in the stack's order."""
  _, datasets = dicom_files.save_patient(folder, code, **attributes)
  scan = scans.open_scan(folder, "kidney")
  mask = random_masks(datasets)
  dicom_rtstruct_out.write(
    folder / "rs.dcm", [("kidney", mask)], scan.files, scan.order, COLORS[:1]
  )
  return datasets, mask


def test_what_reads_for_training_finds_the_same(tmp_path):
  _, mask = save_masks(tmp_path, "SPL")
  triplets, _ = volume_files.read(
    dicom.open_source(tmp_path, sources.Options())
  )
  assert len(triplets) == len(mask)
  for triplet, mask_IJ in zip(triplets, mask, strict=True):
    np.testing.assert_array_equal(triplet.masks_GIJ[0], mask_IJ)


def test_rt_utils_finds_the_same(tmp_path):
  rt_utils = pytest.importorskip("rt_utils", reason="rt-utils is not there")
  # It rounds points to pixels. Pixels and pictures are square, since it takes
  # rows for columns.
  affine = np.diag([0.75, 0.75, 4.0, 1])[:, [2, 1, 0, 3]]
  image = np.zeros((18, 24, 24), np.int16)
  datasets = dicom_files.series(image, affine, "MR", intercept=0)
  dicom_files.save_series(datasets, tmp_path)
  scan = scans.open_scan(tmp_path, "kidney")
  mask = random_masks(datasets)
  path = tmp_path / "out/rs.dcm"
  path.parent.mkdir()
  dicom_rtstruct_out.write(
    path, [("kidney", mask)], scan.files, scan.order, COLORS[:1]
  )
  held = rt_utils.RTStructBuilder.create_from(str(tmp_path), str(path))
  found = held.get_roi_mask_by_name("kidney")
  heights = [one.ImagePositionPatient[2] for one in held.series_data]
  assert heights == sorted(heights)
  # Axis 0 of a stack grows along the normal, as it sorts slices.
  np.testing.assert_array_equal(np.moveaxis(found, -1, 0), mask)


def test_the_standard_s_own_checker_finds_no_fault(tmp_path):
  save_masks(tmp_path)
  assert dicom_files.faults(tmp_path / "rs.dcm") == []


def test_a_structure_set_says_what_it_is_and_of_whom(tmp_path):
  datasets, _ = save_masks(tmp_path, SpecificCharacterSet="ISO_IR 192")
  made = pydicom.dcmread(tmp_path / "rs.dcm")
  for name in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
    assert made[name].value == datasets[0][name].value
  assert made.SpecificCharacterSet == "ISO_IR 192"
  assert made.SeriesInstanceUID != datasets[0].SeriesInstanceUID
  assert made.ApprovalStatus == "UNAPPROVED"
  (seen,) = made.RTROIObservationsSequence
  assert seen.RTROIIdentificationCodeSequence[0].CodeValue == "64033007"
  (item,) = made.ROIContourSequence
  assert list(item.ROIDisplayColor) == [255, 0, 0]
  values = [
    text
    for contour in item.ContourSequence
    for text in map(str, contour.ContourData)
  ]
  assert max(map(len, values)) <= 16  # the most that a decimal may have


def test_a_contour_may_be_longer_than_64_kb(tmp_path):
  dataset = dicom_files.new("MR", RescaleSlope=1, RescaleIntercept=0)
  dicom_files.put_pixels(dataset, np.zeros((100, 100), np.int16))
  dataset.ImagePositionPatient = [1 / 3, 2 / 3, 0]
  dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
  dataset.PixelSpacing = [1 / 3, 1 / 3]
  dicom_files.save(dataset, tmp_path / "one.dcm")
  comb_IJ = np.zeros((100, 100), bool)
  comb_IJ[::4] = True
  comb_IJ[1::4, ::2] = True
  comb_IJ[:, 0] = True
  dicom_rtstruct_out.write(
    tmp_path / "rs.dcm",
    [("comb", comb_IJ[None])],
    [tmp_path / "one.dcm"],
    [0],
    COLORS[:1],
  )
  (item,) = pydicom.dcmread(tmp_path / "rs.dcm").ROIContourSequence
  (contour,) = item.ContourSequence
  assert len("\\".join(map(str, contour.ContourData))) > 65536
  found = read(tmp_path / "rs.dcm", [dataset])
  np.testing.assert_array_equal(found["comb"][0], comb_IJ)


def test_frames_of_one_file_are_named(tmp_path):
  image, labels, affine = volume_files.patient()
  voxels, turned = volume_files.turned(image, affine, "SPL")
  labels_ZIJ = volume_files.turned(labels, affine, "SPL")[0]
  order = np.random.default_rng(0).permutation(len(voxels))
  datasets = dicom_files.series(voxels, turned, "MR", intercept=0)
  made = dicom_files.enhanced(datasets, order)
  path = dicom_files.save(made, tmp_path / "all.dcm")
  names = write(path, tmp_path / "rs.dcm")
  found = pydicom.dcmread(tmp_path / "rs.dcm")
  kidney = found.ROIContourSequence[names.index("kidney")]
  frames = {
    contour.ContourImageSequence[0].ReferencedFrameNumber
    for contour in kidney.ContourSequence
  }
  held = (labels_ZIJ[order] == 1).any((1, 2))
  assert frames == set(np.flatnonzero(held) + 1)


def test_images_that_lie_nowhere_are_refused(tmp_path):
  made = dicom_files.new("DX", PixelSpacing=[0.5, 0.5])
  pixels_IJ = fake_assistant.picture()[..., 0].astype(np.uint16) * 10
  dicom_files.put_pixels(made, pixels_IJ)
  dicom_files.save(made, tmp_path / "x.dcm")
  with pytest.raises(DataError, match="do not say where they lie"):
    write(tmp_path / "x.dcm", tmp_path / "rs.dcm")
  assert not (tmp_path / "rs.dcm").exists()
