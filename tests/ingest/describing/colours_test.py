import itertools

import numpy as np
import pytest

from rcmed_jax.data import phantoms, readers
from rcmed_jax.ingest.describing import colours

GREY = np.full((96, 128, 3), 110, np.uint8)


def box(top, bottom, left, right, shape=(96, 128)):
  mask_IJ = np.zeros(shape, bool)
  mask_IJ[top:bottom, left:right] = True
  return mask_IJ


def nearest(rgb_C):
  """The colour of the palette that eyes would call this one."""
  names = list(colours.PALETTE)
  every_PC = np.array([*colours.PALETTE.values(), rgb_C], np.uint8)
  *palette, seen_C = colours.lab(every_PC)
  return names[int(np.argmin([np.linalg.norm(p - seen_C) for p in palette]))]


def test_colours_are_far_apart():
  names, values = zip(*colours.PALETTE.items(), strict=True)
  lab_PC = colours.lab(np.array(values, np.uint8))
  for a, b in itertools.combinations(range(len(names)), 2):
    # Differences above 10 are seen at a glance; jpeg and fill take from them.
    assert np.linalg.norm(lab_PC[a] - lab_PC[b]) > 40, (names[a], names[b])


def test_lab_is_what_scikit_image_says():
  skimage = pytest.importorskip("skimage.color")
  rgb_PC = np.random.default_rng(0).integers(0, 256, (50, 3), np.uint8)
  expected_PC = skimage.rgb2lab(rgb_PC[None])[0]
  np.testing.assert_allclose(colours.lab(rgb_PC), expected_PC, atol=0.3)


def test_outlines_and_fills_are_in_their_colour_and_texture_stays():
  rng = np.random.default_rng(0)
  image_IJC = rng.integers(60, 200, (256, 256, 1), np.uint8).repeat(3, 2)
  mask_IJ = box(64, 192, 64, 192, (256, 256))
  picture_IJC = colours.paint(image_IJC, mask_IJ[None], ["green"])
  assert picture_IJC.shape == (colours.SIDE, colours.SIDE, 3)
  # Three times as large: the outline lies in the three pixels before 192.
  assert (picture_IJC[300, 189:192] == colours.PALETTE["green"]).all()
  plain_IJC = colours.paint(image_IJC, mask_IJ[None][:0], [])
  outside = np.s_[:, :180]
  np.testing.assert_array_equal(picture_IJC[outside], plain_IJC[outside])
  inside = np.s_[210:560, 210:560]
  correlation = np.corrcoef(
    picture_IJC[inside].mean(2).ravel(), plain_IJC[inside].mean(2).ravel()
  )[0, 1]
  assert correlation > 0.999
  gained_C = picture_IJC[inside].mean((0, 1)) - plain_IJC[inside].mean((0, 1))
  assert gained_C[1] > 5 > 0 > gained_C[0]


def test_the_smaller_of_two_lies_on_top():
  whole, part = box(10, 90, 10, 110), box(40, 60, 40, 70)
  for order in ([whole, part], [part, whole]):
    names = ["red", "cyan"] if order[0] is whole else ["cyan", "red"]
    picture_IJC = colours.paint(GREY, np.array(order), names)
    middle_C = picture_IJC[50 * 6, 55 * 6].astype(int)
    assert middle_C[2] > 110 > middle_C[0]  # cyan, no red mixed in
    assert picture_IJC[20 * 6, 20 * 6, 0] > 110


def test_a_target_of_one_pixel_is_seen():
  dot = box(50, 51, 60, 61, (1024, 1024))
  image_IJC = np.full((1024, 1024, 3), 90, np.uint8)
  picture_IJC = colours.paint(image_IJC, dot[None], ["red"])
  assert (picture_IJC == colours.PALETTE["red"]).all(2).sum() > 20


@pytest.mark.parametrize("shape", [(693, 1024), (16, 900), (40, 20)])
def test_pictures_have_one_side(shape):
  image_IJC = np.zeros((*shape, 3), np.uint8)
  mask_IJ = box(2, 9, 3, 12, shape)
  picture_IJC = colours.paint(image_IJC, mask_IJ[None], ["blue"])
  assert picture_IJC.shape[:2] == colours.picture_shape(shape)
  assert max(picture_IJC.shape) == colours.SIDE


def test_colours_that_the_image_has_come_last():
  assert colours.choose(GREY, 6) == list(colours.PALETTE)[:6]
  skin_IJC = np.full((64, 64, 3), (214, 160, 130), np.uint8)
  assert not {"red", "orange", "yellow"} & {*colours.choose(skin_IJC, 4)}
  stained_IJC = np.full((64, 64, 3), (170, 90, 170), np.uint8)
  assert not {"purple", "magenta"} & {*colours.choose(stained_IJC, 4)}
  with pytest.raises(ValueError, match="holds 6 colours, received 7"):
    colours.choose(GREY, 7)


def test_targets_that_hide_each_other_go_to_several_pictures():
  heart = box(20, 80, 20, 80)
  left, right = box(20, 80, 20, 50), box(20, 80, 50, 80)
  assert colours.group(np.array([heart, left, right])) == [[0, 1], [2]]
  assert colours.group(np.array([left, left])) == [[0], [1]]
  # A part that leaves enough of the whole to see.
  assert colours.group(np.array([heart, box(40, 60, 40, 60)])) == [[0, 1]]


def test_each_of_many_targets_is_in_one_picture():
  cells = np.array([box(5, 15, 6 * k, 6 * k + 4) for k in range(20)])
  groups = colours.group(cells)
  assert sorted(itertools.chain(*groups)) == list(range(20))
  assert max(map(len, groups)) == colours.MOST_TARGETS
  assert groups == colours.group(cells.copy())


def test_outlines_of_real_images_keep_their_colour_in_the_file(shared):
  import cv2

  index = shared / "data" / "real9" / "image2label_real9.json"
  for record in readers.read_index(index):
    triplet = record.load()
    names = colours.choose(triplet.image_IJC, len(triplet.classes))
    picture_IJC = colours.paint(triplet.image_IJC, triplet.masks_GIJ, names)
    data = np.frombuffer(colours.encode(picture_IJC), np.uint8)
    seen_IJC = cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1]
    outline_IJ = (picture_IJC == colours.PALETTE[names[0]]).all(2)
    said = [nearest(rgb_C) for rgb_C in seen_IJC[outline_IJ][::50]]
    assert np.mean([name == names[0] for name in said]) > 0.9, record.id


def test_phantoms_are_painted_the_same_twice():
  phantom = phantoms.sample(0, "train", 0, 96)
  masks_GIJ = np.array([*phantom.masks.values()])
  for members in colours.group(masks_GIJ):
    names = colours.choose(phantom.image_IJC, len(members))
    first, second = (
      colours.encode(
        colours.paint(phantom.image_IJC, masks_GIJ[members], names)
      )
      for _ in range(2)
    )
    assert first == second
