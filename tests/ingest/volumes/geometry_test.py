import itertools

import nibabel
import numpy as np
import pytest

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest.volumes import geometry

CODES = [
  "".join(letters)
  for order in itertools.permutations(("RL", "AP", "SI"))
  for letters in itertools.product(*order)
]
SHAPE = (5, 6, 7)  # voxels to the right, front and head, in RAS
SPACING = (0.7, 1.1, 3.0)


def in_code(voxels, affine, code):
  """Voxels and affine in another orientation, by nibabel."""
  turn = nibabel.orientations.ornt_transform(
    nibabel.orientations.axcodes2ornt("RAS"),
    nibabel.orientations.axcodes2ornt(code),
  )
  return (
    nibabel.orientations.apply_orientation(voxels, turn),
    affine @ nibabel.orientations.inv_ornt_aff(turn, voxels.shape),
  )


def volume():
  voxels = np.arange(np.prod(SHAPE)).reshape(SHAPE)
  affine = np.diag([*SPACING, 1.0])
  affine[:3, 3] = -3, 5, 11
  return voxels, affine


def tilted(affine, degrees=20):
  a = np.radians(degrees)
  turn = np.eye(4)
  turn[:3, :3] = [
    [np.cos(a), -np.sin(a), 0],
    [np.sin(a), np.cos(a), 0],
    [0, 0, 1],
  ]
  return turn @ affine


@pytest.mark.parametrize("axis", geometry.AXES)
@pytest.mark.parametrize("code", CODES)
def test_every_orientation_shows_the_same_and_comes_back(code, axis):
  voxels, affine = in_code(*volume(), code)
  grid = geometry.Grid(voxels.shape, affine)
  assert grid.code == code == "".join(nibabel.aff2axcodes(affine))
  view = geometry.View.of(grid, axis)
  shown_ZIJ = view.stack(voxels)
  reference_ZIJ, reference = in_code(*volume(), geometry.AXES[axis])
  np.testing.assert_array_equal(shown_ZIJ, reference_ZIJ)
  assert view.shape == reference_ZIJ.shape
  spacing = dict(zip("RAS", SPACING, strict=True))
  spacing |= dict(zip("LPI", SPACING, strict=True))
  assert view.spacing_mm == pytest.approx(
    [spacing[letter] for letter in geometry.AXES[axis]]
  )
  np.testing.assert_allclose(view.grid(grid).affine, reference)
  for z, picture_IJ in enumerate(shown_ZIJ):
    np.testing.assert_array_equal(view.picture(voxels, z), picture_IJ)
  np.testing.assert_array_equal(view.restore(shown_ZIJ), voxels)


def test_there_are_48_orientations():
  assert len(set(CODES)) == 48


def test_pictures_are_as_a_radiologist_sees_them():
  # A patient of single marks: R, A and S on the right, at the front, on top.
  voxels = np.zeros((9, 9, 9), int)
  voxels[8, 4, 4], voxels[4, 8, 4], voxels[4, 4, 8] = 1, 2, 3
  grid = geometry.Grid((9, 9, 9), np.eye(4))

  def where(axis, mark):
    z, i, j = np.argwhere(geometry.View.of(grid, axis).stack(voxels) == mark)[0]
    return int(z), int(i), int(j)

  assert where("axial", 1) == (4, 4, 0)  # right: screen left
  assert where("axial", 2) == (4, 0, 4)  # front: up
  assert where("axial", 3) == (8, 4, 4)  # head: last
  assert where("coronal", 1) == (4, 4, 0)
  assert where("coronal", 3) == (4, 0, 4)  # head: up
  assert where("sagittal", 3) == (4, 0, 4)
  assert where("sagittal", 2) == (4, 4, 0)  # front: screen left


def test_colours_behind_the_three_axes_stay_there():
  voxels = np.random.default_rng(0).integers(0, 9, (3, 4, 5, 2))
  view = geometry.View.of(geometry.Grid((3, 4, 5), np.eye(4)), "coronal")
  shown_ZIJC = view.stack(voxels)
  assert shown_ZIJC.shape == (4, 5, 3, 2)
  np.testing.assert_array_equal(view.restore(shown_ZIJC), voxels)
  np.testing.assert_array_equal(view.picture(voxels, 1), shown_ZIJC[1])


@pytest.mark.parametrize("code", CODES)
def test_an_oblique_grid_goes_by_its_nearest_axes(code):
  voxels, affine = in_code(*volume(), code)
  grid = geometry.Grid(voxels.shape, tilted(affine))
  assert grid.code == code
  assert grid.spacing_mm == pytest.approx(
    geometry.Grid(voxels.shape, affine).spacing_mm
  )


def test_axes_are_dealt_out_once_even_at_45_degrees():
  affine = tilted(np.eye(4), 45)
  grid = geometry.Grid((4, 4, 4), affine)
  assert sorted(side for side, _ in grid.sides) == [0, 1, 2]


def test_labels_may_lie_in_another_order_of_axes():
  voxels, affine = volume()
  image = geometry.Grid(SHAPE, affine)
  for code in CODES:
    labels, other = in_code(voxels, affine, code)
    one, two = geometry.fit(
      image, geometry.Grid(labels.shape, other), "axial", "x", assume_same=False
    )
    np.testing.assert_array_equal(one.stack(voxels), two.stack(labels))


def test_rounded_headers_agree_and_shifted_ones_do_not():
  _, affine = volume()
  grid = geometry.Grid(SHAPE, affine)
  assert geometry.same(grid, geometry.Grid(SHAPE, affine.astype(np.float32)))
  for axis in range(3):
    moved = affine.copy()
    moved[axis, 3] += 0.2 * min(SPACING)
    assert not geometry.same(grid, geometry.Grid(SHAPE, moved))
    scaled = affine.copy()
    scaled[axis, axis] *= 1.05
    assert not geometry.same(grid, geometry.Grid(SHAPE, scaled))
  assert not geometry.same(grid, geometry.Grid((5, 6, 8), affine))


def test_other_grids_are_refused_with_both_named():
  _, affine = volume()
  image = geometry.Grid(SHAPE, affine)
  labels = geometry.Grid(SHAPE, np.eye(4))
  with pytest.raises(DataError, match="--assume-same-grid") as caught:
    geometry.fit(image, labels, "axial", "labels.nii", assume_same=False)
  for grid in (image, labels):
    assert str(grid) in str(caught.value)
  assert "5 x 6 x 7 voxels of 0.7 x 1.1 x 3 mm, RAS, origin (-3, 5, 11)" in str(
    image
  )
  one, two = geometry.fit(image, labels, "axial", "x", assume_same=True)
  assert one == two
  larger = geometry.Grid((5, 6, 8), affine)
  with pytest.raises(DataError) as caught:
    geometry.fit(image, larger, "axial", "labels.nii", assume_same=True)
  assert "assume-same-grid" not in str(caught.value)


@pytest.mark.parametrize("wrong", [np.nan, 0.0, np.inf])
def test_an_affine_without_volume_is_refused(wrong):
  affine = np.eye(4)
  affine[1, 1] = wrong
  with pytest.raises(ValueError, match="affine"):
    geometry.Grid((2, 2, 2), affine)
