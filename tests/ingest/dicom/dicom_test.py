import collections
import os
import pathlib
import pickle

import dicom_files
import numpy as np
import pydicom
from pydicom.data import get_testdata_files
import pytest
import volume_files

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.dicom import dicom, dicom_header, dicom_stack
from rcmed_jax.ingest.volumes import windows

KEEP = sources.Options(empty_slices="keep", unlabelled="keep")
UNKNOWN = sources.Options(unlabelled="keep", modality="microscopy")


def read(path, options=KEEP):
  return volume_files.read(dicom.open_source(path, options))


def by_slice(triplets):
  return [t.image_IJC for t in sorted(triplets, key=lambda t: t.id)]


def patient(code="SPL"):
  image, labels, affine = volume_files.patient()
  return (
    *volume_files.turned(image, affine, code),
    volume_files.turned(labels, affine, code)[0],
  )


# Series.


@pytest.mark.parametrize("code", volume_files.CODES[::3])
def test_every_orientation_gives_the_same_slices(tmp_path, code):
  voxels, affine, _ = patient(code)
  dicom_files.save_series(dicom_files.series(voxels, affine), tmp_path)
  triplets, faults = read(tmp_path)
  assert not faults
  hounsfield_ZIJ = volume_files.axial(volume_files.patient()[0]) - 1024
  expected_ZIJ = windows.apply(hounsfield_ZIJ, windows.CT["soft tissue"])
  for z, image_IJC in enumerate(by_slice(triplets)):
    for channel in range(3):
      np.testing.assert_array_equal(image_IJC[..., channel], expected_ZIJ[z])
  assert {t.modality for t in triplets} == {"computed tomography"}
  assert {t.window for t in triplets} == {"soft tissue"}
  for triplet in triplets:
    assert triplet.spacing_mm == pytest.approx((0.75, 1.5), rel=1e-4)


def test_the_grid_is_highdicom_s(tmp_path):
  """Every voxel lies where an independent reader puts it, in LPS."""
  import highdicom

  voxels, affine, _ = patient("PIR")
  angle = np.radians(10)
  turn = np.eye(4)
  turn[:2, :2] = [
    [np.cos(angle), -np.sin(angle)],
    [np.sin(angle), np.cos(angle)],
  ]
  datasets = dicom_files.series(voxels, turn @ affine, intercept=0)
  theirs = highdicom.get_volume_from_series(datasets)
  headers = [dicom_header.parse(dataset, "") for dataset in datasets]
  stack = dicom_stack.stack(headers, "", "axial")
  assert stack.grid.shape == voxels.shape
  places = np.array(list(np.ndindex(voxels.shape)))
  mm = stack.grid.affine @ np.column_stack([places, np.ones(len(places))]).T
  mm[:2] *= -1
  there = np.rint(np.linalg.inv(theirs.affine) @ mm)[:3].astype(int)
  values = voxels[list(stack.order)]
  np.testing.assert_array_equal(
    theirs.array[tuple(there)], values[tuple(places.T)]
  )


def test_other_axes(tmp_path):
  voxels, affine, _ = patient()
  dicom_files.save_series(dicom_files.series(voxels, affine), tmp_path)
  triplets, _ = read(
    tmp_path, sources.Options(unlabelled="keep", axis="coronal")
  )
  assert len(triplets) == 24
  assert triplets[0].image_IJC.shape == (18, 20, 3)
  assert triplets[0].spacing_mm == pytest.approx((4.0, 1.5), rel=1e-4)


def test_an_oblique_series_keeps_its_slices(tmp_path):
  voxels, affine, _ = patient()
  angle = np.radians(15)
  turn = np.eye(4)
  turn[1:3, 1:3] = [
    [np.cos(angle), -np.sin(angle)],
    [np.sin(angle), np.cos(angle)],
  ]
  dicom_files.save_series(dicom_files.series(voxels, turn @ affine), tmp_path)
  triplets, faults = read(tmp_path)
  assert not faults
  expected_ZIJ = windows.apply(
    volume_files.axial(volume_files.patient()[0]) - 1024,
    windows.CT["soft tissue"],
  )
  for image_IJC, expected_IJ in zip(
    by_slice(triplets), expected_ZIJ, strict=True
  ):
    np.testing.assert_array_equal(image_IJC[..., 0], expected_IJ)
  assert triplets[0].spacing_mm == pytest.approx((0.75, 1.5), rel=1e-4)


