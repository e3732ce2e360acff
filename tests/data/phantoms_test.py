import collections
import json

import cv2
import numpy as np
import pytest
import scipy.ndimage

from rcmed_jax.data import phantoms
from rcmed_jax.data.phantoms import canvas, sheet

SIZE = 96  # as drawn for statistics; the shapes are the same at 192


@pytest.fixture(scope="module")
def samples():
  """400 training phantoms, which other tests count."""
  return [phantoms.sample(7, "train", i, SIZE) for i in range(400)]


@pytest.fixture(scope="module")
def shares(samples):
  """(modality, class) -> area shares of the images that show it."""
  found = collections.defaultdict(list)
  for phantom in samples:
    for name, mask_IJ in phantom.masks.items():
      found[phantom.modality, name].append(mask_IJ.mean())
  return found


@pytest.mark.parametrize("modality", phantoms.MODALITIES)
def test_same_seed_draws_the_same_and_another_does_not(modality):
  first, again, other = (
    phantoms.draw(modality, seed, 64) for seed in (3, 3, 4)
  )
  np.testing.assert_array_equal(first.image_IJC, again.image_IJC)
  assert list(first.masks) == list(again.masks)
  for name, mask_IJ in first.masks.items():
    np.testing.assert_array_equal(mask_IJ, again.masks[name])
  assert (first.image_IJC != other.image_IJC).mean() > 0.1


@pytest.mark.parametrize("modality", phantoms.MODALITIES)
@pytest.mark.parametrize("size", [64, 192])
def test_image_and_masks_fit_at_any_size(modality, size):
  phantom = phantoms.draw(modality, 11, size)
  assert phantom.image_IJC.shape == (size, size, 3)
  assert phantom.image_IJC.dtype == np.uint8
  for mask_IJ in phantom.masks.values():
    assert mask_IJ.shape == (size, size)
    assert mask_IJ.dtype == bool


def test_wrong_arguments_are_named():
  with pytest.raises(ValueError, match=r"'xray'; expected one of ct, mr"):
    phantoms.draw("xray", 0)
  with pytest.raises(ValueError, match="at least 32, received 16"):
    phantoms.draw("ct", 0, 16)


def test_modalities_come_in_turn_and_all_tasks_appear(samples, shares):
  turn = [phantom.modality for phantom in samples[:18]]
  assert turn == list(phantoms.MODALITIES) * 2
  assert len(shares) >= 24
  assert min(map(len, shares.values())) >= 10


def test_targets_are_large_enough_and_often_absent(samples, shares):
  drawn = collections.Counter(phantom.modality for phantom in samples)
  present = {
    task: len(found) / drawn[task[0]] for task, found in shares.items()
  }
  assert min(min(found) for found in shares.values()) > 0.006
  assert min(np.mean(found) for found in shares.values()) > 0.011
  # 44 images of a modality: three deviations are about 0.2.
  assert all(0.4 <= share <= 0.92 or share == 1 for share in present.values())
  assert sum(share < 1 for share in present.values()) >= 24
  assert np.mean([len(phantom.masks) for phantom in samples]) > 2


def test_targets_keep_their_form_at_a_third_of_the_size():
  """What a model sees at 64 pixels must be able to give the mask at 192."""
  dice = collections.defaultdict(list)
  for i in range(90):
    phantom = phantoms.sample(1, "train", i)
    for name, mask_IJ in phantom.masks.items():
      mask_u8 = mask_IJ.astype(np.float32)
      small = cv2.resize(mask_u8, (64, 64), interpolation=cv2.INTER_AREA)
      back_IJ = cv2.resize(small, (192, 192)) > 0.5
      both = (back_IJ & mask_IJ).sum()
      dice[name].append(2 * both / (back_IJ.sum() + mask_IJ.sum()))
  assert min(np.mean(scores) for scores in dice.values()) > 0.9


def test_ct_has_air_around_and_organs_brighter_than_fat(samples):
  for phantom in _of(samples, "ct"):
    grey_IJ = phantom.image_IJC[..., 0].astype(float)
    assert grey_IJ[:6].mean() < 25
    assert (phantom.image_IJC[..., 0] == phantom.image_IJC[..., 2]).all()
    if "liver" in phantom.masks:
      organ_IJ = phantom.masks["liver"]
      fat_IJ = scipy.ndimage.binary_dilation(organ_IJ, iterations=4) & ~organ_IJ
      assert np.median(grey_IJ[organ_IJ]) > np.median(grey_IJ[fat_IJ])


