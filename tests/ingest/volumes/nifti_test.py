import gzip
import json
import pathlib
import pickle

import nibabel
import numpy as np
import pytest
import volume_files

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.dicom import dicom
from rcmed_jax.ingest.volumes import nifti, volumes

MR = sources.Options(
  modality="magnetic resonance", label_names=((1, "kidney"), (2, "spleen"))
)


def save(path, voxels, affine, kind=nibabel.Nifti1Image):
  path.parent.mkdir(parents=True, exist_ok=True)
  nibabel.save(kind(voxels, affine), path)
  return path


def save_pair(image_path, labels_path, code="RAS"):
  image, labels, affine = volume_files.patient()
  save(image_path, *volume_files.turned(image, affine, code))
  save(labels_path, *volume_files.turned(labels, affine, code))


def read(path, **options):
  base = {**vars(MR), **options}
  return volume_files.read(nifti.open_source(path, sources.Options(**base)))


def masks_of(triplets, name):
  return {
    int(t.id[-4:]): t.masks_GIJ[t.classes.index(name)]
    for t in triplets
    if name in t.classes
  }


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("code", volume_files.CODES)
def test_every_orientation_gives_the_same_triplets(tmp_path, code, ending):
  save_pair(tmp_path / f"image{ending}", tmp_path / f"label{ending}", code)
  triplets, faults = read(tmp_path)
  image, labels, _ = volume_files.patient()
  image_ZIJ, labels_ZIJ = map(volume_files.axial, (image, labels))
  assert [type(fault) for fault in faults] == [volumes.EmptySlicesError]
  assert len(triplets) == labels_ZIJ.any((1, 2)).sum()
  for value, name in MR.label_names:
    found = masks_of(triplets, name)
    for z, labels_IJ in enumerate(labels_ZIJ):
      if (labels_IJ == value).any():
        np.testing.assert_array_equal(found[z], labels_IJ == value)
      else:
        assert z not in found
  low, high = np.percentile(image_ZIJ, (0.5, 99.5))
  for triplet in triplets:
    z = int(triplet.id[-4:])
    grey = np.clip((image_ZIJ[z] - low) / (high - low), 0, 1) * 255
    assert np.abs(triplet.image_IJC - grey[..., None]).max() <= 0.5
    assert triplet.spacing_mm == pytest.approx((0.75, 1.5))


def test_other_axes_have_their_own_spacing(tmp_path):
  save_pair(tmp_path / "image.nii", tmp_path / "label.nii", "PSL")
  for axis, shape, spacing in (
    ("coronal", (18, 20), (4.0, 1.5)),
    ("sagittal", (18, 24), (4.0, 0.75)),
  ):
    triplets, _ = read(tmp_path, axis=axis)
    assert triplets[0].image_IJC.shape[:2] == shape
    assert triplets[0].spacing_mm == pytest.approx(spacing)


def test_labels_may_be_turned_against_their_image(tmp_path):
  image, labels, affine = volume_files.patient()
  save(tmp_path / "image.nii.gz", *volume_files.turned(image, affine, "LAS"))
  save(tmp_path / "label.nii.gz", *volume_files.turned(labels, affine, "PIR"))
  triplets, faults = read(tmp_path)
  assert len(faults) == 1
  labels_ZIJ = volume_files.axial(labels)
  for z, mask_IJ in masks_of(triplets, "kidney").items():
    np.testing.assert_array_equal(mask_IJ, labels_ZIJ[z] == 1)


def test_a_window_is_that_of_the_volume_s_classes(tmp_path):
  image, labels, affine = volume_files.patient()
  save(tmp_path / "image.nii", image - np.int16(1024), affine)
  save(tmp_path / "label.nii", labels, affine)
  for names, window in (
    (((1, "liver"), (2, "liver tumor")), "liver"),
    (((1, "liver"), (2, "spleen")), "soft tissue"),
  ):
    triplets, _ = read(
      tmp_path, modality="CT", label_names=names, empty_slices="keep"
    )
    assert {t.window for t in triplets} == {window}
    assert {t.modality for t in triplets} == {"computed tomography"}
    assert len({t.classes for t in triplets}) > 1


# Layouts.