def test_slopes_may_differ_from_slice_to_slice(tmp_path):
  voxels, affine, _ = patient()
  datasets = dicom_files.series(voxels, affine, "PT", intercept=0)
  for z, dataset in enumerate(datasets):
    dataset.RescaleSlope = z + 1
  dicom_files.save_series(datasets, tmp_path)
  triplets, _ = read(tmp_path)
  # Feet first: the code's first axis grows to the head.
  values_ZIJ = voxels * np.arange(1, 19)[:, None, None]
  low, high = np.percentile(values_ZIJ, (0.5, 99.5))
  expected = np.clip((values_ZIJ - low) / (high - low), 0, 1) * 255
  found_ZIJ = np.array(by_slice(triplets))[..., 0]
  assert np.abs(found_ZIJ - expected).max() <= 0.51
  assert {t.modality for t in triplets} == {"pet"}


def test_many_frames_in_one_file_are_a_volume(tmp_path):
  """Frames come in any order, each with its own slope; masks refer to them."""
  voxels, affine, labels = patient()
  datasets = dicom_files.series(voxels, affine, "MR", intercept=0)
  for z, dataset in enumerate(datasets):
    dataset.RescaleSlope = 1 + z % 3
  order = np.random.default_rng(0).permutation(18)
  made = dicom_files.enhanced(datasets, order)
  dicom_files.save(made, tmp_path / "one/a.dcm")
  dicom_files.save_series(datasets, tmp_path / "many")
  one, many = (by_slice(read(tmp_path / name)[0]) for name in ("one", "many"))
  np.testing.assert_array_equal(one, many)
  masks = dicom_files.segmentation([made], labels[order])
  dicom_files.save(masks, tmp_path / "one/seg.dcm")
  triplets, _ = read(tmp_path / "one")
  labels_ZIJ = volume_files.axial(volume_files.patient()[1])
  for triplet in triplets:
    found = dict(zip(triplet.classes, triplet.masks_GIJ, strict=True))
    for value, name in ((1, "kidney"), (2, "spleen")):
      wanted_IJ = labels_ZIJ[int(triplet.id[-4:])] == value
      assert (name in found) == wanted_IJ.any()
      if name in found:
        np.testing.assert_array_equal(found[name], wanted_IJ)


def test_two_series_in_one_folder_come_apart(tmp_path):
  voxels, affine, _ = patient()
  for name, modality in (("a", "CT"), ("b", "MR")):
    dicom_files.save_series(
      dicom_files.series(voxels, affine, modality), tmp_path / name
    )
  triplets, faults = read(tmp_path)
  assert not faults
  assert collections.Counter(t.modality for t in triplets) == {
    "computed tomography": 18,
    "magnetic resonance": 18,
  }
  assert len({t.group for t in triplets}) == 1  # one patient


def irregular(change):
  voxels, affine, _ = patient()
  datasets = dicom_files.series(voxels, affine)
  return change(datasets) or datasets


def _gap(datasets):
  del datasets[7]


def _twice(datasets):
  datasets[3].ImagePositionPatient = datasets[4].ImagePositionPatient


def _size(datasets):
  pixels = np.zeros((16, 16), np.int16)
  dicom_files.put_pixels(datasets[5], pixels)


def _direction(datasets):
  datasets[5].ImageOrientationPatient = [1, 0, 0, 0, 0.6, 0.8]


def _spacing(datasets):
  datasets[5].PixelSpacing = [0.5, 0.5]


def _shift(datasets):
  x, y, z = datasets[5].ImagePositionPatient
  datasets[5].ImagePositionPatient = [x + 5, y, z]


def _silent(datasets):
  del datasets[5].ImagePositionPatient


def _colour(datasets):
  pixels = np.zeros((24, 20, 3), np.uint8)
  dicom_files.put_pixels(datasets[5], pixels, "RGB")


