"""Label maps: their numbers, and the grids of their files."""

import cv2
import numpy as np

from rcmed_jax.ingest.volumes import geometry
from rcmed_jax.serve import label_maps, scans


def test_where_masks_overlap_the_last_is_seen():
  one, other = np.zeros((2, 4, 4), bool)
  one[:3], other[2:] = True, True
  found = label_maps.of([("a", one), ("b", other)], (4, 4))
  assert found.labels[:, 0].tolist() == [1, 1, 2, 2]
  assert found.names == {"a": 1, "b": 2}


def test_numbers_have_no_gap_where_a_class_is_hidden():
  small, large, rest = np.zeros((3, 4, 4), bool)
  small[1], large[:2], rest[3] = True, True, True
  found = label_maps.of(
    [("small", small), ("large", large), ("rest", rest)], (4, 4)
  )
  assert found.labels[:, 0].tolist() == [1, 1, 0, 2]
  assert found.names == {"large": 1, "rest": 2}


def test_one_class_has_one_number_and_reserved_names_are_changed():
  masks = np.eye(3, dtype=bool)
  found = label_maps.of(
    [("a", masks[0]), ("background", masks[1]), ("a", masks[2])], (3,)
  )
  assert found.names == {"a": 1, "the background": 2}
  assert found.labels.tolist() == [1, 2, 1]
  many = [(str(n), np.arange(300) == n) for n in range(300)]
  found = label_maps.of([*many, ("", np.arange(300) < 0)], (300,))
  assert len(found.names) == 255
  assert found.labels.max() == 255 and found.labels[255:].max() == 0
  assert label_maps.of([], (2, 2)).names == {}


def test_a_picture_is_written_as_png(tmp_path):
  labels_IJ = np.arange(6, dtype=np.uint8).reshape(2, 3)
  label_maps.write_picture(tmp_path / "a.png", labels_IJ)
  found = cv2.imread(str(tmp_path / "a.png"), cv2.IMREAD_UNCHANGED)
  np.testing.assert_array_equal(found, labels_IJ)


def test_frames_that_lie_nowhere_are_one_behind_the_other(tmp_path):
  import nibabel

  view = geometry.View((3, 4, 5), (1.0, 0.5, 0.25))
  scan = scans.Scan(tmp_path, "dicom", view, lambda: iter(()))
  labels = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
  label_maps.write_volume(tmp_path / "a.nii.gz", labels, scan)
  found = nibabel.load(tmp_path / "a.nii.gz")
  np.testing.assert_array_equal(found.dataobj, labels.transpose(2, 1, 0))
  assert found.header.get_zooms() == (0.25, 0.5, 1.0)
  assert scan.voxel_mm3 is None