def test_patients_are_shown_in_radiological_convention(samples):
  """Left kidney and left lung lie in the image's right half."""
  for phantom in samples:
    for name, mask_IJ in phantom.masks.items():
      column = np.nonzero(mask_IJ)[1].mean() / SIZE
      if name.startswith("left_") or name == "spleen":
        assert column > 0.5
      if name.startswith("right_") or name == "liver":
        assert column < 0.5


def test_mr_bias_is_smooth_and_differs_from_image_to_image():
  """Same tissue, other brightness: a slow trend over the brain explains it."""
  slopes = []
  for seed in range(12):
    phantom = phantoms.draw("mr", seed, SIZE)
    brain_IJ = scipy.ndimage.binary_erosion(
      phantom.masks["brain"], iterations=8
    )
    for name in ("ventricle", "brain_tumor"):
      if name in phantom.masks:
        near_IJ = scipy.ndimage.binary_dilation(
          phantom.masks[name], iterations=6
        )
        brain_IJ &= ~near_IJ
    rows_P, columns_P = np.nonzero(brain_IJ)
    signal_P = np.log(phantom.image_IJC[..., 0][brain_IJ] + 1.0)
    design_P3 = np.stack([rows_P, columns_P, np.ones(len(rows_P))], axis=1)
    slopes.append(np.linalg.lstsq(design_P3, signal_P, rcond=None)[0][:2])
  slope_2 = np.abs(np.array(slopes)).mean(axis=0) * SIZE
  assert (slope_2 > 0.1).all()
  assert (np.array(slopes) > 0).any() and (np.array(slopes) < 0).any()


def test_ultrasound_speckle_is_multiplicative():
  """Undoing the logarithm gives Rayleigh contrast, whatever the brightness."""
  contrasts = []
  for seed in range(10):
    phantom = phantoms.draw("ultrasound", seed)
    taken_IJ = sum(phantom.masks.values(), np.zeros((192, 192), bool))
    signal_IJ = np.expm1(phantom.image_IJC[..., 0] / 255 * np.log(41))
    for row, column in ((80, 80), (80, 100), (110, 70), (110, 96), (110, 120)):
      patch = slice(row, row + 14), slice(column, column + 14)
      if not taken_IJ[patch].any():
        contrasts.append(signal_IJ[patch].std() / signal_IJ[patch].mean())
  # Rayleigh: 0.52; interpolation of the scan lowers it, vessels raise it.
  assert 0.35 < np.median(contrasts) < 0.65