def test_nnunet_s_layout_with_channels_and_names(tmp_path):
  for case in ("a", "b"):
    save_pair(
      tmp_path / f"imagesTr/{case}_0000.nii.gz",
      tmp_path / f"labelsTr/{case}.nii.gz",
    )
  image, _, affine = volume_files.patient()
  save(tmp_path / "imagesTr/a_0001.nii.gz", image, affine)
  save(tmp_path / "imagesTs/c_0000.nii.gz", image, affine)
  (tmp_path / "dataset.json").write_text(
    json.dumps(
      {
        "channel_names": {"0": "CT", "1": "T1"},
        "labels": {"background": 0, "gall_bladder": 1, "both": [1, 2]},
        "licence": "CC-BY-SA 4.0",
      }
    )
  )
  triplets, faults = read(tmp_path, modality="", label_names=())
  assert {t.id.split("#")[0] for t in triplets} == {
    f"{tmp_path.name}/imagesTr/{name}"
    for name in ("a_0000", "a_0001", "b_0000")
  }
  assert {t.modality for t in triplets if "0001" in t.id.split("#")[0]} == {
    "magnetic resonance"
  }
  assert {t.modality for t in triplets if "_0000#" in t.id} == {
    "computed tomography"
  }
  groups = {t.id.split("#")[0][-6:]: t.group for t in triplets}
  assert groups["a_0000"] == groups["a_0001"] != groups["b_0000"]
  assert {t.license for t in triplets} == {"CC-BY-SA 4.0"}
  assert {t.classes for t in triplets} == {("gallbladder", "both"), ("both",)}
  told = [f for f in faults if not isinstance(f, volumes.EmptySlicesError)]
  assert [pathlib.Path(f.path).name for f in told] == ["c_0000.nii.gz"]


def test_the_decathlon_s_names(tmp_path):
  save_pair(tmp_path / "imagesTr/a.nii.gz", tmp_path / "labelsTr/a.nii.gz")
  (tmp_path / "dataset.json").write_text(
    json.dumps(
      {
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Left_Atrium", "2": "wall"},
      }
    )
  )
  triplets, _ = read(tmp_path, modality="", label_names=())
  assert {n for t in triplets for n in t.classes} == {"Left Atrium", "wall"}
  assert triplets[0].modality == "magnetic resonance"


def test_a_folder_a_case(tmp_path):
  for case in ("p1", "p2"):
    save_pair(tmp_path / case / "image.nii", tmp_path / case / "label.nii")
  triplets, _ = read(tmp_path)
  assert {t.group for t in triplets} == {
    f"{tmp_path.name}/{case}/image" for case in ("p1", "p2")
  }


def test_every_file_is_part_of_a_unit_or_a_fault(tmp_path):
  save_pair(tmp_path / "images/a.nii", tmp_path / "labels/a.nii")
  save_pair(tmp_path / "images/b.nii", tmp_path / "labels/c.nii")
  (tmp_path / "images/.a.nii").write_bytes(b"macOS")
  triplets, faults = read(tmp_path)
  assert {t.id.split("#")[0][-8:] for t in triplets} == {"images/a"}
  assert {pathlib.Path(f.path).name for f in faults} == {
    "a.nii",  # its empty slices
    "b.nii",
    "c.nii",
  }
  # Without labels beside those that have some, it is no negative.
  for options in ({}, {"unlabelled": "keep"}):
    kept, faults = read(tmp_path, empty_slices="keep", **options)
    assert len(kept) == 18
    assert {pathlib.Path(f.path).name for f in faults} == {"b.nii", "c.nii"}


def test_labels_alone_are_no_image(tmp_path):
  save_pair(tmp_path / "a/image.nii", tmp_path / "a/seg.nii")
  (tmp_path / "a/image.nii").rename(tmp_path / "image.nii")
  kept, faults = read(tmp_path, unlabelled="keep")
  assert {t.id.split("#")[0] for t in kept} == {f"{tmp_path.name}/image"}
  assert [pathlib.Path(f.path).name for f in faults] == ["seg.nii"]


def classes_of(triplets):
  return {name for triplet in triplets for name in triplet.classes}


def test_a_mask_a_class_as_totalsegmentator_and_others_have_them(tmp_path):
  image, labels, affine = volume_files.patient()
  for case, name, inside in (
    ("one", "image.nii", "one"),
    ("two", "mri.nii.gz", "two/segmentations"),
  ):
    save(tmp_path / case / name, image, affine)
    for value, organ in ((1, "kidney_right"), (2, "spleen"), (3, "liver")):
      mask = (labels == value).astype(np.uint8)
      save(tmp_path / inside / f"{organ}.nii.gz", mask, affine)
  triplets, faults = read(tmp_path, label_names=(), unlabelled="keep")
  assert {t.group.rsplit("/", 2)[1] for t in triplets} == {"one", "two"}
  assert classes_of(triplets) == {"kidney right", "spleen"}
  assert {type(fault) for fault in faults} == {volumes.EmptySlicesError}
  labels_ZIJ = volume_files.axial(labels)
  for case in ("one", "two"):
    own = [t for t in triplets if f"/{case}/" in t.id]
    for value, organ in ((1, "kidney right"), (2, "spleen")):
      for z, mask_IJ in masks_of(own, organ).items():
        np.testing.assert_array_equal(mask_IJ, labels_ZIJ[z] == value)


