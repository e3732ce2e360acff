import pickle

import numpy as np
import pytest

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.volumes import geometry, label_map, volumes


def view(shape):
  return geometry.View(shape, (3.0, 1.0, 2.0))


def volume(labels_ZIJ, classes, faults, **fields):
  shape = labels_ZIJ.shape
  image_ZIJ = np.random.default_rng(0).integers(1, 200, shape)
  return volumes.Volume(
    id="v",
    path="v.nii",
    voxels=image_ZIJ,
    view=view(shape),
    targets=label_map.LabelMap(
      labels_ZIJ, view(shape), classes, "labels.nii", faults.append
    ),
    modality="magnetic resonance",
    dataset="set",
    license="CC0",
    group="g",
    **fields,
  )


def labels():
  labels_ZIJ = np.zeros((5, 20, 24), np.int16)
  labels_ZIJ[1, 2:6, 3:9] = 1
  labels_ZIJ[3, 2:6, 3:9] = 2
  labels_ZIJ[3, 10:12, 3:9] = 7
  return labels_ZIJ


CLASSES = (("liver", (1, 2)), ("spleen", (7,)), ("tumour", (2,)))


def test_values_are_classes_merged_and_overlapping():
  faults = []
  found = list(
    volumes.triplets(
      volume(labels(), CLASSES, faults), sources.Options(), faults.append
    )
  )
  assert [t.id for t in found] == ["v#a0001", "v#a0003"]
  assert [t.classes for t in found] == [
    ("liver",),
    ("liver", "spleen", "tumour"),
  ]
  np.testing.assert_array_equal(found[0].masks_GIJ[0], labels()[1] == 1)
  np.testing.assert_array_equal(found[1].masks_GIJ[0], labels()[3] == 2)
  np.testing.assert_array_equal(found[1].masks_GIJ[1], labels()[3] == 7)
  assert found[0].masks_GIJ.dtype == bool
  assert found[0].image_IJC.shape == (20, 24, 3)
  assert found[0].spacing_mm == (1.0, 2.0)
  assert (found[0].source, found[0].license, found[0].group) == (
    "set",
    "CC0",
    "g",
  )


def test_slices_add_up():
  for policy in sources.EMPTY_SLICES:
    faults = []
    options = sources.Options(empty_slices=policy)
    found = list(
      volumes.triplets(
        volume(labels(), CLASSES, faults), options, faults.append
      )
    )
    dropped = sum(
      f.count for f in faults if isinstance(f, volumes.EmptySlicesError)
    )
    assert len(found) + dropped == 5
    assert dropped == (3 if policy == "drop" else 0)
    for triplet in found:
      assert triplet.masks_GIJ.shape == (len(triplet.classes), 20, 24)


def test_the_count_of_empty_slices_survives_pickling():
  error = volumes.EmptySlicesError("v.nii", 3, 5)
  again = pickle.loads(pickle.dumps(error))
  assert (again.count, again.total, str(again)) == (3, 5, str(error))


def test_values_without_a_name_are_told():
  faults = []
  volume(labels(), (("liver", (1, 2)),), faults)
  assert len(faults) == 1
  assert "the value 7" in str(faults[0])
  with pytest.raises(DataError, match="the values 1, 2, 7"):
    volume(labels(), (("liver", (4,)),), [])


def test_any_value_may_be_an_instance_of_one_class():
  faults = []
  labels_ZIJ = labels().astype(np.int64)
  labels_ZIJ[3, 0, 0] = 10**9
  found = list(
    volumes.triplets(
      volume(labels_ZIJ, (("cell", None),), faults),
      sources.Options(),
      faults.append,
    )
  )
  np.testing.assert_array_equal(found[1].masks_GIJ[0], labels_ZIJ[3] != 0)


@pytest.mark.parametrize("wrong", [0.5, np.nan, np.inf])
def test_labels_are_whole_numbers(wrong):
  labels_ZIJ = labels().astype(np.float32)
  volume(labels_ZIJ, CLASSES, [])
  labels_ZIJ[2, 0, 0] = wrong
  with pytest.raises(DataError, match="whole numbers"):
    volume(labels_ZIJ, CLASSES, [])


def test_a_volume_without_targets_is_kept_only_when_asked():
  bare = volumes.Volume(
    id="v",
    path="v.nii",
    voxels=np.ones((2, 20, 20)),
    view=view((2, 20, 20)),
    targets=None,
    modality="pet",
    dataset="",
    license=None,
    group="g",
  )
  with pytest.raises(DataError, match="labels"):
    list(volumes.triplets(bare, sources.Options(), [].append))
  with pytest.raises(DataError, match="--unlabelled keep"):
    options = sources.Options(empty_slices="keep")
    list(volumes.triplets(bare, options, [].append))
  options = sources.Options(unlabelled="keep")
  assert len(list(volumes.triplets(bare, options, [].append))) == 2


