import dataclasses

import hypothesis
from hypothesis import strategies
import numpy as np
import pytest

from rcmed_jax.data import augment
from rcmed_jax.data.augment import AugmentConfig, Change

MIRROR = AugmentConfig(mirror=True)
TONES = AugmentConfig(brightness=0.3, contrast=0.3, gamma=0.3)
STRAIGHT = (False, False, 0)


def mirrored(change):
  return change.mirror_columns, change.mirror_rows, change.quarter_turns


def drawn(modality, words="lesion", config=MIRROR, count=60):
  rng = np.random.default_rng(0)
  return [augment.draw(rng, config, modality, words) for _ in range(count)]


def picture(shape=(33, 21), seed=0):
  """An image whose channels tell each pixel's place, and three masks of it."""
  rows, columns = np.indices(shape)
  image_IJC = np.stack([rows, columns, rows * 0 + 7], -1).astype(np.uint8)
  rng = np.random.default_rng(seed)
  masks_GIJ = rng.random((3, *shape)) < 0.3
  return image_IJC, masks_GIJ


def places(image_IJC, mask_IJ):
  """Where the pixels under a mask once were."""
  return sorted(map(tuple, image_IJC[mask_IJ][:, :2].tolist()))


MIRRORS = strategies.builds(
  Change,
  mirror_columns=strategies.booleans(),
  mirror_rows=strategies.booleans(),
  quarter_turns=strategies.integers(0, 3),
)


@hypothesis.given(
  MIRRORS, strategies.tuples(*[strategies.integers(16, 40)] * 2)
)
def test_masks_follow_their_pixels_through_every_mirror(change, shape):
  image_IJC, masks_GIJ = picture(shape)
  moved_IJC, moved_GIJ = augment.apply(change, image_IJC, masks_GIJ)
  swapped = change.quarter_turns % 2
  assert moved_IJC.shape[:2] == (shape[::-1] if swapped else shape)
  for before_IJ, after_IJ in zip(masks_GIJ, moved_GIJ, strict=True):
    assert places(image_IJC, before_IJ) == places(moved_IJC, after_IJ)


@hypothesis.settings(deadline=None)
@hypothesis.given(
  strategies.builds(
    Change,
    mirror_columns=strategies.booleans(),
    quarter_turns=strategies.integers(0, 3),
    degrees=strategies.floats(-20, 20),
    scale=strategies.floats(0.8, 1.2),
  )
)
def test_masks_follow_rotation_and_scale(change):
  # A disc and a bar, bright where their masks are.
  rows, columns = np.indices((60, 80))
  masks_GIJ = np.stack(
    [
      (rows - 25) ** 2 + (columns - 50) ** 2 < 120,
      (abs(rows - 40) < 6) & (abs(columns - 30) < 12),
    ]
  )
  image_IJC = np.repeat(masks_GIJ.any(0)[..., None] * np.uint8(255), 3, 2)
  moved_IJC, moved_GIJ = augment.apply(change, image_IJC, masks_GIJ)
  shown_IJ, marked_IJ = moved_IJC[..., 0] > 127, moved_GIJ.any(0)
  # Interpolation may decide otherwise only on the outlines.
  assert (shown_IJ != marked_IJ).sum() < 0.1 * marked_IJ.sum()
  size = masks_GIJ.sum() * change.scale**2
  assert marked_IJ.sum() == pytest.approx(size, rel=0.1)


def test_the_left_of_the_picture_is_mirrored_to_its_right():
  image_IJC, masks_GIJ = picture()
  change = Change(mirror_columns=True)
  moved_IJC, moved_GIJ = augment.apply(change, image_IJC, masks_GIJ)
  np.testing.assert_array_equal(moved_IJC, image_IJC[:, ::-1])
  np.testing.assert_array_equal(moved_GIJ, masks_GIJ[..., ::-1])


@pytest.mark.parametrize(
  "modality",
  ["computed tomography", "magnetic resonance", "pet", "X-Ray", "oct", "new"],
)
def test_what_has_a_side_is_never_mirrored(modality):
  assert {mirrored(change) for change in drawn(modality)} == {STRAIGHT}


