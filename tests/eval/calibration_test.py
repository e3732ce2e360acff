"""Bins, errors and risk curves, by hand and against loops over rows."""

import itertools

import numpy as np
import pytest

from rcmed_jax.eval import calibration
from rcmed_jax.eval.calibration import Bin


def random_rows(seed, *, soft=False):
  """Confidences, many of them equal, and outcomes that follow them."""
  random = np.random.default_rng(seed)
  confidence = random.random(200).round(random.integers(1, 4))
  outcome = random.random(200) < confidence**2
  return confidence, random.random(200) if soft else outcome * 1.0


def test_bins_of_equal_width_by_hand():
  bins = calibration.reliability(
    [0.0, 0.2, 0.5, 0.7, 1.0], [0, 1, 0, 1, 1], bins=2, equal="width"
  )
  # An edge belongs to the bin above it, 1 to the last.
  assert [row.count for row in bins] == [2, 3]
  assert bins[0] == Bin(0, 0.5, 2, pytest.approx(0.1), 0.5)
  assert bins[1] == Bin(0.5, 1, 3, pytest.approx(2.2 / 3), pytest.approx(2 / 3))
  # 2/5 x 0.4 + 3/5 x 0.2/3
  assert calibration.ece(bins) == pytest.approx(0.16 + 0.04)


def test_bins_of_equal_mass_by_hand():
  bins = calibration.reliability(
    [0.1, 0.2, 0.9, 0.9, 0.9, 1.0], [0, 0, 1, 1, 0, 1], bins=3, equal="mass"
  )
  # Three nines stay together, where the first of them would lie.
  assert [row.count for row in bins] == [2, 3, 1]
  assert [(row.low, row.high) for row in bins] == [
    (0.1, 0.2),
    (0.9, 0.9),
    (1.0, 1.0),
  ]
  # 2/6 x 0.15 + 3/6 x (0.9 - 2/3) + 0
  assert calibration.ece(bins) == pytest.approx(0.05 + 0.7 / 6)


def test_empty_bins_count_for_nothing():
  bins = calibration.reliability([0.9], [1], bins=3, equal="width")
  assert [row.count for row in bins] == [0, 0, 1]
  assert bins[0].confidence is None and bins[0].outcome is None
  assert calibration.ece(bins) == pytest.approx(0.1)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("equal", ["mass", "width"])
def test_ece_is_the_sum_over_bins(seed, equal):
  confidence, outcome = random_rows(seed, soft=seed % 2 == 1)
  bins = calibration.reliability(confidence, outcome, bins=10, equal=equal)
  assert sum(row.count for row in bins) == 200
  total, low = 0.0, -1.0
  for row in bins:
    last = row.high == bins[-1].high
    held = confidence >= row.low
    held &= (
      confidence <= row.high
      if equal == "mass" or last
      else (confidence < row.high)
    )
    assert held.sum() == row.count
    assert row.low > low
    low = row.low
    if row.count:
      total += abs((confidence[held] - outcome[held]).sum()) / 200
  assert calibration.ece(bins) == pytest.approx(total, abs=1e-12)


def test_bins_of_equal_mass_are_of_equal_mass():
  confidence = np.random.default_rng(0).random(150)
  bins = calibration.reliability(confidence, confidence, bins=15, equal="mass")
  assert [row.count for row in bins] == [10] * 15
  assert calibration.ece(bins) == 0


def test_honest_confidences_have_a_small_error():
  """And those squared have the error that the squares have."""
  random = np.random.default_rng(0)
  confidence = random.random(40_000)
  outcome = random.random(40_000) < confidence
  for equal in ("mass", "width"):
    honest, squared = (
      calibration.ece(calibration.reliability(row, outcome, equal=equal))
      for row in (confidence, confidence**2)
    )
    assert honest < 0.015
    # Mean of c - c^2 over 0..1: 1/2 - 1/3.
    assert squared == pytest.approx(1 / 6, abs=0.01)


def test_brier_by_hand():
  # 0.01 + 0.64 + 0.25
  found = calibration.brier([0.9, 0.8, 0.5], [1, 0, 1])
  assert found == pytest.approx(0.9 / 3)


def test_risk_coverage_by_hand():
  curve = calibration.risk_coverage([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0.5])
  assert curve.thresholds == (0.9, 0.8, 0.7, 0.6)
  assert curve.coverage == (0.25, 0.5, 0.75, 1)
  assert curve.risk == pytest.approx((0, 1 / 2, 1 / 3, 1.5 / 4))
  assert curve.aurc == pytest.approx((0 + 1 / 2 + 1 / 3 + 1.5 / 4) / 4)
  # The best order has the risks 0 0 1/2 1.
  best = (0 + 0 + 0.5 / 3 + 1.5 / 4) / 4
  assert curve.excess == pytest.approx(curve.aurc - best)


def test_risk_of_ties_is_the_mean_over_their_orders():
  confidence, risk = [0.9, 0.5, 0.5, 0.5, 0.1], [0.2, 0.0, 1.0, 0.4, 0.7]
  curve = calibration.risk_coverage(confidence, [1 - r for r in risk])
  assert curve.coverage == pytest.approx((1 / 5, 4 / 5, 1))
  areas = []
  for middle in itertools.permutations(risk[1:4]):
    order = [risk[0], *middle, risk[4]]
    areas.append(np.mean([np.mean(order[: k + 1]) for k in range(5)]))
  assert curve.aurc == pytest.approx(np.mean(areas))


def test_the_best_order_has_no_excess():
  confidence = np.linspace(0, 1, 37)
  assert calibration.risk_coverage(confidence, confidence**2).excess == 0
  worst = calibration.risk_coverage(confidence, 1 - confidence)
  assert worst.excess > 0.3


@pytest.mark.parametrize("seed", range(5))
def test_order_of_rows_changes_no_bit(seed):
  confidence, outcome = random_rows(seed, soft=True)
  order = np.random.default_rng(seed + 100).permutation(len(confidence))
  rows = [(confidence, outcome), (confidence[order], outcome[order])]
  for equal in ("mass", "width"):
    first, again = (calibration.reliability(*row, equal=equal) for row in rows)
    assert first == again
  first, again = (calibration.risk_coverage(*row) for row in rows)
  assert first == again
  first, again = (calibration.brier(*row) for row in rows)
  assert first == again


def test_what_cannot_be_calibrated_is_refused():
  with pytest.raises(ValueError, match="at least one"):
    calibration.brier([], [])
  with pytest.raises(ValueError, match="one outcome per confidence"):
    calibration.brier([0.5], [1, 0])
  with pytest.raises(ValueError, match=r"confidence must lie in 0..1.*1\.5"):
    calibration.risk_coverage([0.5, 1.5], [1, 0])
  with pytest.raises(ValueError, match="outcome must lie"):
    calibration.reliability([0.5], [float("nan")], equal="mass")
  with pytest.raises(ValueError, match="bins=0"):
    calibration.reliability([0.5], [1], bins=0, equal="mass")