@pytest.mark.parametrize(
  ("change", "reason"),
  [
    (_gap, "1 gaps are of 8 to 8 mm"),
    (_twice, "1 of its 18 slices lie where others do"),
    (_size, "16 x 16 and 24 x 20 pixels"),
    (_direction, "differ in direction"),
    (_spacing, "spacing of pixels"),
    (_shift, "shifted against each other"),
    (_silent, "1 gaps"),
    (_colour, "grey and some are in colour"),
  ],
)
def test_no_regular_stack_no_volume(tmp_path, change, reason):
  dicom_files.save_series(irregular(change), tmp_path)
  triplets, faults = read(tmp_path)
  # The slice that does not say where it lies is a picture of its own.
  assert len(triplets) == (change is _silent)
  assert len(faults) == 1
  assert reason in str(faults[0])


def test_a_single_slice_is_looked_at_along_its_normal(tmp_path):
  for code, axis in (("SPL", "axial"), ("AIL", "coronal"), ("LIP", "sagittal")):
    voxels, affine, _ = patient(code)
    folder = tmp_path / axis
    dicom_files.save_series(dicom_files.series(voxels[7:8], affine), folder)
    triplets, faults = read(folder)
    assert not faults
    assert triplets[0].image_IJC.shape[:2] == voxels.shape[1:]


def test_a_copy_of_a_file_is_a_fault(tmp_path):
  dataset = dicom_files.new("DX")
  dicom_files.put_pixels(dataset, np.zeros((20, 20), np.uint16))
  for name in ("a.dcm", "b.dcm"):
    dicom_files.save(dataset, tmp_path / name)
  triplets, faults = read(tmp_path)
  assert len(triplets) == 1
  assert [f.path for f in faults] == [f"{tmp_path}#2"]


# Pictures.


def test_a_radiograph_has_its_own_spacing_and_sense(tmp_path):
  rng = np.random.default_rng(0)
  values_IJ = rng.integers(1, 4096, (30, 40)).astype(np.uint16)
  shown = {}
  for photometric in ("MONOCHROME1", "MONOCHROME2"):
    dataset = dicom_files.new("DX", PixelSpacing=[0.2, 0.1])
    dicom_files.put_pixels(dataset, values_IJ, photometric)
    path = dicom_files.save(dataset, tmp_path / f"{photometric}.dcm")
    triplets, _ = read(path)
    assert triplets[0].spacing_mm == (0.2, 0.1)
    assert triplets[0].modality == "X-Ray"
    shown[photometric] = triplets[0].image_IJC
  np.testing.assert_array_equal(
    shown["MONOCHROME1"], 255 - shown["MONOCHROME2"]
  )
  low, high = np.percentile(values_IJ, (0.5, 99.5))
  expected = np.clip((values_IJ - low) / (high - low), 0, 1) * 255
  assert np.abs(shown["MONOCHROME2"][..., 1] - expected).max() <= 0.5


def test_every_frame_of_a_film_is_a_picture(tmp_path):
  frames_ZIJC = np.random.default_rng(0).integers(
    0, 256, (5, 20, 24, 3), np.uint8
  )
  dataset = dicom_files.put_pixels(dicom_files.new("US"), frames_ZIJC, "RGB")
  dicom_files.save(dataset, tmp_path / "a.dcm")
  triplets, _ = read(tmp_path)
  np.testing.assert_array_equal(by_slice(triplets), frames_ZIJC)
  assert triplets[0].id.endswith("#f0000")
  assert triplets[0].modality == "ultrasound"


def test_8_bits_are_shown_as_they_are(tmp_path):
  values_IJ = np.random.default_rng(0).integers(50, 99, (20, 24), np.uint8)
  dataset = dicom_files.put_pixels(dicom_files.new("US"), values_IJ)
  dicom_files.save(dataset, tmp_path / "a.dcm")
  triplets, _ = read(tmp_path)
  np.testing.assert_array_equal(triplets[0].image_IJC[..., 0], values_IJ)


def test_16_bit_colours_keep_their_upper_byte(tmp_path):
  values_IJC = np.random.default_rng(0).integers(
    0, 65536, (20, 24, 3), np.uint16
  )
  dataset = dicom_files.put_pixels(dicom_files.new("US"), values_IJC, "RGB")
  dicom_files.save(dataset, tmp_path / "a.dcm")
  triplets, _ = read(tmp_path)
  np.testing.assert_array_equal(triplets[0].image_IJC, values_IJC >> 8)