def test_slices_of_a_few_pixels_are_no_pictures():
  faults = []
  thin = volume(np.ones((30, 30, 4), int), (("a", (1,)),), faults)
  with pytest.raises(DataError, match="30 x 4 pixels"):
    list(volumes.triplets(thin, sources.Options(), faults.append))


def test_scaled_values_are_those_of_the_whole_array():
  rng = np.random.default_rng(0)
  stored = rng.integers(-9, 9, (3, 4, 5)).astype(np.int16)
  slope_Z11 = rng.normal(size=(3, 1, 1)).astype(np.float32)
  scaled = volumes.Scaled(stored, slope_Z11, 2.5)
  whole = stored * slope_Z11 + 2.5
  assert scaled.shape == (3, 4, 5)
  for index in ((1,), (slice(None), 2), (slice(None), slice(None), 3)):
    np.testing.assert_allclose(scaled[index], whole[index], rtol=1e-6)


def test_overlapping_planes_come_apart_again():
  rng = np.random.default_rng(0)
  masks_GZIJ = rng.random((11, 3, 20, 20)) < 0.4
  masks_GZIJ[4, 1] = False
  bits_ZIJ = sum(
    mask.astype(np.uint16) << g for g, mask in enumerate(masks_GZIJ)
  )
  names = [f"class {g}" for g in range(11)]
  planes = label_map.Planes(
    bits_ZIJ.astype(np.uint16), view((3, 20, 20)), names
  )
  for z in range(3):
    found = planes.on(z)
    for g, name in enumerate(names):
      if masks_GZIJ[g, z].any():
        np.testing.assert_array_equal(found[name], masks_GZIJ[g, z])
      else:
        assert name not in found


@pytest.mark.parametrize(
  ("texts", "modality"),
  [
    (["CT", "mr_scan"], "computed tomography"),
    (["", "case_0001.nii.gz", "liver_mr/image"], "magnetic resonance"),
    (["FLAIR"], "magnetic resonance"),
    (["t1_mri"], "magnetic resonance"),
    (["X/image"], None),  # a case named X is no radiograph
    (["ct_mr"], None),
    (["octopus"], None),
  ],
)
def test_the_modality_is_a_whole_word(texts, modality):
  options = sources.Options(modality_words=(("cbct", "cone beam"),))
  if modality is None:
    with pytest.raises(DataError, match="--modality"):
      volumes.modality("a", texts, options)
  else:
    assert volumes.modality("a", texts, options) == modality
  assert volumes.modality("a", ["cbct"], options) == "cone beam"
  said = sources.Options(modality="ultrasound")
  assert volumes.modality("a", texts, said) == "ultrasound"


def test_class_names_are_words():
  assert volumes.class_name("a", "gall_bladder") == "gallbladder"
  assert volumes.class_name("a", " left__kidney ") == "left kidney"
  for wrong in ("", "_", 3, "a [SEG] b"):
    with pytest.raises(DataError, match="class"):
      volumes.class_name("a", wrong)


@pytest.mark.parametrize("names", [("liver",), ("liver", "spleen")])
def test_contrast_does_not_tell_what_a_slice_shows(names):
  """Slices with and without targets are shown in one window."""
  shape = (4, 20, 20)
  hounsfield_ZIJ = np.full(shape, -1000, np.int16)
  hounsfield_ZIJ[:, 4:16, 4:16] = np.arange(-72, 72).reshape(12, 12)
  labels_ZIJ = np.zeros(shape, np.uint8)
  labels_ZIJ[1, 4:8, 4:8] = 1
  labels_ZIJ[2, 4:8, 4:8] = len(names)
  classes = tuple((name, (value,)) for value, name in enumerate(names, 1))
  target = label_map.LabelMap(labels_ZIJ, view(shape), classes, "l", [].append)
  ct = volumes.Volume(
    id="v",
    path="v.nii",
    voxels=hounsfield_ZIJ,
    view=view(shape),
    targets=target,
    modality="computed tomography",
    dataset="",
    license=None,
    group="g",
    classes=names,
  )
  options = sources.Options(empty_slices="keep")
  found = list(volumes.triplets(ct, options, [].append))
  for triplet in found:
    np.testing.assert_array_equal(triplet.image_IJC, found[0].image_IJC)
  (window,) = {triplet.window for triplet in found}
  assert window == ("liver" if names == ("liver",) else "soft tissue")
