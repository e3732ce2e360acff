import re

import numpy as np
import pytest
import scipy.ndimage

from rcmed_jax.data import describe, phantoms

SIZE = 100
COLOURS = "red|green|blue|yellow|orange|purple|pink|brown|black|white|gr[ae]y"


def box(top, bottom, left, right):
  mask_IJ = np.zeros((SIZE, SIZE), bool)
  mask_IJ[top:bottom, left:right] = True
  return mask_IJ


def ring(outer, inner):
  y_I1, x_1J = np.ogrid[:SIZE, :SIZE]
  radius_IJ = np.hypot(y_I1 - 49.5, x_1J - 49.5)
  return (radius_IJ < outer) & (radius_IJ >= inner)


def picture(mask_IJ, inside=200, outside=60, blur=0.0):
  grey_IJ = np.where(mask_IJ, float(inside), float(outside))
  if blur:
    grey_IJ = scipy.ndimage.gaussian_filter(grey_IJ, blur)
  return np.repeat(grey_IJ[..., None], 3, axis=2).astype(np.uint8)


def test_square_in_the_upper_left():
  square = box(10, 30, 10, 30)
  text = describe.describe(picture(square), [square], ["liver"])
  assert text == "The liver is medium and round, upper left."


@pytest.mark.parametrize(
  ("row", "column", "words"),
  [
    (20, 50, "upper middle"),
    (50, 20, "left"),
    (50, 50, "centre"),
    (80, 80, "lower right"),
  ],
)
def test_places(row, column, words):
  square = box(row - 5, row + 5, column - 5, column + 5)
  text = describe.describe(picture(square), [square], ["cyst"])
  assert text.endswith(f", {words}.")


def test_measures_of_a_box_are_exact():
  bar = box(40, 60, 10, 50)
  region = describe.measure(picture(bar), bar)
  assert (region.x, region.y) == (0.3, 0.5)
  assert region.share == 0.08
  # The deviation of a uniform bar is side / sqrt(12).
  assert region.elongation == pytest.approx(2, rel=0.01)
  assert region.pieces == 1


def test_disc_is_compact_and_ring_is_not():
  disc = describe.measure(picture(ring(30, 0)), ring(30, 0))
  hollow = describe.measure(picture(ring(30, 15)), ring(30, 15))
  assert disc.compactness > 0.85
  # 4 pi (R^2 - r^2) / (2 (R + r))^2 / pi = (R - r) / (R + r)
  assert hollow.compactness == pytest.approx(1 / 3, abs=0.08)
  text = describe.describe(picture(ring(30, 15)), [ring(30, 15)], ["wall"])
  assert "irregular" in text


def test_bar_is_elongated_and_blobs_are_scattered():
  bar = box(48, 54, 10, 90)
  text = describe.describe(picture(bar), [bar], ["vessel"])
  assert "elongated" in text
  cells = box(10, 20, 10, 20) | box(40, 50, 60, 70) | box(70, 80, 20, 30)
  text = describe.describe(picture(cells), [cells], ["tumor nuclei"])
  assert text == "The tumor nuclei are medium and scattered, left."


def test_relations_between_two_targets():
  left, right = box(40, 60, 10, 30), box(40, 60, 60, 90)
  both = picture(left | right)
  text = describe.describe(both, [left, right], ["heart", "lung"])
  first, second = text.split(". ")
  assert first.endswith("left of the lung")
  assert second.endswith("right of the heart.")
  upper, lower = box(10, 20, 40, 60), box(70, 90, 40, 60)
  text = describe.describe(both, [upper, lower], ["brain", "bladder"])
  assert "above the bladder" in text and "below the brain" in text


def test_part_is_inside_and_whole_around():
  whole, part = box(20, 80, 20, 80), box(40, 50, 40, 50)
  text = describe.describe(picture(whole), [whole, part], ["liver", "tumor"])
  assert "around the tumor" in text and "inside the liver" in text
  # Also where the part is cut out of the whole's mask.
  text = describe.describe(
    picture(whole), [whole & ~part, part], ["liver", "tumor"]
  )
  assert "inside the liver" in text


def test_nearest_neighbour_is_named_and_all_in_detail():
  masks = [box(40, 50, c, c + 10) for c in (5, 30, 80)]
  image = picture(masks[0])
  short = describe.describe(image, masks, ["a", "b", "c"])
  assert short.startswith("The a is small and round, left, left of the b. ")
  full = describe.describe(image, masks, ["a", "b", "c"], detail=True)
  assert "Position: left of the b, left of the c." in full
  assert "covers 1.0% of the image" in full


def test_border_and_contrast():
  disc = ring(25, 0)
  sharp = describe.measure(picture(disc), disc)
  blurred = describe.measure(picture(disc, blur=4), disc)
  assert sharp.sharpness > 0.9 > describe.SHARP > blurred.sharpness
  assert sharp.contrast > 1
  assert describe.measure(picture(disc, 60, 200), disc).contrast < -1
  dark = describe.describe(
    picture(disc, 60, 200), [disc], ["cyst"], detail=True
  )
  assert "darker than its surroundings" in dark
  flat = describe.describe(picture(disc, 90, 90), [disc], ["cyst"], detail=True)
  assert "about as bright as its surroundings" in flat


def test_whole_image_and_single_pixel_can_be_described():
  full = np.ones((SIZE, SIZE), bool)
  assert "large and round, centre" in describe.describe(
    picture(full), [full], ["skin"]
  )
  dot = box(3, 4, 3, 4)
  assert "small and round, upper left" in describe.describe(
    picture(dot), [dot], ["nodule"]
  )


@pytest.mark.parametrize("detail", [False, True])
def test_phantoms_are_described_briefly_and_without_colours(detail):
  for i in range(36):
    phantom = phantoms.sample(2, "train", i, 96)
    classes = [name.replace("_", " ") for name in phantom.masks]
    masks = list(phantom.masks.values())
    text = describe.describe(phantom.image_IJC, masks, classes, detail=detail)
    assert not re.search(rf"\b({COLOURS})\b", text, re.IGNORECASE)
    for name in classes:
      assert f"The {name} " in text
    if not detail:
      sentences = text.split(". ")
      assert len(sentences) == len(classes)
      assert max(len(sentence.split()) for sentence in sentences) <= 15


def test_unfit_masks_are_refused():
  square = box(10, 30, 10, 30)
  image = picture(square)
  with pytest.raises(ValueError, match="received an empty one"):
    describe.describe(image, [square & False], ["liver"])
  with pytest.raises(ValueError, match=r"received \(50, 100\)"):
    describe.describe(image, [square[:50]], ["liver"])
  with pytest.raises(ValueError, match="1 masks and 2 classes"):
    describe.describe(image, [square], ["liver", "spleen"])


@pytest.mark.parametrize(
  ("name", "verb"),
  [
    *(("lungs", "are"), ("nuclei", "are"), ("mass", "is"), ("uterus", "is")),
    *(("pancreas", "is"), ("optic lens", "is"), ("metastasis", "is")),
    *(("vertebrae", "are"), ("basal ganglia", "are"), ("teeth", "are")),
  ],
)
def test_verb_agrees(name, verb):
  square = box(10, 30, 10, 30)
  text = describe.describe(picture(square), [square], [name])
  assert text.startswith(f"The {name} {verb} ")