def test_one_segmentation_of_several_images_as_brats_has_it(tmp_path):
  image, labels, affine = volume_files.patient()
  for name in ("B_1_t1", "B_1_flair", "B_12_t1"):
    save(tmp_path / f"{name}.nii.gz", image, affine)
  save(tmp_path / "B_1_seg.nii.gz", labels, affine)
  save(tmp_path / "B_3_seg.nii.gz", labels, affine)
  triplets, faults = read(tmp_path, modality="", unlabelled="keep")
  assert {t.id.split("#")[0].rsplit("/")[-1] for t in triplets} == {
    "B_1_t1",
    "B_1_flair",
  }
  assert classes_of(triplets) == {"kidney", "spleen"}
  told = [f for f in faults if not isinstance(f, volumes.EmptySlicesError)]
  assert {pathlib.Path(f.path).name for f in told} == {
    "B_12_t1.nii.gz",  # no labels, beside those that have some
    "B_3_seg.nii.gz",
  }


def test_masks_are_never_images(tmp_path):
  image, labels, affine = volume_files.patient()
  save(tmp_path / "a/scan.nii", image, affine)
  save(tmp_path / "a/kidneys.nii", labels, affine)
  for options in ({}, {"unlabelled": "keep"}):
    triplets, faults = read(tmp_path, empty_slices="keep", **options)
    named = {pathlib.Path(fault.path).name for fault in faults}
    assert {t.id.split("#")[0][-6:] for t in triplets} == (
      {"a/scan"} if options else set()
    )
    assert "kidneys.nii" in named
  assert "it holds labels, on the grid of scan.nii" in str(faults[0])
  # What is beside an image of a case, and no mask, is said to be none.
  (tmp_path / "a/scan.nii").rename(tmp_path / "a/image.nii")
  triplets, (fault,) = read(tmp_path, unlabelled="keep")
  assert not triplets and "more than two values" in str(fault)


def test_masks_are_labels_by_another_name(tmp_path):
  save_pair(tmp_path / "imagesVal/a.nii", tmp_path / "masksVal/a.nii")
  triplets, faults = read(tmp_path)
  assert triplets
  assert len(faults) == 1


def test_a_single_file_is_an_image_without_labels(tmp_path):
  image, _, affine = volume_files.patient()
  path = save(tmp_path / "scan.nii.gz", image, affine)
  assert nifti.matches(path)
  triplets, faults = read(path, unlabelled="keep")
  assert len(triplets) == 18
  assert not faults
  triplets, faults = read(path)
  assert not triplets
  assert len(faults) == 1


def test_names_are_asked_for_when_nobody_gives_them(tmp_path):
  save_pair(tmp_path / "image.nii", tmp_path / "label.nii")
  triplets, faults = read(tmp_path, label_names=())
  assert not triplets
  assert "the values 1, 2" in str(faults[0])
  triplets, faults = read(tmp_path, label_names=((1, "kidney"),))
  assert {t.classes for t in triplets} == {("kidney",)}
  assert "the value 2" in str(faults[0])


def test_a_broken_dataset_file_is_a_fault(tmp_path):
  save_pair(tmp_path / "image.nii", tmp_path / "label.nii")
  for text in ("{", "[]", '{"labels": {"a": "b"}}', '{"labels": 3}'):
    (tmp_path / "dataset.json").write_text(text)
    triplets, faults = read(tmp_path)
    assert triplets
    assert any("dataset.json" in str(f) for f in faults)


def test_matches_is_about_names(tmp_path):
  assert not nifti.matches(tmp_path)
  save_pair(tmp_path / "a/image.nii", tmp_path / "a/label.nii")
  assert nifti.matches(tmp_path)
  with pytest.raises(DataError, match=r"\.nii"):
    (tmp_path / "empty").mkdir()
    list(nifti.open_source(tmp_path / "empty", MR).units([].append))


