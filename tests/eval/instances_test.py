"""Instance metrics against hand-worked cases and loops over sets of pixels."""

import itertools

import numpy as np
import pytest
import scipy.ndimage
import scipy.optimize
import skimage.measure
import skimage.segmentation

from rcmed_jax.eval import instances


def row(text: str) -> np.ndarray:
  """A label image of one row: digits are instances, a dot is background."""
  return np.array([[0 if sign == "." else int(sign) for sign in text]])


def pixels(labels):
  """Every instance as a set of places."""
  return [
    set(np.flatnonzero(labels.ravel() == number).tolist())
    for number in np.unique(labels[labels > 0])
  ]


def by_sets(pred, ref, least):
  """(TP, IoUs above a half, AJI's sums), as their definitions read."""
  preds, refs = pixels(pred), pixels(ref)
  iou = np.array([[len(p & r) / len(p | r) for r in refs] for p in preds])
  iou = iou.reshape(len(preds), len(refs))
  rows, columns = scipy.optimize.linear_sum_assignment(iou < least)
  tp = int((iou[rows, columns] >= least).sum())
  ious = sorted(
    len(p & r) / len(p | r)
    for p, r in itertools.product(preds, refs)
    if len(p & r) / len(p | r) > 0.5
  )
  used, inter, union = set(), 0, 0
  for r in refs:
    shared = [
      (len(p & r) / len(p | r), len(p & r), -i) for i, p in enumerate(preds)
    ]
    best = max(shared, default=(0, 0, 0))
    if best[1] == 0:
      union += len(r)
      continue
    used.add(-best[2])
    inter += best[1]
    union += len(preds[-best[2]] | r)
  union += sum(len(p) for i, p in enumerate(preds) if i not in used)
  return tp, ious, inter, union


def random_case(seed):
  """Cells, and what a mediocre model makes of them; some images are empty."""
  random = np.random.default_rng(seed)
  shape = random.integers(4, 40, 2)
  smooth = scipy.ndimage.gaussian_filter(random.normal(size=(2, *shape)), 1.2)
  smooth[1] += random.choice([0, 1, 4]) * smooth[0]
  pred, ref = (skimage.measure.label(layer > 0.1) for layer in smooth)
  if seed % 3 == 0:  # cells that touch
    pred, ref = (skimage.segmentation.expand_labels(x, 1) for x in (pred, ref))
  if seed % 25 == 4:
    pred = pred * 0
  if seed % 25 == 8:
    ref = ref * 0
  return pred, ref


@pytest.mark.parametrize("dense", [instances.DENSE, 0])
def test_equals_loops_over_sets(dense, monkeypatch):
  monkeypatch.setattr(instances, "DENSE", dense)
  thresholds = (0.3, 0.5, 0.75, 0.9)
  pairs = 0
  for seed in range(150):
    pred, ref = random_case(seed)
    found = instances.score(pred, ref, thresholds)
    for tp, least in zip(found.tp, thresholds, strict=True):
      expected = by_sets(pred, ref, least)
      assert tp == expected[0]
    _, ious, inter, union = expected
    assert list(found.ious) == ious
    assert (found.aji_inter, found.aji_union) == (inter, union)
    assert (found.preds, found.refs) == (len(pixels(pred)), len(pixels(ref)))
    pairs += len(ious)
  assert pairs > 300


def test_by_hand():
  # 1 with 1: 3 of 4 shared. 2 with 2: 1 of 3. 3 of the prediction: nothing.
  pred = row("111..22..3")
  ref = row("1111..22..")
  found = instances.score(pred, ref)
  assert (found.preds, found.refs) == (3, 2)
  # IoU 3/4 reaches 0.5 and 0.75, not 0.9; 1 pair, 2 + 1 instances left over.
  assert found.tp == (1, 1, 0)
  assert found.ap == (1 / 4, 1 / 4, 0)
  assert found.f1 == (2 / 5, 2 / 5, 0)
  assert (found.dq, found.sq) == (2 / 5, 3 / 4)
  assert found.pq == pytest.approx(3 / 10)
  # (3 + 1) / (4 + 3 + the one pixel of the unused instance)
  assert found.aji == 4 / 8


def test_ties_at_a_half_by_hand():
  """IoU 1/2 is enough for AP and F1, not for PQ; of two ties one counts."""
  found = instances.score(row("1."), row("11"))
  assert (found.tp[0], found.ap[0], found.f1[0]) == (1, 1, 1)
  assert (found.pq, found.dq, found.sq) == (0, 0, 0)
  # Both halves have IoU 1/2 with the one reference: one TP, one FP.
  found = instances.score(row("12"), row("11"))
  assert (found.tp[0], found.ap[0], found.f1[0]) == (1, 1 / 2, 2 / 3)
  assert found.pq == 0
  # AJI takes the first half; the other adds its pixel: 1 / (2 + 1).
  assert found.aji == 1 / 3