@pytest.mark.parametrize("modality", ["fundus", "ultrasound"])
def test_what_has_an_upper_side_keeps_it(modality):
  kinds = {mirrored(change) for change in drawn(modality)}
  assert kinds == {STRAIGHT, (True, False, 0)}


@pytest.mark.parametrize(
  "modality", ["pathology", "microscopy", "dermoscopy", "endoscopy"]
)
def test_what_has_no_side_is_turned_all_ways(modality):
  kinds = {mirrored(change) for change in drawn(modality, count=400)}
  assert len(kinds) == 16


@hypothesis.given(
  strategies.sampled_from(sorted(augment.MIRRORS)),
  strategies.sampled_from(
    [
      "left kidney",
      "Right ventricle",
      "It lies ABOVE the disc.",
      "in the upper-left quadrant",
      "nuclei. towards the bottom edge",
      "below",
      "the lower third",
    ]
  ),
  strategies.text(max_size=20),
  strategies.integers(0, 2**32 - 1),
)
def test_words_of_place_forbid_it(modality, words, more, seed):
  rng = np.random.default_rng(seed)
  change = augment.draw(rng, MIRROR, modality, f"{more} {words} {more}")
  assert mirrored(change) == STRAIGHT


def test_words_that_only_look_like_places_do_not():
  assert (
    len({mirrored(c) for c in drawn("pathology", "brightest topology")}) > 1
  )


def test_off_changes_nothing_but_the_same_dice_are_thrown():
  assert not AugmentConfig().on
  change = drawn("pathology", config=AugmentConfig())[0]
  image_IJC, masks_GIJ = picture()
  moved_IJC, moved_GIJ = augment.apply(change, image_IJC, masks_GIJ)
  np.testing.assert_array_equal(moved_IJC, image_IJC)
  np.testing.assert_array_equal(moved_GIJ, masks_GIJ)
  both = AugmentConfig(mirror=True, rotation_degrees=10)
  assert [mirrored(c) for c in drawn("pathology", config=both)] == [
    mirrored(c) for c in drawn("pathology")
  ]


def test_tones_change_within_their_bounds_and_no_mask():
  image_IJC, masks_GIJ = picture()
  image_IJC = image_IJC * 3 + 60
  means = []
  for change in drawn("computed tomography", config=TONES):
    assert abs(change.brightness) <= 0.3
    assert abs(change.contrast - 1) <= 0.3
    assert 1 / 1.3 <= change.gamma <= 1.3
    moved_IJC, moved_GIJ = augment.apply(change, image_IJC, masks_GIJ)
    np.testing.assert_array_equal(moved_GIJ, masks_GIJ)
    assert moved_IJC.dtype == np.uint8
    flat, order = moved_IJC.ravel(), np.argsort(image_IJC, axis=None)
    assert (np.diff(flat[order].astype(int)) >= 0).all()  # brighter stays so
    means.append(moved_IJC.mean())
  assert np.std(means) > 5


def test_no_target_is_pushed_out_of_the_picture():
  image_IJC, masks_GIJ = picture((40, 40))
  masks_GIJ[:] = False
  masks_GIJ[:, 20, 20] = True
  masks_GIJ[0] = False
  masks_GIJ[0, 0, 0] = True  # a corner, which any rotation loses
  change = Change(mirror_rows=True, degrees=15)
  moved_IJC, moved_GIJ = augment.apply(change, image_IJC, masks_GIJ)
  np.testing.assert_array_equal(moved_GIJ, masks_GIJ[:, ::-1])
  np.testing.assert_array_equal(moved_IJC, image_IJC[::-1])


def test_an_image_without_masks_is_changed_too():
  image_IJC, masks_GIJ = picture()
  change = Change(quarter_turns=1, degrees=5)
  moved_IJC, moved_GIJ = augment.apply(change, image_IJC, masks_GIJ[:0])
  assert moved_GIJ.shape == (0, *moved_IJC.shape[:2])
  assert moved_IJC.shape == (21, 33, 3)


@pytest.mark.parametrize(
  "field", [field.name for field in dataclasses.fields(AugmentConfig)]
)
def test_settings_that_make_no_sense_are_named(field):
  with pytest.raises(ValueError, match=rf"data\.augment\.{field}=-1"):
    AugmentConfig(**{field: -1})
