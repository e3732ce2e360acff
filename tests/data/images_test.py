import pathlib
import warnings

import cv2
import numpy as np
import PIL.Image
import pytest

from rcmed_jax.data import images
from rcmed_jax.data.checks import DataError


def pixels(shape=(40, 30, 3), seed=0, dtype=np.uint8):
  top = np.iinfo(dtype).max + 1
  return np.random.default_rng(seed).integers(0, top, shape, dtype)


def bilinear(values_IJ, rows, columns):
  """Bilinear with half-pixel centres and repeated edges, in float64."""

  def axis(old, new):
    place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(place).astype(int)
    return low, np.minimum(low + 1, old - 1), place - low

  values = np.asarray(values_IJ, np.float64)
  low, high, part = axis(values.shape[0], rows)
  values = values[low] + (values[high] - values[low]) * part[:, None]
  low, high, part = axis(values.shape[1], columns)
  return values[:, low] + (values[:, high] - values[:, low]) * part


# Reading.


def test_colours_come_as_rgb(tmp_path):
  image_IJC = pixels()
  PIL.Image.fromarray(image_IJC).save(tmp_path / "a.png")
  read_IJC = images.read(tmp_path / "a.png")
  np.testing.assert_array_equal(read_IJC, image_IJC)
  assert read_IJC.dtype == np.uint8
  assert read_IJC.flags.c_contiguous


def test_grey_becomes_three_equal_channels(tmp_path):
  grey_IJ = pixels((40, 30))
  PIL.Image.fromarray(grey_IJ).save(tmp_path / "a.png")
  expected = np.repeat(grey_IJ[..., None], 3, axis=2)
  np.testing.assert_array_equal(images.read(tmp_path / "a.png"), expected)


def test_alpha_is_dropped_not_blended(tmp_path):
  image_IJC = pixels((40, 30, 4))
  PIL.Image.fromarray(image_IJC, "RGBA").save(tmp_path / "a.png")
  read_IJC = images.read(tmp_path / "a.png")
  np.testing.assert_array_equal(read_IJC, image_IJC[..., :3])


def test_a_palette_is_looked_up(tmp_path):
  image = PIL.Image.fromarray(pixels()).quantize(16)
  image.save(tmp_path / "a.png")
  np.testing.assert_array_equal(
    images.read(tmp_path / "a.png"), np.asarray(image.convert("RGB"))
  )


def test_16_bits_keep_their_upper_byte(tmp_path):
  grey_IJ = np.arange(65536, dtype=np.uint16).reshape(256, 256)
  PIL.Image.fromarray(grey_IJ).save(tmp_path / "grey.png")
  read_IJC = images.read(tmp_path / "grey.png")
  assert read_IJC.dtype == np.uint8
  for channel in range(3):
    np.testing.assert_array_equal(read_IJC[..., channel], grey_IJ >> 8)
  image_IJC = pixels((40, 30, 3), dtype=np.uint16)
  cv2.imwrite(str(tmp_path / "rgb.png"), image_IJC[..., ::-1])
  np.testing.assert_array_equal(
    images.read(tmp_path / "rgb.png"), image_IJC >> 8
  )


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_bits_that_are_never_set_darken_nothing(tmp_path, bits, name):
  grey_IJ = np.arange(65536, dtype=np.uint16).reshape(256, 256) >> (16 - bits)
  PIL.Image.fromarray(grey_IJ).save(tmp_path / name)
  np.testing.assert_array_equal(
    images.read(tmp_path / name)[..., 1], grey_IJ >> (bits - 8)
  )


def saved(folder, mode, name):
  """A picture in the mode, as a file, and what its RGB is."""
  colours = cv2.resize(pixels((5, 4, 3)), (32, 40))
  alpha_IJ = np.tile(np.linspace(0, 255, 32).astype(np.uint8), (40, 1))
  grey_IJ = colours[..., 0]
  image = {
    "1": lambda: PIL.Image.fromarray(grey_IJ > 128),
    "L": lambda: PIL.Image.fromarray(grey_IJ),
    "LA": lambda: PIL.Image.fromarray(np.dstack([grey_IJ, alpha_IJ]), "LA"),
    "P": lambda: PIL.Image.fromarray(colours).quantize(16),
    "RGB": lambda: PIL.Image.fromarray(colours),
    "RGBA": lambda: PIL.Image.fromarray(np.dstack([colours, alpha_IJ])),
    "CMYK": lambda: PIL.Image.fromarray(colours).convert("CMYK"),
    "YCbCr": lambda: PIL.Image.fromarray(colours).convert("YCbCr"),
  }[mode]()
  image.save(folder / name)
  if mode == "RGBA":
    return folder / name, colours
  with PIL.Image.open(folder / name) as again:
    return folder / name, np.asarray(again.convert("RGB"))