def test_one_prediction_may_serve_several_references_of_aji():
  # 1 covers both references: 2/4 + 2/4 of inter/union, nothing unused.
  found = instances.score(row("1111"), row("1122"))
  assert (found.aji_inter, found.aji_union) == (4, 8)


def test_images_without_instances():
  none, some = row("...."), row("12..")
  nothing = instances.score(none, none)
  assert (nothing.ap, nothing.f1) == ((1, 1, 1), (1, 1, 1))
  assert (nothing.pq, nothing.sq, nothing.aji) == (1, 1, 1)
  for found in (instances.score(none, some), instances.score(some, none)):
    assert (found.ap, found.f1) == ((0, 0, 0), (0, 0, 0))
    assert (found.pq, found.sq, found.aji) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(10))
def test_only_the_shapes_count_not_their_numbers(seed):
  """Numbers with gaps, of colours, of any whole type; a volume is as good."""
  random = np.random.default_rng(seed)
  pred, ref = random_case(seed)
  expected = instances.score(pred, ref)
  for largest, dtype in ((2_000, np.uint16), (2**40, np.int64)):
    named = [0, *random.choice(largest, 1_000, replace=False) + 1]
    again = np.array(named)[pred].astype(dtype)
    found = instances.score(again, ref.astype(np.uint64))
    assert found.tp == expected.tp
    assert found.ious == expected.ious
  assert instances.score(pred[None], ref[None]) == expected


def test_an_image_may_have_no_background():
  pred, ref = row("111222"), row("112222")
  expected = instances.score(pred, ref)
  assert (expected.preds, expected.refs, expected.tp) == (2, 2, (2, 1, 0))
  assert instances.score(1_000 * pred, 1_000 * ref) == expected


def test_perfect_predictions_are_perfect():
  _, ref = random_case(1)
  found = instances.score(ref, ref)
  assert found.refs > 3
  assert (found.ap, found.pq, found.aji) == ((1, 1, 1), 1, 1)


def test_pooling_adds_up_in_any_order():
  scores = [instances.score(*random_case(seed)) for seed in range(30)]
  pooled = instances.pool(scores)
  assert instances.pool(scores[::-1]) == pooled
  halves = [instances.pool(scores[:11]), instances.pool(scores[11:])]
  assert instances.pool(halves) == pooled
  # One image that holds all others, side by side and apart.
  wide = [[], []]
  for seed in range(30):
    for parts, labels in zip(wide, random_case(seed), strict=True):
      apart = np.where(labels > 0, labels + 1_000 * seed, 0)
      parts.append(apart.ravel())
  assert instances.score(*map(np.concatenate, wide)) == pooled


def test_parts_of_a_mask_are_skimages():
  for seed in range(20):
    mask_IJ = np.random.default_rng(seed).random((30, 40)) < 0.3
    labels_IJ = instances.from_mask_IJ(mask_IJ)
    expected_IJ = skimage.measure.label(mask_IJ, connectivity=2)
    assert labels_IJ.max() == expected_IJ.max()
    found = instances.score(labels_IJ, expected_IJ)
    assert found.ap == (1, 1, 1)
  # A corner joins, a gap parts; also in a view that is not contiguous.
  text_IJ = np.array([[1, 0, 0, 1], [0, 1, 0, 1]], bool)
  assert instances.from_mask_IJ(text_IJ).max() == 2
  assert instances.from_mask_IJ(text_IJ.T).max() == 2


def test_what_is_no_instance_is_refused():
  one = row("1.")
  with pytest.raises(ValueError, match=r"\(1, 2\).*\(1, 3\).*resize"):
    instances.score(one, row("1.."))
  with pytest.raises(ValueError, match=r"float64.*from_mask_IJ"):
    instances.score(one / 2, one)
  with pytest.raises(ValueError, match="smallest -1"):
    instances.score(one, -one)
  with pytest.raises(ValueError, match="thresholds"):
    instances.score(one, one, [0])
  with pytest.raises(ValueError, match="threshold it"):
    instances.from_mask_IJ(one)
  with pytest.raises(ValueError, match="at least one image"):
    instances.pool([])
  with pytest.raises(ValueError, match="same thresholds"):
    instances.pool([instances.score(one, one, [t]) for t in (0.5, 0.6)])
