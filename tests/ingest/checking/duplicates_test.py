import cv2
import imagehash
import layouts
import numpy as np
import PIL.Image
import pytest
import scipy.sparse.csgraph

from rcmed_jax.ingest.checking import duplicates


def flipped(value, bits, rng):
  for bit in rng.choice(64, bits, replace=False):
    value ^= 1 << int(bit)
  return value


@pytest.mark.parametrize("distance", [0, 1, 2, 4, 5, 8])
def test_near_groups_are_those_of_comparing_all_with_all(distance):
  rng = np.random.default_rng(distance)
  values = [int(v) for v in rng.integers(0, 2**63, 300)]
  values += [flipped(v, int(rng.integers(0, 11)), rng) for v in values[:200]]
  values += [flipped(values[0], n, rng) for n in (1, 2, 3) for _ in range(5)]
  values += values[:3]
  hashes_N = np.array(values, np.uint64)
  near_NN = np.bitwise_count(hashes_N[:, None] ^ hashes_N) <= distance
  _, labels = scipy.sparse.csgraph.connected_components(near_NN)
  expected = [np.flatnonzero(labels == label) for label in np.unique(labels)]
  found = duplicates.near_groups(hashes_N, distance)
  assert sorted(tuple(sorted(group)) for group in found) == sorted(
    tuple(group) for group in expected if len(group) > 1
  )
  assert found


@pytest.mark.parametrize("count", [0, 1])
def test_nothing_to_compare(count):
  hashes_N = np.zeros(count, np.uint64)
  assert duplicates.near_groups(hashes_N, 4) == []
  assert duplicates.equal_groups(hashes_N) == []


def test_a_distance_that_means_nothing_is_refused():
  with pytest.raises(ValueError, match="expected 0 to 8"):
    duplicates.near_groups(np.zeros(2, np.uint64), 9)


def test_many_alike_are_one_group_in_little_time():
  rng = np.random.default_rng(0)
  hashes_N = np.array(
    [flipped(0, int(rng.integers(0, 3)), rng) for _ in range(3000)], np.uint64
  )
  (group,) = duplicates.near_groups(hashes_N, 4)
  assert len(group) == 3000


def distance(one_IJC, other_IJC):
  return (
    duplicates.perceptual_hash(one_IJC) ^ duplicates.perceptual_hash(other_IJC)
  ).bit_count()


def test_a_picture_saved_again_is_near_and_another_is_not(tmp_path):
  image_IJC = layouts.picture(0, (300, 200))
  path = tmp_path / "again.jpg"
  PIL.Image.fromarray(image_IJC).save(path, quality=60)
  assert distance(image_IJC, np.asarray(PIL.Image.open(path))) <= 4
  assert distance(image_IJC, cv2.resize(image_IJC, (150, 225))) <= 4
  brighter_IJC = cv2.convertScaleAbs(image_IJC, alpha=0.8, beta=10)
  assert distance(image_IJC, brighter_IJC) <= 4
  assert distance(image_IJC, layouts.picture(1, (300, 200))) > 12
  assert distance(image_IJC, image_IJC[:, ::-1]) > 12


def test_the_hash_is_the_librarys():
  grey_IJ = layouts.picture(3, (128, 128))[..., 0]
  expected = int(str(imagehash.phash(PIL.Image.fromarray(grey_IJ))), 16)
  image_IJC = np.repeat(grey_IJ[..., None], 3, axis=2)
  assert duplicates.perceptual_hash(image_IJC) == expected


def test_a_picture_of_nothing_has_no_hash():
  assert duplicates.perceptual_hash(np.full((40, 30, 3), 9, np.uint8)) is None


def test_equal_means_pixels_and_grid():
  image_IJC = layouts.picture(0)
  other_IJC = image_IJC.copy()
  other_IJC[0, 0, 0] ^= 1
  hashes = {
    duplicates.exact_hash(one)
    for one in (
      image_IJC,
      image_IJC.copy(),
      np.asfortranarray(image_IJC),
      other_IJC,
      image_IJC.reshape(30, 40, 3),
    )
  }
  assert len(hashes) == 3
