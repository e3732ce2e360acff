import json
import pickle

import layouts
import numpy as np
import pytest

from rcmed_jax.data import readers
from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.pictures import index_file

LIVER = (3, 20, 4, 15)


def opened(path, **options):
  return index_file.open_source(path, sources.Options(**options))


def test_units_give_what_the_files_hold(tmp_path):
  path = layouts.index(
    tmp_path, {"ct--set--1.png": {"gall_bladder": LIVER}, "x--set--2.png": {}}
  )
  faults = []
  first, second = opened(path, license="CC0").units(faults.append)
  (triplet,) = pickle.loads(pickle.dumps(first)).triplets(faults.append)
  np.testing.assert_array_equal(triplet.image_IJC, layouts.picture(0))
  np.testing.assert_array_equal(triplet.masks_GIJ, [layouts.mask(LIVER)])
  assert triplet.classes == ("gallbladder",)
  assert (triplet.modality, triplet.source) == ("computed tomography", "set")
  assert (triplet.id, triplet.license) == ("ct--set--1.png", "CC0")
  (bare,) = second.triplets(faults.append)
  assert (bare.masks_GIJ.shape, bare.classes) == ((0, *layouts.SHAPE), ())
  assert not faults


def test_options_say_what_names_do_not(tmp_path):
  path = layouts.index(tmp_path, {"patient 7.png": {}})
  (unit,) = opened(path, modality="pet", dataset="mine").units(pytest.fail)
  (triplet,) = unit.triplets(pytest.fail)
  assert (triplet.modality, triplet.source) == ("pet", "mine")


def test_a_faulty_mask_leaves_its_class_out_and_a_faulty_image_all(tmp_path):
  path = layouts.index(
    tmp_path,
    {
      "ct--set--1.png": {"liver": LIVER, "spleen": LIVER},
      "ct--set--2.png": {"liver": LIVER},
    },
  )
  (tmp_path / "masks/ct--set--1--0.png").unlink()
  (tmp_path / "ct--set--2.png").write_bytes(b"no picture")
  faults = []
  units = list(opened(path).units(faults.append))
  assert not faults
  found = [t for unit in units for t in unit.triplets(faults.append)]
  assert [triplet.classes for triplet in found] == [("spleen",)]
  assert [fault.field for fault in faults] == ["mask", "image"]


def test_a_folder_with_one_index_is_that_index(tmp_path):
  path = layouts.index(tmp_path, {"ct--set--1.png": {}})
  assert index_file.matches(tmp_path)
  assert opened(tmp_path).path == path
  layouts.index(tmp_path, {"ct--set--1.png": {}}, "image2label_test.json")
  assert not index_file.matches(tmp_path)
  with pytest.raises(DataError, match=r"found 2.*Name the index file"):
    opened(tmp_path)


# The stream.


@pytest.mark.parametrize("cut", [1, 20, 60, 61])
def test_what_comes_before_a_break_is_kept(tmp_path, cut):
  whole = {f"ct--set--{n}.png": [{f"{n}.png": "liver"}] for n in range(50)}
  path = tmp_path / "a.json"
  path.write_text(json.dumps(whole)[:-cut])
  faults = []
  found = list(readers.iter_index(path, faults.append))
  assert [record.id for record in found] == list(whole)[: len(found)]
  assert len(found) >= 48
  (fault,) = faults
  assert f"not JSON after entry {len(found)}, " in fault.message
  with pytest.raises(DataError, match="not JSON after entry"):
    readers.read_index(path)


def test_what_comes_twice_is_a_fault(tmp_path):
  path = tmp_path / "a.json"
  path.write_text(
    '{"ct--s--1.png": [{"m.png": "liver"}], "ct--s--1.png": [], '
    '"ct--s--2.png": [{"m.png": "liver", "m.png": "spleen"}]}'
  )
  faults = []
  (kept,) = readers.iter_index(path, faults.append)
  assert kept.classes == ("liver",)
  assert [fault.message for fault in faults] == [
    "the image is named twice",
    "mask 'm.png' is named twice",
  ]
