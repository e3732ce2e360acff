import cv2
import numpy as np
import pytest

from rcmed_jax.data import readers
from rcmed_jax.data.checks import DataError

SHAPE = (40, 32)
UPPER = slice(2, 10), slice(3, 20)
LOWER = slice(30, 38), slice(1, 9)


def inside(square):
  mask_IJ = np.zeros(SHAPE, bool)
  mask_IJ[square] = True
  return mask_IJ


@pytest.fixture
def record(tmp_path, dataset):
  """gall_bladder and gallbladder are one class, drawn as two masks."""
  layout = {
    "ct--set--1.png": {
      "gall bladder": UPPER,
      "liver": LOWER,
      "gallbladder": LOWER,
    }
  }
  index = dataset(tmp_path, layout, descriptions={"ct--set--1.png": "Two."})
  (found,) = readers.read_index(index, tmp_path / "descriptions.json")
  return found


def test_masks_of_one_class_are_merged(record):
  triplet = record.load()
  assert triplet.classes == record.classes == ("gallbladder", "liver")
  np.testing.assert_array_equal(
    triplet.masks_GIJ, [inside(UPPER) | inside(LOWER), inside(LOWER)]
  )
  assert triplet.masks_GIJ.dtype == bool
  # The two masks keep their numbers; a class of one mask has none.
  (name,) = triplet.instances
  assert name == "gallbladder"
  np.testing.assert_array_equal(
    triplet.instances[name], inside(UPPER) + 2 * inside(LOWER)
  )
  stored_IJC = cv2.imread(record.image)[..., ::-1]
  np.testing.assert_array_equal(triplet.image_IJC, stored_IJC)
  assert triplet.id == "ct--set--1.png"
  assert triplet.modality == "computed tomography"
  assert (triplet.description, triplet.source) == ("Two.", "set")
  assert (triplet.spacing_mm, triplet.license) == (None, None)


def test_an_image_without_masks(tmp_path, dataset):
  index = dataset(tmp_path, {"pet--set--1.png": {}})
  triplet = readers.read_index(index)[0].load()
  assert triplet.masks_GIJ.shape == (0, *SHAPE)
  assert triplet.masks_GIJ.dtype == bool
  assert triplet.classes == ()


def test_a_faulty_mask_is_raised_or_left_out_with_its_class(record):
  path = record.masks[0][0]
  cv2.imwrite(path, np.zeros(SHAPE, np.uint8))
  with pytest.raises(DataError, match="it is empty"):
    record.load()
  faults = []
  triplet = record.load(faults.append)
  # The other mask of the class is sound, but only part of it.
  assert triplet.classes == ("liver",)
  np.testing.assert_array_equal(triplet.masks_GIJ, [inside(LOWER)])
  assert [(fault.path, fault.field) for fault in faults] == [(path, "mask")]


def test_a_faulty_image_is_always_raised(record, tmp_path):
  (tmp_path / "ct--set--1.png").write_text("none")
  faults = []
  with pytest.raises(DataError, match=r"ct--set--1.png: image: this is no"):
    record.load(faults.append)
  assert not faults


def test_all_masks_faulty_leaves_the_image(record):
  for path, _ in record.masks:
    cv2.imwrite(path, np.ones((5, 5), np.uint8))
  faults = []
  triplet = record.load(faults.append)
  assert triplet.masks_GIJ.shape == (0, *SHAPE)
  assert len(faults) == 3


def test_the_ten_real_images_load(shared):
  index = shared / "data/real9/image2label_real9.json"
  found = readers.read_index(index)
  assert len(found) == 10
  assert len({record.modality for record in found}) == 9
  for record in found:
    triplet = record.load()
    assert triplet.image_IJC.shape[:2] == triplet.masks_GIJ.shape[1:]
    assert triplet.masks_GIJ.any((1, 2)).all()
    assert len(triplet.classes) == 1
