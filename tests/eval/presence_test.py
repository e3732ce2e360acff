"""AUROC against SciPy's U test and pairs; thresholds by hand."""

import itertools

import numpy as np
import pytest
import scipy.stats

from rcmed_jax.eval import presence


@pytest.mark.parametrize("seed", range(20))
def test_auroc_is_mann_and_whitneys(seed):
  random = np.random.default_rng(seed)
  digits = int(random.integers(1, 4))  # few digits: many ties
  there = random.beta(3, 2, random.integers(1, 60)).round(digits)
  absent = random.beta(2, 3, random.integers(1, 60)).round(digits)
  found = presence.auroc(there, absent)
  u = scipy.stats.mannwhitneyu(there, absent).statistic
  assert found == u / (len(there) * len(absent))
  pairs = [(a > b) + (a == b) / 2 for a, b in itertools.product(there, absent)]
  assert found == pytest.approx(np.mean(pairs), abs=1e-12)
  assert presence.auroc(absent, there) == pytest.approx(1 - found, abs=1e-12)


def test_auroc_by_hand():
  # 0.9 beats both; 0.5 ties with one and beats the other: 3.5 of 4 pairs.
  assert presence.auroc([0.9, 0.5], [0.5, 0.1]) == 3.5 / 4
  assert presence.auroc([0.0, 0.0], [0.0]) == 1 / 2
  assert presence.auroc([], [0.5]) is None
  assert presence.auroc([0.5], []) is None


def test_false_alarms_by_hand():
  there = [0.9, 0.8, 0.8, 0.7, 0.6, 0.5, 0.5, 0.4, 0.3, 0.0]
  absent = [0.3, 0.29, 0.31, 0.0]
  # 9 of 10 must be found: all but the one that the answer does not hold.
  threshold = presence.threshold_at_recall(there)
  assert threshold == 0.3
  found = presence.operate(there, absent, threshold)
  assert (found.found, found.present) == (9, 10)
  assert (found.alarms, found.absent) == (2, 4)
  assert (found.recall, found.false_alarm) == (0.9, 0.5)


def test_threshold_is_the_largest_of_its_recall():
  random = np.random.default_rng(0)
  for count in range(1, 60):
    there = random.random(count).round(2) + 0.01
    for recall in (0.07, 0.5, 0.9, 0.95, 1.0):
      threshold = presence.threshold_at_recall(there, recall)
      share = np.mean(there >= threshold)
      assert share >= recall - 1e-12
      higher = there[there > threshold]
      if higher.size:
        assert np.mean(there >= higher.min()) < recall


def test_a_recall_beyond_reach_has_no_threshold():
  """12 of 100 are denied: no threshold finds 90, and 0 is none."""
  there = [0.9] * 88 + [0.0] * 12
  assert presence.threshold_at_recall(there) is None
  assert presence.reachable(there) == 0.88
  assert presence.threshold_at_recall(there, 0.88) == 0.9
  assert presence.reachable([]) is None


def test_rounding_asks_for_no_row_more():
  # 0.07 x 100 is 7.000000000000001.
  there = np.arange(100) / 100
  assert presence.threshold_at_recall(there, 0.07) == 0.93


def test_a_side_without_rows_has_no_rate():
  found = presence.operate([], [0.2, 0.8], 0.5)
  assert (found.recall, found.false_alarm) == (None, 0.5)
  assert presence.operate([0.2], [], 0.5).false_alarm is None


def test_what_has_no_threshold_is_refused():
  with pytest.raises(ValueError, match="no present target"):
    presence.threshold_at_recall([])
  for recall in (0, 1.1):
    with pytest.raises(ValueError, match=f"recall={recall}"):
      presence.threshold_at_recall([0.5], recall)
  message = "1 of 9001 confidences are not finite; number 9000 is nan"
  with pytest.raises(ValueError, match=message) as caught:
    presence.auroc([0.5] * 9000 + [float("nan")], [0.5])
  assert len(str(caught.value)) < 100
