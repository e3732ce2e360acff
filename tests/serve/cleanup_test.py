import numpy as np
import pytest

from rcmed_jax.serve import cleanup


def volume(*slices):
  """Slices as text: x is set, a space separates rows."""
  return np.array(
    [
      [[letter == "x" for letter in row] for row in one.split()]
      for one in slices
    ]
  )


def check(found, *slices):
  np.testing.assert_array_equal(found, volume(*slices))


def test_by_default_a_mask_stays_as_it_is():
  mask_ZIJ = volume("x.. ..x", "... .x.")
  check(cleanup.clean(mask_ZIJ, None, cleanup.Cleanup()), "x.. ..x", "... .x.")


def test_the_largest_piece_stays_and_corners_hold_it_together():
  # 1: three voxels, of which two touch by a corner across slices. 2: two.
  mask_ZIJ = volume("xx... .....", "..x.. ....x", "..... ....x")
  found = cleanup.clean(mask_ZIJ, None, cleanup.Cleanup(largest=True))
  check(found, "xx... .....", "..x.. .....", "..... .....")


def test_pieces_are_measured_in_millimetres():
  mask_ZIJ = volume("xx..x ....x", "....x .....", "x.... .....")
  # Pieces of 2, 3 and 1 voxels of 2.5 mm^3: 5, 7.5 and 2.5.
  for least, wanted in (
    (2.5, ("xx..x ....x", "....x .....", "x.... .....")),
    (5, ("xx..x ....x", "....x .....", "..... .....")),
    (5.1, ("....x ....x", "....x .....", "..... .....")),
    (8, ("..... .....", "..... .....", "..... .....")),
  ):
    check(cleanup.clean(mask_ZIJ, 2.5, cleanup.Cleanup(min_mm3=least)), *wanted)


def test_smoothing_fills_a_gap_and_drops_what_one_slice_shows():
  mask_ZIJ = volume("x...", "...x", "x.x.", "x.x.")
  found = cleanup.clean(mask_ZIJ, None, cleanup.Cleanup(smooth=True))
  check(found, "x...", "x...", "x.x.", "x.x.")


def test_smoothing_comes_before_pieces_are_chosen():
  # Two halves of one organ, with a slice between them that missed it.
  mask_ZIJ = volume("x..", "x..", "...", "x..", "x.x")
  both = cleanup.Cleanup(smooth=True, largest=True)
  check(cleanup.clean(mask_ZIJ, None, both), "x..", "x..", "x..", "x..", "x..")
  alone = cleanup.Cleanup(largest=True)
  check(cleanup.clean(mask_ZIJ, None, alone), "x..", "x..", "...", "...", "...")


def test_nothing_stays_nothing():
  mask_ZIJ = np.zeros((2, 3, 4), bool)
  every = cleanup.Cleanup(smooth=True, min_mm3=1, largest=True)
  assert not cleanup.clean(mask_ZIJ, 1.0, every).any()


def test_millimetres_need_a_spacing():
  mask_ZIJ = np.zeros((2, 3, 4), bool)
  with pytest.raises(ValueError, match="the size of a voxel"):
    cleanup.clean(mask_ZIJ, None, cleanup.Cleanup(min_mm3=1))
  with pytest.raises(ValueError, match="0 mm"):
    cleanup.Cleanup(min_mm3=-1)
