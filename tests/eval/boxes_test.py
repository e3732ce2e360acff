"""Average precision of boxes against pycocotools and by hand."""

import contextlib
import io

import numpy as np
from pycocotools import coco, cocoeval
import pytest

from rcmed_jax.eval import boxes
from rcmed_jax.eval.boxes import BoxPair


def random_pairs(seed):
  """class -> rows of 12 images; a box is right, near, wrong or missing."""
  random = np.random.default_rng(seed)
  classes = {}
  for name in ("liver", "spleen", "cyst"):
    pairs = []
    for confidence in random.permutation(12) / 12:
      x, y, width, height = random.integers(5, 40, 4).tolist()
      ref = (x, y, x + width, y + height)
      off = random.integers(-6, 7, 4) * random.integers(0, 2)
      near = tuple((np.array(ref) + off * [1, 1, 0, 0]).tolist())
      pred = near if near[2] > near[0] and near[3] > near[1] else None
      fate = random.random()
      if fate < 0.2:
        pred = None
      elif fate < 0.4:
        ref = None
      pairs.append(BoxPair(pred, ref, float(confidence)))
    classes[name] = pairs
  if seed % 4 == 0:  # a class that only the predictions hold
    classes["cyst"] = [BoxPair(p.pred, None, p.confidence) for p in pairs]
  return classes


def by_pycocotools(classes):
  """float[10 IoUs, classes] of AP; -1 where the class has no reference."""
  truth, told = [], []
  for number, name in enumerate(sorted(classes)):
    for image, pair in enumerate(classes[name]):
      row = dict(image_id=image, category_id=number)
      if pair.ref is not None:
        box = _xywh(pair.ref)
        area = box[2] * box[3]
        truth.append(
          row | dict(id=len(truth) + 1, bbox=box, area=area, iscrowd=0)
        )
      if pair.pred is not None:
        told.append(row | dict(bbox=_xywh(pair.pred), score=pair.confidence))
  data = coco.COCO()
  data.dataset = dict(
    images=[dict(id=image) for image in range(12)],
    categories=[dict(id=number) for number in range(len(classes))],
    annotations=truth,
  )
  with contextlib.redirect_stdout(io.StringIO()):
    data.createIndex()
    judge = cocoeval.COCOeval(data, data.loadRes(told), "bbox")
    judge.evaluate()
    judge.accumulate()
  precision = judge.eval["precision"][:, :, :, 0, -1]  # all areas
  return precision.mean(axis=1)


def _xywh(box):
  x0, y0, x1, y1 = box
  return [x0, y0, x1 - x0, y1 - y0]


def test_equals_pycocotools():
  absent = 0
  for seed in range(100):
    classes = random_pairs(seed)
    mean, rows = boxes.by_class(classes)
    expected = by_pycocotools(classes)
    for place, row in enumerate(rows.values()):
      if row.ap is None:
        assert (expected[:, place] == -1).all()
        absent += 1
        continue
      ap = expected[:, place]
      assert row.ap == pytest.approx(ap.mean(), abs=1e-12)
      assert row.ap50 == pytest.approx(ap[0], abs=1e-12)
      assert row.ap75 == pytest.approx(ap[5], abs=1e-12)
    held = expected[:, (expected >= 0).all(axis=0)]
    assert mean.ap == pytest.approx(held.mean(), abs=1e-12)
    assert mean.ap50 == pytest.approx(held[0].mean(), abs=1e-12)
  assert absent == 25


def test_by_hand():
  right, wrong = (0, 0, 10, 10), (50, 50, 60, 60)
  pairs = [
    BoxPair(right, right, 0.9),
    BoxPair(wrong, right, 0.8),
    BoxPair(right, right, 0.7),
    BoxPair(None, right, 0.0),
  ]
  # Precision 1, 1/2, 2/3 at recall 1/4, 1/4, 2/4. Recalls 0 to 0.25, 26 of
  # the 101, have 1, those to 0.5, 25 more, 2/3; the others are not reached.
  found = boxes.average_precision(pairs)
  assert found.ap50 == pytest.approx((26 + 25 * 2 / 3) / 101)
  assert found.ap == pytest.approx(found.ap50)
  assert (found.preds, found.refs) == (3, 4)


def test_equal_confidences_count_together():
  right, wrong = (0, 0, 10, 10), (50, 50, 60, 60)
  pairs = [BoxPair(right, right, 0.9), BoxPair(wrong, None, 0.9)]
  # One threshold: precision 1/2 at recall 1, whichever comes first.
  for order in (pairs, pairs[::-1]):
    assert boxes.average_precision(order).ap == pytest.approx(1 / 2)


def test_order_of_rows_changes_nothing():
  random = np.random.default_rng(0)
  for seed in range(20):
    pairs = random_pairs(seed)["liver"]
    coarse = [BoxPair(p.pred, p.ref, round(p.confidence, 1)) for p in pairs]
    shuffled = [coarse[place] for place in random.permutation(len(coarse))]
    assert boxes.average_precision(shuffled) == boxes.average_precision(coarse)


def test_what_is_missing():
  box = (0, 0, 2, 2)
  assert BoxPair(None, None, 0.0).iou == BoxPair(box, None, 1.0).iou == 0
  assert BoxPair(box, (1, 0, 3, 2), 1.0).iou == 2 / 6
  assert boxes.average_precision([BoxPair(None, box, 0.0)]).ap == 0
  assert boxes.average_precision([BoxPair(box, None, 0.5)]).ap is None
  assert boxes.average_precision([]).ap is None
  assert boxes.by_class({})[0].ap is None
  with pytest.raises(ValueError, match="not finite"):
    boxes.average_precision([BoxPair(box, box, float("nan"))])