def test_units_travel_to_other_processes(tmp_path):
  save_pair(tmp_path / "image.nii", tmp_path / "label.nii")
  for unit in nifti.open_source(tmp_path, MR).units([].append):
    again = pickle.loads(pickle.dumps(unit))
    assert again == unit
    assert len(list(again.triplets([].append))) == len(
      list(unit.triplets([].append))
    )


def test_wrong_options_fail_at_once(tmp_path):
  with pytest.raises(ValueError, match="axial, coronal, sagittal"):
    nifti.open_source(tmp_path, sources.Options(axis="transverse"))
  with pytest.raises(ValueError, match="liver"):
    nifti.open_source(tmp_path, sources.Options(window="spleen"))


# What is in the files.


def test_slopes_and_units_count(tmp_path):
  image, _, _ = volume_files.patient()
  made = nibabel.Nifti1Image(image, np.diag([1500, 750, 4000, 1]) * 1.0)
  made.header.set_slope_inter(0.5, -1024)
  made.header.set_xyzt_units("micron")
  nibabel.save(made, tmp_path / "scan.nii")
  assert nibabel.load(tmp_path / "scan.nii").dataobj.slope == 0.5
  stored = nifti.read(tmp_path / "scan.nii", "image")
  assert stored.grid.spacing_mm == pytest.approx(volume_files.SPACING)
  whole = nibabel.load(tmp_path / "scan.nii").get_fdata()
  np.testing.assert_allclose(stored.voxels[:, :, 3], whole[:, :, 3], atol=1e-3)


def test_labels_may_have_a_slope(tmp_path):
  image, labels, affine = volume_files.patient()
  save(tmp_path / "image.nii", image, affine)
  made = nibabel.Nifti1Image(labels * 2, affine)
  made.header.set_slope_inter(0.5, 0)
  nibabel.save(made, tmp_path / "label.nii")
  stored = nibabel.load(tmp_path / "label.nii")
  assert stored.dataobj.slope == 0.5
  values = set(np.unique(stored.get_fdata()))
  names = tuple((int(v), f"class {v:g}") for v in sorted(values) if v)
  triplets, _ = read(tmp_path, label_names=names)
  assert {n for t in triplets for n in t.classes} == {n for _, n in names}


def test_a_header_that_would_have_to_be_mended_is_refused(tmp_path, capfd):
  image, _, affine = volume_files.patient()
  path = save(tmp_path / "a.nii", image, affine)
  content = bytearray(path.read_bytes())
  content[254] = 99  # sform_code: of no orientation that there is
  path.write_bytes(content)
  assert nibabel.load(path).shape == volume_files.SHAPE
  capfd.readouterr()
  with pytest.raises(DataError, match="sform_code"):
    nifti.read(path, "image")
  assert capfd.readouterr() == ("", "")
  assert nibabel.load(path).shape == volume_files.SHAPE


def test_colours_are_kept(tmp_path):
  rng = np.random.default_rng(0)
  colours = rng.integers(0, 256, (20, 24, 18, 3), np.uint8)
  kind = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
  packed = colours.view(kind).reshape(colours.shape[:3])
  save(tmp_path / "rgb.nii.gz", packed, np.eye(4))
  stored = nifti.read(tmp_path / "rgb.nii.gz", "image")
  np.testing.assert_array_equal(stored.voxels, colours)


@pytest.mark.parametrize(
  ("voxels", "reason"),
  [
    (np.zeros((20, 20, 20, 3), np.int16), "4 axes"),
    (np.zeros((20, 20, 1, 1, 3), np.float32), "5 axes"),
    (np.zeros((20, 20, 20), np.complex64), "complex"),
  ],
)
def test_what_is_no_volume_of_numbers_is_refused(tmp_path, voxels, reason):
  path = save(tmp_path / "a.nii", voxels, np.eye(4))
  with pytest.raises(DataError, match=reason):
    nifti.read(path, "image")


def test_further_axes_of_length_one_are_dropped(tmp_path):
  path = save(tmp_path / "a.nii", np.zeros((20, 21, 22, 1), "i2"), np.eye(4))
  assert nifti.read(path, "image").grid.shape == (20, 21, 22)


def test_uncompressed_files_are_mapped_not_read(tmp_path):
  path = save(tmp_path / "a.nii", np.zeros((32, 32, 32), "i2"), np.eye(4))
  assert isinstance(nifti.read(path, "image").voxels, np.memmap)