def test_a_palette_is_looked_up(tmp_path):
  values_IJ = np.random.default_rng(0).integers(0, 256, (20, 24), np.uint8)
  tables = np.random.default_rng(1).integers(0, 65536, (3, 256), np.uint16)
  dataset = dicom_files.new("US")
  dicom_files.put_pixels(dataset, values_IJ, "PALETTE COLOR")
  for colour, table in zip(("Red", "Green", "Blue"), tables, strict=True):
    name = f"{colour}PaletteColorLookupTable"
    setattr(dataset, f"{name}Descriptor", [256, 0, 16])
    setattr(dataset, f"{name}Data", table.astype("<u2").tobytes())
  dicom_files.save(dataset, tmp_path / "a.dcm")
  triplets, _ = read(tmp_path)
  expected_IJC = (tables[:, values_IJ] >> 8).transpose(1, 2, 0)
  np.testing.assert_array_equal(triplets[0].image_IJC, expected_IJC)


def test_ybr_becomes_rgb(tmp_path):
  rng = np.random.default_rng(0)
  rgb_IJC = rng.integers(0, 256, (20, 24, 3)).astype(float)
  # ITU-R BT.601, full range, as DICOM PS 3.3 C.7.6.3.1.2 has it.
  to_ybr = np.array(
    [
      [0.299, 0.587, 0.114],
      [-0.168736, -0.331264, 0.5],
      [0.5, -0.418688, -0.081312],
    ]
  )
  ybr_IJC = np.rint(rgb_IJC @ to_ybr.T + [0, 128, 128]).clip(0, 255)
  dataset = dicom_files.new("US")
  dicom_files.put_pixels(dataset, ybr_IJC.astype(np.uint8), "YBR_FULL")
  dicom_files.save(dataset, tmp_path / "a.dcm")
  triplets, _ = read(tmp_path)
  assert np.abs(triplets[0].image_IJC - rgb_IJC).max() <= 2


def test_the_modality_is_asked_for_where_the_file_has_none(tmp_path):
  dataset = dicom_files.new("US", Modality="OT")
  dicom_files.put_pixels(dataset, np.zeros((20, 20), np.uint8))
  dicom_files.save(dataset, tmp_path / "a.dcm")
  triplets, faults = read(tmp_path)
  assert not triplets
  assert "--modality" in str(faults[0])
  triplets, _ = read(tmp_path, UNKNOWN)
  assert triplets[0].modality == "microscopy"


def test_units_travel_to_other_processes(tmp_path):
  voxels, affine, _ = patient()
  dicom_files.save_series(dicom_files.series(voxels, affine), tmp_path)
  for unit in dicom.open_source(tmp_path, KEEP).units([].append):
    again = pickle.loads(pickle.dumps(unit))
    assert again == unit
    one, two = ([t.id for t in u.triplets([].append)] for u in (unit, again))
    assert one == two


def test_matches(tmp_path):
  assert not dicom.matches(tmp_path)
  with pytest.raises(DataError, match="empty"):
    list(dicom.open_source(tmp_path, KEEP).units([].append))
  (tmp_path / "a").write_bytes(b"text")
  assert not dicom.matches(tmp_path)
  dataset = dicom_files.put_pixels(
    dicom_files.new("US"), np.zeros((20, 20), np.uint8)
  )
  path = dicom_files.save(dataset, tmp_path / "b")
  assert dicom.matches(tmp_path)
  assert dicom.matches(path)


# Other people's files.


def local(*names):
  """pydicom's own test files of these names; none is downloaded."""
  found = {os.path.basename(path): path for path in get_testdata_files()}
  return [pathlib.Path(found[name]) for name in names]


def test_one_picture_in_every_transfer_syntax():
  names = ("MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm")
  names += ("MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm")
  names += ("MR_small_implicit.dcm", "MR_small_padded.dcm", "MR_small_expb.dcm")
  pictures = [read(path)[0][0].image_IJC for path in local(*names)]
  values_IJ = pydicom.dcmread(local("MR_small.dcm")[0]).pixel_array
  low, high = np.percentile(values_IJ[values_IJ != 0], (0.5, 99.5))
  expected = np.clip((values_IJ - low) / (high - low), 0, 1) * 255
  assert np.abs(pictures[0][..., 0] - expected).max() <= 0.5
  for picture_IJC in pictures[1:]:
    np.testing.assert_array_equal(picture_IJC, pictures[0])


