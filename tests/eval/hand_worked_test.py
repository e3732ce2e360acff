"""Twelve pairs of masks whose numbers were worked out by hand.

Drawn as text: x both masks, p the predicted one only, r the reference only.
"""

import math

import numpy as np
import pytest

from rcmed_jax.eval import metrics, surfaces

# name: drawing, spacing in mm (None: unknown), tolerance;
#   Dice, IoU, NSD, HD95, box IoU.
CASES = {
  # Nothing to get wrong, nothing wrong.
  "both empty": (
    ". . . .",
    (1, 1),
    1,
    (1, 1, 1, 0, 1),
  ),
  # HD95 is the grid's diagonal: 3 steps down, 4 to the right.
  "predicted empty": (
    """. . . . .
       . r . . .
       . . . . .
       . . . . .""",
    (1, 1),
    1,
    (0, 0, 0, 5, 0),
  ),
  # 3 steps of 2 mm and 4 of 2 mm: 6 and 8 mm, diagonal 10.
  "reference empty": (
    """. . . . .
       . p p . .
       . . . . .
       . . . . .""",
    (2, 2),
    1,
    (0, 0, 0, 10, 0),
  ),
  "the same": (
    """. x x
       . x x""",
    (1, 1),
    0,
    (1, 1, 1, 0, 1),
  ),
  # 3 down, 4 right: 5 mm for either; within a tolerance of 5, not of less.
  "apart, tolerance reached": (
    """p . . . .
       . . . . .
       . . . . .
       . . . . r""",
    (1, 1),
    5,
    (0, 0, 1, 5, 0),
  ),
  # inter 3 of 4 + 4 pixels, union 5. Distances 2 0 0 0 mm and back 0 0 0 2:
  # 6 of 8 within 1 mm. The percentile lies at 0.95 x 3 = 2.85, between the
  # third value, 0, and the fourth, 2: 0.85 x 2. The boxes are the masks.
  "shifted by a column": (
    "p x x x r",
    (1, 2),
    1,
    (6 / 8, 3 / 5, 6 / 8, 1.7, 3 / 5),
  ),
  # inter 8 of 8 + 9, union 9. The centre has no side outside, so that it is
  # no surface of the reference; the ring is the surface of both.
  "a hole that no surface shows": (
    """x x x
       x r x
       x x x""",
    (1, 1),
    0,
    (16 / 17, 8 / 9, 1, 0, 1),
  ),
  # inter 9 of 9 + 25, union 25. The inner ring of 8 is 1 mm from the outer one
  # of 16; of that 12 are 1 mm from the inner, 4 corners the root of 2. 20 of 24
  # within 1 mm. The percentile of the 16 lies at 14.25, among the corners.
  "one inside the other": (
    """. . . . . . .
       . r r r r r .
       . r x x x r .
       . r x x x r .
       . r x x x r .
       . r r r r r .
       . . . . . . .""",
    (1, 1),
    1,
    (18 / 34, 9 / 25, 20 / 24, math.sqrt(2), 9 / 25),
  ),
  # inter 2 of 3 + 2, union 3. Distances 0 0 8 and 0 0: 4 of 5 within 1 mm. The
  # percentile of three lies at 1.9: 0.9 x 8. Boxes 10 x 1 and 2 x 1.
  "a speck far away": (
    "x x . . . . . . . p . .",
    (1, 1),
    1,
    (4 / 5, 2 / 3, 4 / 5, 7.2, 2 / 10),
  ),
  # Rows are 3 mm apart, columns 0.5: the nearest lies straight below, 3 mm.
  "thick rows": (
    """p p p
       r r r""",
    (3, 0.5),
    1,
    (0, 0, 0, 3, 0),
  ),
  # Unknown spacing: pixels. inter 3 of 3 + 4, union 4; distances 0 0 0 and
  # 0 0 0 1, 6 of 7 within half a pixel, the percentile at 2.85. Equal boxes.
  "unknown spacing": (
    """x x
       x r""",
    None,
    0.5,
    (6 / 7, 3 / 4, 6 / 7, 0.85, 1),
  ),
  # 3 pixels of 0.1 mm are 0.30000000000000004 in floats, and 0.3 mm in truth.
  "the tolerance in floats": (
    "p . . r",
    (0.1, 0.1),
    0.3,
    (0, 0, 1, 0.3, 0),
  ),
}


def draw(text: str) -> tuple[np.ndarray, np.ndarray]:
  """The predicted mask and its reference, bool[I, J] each."""
  signs_IJ = np.array([line.split() for line in text.splitlines()])
  return np.isin(signs_IJ, ["p", "x"]), np.isin(signs_IJ, ["r", "x"])


@pytest.mark.parametrize("name", CASES)
def test_numbers_are_those_worked_by_hand(name):
  text, spacing, tolerance, (dice, iou, nsd, hd95, box_iou) = CASES[name]
  pred_IJ, ref_IJ = draw(text)
  counts = metrics.count(pred_IJ, ref_IJ)
  found = surfaces.compare(pred_IJ, ref_IJ, [tolerance], spacing)
  assert counts.dice == pytest.approx(dice, abs=1e-7)  # the release's epsilon
  assert counts.iou == pytest.approx(iou, abs=1e-12)
  assert found.nsd[0] == pytest.approx(nsd, abs=1e-12)
  assert found.hd95 == pytest.approx(hd95, abs=1e-12)
  assert metrics.box_iou(pred_IJ, ref_IJ) == pytest.approx(box_iou, abs=1e-12)
  assert found.unit == ("px" if spacing is None else "mm")
  assert found.one_empty == (pred_IJ.any() != ref_IJ.any())


def test_the_set_holds_twelve():
  assert len(CASES) == 12