def test_ultrasound_is_a_fan(samples):
  for phantom in _of(samples, "ultrasound"):
    grey_IJ = phantom.image_IJC[..., 0]
    assert grey_IJ[SIZE // 2 :, SIZE // 2].mean() > 40
    assert grey_IJ[: SIZE // 4, : SIZE // 8].max() == 0


def test_x_ray_lungs_are_darker_than_the_heart(samples):
  for phantom in _of(samples, "x"):
    grey_IJ = phantom.image_IJC[..., 0].astype(float)
    lungs_IJ = sum(
      (m for name, m in phantom.masks.items() if name.endswith("lung")),
      np.zeros((SIZE, SIZE), bool),
    )
    assert lungs_IJ.any()
    if "heart" in phantom.masks:
      heart = grey_IJ[phantom.masks["heart"]].mean()
      assert heart > grey_IJ[lungs_IJ].mean() + 30


def test_pet_targets_are_the_hot_spots(samples):
  for phantom in _of(samples, "pet"):
    grey_IJ = phantom.image_IJC.mean(axis=2)
    background = np.median(grey_IJ)
    for mask_IJ in phantom.masks.values():
      assert abs(grey_IJ[mask_IJ].mean() - background) > 70


@pytest.mark.parametrize(
  ("modality", "channel"), [("pathology", 1), ("endoscopy", 2), ("fundus", 2)]
)
def test_tissue_has_its_colour(samples, modality, channel):
  """Stained tissue lacks green; mucosa and retina lack blue."""
  for phantom in _of(samples, modality):
    mean_C = phantom.image_IJC.reshape(-1, 3).mean(axis=0)
    assert mean_C.argmin() == channel


def test_parts_lie_in_their_wholes(samples):
  wholes = {"liver_tumor": "liver", "optic_cup": "optic_disc"}
  wholes |= {
    "ventricle": "brain",
    "brain_tumor": "brain",
    "veil": "skin_lesion",
  }
  for phantom in samples:
    for part, whole in wholes.items():
      if part in phantom.masks:
        inside = phantom.masks[whole][phantom.masks[part]].mean()
        assert inside > 0.98, (part, whole)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("phantoms")
  phantoms.write(folder, 12, seed=5, held_out=9, size=64)
  return folder


def test_index_leads_to_images_and_masks(written):
  for split, count in (("train", 12), ("test", 9)):
    index = json.loads((written / f"image2label_{split}.json").read_text())
    texts = json.loads((written / f"descriptions_{split}.json").read_text())
    assert len(index) == count
    assert list(texts) == list(index)
    for i, (image, entry) in enumerate(index.items()):
      phantom = phantoms.sample(5, split, i, 64)
      modality, dataset, _ = image.removeprefix("images/").split("--")
      assert (modality, dataset) == (phantom.modality, "phantom")
      read_IJC = cv2.imread(str(written / image))[..., ::-1]
      np.testing.assert_array_equal(read_IJC, phantom.image_IJC)
      assert texts[image].endswith(".")
      assert [name for pair in entry for name in pair.values()] == list(
        phantom.masks
      )
      for pair in entry:
        for path, name in pair.items():
          mask_IJ = cv2.imread(str(written / path), cv2.IMREAD_UNCHANGED)
          assert set(np.unique(mask_IJ)) <= {0, 255}
          np.testing.assert_array_equal(mask_IJ > 0, phantom.masks[name])


def test_more_images_keep_the_first_and_processes_change_nothing(
  written, tmp_path
):
  phantoms.write(tmp_path, 14, seed=5, size=64, processes=2)
  few = json.loads((written / "image2label_train.json").read_text())
  many = json.loads((tmp_path / "image2label_train.json").read_text())
  assert list(many)[:12] == list(few)
  for image in few:
    assert (tmp_path / image).read_bytes() == (written / image).read_bytes()
    assert many[image] == few[image]


def test_train_and_test_never_share_a_drawing(written):
  train = json.loads((written / "image2label_train.json").read_text())
  test = json.loads((written / "image2label_test.json").read_text())
  assert not set(train) & set(test)
  pixels = {(written / image).read_bytes() for image in [*train, *test]}
  assert len(pixels) == len(train) + len(test)


def test_counts_out_of_range_are_refused(tmp_path):
  with pytest.raises(ValueError, match="received -1"):
    phantoms.write(tmp_path, -1)
  with pytest.raises(ValueError, match="at least one image"):
    phantoms.write(tmp_path, 0)


def test_contact_sheet_shows_every_modality(written):
  sheet_IJC = cv2.imread(str(written / "contact_sheet.png"))
  cell_height = sheet.TILE + 3 * sheet.LINE
  assert sheet_IJC.shape[0] == len(phantoms.MODALITIES) * cell_height
  for row in range(len(phantoms.MODALITIES)):
    left = sheet_IJC[row * cell_height + sheet.LINE :][: sheet.TILE]
    assert left[:, : sheet.TILE].std() > 10


def test_shapes_are_where_they_are_drawn():
  easel = canvas.Canvas(np.random.default_rng(0), 100)
  disc_IJ = easel.blob((0.3, 0.6), (0.2, 0.1), rough=0.0)
  assert disc_IJ.sum() == pytest.approx(np.pi * 20 * 10, rel=0.02)
  rows_P, columns_P = np.nonzero(disc_IJ > 0.5)
  assert columns_P.mean() + 0.5 == pytest.approx(30, abs=0.5)
  assert rows_P.mean() + 0.5 == pytest.approx(60, abs=0.5)
  bar_IJ = easel.tubes([(np.array([[0.2, 0.5], [0.8, 0.5]]), 0.1, 0.1)])
  assert bar_IJ[:, 50].sum() == pytest.approx(10, abs=0.5)


def test_noise_is_normalised_and_as_coarse_as_asked():
  easel = canvas.Canvas(np.random.default_rng(0), 192)
  for grain, lag in ((0.02, 4), (0.2, 38)):
    noise_IJ = easel.noise(grain)
    assert noise_IJ.mean() == pytest.approx(0, abs=1e-4)
    assert noise_IJ.std() == pytest.approx(1, abs=1e-3)
    near = np.corrcoef(noise_IJ[:, :-1].ravel(), noise_IJ[:, 1:].ravel())
    far = np.corrcoef(
      noise_IJ[:, : -2 * lag].ravel(), noise_IJ[:, 2 * lag :].ravel()
    )
    assert near[0, 1] > 0.8
    assert abs(far[0, 1]) < 0.45


def _of(samples, modality):
  return [phantom for phantom in samples if phantom.modality == modality]