def test_one_picture_in_many_colour_spaces():
  names = ("SC_rgb_rle.dcm", "SC_rgb_rle_16bit.dcm", "SC_rgb_rle_32bit.dcm")
  names += ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_gdcm_KY.dcm")
  names += ("SC_rgb_dcmtk_+eb+cy+n1.dcm", "SC_rgb_dcmtk_+eb+cy+np.dcm")
  names += ("SC_ybr_full_422_uncompressed.dcm", "SC_rgb_dcmtk_+eb+cr.dcm")
  pictures = [
    read(path, UNKNOWN)[0][0].image_IJC.astype(int) for path in local(*names)
  ]
  for name, picture_IJC in zip(names, pictures, strict=True):
    # Chroma at half the rows and columns smears edges, lossy ones a little.
    assert np.median(np.abs(picture_IJC - pictures[0])) <= 2, name


def broken(name, change, folder):
  """A copy of one of pydicom's files whose first coded frame is changed."""
  dataset = pydicom.dcmread(local(name)[0])
  frames = list(
    pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
  )
  dataset.PixelData = pydicom.encaps.encapsulate([change(frames[0])])
  return dicom_files.save(dataset, folder / name)


@pytest.mark.parametrize(
  "name", ["SC_rgb_jpeg_gdcm.dcm", "MR_small_jpeg_ls_lossless.dcm"]
)
def test_a_frame_that_breaks_off_is_refused(tmp_path, name):
  path = broken(name, lambda frame: frame, tmp_path)
  assert len(read(path, UNKNOWN)[0]) == 1
  path = broken(name, lambda frame: frame[: len(frame) * 2 // 3], tmp_path)
  triplets, faults = read(path, UNKNOWN)
  assert not triplets
  assert "breaks off" in str(faults[0])


def test_a_frame_larger_than_its_header_is_refused(tmp_path):
  def grow(frame):
    place = frame.index(b"\xff\xc0")  # start of frame: length, precision
    sides = (30000).to_bytes(2) * 2
    return frame[: place + 5] + sides + frame[place + 9 :]

  path = broken("SC_rgb_jpeg_dcmtk.dcm", grow, tmp_path)
  triplets, faults = read(path, UNKNOWN)
  assert not triplets
  assert "larger than its header" in str(faults[0])


def test_pydicom_s_own_files_are_read_or_refused(capsys):
  accepted, refused = {}, {}
  paths = [pathlib.Path(path) for path in sorted(get_testdata_files())]
  paths = [path for path in paths if path.is_file()]
  for path in paths:
    triplets, faults = read(path, UNKNOWN)
    for triplet in triplets:
      assert triplet.image_IJC.dtype == np.uint8
      assert triplet.image_IJC.ndim == 3
    if triplets:
      assert not faults
      accepted[path] = len(triplets)
    else:
      assert len(faults) == 1
      refused[path] = str(faults[0].message)
  with capsys.disabled():
    print()
    for path, count in accepted.items():
      print(f"  {path.name}: {count} pictures")
    reasons = collections.Counter(refused.values())
    for reason, count in reasons.most_common():
      names = [p.name for p, why in refused.items() if why == reason]
      print(f"  {count} refused: {reason}: {', '.join(names[:4])}")
    print(
      f"  {len(accepted)} accepted, {len(refused)} refused, {len(paths)} all"
    )
  assert len(accepted) + len(refused) == len(paths) >= 150
  assert len(accepted) >= 70


def test_pydicom_s_folder_of_series():
  """As one folder: each file in a unit or a fault, and no unit twice."""
  root = local("77654033")[0].parent
  unit_files, faults = [], []
  for unit in dicom.open_source(root, KEEP).units(faults.append):
    unit_files += [file.path for file in unit.files + unit.masks]
  files = [path for path in root.rglob("*") if path.is_file()]
  assert len(unit_files) + len(faults) == len(files)
  assert len(set(unit_files)) == len(unit_files) > 20
