import dataclasses
import json

import cv2
import hypothesis
from hypothesis import strategies
import numbered
import numpy as np
import pytest

from rcmed_jax.data import encoded


def opencv(png, flags=cv2.IMREAD_UNCHANGED):
  return cv2.imdecode(np.frombuffer(png, np.uint8), flags)


@hypothesis.given(
  strategies.integers(1, 40),
  strategies.integers(1, 40),
  strategies.floats(0, 1),
  strategies.integers(0, 99),
)
def test_masks_are_pngs_to_everybody_and_come_back(rows, columns, share, seed):
  mask_IJ = np.random.default_rng(seed).random((rows, columns)) < share
  png = encoded.mask_png(mask_IJ)
  np.testing.assert_array_equal(opencv(png) > 0, mask_IJ)
  back_IJ = encoded.read_mask(png)
  assert back_IJ.dtype == bool
  np.testing.assert_array_equal(back_IJ, mask_IJ)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_come_back_as_they_were(channels):
  rng = np.random.default_rng(0)
  image_IJC = rng.integers(0, 256, (31, 17, channels), np.uint8)
  image_IJC = np.broadcast_to(image_IJC, (31, 17, 3)).copy()
  png = encoded.image_png(image_IJC)
  assert (opencv(png).ndim == 2) == (channels == 1)
  np.testing.assert_array_equal(
    opencv(png, cv2.IMREAD_COLOR)[..., ::-1], image_IJC
  )
  np.testing.assert_array_equal(encoded.read_image(png), image_IJC)


@pytest.mark.parametrize("number", range(8))
def test_an_example_is_what_tfds_makes_of_it(number):
  one = numbered.triplet(number)
  data = encoded.encode(one)
  assert data == encoded.encode(one)
  id, image_IJC, masks = encoded.decode(data)
  theirs = encoded.features().deserialize_example_np(data)
  assert id == one.id == theirs["id"].decode()
  for image in (image_IJC, theirs["image"]):
    np.testing.assert_array_equal(image, one.image_IJC)
  assert len(masks) == len(one.classes) == len(theirs["masks"])
  for mask_IJ, other, wanted_IJ in zip(
    masks, theirs["masks"], one.masks_GIJ, strict=True
  ):
    np.testing.assert_array_equal(mask_IJ, wanted_IJ)
    np.testing.assert_array_equal(np.asarray(other)[..., 0] > 0, wanted_IJ)


def test_a_header_is_all_but_the_pixels():
  one = numbered.triplet(3)
  told = json.loads(encoded.header(one))
  assert told.pop("dataset") == one.source
  kept = {
    field.name: getattr(one, field.name)
    for field in dataclasses.fields(one)
    if field.name not in ("image_IJC", "masks_GIJ", "instances", "source")
  }
  assert told == json.loads(
    json.dumps({name: x for name, x in kept.items() if x is not None})
  )


@hypothesis.settings(max_examples=400, deadline=None)
@hypothesis.given(strategies.data())
def test_damaged_examples_are_told_as_such(data):
  whole = bytearray(encoded.encode(numbered.triplet(3)))
  for _ in range(data.draw(strategies.integers(1, 3))):
    place = data.draw(strategies.integers(0, len(whole) - 1))
    whole[place] = data.draw(strategies.integers(0, 255))
  cut = data.draw(strategies.integers(0, len(whole)))
  try:
    _, image_IJC, masks = encoded.decode(bytes(whole[:cut]))
  except ValueError:
    return
  # Changes that PNG does not see are seen by the shard's own sums.
  assert image_IJC.dtype == np.uint8
  assert all(mask_IJ.shape == image_IJC.shape[:2] for mask_IJ in masks)
