"""Metrics against hand-worked cases, skimage, scipy and float64 formulas."""

import dataclasses

import numpy as np
import pytest
import scipy.spatial.distance
import skimage.measure

from rcmed_jax.data import images
from rcmed_jax.eval import averages, metrics
from rcmed_jax.eval.metrics import Counts
from rcmed_jax.eval.rows import MaskScore, Named


def _random_masks(seed: int) -> tuple[np.ndarray, np.ndarray]:
  random = np.random.default_rng(seed)
  return random.random((31, 17)) < 0.3, random.random((31, 17)) < 0.5


def _score(record, name, inter, pred, ref, modality="ct", present=True):
  counts = Counts(inter, pred, ref)
  confidence = 0.9 if present else 0.0
  return MaskScore(
    record, "toy", modality, name, counts, 0.5, present, confidence
  )


@pytest.mark.parametrize("seed", range(5))
def test_dice_and_iou_are_scipys(seed):
  pred_IJ, ref_IJ = _random_masks(seed)
  counts = metrics.count(pred_IJ, ref_IJ)
  distance = scipy.spatial.distance
  dice = 1 - distance.dice(pred_IJ.ravel(), ref_IJ.ravel())
  iou = 1 - distance.jaccard(pred_IJ.ravel(), ref_IJ.ravel())
  assert counts.dice == pytest.approx(dice, abs=1e-9)
  assert counts.iou == pytest.approx(iou, abs=1e-12)


def test_counts_by_hand():
  pred_IJ = np.array([[1, 1, 0], [0, 0, 0]], bool)
  ref_IJ = np.array([[0, 1, 1], [0, 1, 0]], bool)
  assert metrics.count(pred_IJ, ref_IJ) == Counts(inter=1, pred=2, ref=3)
  assert Counts(1, 2, 3).dice == (2 + 1e-7) / (5 + 1e-7)
  assert Counts(1, 2, 3).iou == 1 / 4


def test_empty_masks():
  assert Counts(0, 0, 0).dice == 1.0
  assert Counts(0, 0, 0).iou == 1.0
  assert Counts(0, 0, 9).dice == pytest.approx(0, abs=1e-7)
  assert Counts(0, 0, 9).iou == 0.0


def test_masks_that_do_not_fit_are_refused():
  with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 3\).*resize"):
    metrics.count(np.zeros((2, 2), bool), np.zeros((2, 3), bool))
  with pytest.raises(ValueError, match=r"float64.*threshold"):
    metrics.count(np.zeros((2, 2)), np.zeros((2, 2), bool))


@pytest.mark.parametrize("seed", range(3))
def test_box_is_skimages(seed):
  mask_IJ = np.random.default_rng(seed).random((20, 30)) < 0.01
  mask_IJ[5, 7] = True
  (region,) = skimage.measure.regionprops(mask_IJ.astype(int))
  y0, x0, y1, x1 = region.bbox
  assert images.box(mask_IJ) == (x0, y0, x1, y1)


def test_box_iou_is_the_iou_of_filled_boxes():
  random = np.random.default_rng(3)
  for _ in range(20):
    masks = np.zeros((2, 12, 12), bool)
    for mask_IJ in masks:
      y, x = random.integers(0, 8, 2)
      mask_IJ[y : y + random.integers(1, 5), x : x + random.integers(1, 5)] = 1
    assert metrics.box_iou(*masks) == metrics.count(*masks).iou
  empty_IJ = np.zeros((12, 12), bool)
  assert images.box(empty_IJ) is None
  assert metrics.box_iou(empty_IJ, empty_IJ) == 1.0
  assert metrics.box_iou(empty_IJ, masks[0]) == 0.0


def test_aggregates_by_hand():
  scores = [
    _score("a", "liver", 10, 10, 10),  # Dice 1, IoU 1
    _score("b", "liver", 0, 10, 30),  # Dice 0, IoU 0
    _score("b", "cyst", 50, 50, 100),  # Dice 2/3, IoU 1/2
  ]
  rows = averages.aggregate(scores, lambda s: s.name, draws=0, seed=0)
  assert list(rows) == ["cyst", "liver"]
  liver = rows["liver"]
  assert (liver.images, liver.masks) == (2, 2)
  assert liver.dice == pytest.approx(1 / 2, abs=1e-8)
  assert liver.iou == 1 / 2
  assert liver.ciou == 10 / (10 + 40)
  assert liver.dice_low is None
  everything = averages.aggregate(scores, lambda s: "all", draws=0, seed=0)
  assert everything["all"].dice == pytest.approx(5 / 9, abs=1e-8)
  assert everything["all"].ciou == 60 / (10 + 40 + 100)


def test_surfaces_of_two_units_are_never_averaged_together():
  def surface(record, nsd, hd95, unit):
    return dataclasses.replace(
      _score(record, "liver", 1, 1, 1), nsd=nsd, hd95=hd95, unit=unit
    )

  scores = [
    surface("a", 1.0, 2.0, "mm"),
    surface("b", 0.4, 6.0, "mm"),
    surface("c", 0.1, 50.0, "px"),
  ]
  row = averages.aggregate(scores, lambda s: s.name, draws=0, seed=0)["liver"]
  assert (row.masks_mm, row.masks_px) == (2, 1)
  assert (row.nsd_mm, row.nsd_px) == (pytest.approx(0.7), 0.1)
  assert (row.hd95_mm, row.hd95_px) == (4.0, 50.0)
  only = averages.aggregate(scores[:2], lambda s: s.name, draws=0, seed=0)
  assert (only["liver"].nsd_px, only["liver"].hd95_px) == (None, None)


def test_recognition_by_hand():
  answers = [
    Named("1", "ct", "CT", ("liver", "spleen"), ("Liver", "spleen")),
    Named("2", "ct", "mr", ("liver",), ("cyst",)),
    Named("3", "ct", None, ("spleen",), ()),
  ]
  found = averages.recognition(answers)
  assert (found.tp, found.fp, found.fn) == (2, 1, 2)
  assert found.accuracy == 2 / 5
  assert found.exact == 1 / 3
  assert found.modality == 1 / 3
  # liver: 1 right, 1 missed; spleen: 1 right, 1 missed; cyst has no reference.
  assert found.macro_f1 == pytest.approx(2 / 3)
  assert found.classes["cyst"] == (0, 1, 0)
  assert found.confusions == {("liver", "cyst"): 1, ("spleen", ""): 1}


def test_share_of_nothing_is_perfect():
  assert metrics.share(0, 0) == 1.0
  assert metrics.share(1, 4) == 0.25