@pytest.mark.parametrize(
  ("mode", "name"),
  [
    *((mode, "a.png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
    *((mode, "a.tif") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
    *((mode, "a.tif") for mode in ("CMYK", "YCbCr")),
    *((mode, "a.jpg") for mode in ("L", "RGB", "CMYK")),
  ],
)
def test_every_way_to_store_a_picture_shows_the_same(tmp_path, mode, name):
  path, expected_IJC = saved(tmp_path, mode, name)
  error = np.abs(images.read(path).astype(int) - expected_IJC)
  # Two libraries round colour conversions in two ways.
  assert error.max() <= (1 if mode in ("CMYK", "YCbCr") else 0)


@pytest.mark.parametrize(
  ("image", "says"),
  [
    (PIL.Image.new("I", (40, 40), 70_000), "which of them are black"),
    (PIL.Image.new("F", (40, 40), 0.5), "which of them are black"),
    (PIL.Image.new("LAB", (40, 40)), "L\\*a\\*b"),
  ],
)
def test_numbers_that_are_no_colours_are_refused(tmp_path, image, says):
  image.save(tmp_path / "a.tif")
  with pytest.raises(DataError, match=says):
    images.read(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.tif", "a.gif"])
def test_several_pictures_in_one_file_are_not_seen_as_one(tmp_path, name):
  first, *others = [PIL.Image.fromarray(pixels(seed=s)) for s in range(3)]
  first.save(tmp_path / name, save_all=True, append_images=others)
  with pytest.raises(DataError, match="holds 3 pictures of one size"):
    images.read(tmp_path / name)


def test_a_thumbnail_in_the_file_is_no_second_picture(tmp_path):
  image = PIL.Image.fromarray(pixels((40, 30, 3)))
  small = image.resize((15, 20))
  image.save(tmp_path / "a.tif", save_all=True, append_images=[small])
  np.testing.assert_array_equal(images.read(tmp_path / "a.tif"), image)


@pytest.mark.parametrize(
  ("orientation", "turn"),
  [
    (1, lambda upright: upright),
    (2, np.fliplr),
    (3, lambda upright: np.rot90(upright, 2)),
    (6, lambda upright: np.rot90(upright, -1)),
    (8, lambda upright: np.rot90(upright, 1)),
  ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, turn):
  stored_IJC = np.zeros((48, 32, 3), np.uint8)
  stored_IJC[:24, :16] = 250, 20, 20
  stored_IJC[24:, :16] = 20, 20, 250
  exif = PIL.Image.Exif()
  exif[0x0112] = orientation
  path = tmp_path / "a.jpg"
  PIL.Image.fromarray(stored_IJC).save(path, exif=exif, quality=95)
  read_IJC, expected_IJC = images.read(path), turn(stored_IJC)
  assert read_IJC.shape == expected_IJC.shape
  error = np.abs(read_IJC.astype(int) - expected_IJC)
  assert error.mean() < 6  # JPEG's own loss at the colour edges


def bad_files(folder: pathlib.Path) -> dict[str, tuple[pathlib.Path, str]]:
  """Name -> file and what its error must say."""
  whole = folder / "whole.png"
  PIL.Image.fromarray(pixels((90, 90, 3))).save(whole)
  PIL.Image.fromarray(pixels((90, 90, 3))).save(folder / "whole.jpg")
  (folder / "text.png").write_text("not a picture")
  (folder / "empty.png").write_bytes(b"")
  for name in ("whole.png", "whole.jpg"):
    content = (folder / name).read_bytes()
    (folder / f"half_{name}").write_bytes(content[: len(content) // 2])
  PIL.Image.new("L", (1, 1)).save(folder / "dot.png")
  return {
    "missing": (folder / "nowhere.png", "no such file.*Correct the path"),
    "folder": (folder, "no such file"),
    "text": (folder / "text.png", "this is no image.*Save it again"),
    "empty": (folder / "empty.png", "this is no image"),
    "half a PNG": (folder / "half_whole.png", "cannot be decoded.*Save it"),
    "half a JPEG": (folder / "half_whole.jpg", "breaks off.*Save it again"),
    "1 x 1": (folder / "dot.png", "1 x 1 pixels.*at least 16.*Enlarge"),
  }


@pytest.mark.parametrize(
  "name",
  [
    "missing",
    "folder",
    "text",
    "empty",
    "half a PNG",
    "half a JPEG",
    "1 x 1",
  ],
)
def test_files_that_cannot_be_used_say_why(tmp_path, name):
  path, says = bad_files(tmp_path)[name]
  with pytest.raises(DataError, match=says) as info:
    images.read(path)
  assert info.value.path == str(path)
  assert info.value.field == "image"
  with pytest.raises(DataError, match=says) as info:
    images.read_mask(path, (90, 90))
  assert info.value.field == "mask"


@pytest.mark.parametrize("size", [(20_000, 20_000), (20_000, 4_001)])
def test_huge_images_are_refused_before_they_are_decoded(
  tmp_path, monkeypatch, size
):
  path = tmp_path / "huge.png"
  PIL.Image.new("1", size).save(path)  # 50 kB on disk
  monkeypatch.setattr(cv2, "imread", lambda *_: pytest.fail("decoded"))
  with warnings.catch_warnings():
    warnings.simplefilter("error")  # nor does Pillow have to warn
    with pytest.raises(DataError, match=r"80 million.*cut it into tiles"):
      images.read(path)


# Masks.


def test_a_mask_is_all_above_zero(tmp_path):
  mask_IJ = pixels((40, 30)) // 64
  PIL.Image.fromarray(mask_IJ).save(tmp_path / "a.png")
  read_IJ = images.read_mask(tmp_path / "a.png", (40, 30))
  assert read_IJ.dtype == bool
  np.testing.assert_array_equal(read_IJ, mask_IJ > 0)


def test_a_16_bit_mask_of_small_values_is_not_lost(tmp_path):
  mask_IJ = np.zeros((40, 30), np.uint16)
  mask_IJ[3:9, 4:7] = 1  # 0 in its upper byte
  PIL.Image.fromarray(mask_IJ).save(tmp_path / "a.png")
  read_IJ = images.read_mask(tmp_path / "a.png", (40, 30))
  np.testing.assert_array_equal(read_IJ, mask_IJ > 0)


def test_a_1_bit_mask(tmp_path):
  mask_IJ = pixels((40, 30)) > 200
  PIL.Image.fromarray(mask_IJ).save(tmp_path / "a.png")
  read_IJ = images.read_mask(tmp_path / "a.png", (40, 30))
  np.testing.assert_array_equal(read_IJ, mask_IJ)


def test_a_mask_of_another_size_says_both_sizes(tmp_path):
  PIL.Image.new("L", (30, 40), 1).save(tmp_path / "a.png")
  with pytest.raises(
    DataError, match=r"40 x 30 pixels, its image 30 x 40.*own grid"
  ):
    images.read_mask(tmp_path / "a.png", (30, 40))


def test_an_empty_mask_says_so(tmp_path):
  PIL.Image.new("L", (30, 40)).save(tmp_path / "a.png")
  with pytest.raises(DataError, match=r"a.png: mask: it is empty.*Remove it"):
    images.read_mask(tmp_path / "a.png", (40, 30))


# Into the model's frame.


@pytest.mark.parametrize(
  ("shape", "size", "expected"),
  [
    ((2048, 1025), 1024, (1024, 512)),  # 512.5: half to even
    ((2048, 1027), 1024, (1024, 514)),  # 513.5
    ((1025, 2048), 1024, (512, 1024)),
    ((512, 512), 1024, (1024, 1024)),
    ((1024, 700), 1024, (1024, 700)),
    ((3000, 2000), 1024, (1024, 683)),
    ((4000, 16), 64, (64, 1)),  # never nothing
  ],
)
def test_sizes_are_rounded_half_to_even(shape, size, expected):
  assert images.resized_shape(shape, size) == expected


@pytest.mark.parametrize("shape", [(37, 64), (200, 150), (20, 17), (64, 64)])
def test_prepare_gives_the_numbers_of_opencv(shape):
  image_IJC = pixels((*shape, 3))
  frame_IJC, extent_2 = images.prepare(image_IJC, 64)
  assert frame_IJC.shape == (64, 64, 3)
  assert (frame_IJC.dtype, extent_2.dtype) == (np.uint8, np.int32)
  rows, columns = (round(side * (64 / max(shape))) for side in shape)
  assert extent_2.tolist() == [rows, columns]
  np.testing.assert_array_equal(
    frame_IJC[:rows, :columns],
    cv2.resize(image_IJC, (columns, rows), interpolation=cv2.INTER_LINEAR),
  )
  assert not frame_IJC[rows:].any()
  assert not frame_IJC[:, columns:].any()
  for channel in range(3):  # fixed point against float: the spec's 0.75
    exact_IJ = bilinear(image_IJC[..., channel], rows, columns)
    error_IJ = frame_IJC[:rows, :columns, channel] - exact_IJ
    assert np.abs(error_IJ).max() < 0.7501


def test_prepare_does_not_touch_an_image_that_fits():
  image_IJC = pixels((64, 40, 3))
  frame_IJC, _ = images.prepare(image_IJC, 64)
  np.testing.assert_array_equal(frame_IJC[:, :40], image_IJC)


def coverage(mask_IJ, size):
  """The share of each cell of the frame that the mask covers, by overlap."""
  side = max(mask_IJ.shape)
  edges = np.arange(size + 1) * side / size
  cells = np.arange(side)
  overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(
    edges[:-1, None], cells
  )
  share = np.clip(overlap, 0, None) * size / side
  rows, columns = mask_IJ.shape
  return share[:, :rows] @ mask_IJ.astype(float) @ share[:, :columns].T


@pytest.mark.parametrize("shape", [(100, 75), (45, 64), (333, 500), (64, 64)])
def test_masks_are_covered_by_half(shape):
  rng = np.random.default_rng(1)
  mask_IJ = cv2.resize(rng.uniform(size=(7, 7)), shape[::-1]) > 0.5
  frame_IJ = images.prepare_mask(mask_IJ, 32)
  assert (frame_IJ.shape, frame_IJ.dtype) == ((32, 32), np.uint8)
  covered_IJ = coverage(mask_IJ, 32)
  clear_IJ = np.abs(covered_IJ - 0.5) > 1e-5
  np.testing.assert_array_equal(
    frame_IJ[clear_IJ], (covered_IJ >= 0.5)[clear_IJ]
  )


def test_a_mask_of_the_frame_itself_is_unchanged():
  mask_IJ = pixels((32, 32)) > 128
  np.testing.assert_array_equal(images.prepare_mask(mask_IJ, 32), mask_IJ)


def test_the_smallest_targets_are_kept_where_they_are():
  for row, column in np.random.default_rng(2).integers(0, (500, 333), (50, 2)):
    mask_IJ = np.zeros((500, 333), bool)
    mask_IJ[row, column] = True
    found = np.argwhere(images.prepare_mask(mask_IJ, 32))
    assert 1 <= len(found) <= 4
    offset = found + 0.5 - np.array([row + 0.5, column + 0.5]) * 32 / 500
    assert np.abs(offset).max() <= 0.6


@pytest.mark.parametrize("shape", [(45, 64), (20, 64), (64, 31), (17, 11)])
def test_masks_stay_inside_the_image(shape):
  rows, columns = (-(-side * 32 // max(shape)) for side in shape)
  frame_IJ = images.prepare_mask(np.ones(shape, bool), 32)
  assert not frame_IJ[rows:].any()
  assert not frame_IJ[:, columns:].any()
  assert frame_IJ[: rows - 1, : columns - 1].all()


def test_an_empty_mask_stays_empty():
  assert not images.prepare_mask(np.zeros((50, 40), bool), 32).any()


# And back.


@pytest.mark.parametrize(
  ("shape", "extent"),
  [((100, 75), (64, 48)), ((30, 41), (47, 64)), ((700, 900), (50, 64))],
)
def test_logits_return_by_two_bilinear_steps(shape, extent):
  logits_YX = np.random.default_rng(0).normal(0, 5, (16, 16))
  rows, columns = extent
  expected_IJ = bilinear(bilinear(logits_YX, 64, 64)[:rows, :columns], *shape)
  found_IJ = images.restore_logits(logits_YX, np.int32(extent), 64, shape)
  assert found_IJ.dtype == np.float32
  np.testing.assert_allclose(found_IJ, expected_IJ, atol=2e-4)


def test_there_and_back_a_square_keeps_its_place():
  mask_IJ = np.zeros((150, 200), bool)
  mask_IJ[25:100, 100:175] = True  # on edges of the frame
  _, extent_2 = images.prepare(np.zeros((150, 200, 3), np.uint8), 64)
  logits_YX = images.prepare_mask(mask_IJ, 32) * 2.0 - 1
  restored_IJ = images.restore_logits(logits_YX, extent_2, 64, (150, 200)) > 0
  inter, union = (restored_IJ & mask_IJ).sum(), (restored_IJ | mask_IJ).sum()
  assert inter / union > 0.97


def test_boxes_are_half_open():
  mask_IJ = np.zeros((20, 30), bool)
  assert images.box(mask_IJ) is None
  mask_IJ[3, 7] = True
  assert images.box(mask_IJ) == (7, 3, 8, 4)
  mask_IJ[19, 29] = True
  assert images.box(mask_IJ) == (7, 3, 30, 20)


def test_noise_is_drawn_from_its_generator_and_varied():
  drawn = [images.noise(np.random.default_rng(seed), 24) for seed in range(40)]
  again = images.noise(np.random.default_rng(3), 24)
  np.testing.assert_array_equal(drawn[3], again)
  assert {image.shape for image in drawn} == {(24, 24, 3)}
  assert {image.dtype for image in drawn} == {np.dtype(np.uint8)}
  deviations = [image.std() for image in drawn]
  assert min(deviations) < 40 < 60 < max(deviations)
  grey = [np.ptp(image.astype(int), axis=2).max() == 0 for image in drawn]
  assert 5 < sum(grey) < 35