def test_what_breaks_off_is_refused(tmp_path):
  image, _, affine = volume_files.patient()
  whole = save(tmp_path / "a.nii", image, affine).read_bytes()
  for size in (0, 10, 200, 351, len(whole) - 1):
    for name, content in (
      ("b.nii", whole[:size]),
      ("b.nii.gz", gzip.compress(whole[:size])),
      ("c.nii.gz", gzip.compress(whole)[:size]),
    ):
      (tmp_path / name).write_bytes(content)
      if name == "c.nii.gz" and size >= len(gzip.compress(whole)):
        continue
      with pytest.raises(DataError):
        nifti.read(tmp_path / name, "image")


def test_a_bomb_is_seen_in_its_header(tmp_path):
  header = nibabel.Nifti1Header()
  header.set_data_dtype(np.int16)
  header.set_data_shape((30000, 30000, 30))
  path = tmp_path / "a.nii.gz"
  path.write_bytes(gzip.compress(header.binaryblock + bytes(1000)))
  with pytest.raises(DataError, match="at most 900"):
    nifti.read(path, "image")
  header.set_data_shape((3000, 300, 300))
  path.write_bytes(gzip.compress(header.binaryblock + bytes(1000)))
  with pytest.raises(DataError, match="cannot hold"):
    nifti.read(path, "image")


# Real data.


def test_the_liver_s_labels_are_on_another_grid(shared):
  folder = shared / "data/liver_mr"
  triplets, faults = read(folder, modality="", label_names=((1, "liver"),))
  assert not triplets
  assert len(faults) == 1
  for part in (
    "256 x 256 x 36 voxels of 1 x 1 x 1 mm, RAS, origin (0, 0, 0)",
    "256 x 256 x 36 voxels of 1.54297 x 1.54297 x 7.7 mm, LAS, origin (192.65",
    "--assume-same-grid",
  ):
    assert part in str(faults[0])


def test_the_liver_is_where_livers_are(shared):
  """On the patient's right, in the body, and evenly bright."""
  folder = shared / "data/liver_mr"
  triplets, faults = read(
    folder, modality="", label_names=((1, "liver"),), assume_same_grid=True
  )
  assert len(triplets) + faults[0].count == 36
  assert {t.modality for t in triplets} == {"magnetic resonance"}
  assert triplets[0].spacing_mm == pytest.approx((1.54297, 1.54297), rel=1e-5)
  large = [t for t in triplets if t.masks_GIJ.sum() > 3000]
  assert len(large) > 8
  inside, around = [], []
  for triplet in large:
    mask_IJ, grey_IJ = triplet.masks_GIJ[0], triplet.image_IJC[..., 0]
    body_IJ = grey_IJ > 20
    # Screen left is the patient's right.
    assert np.nonzero(mask_IJ)[1].mean() < np.nonzero(body_IJ)[1].mean()
    # Nearly all of the mask lies in the body; nothing of it in the air.
    assert body_IJ[mask_IJ].mean() > 0.9
    inside.append(grey_IJ[mask_IJ])
    away_IJ = np.roll(mask_IJ, 60, axis=1)
    around.append(grey_IJ[away_IJ])
  # A liver is evenly bright; elsewhere in the body the same shape is not.
  spread = [np.std(values) / np.mean(values) for values in inside]
  elsewhere = [np.std(values) / np.mean(values) for values in around]
  assert np.median(spread) < 0.6 * np.median(elsewhere)


_OTHER = "neither NIfTI nor DICOM by name and start"


def test_nibabel_s_own_files_are_read_or_refused(capsys):
  folder = pathlib.Path(nibabel.__file__).parent / "tests/data"
  options = sources.Options(modality="pet", unlabelled="keep")
  accepted, refused = {}, {}
  paths = sorted(path for path in folder.iterdir() if path.is_file())
  for path in paths:
    reader = next((r for r in (nifti, dicom) if r.matches(path)), None)
    if reader is None:
      refused[path.name] = _OTHER
      continue
    triplets, faults = volume_files.read(reader.open_source(path, options))
    if triplets:
      accepted[path.name] = len(triplets)
    else:
      refused[path.name] = faults[0].message
  with capsys.disabled():
    print()
    for name, count in accepted.items():
      print(f"  {name}: {count} slices")
    for name, reason in refused.items():
      if reason != _OTHER:
        print(f"  {name}: refused: {reason}")
    print(
      f"  {len(accepted)} accepted, {len(refused)} refused, {len(paths)} all"
    )
  assert len(accepted) + len(refused) == len(paths) >= 80
  assert len(accepted) >= 5
  assert {"anatomical.nii", "reoriented_anat_moved.nii"} <= set(accepted)
  assert "axes" in refused["example4d.nii.gz"]
