"""Comparisons against hand-worked cases, SciPy, NumPy and simulation."""

import dataclasses
import itertools

import numpy as np
import pytest
from scipy import stats

from rcmed_jax.eval import compare as comparing
from rcmed_jax.eval.compare import compare, holm, signs
from rcmed_jax.eval.pairing import Pair
from rcmed_jax.eval.tasks import Task

LIVER, SPLEEN = Task("ct", "liver"), Task("ct", "spleen")


def _pairs(rows) -> list[Pair]:
  return [Pair(record, task, a, b) for record, task, a, b in rows]


def _random(seed, images: int = 30, shift: float = 0.0) -> list[Pair]:
  """Several masks an image, with an error that they share."""
  random = np.random.default_rng(seed)
  rows = []
  for number in range(images):
    level, common = random.uniform(0.4, 0.8), random.normal(0, 0.05)
    for task in (LIVER, SPLEEN, Task("mr", "liver")):
      if random.random() < 0.7:
        own = random.normal(shift, 0.05)
        rows.append((f"{number:03d}", task, level, level + common + own))
  return _pairs(rows)


def _swapped(pairs: list[Pair]) -> list[Pair]:
  return [dataclasses.replace(pair, a=pair.b, b=pair.a) for pair in pairs]


def test_by_hand():
  result = compare(
    _pairs(
      [
        ("1", LIVER, 0.5, 0.6),  # +0.1
        ("1", SPLEEN, 0.5, 0.3),  # -0.2
        ("2", LIVER, 0.9, 0.9),  # 0
        ("3", LIVER, 0.2, 0.8),  # +0.6
      ]
    ),
    draws=0,
  )
  assert (result.images, result.masks) == (3, 4)
  assert result.micro.a == pytest.approx(2.1 / 4)
  assert result.micro.b == pytest.approx(2.6 / 4)
  assert result.micro.difference == pytest.approx(0.5 / 4)
  # Liver +0.7 / 3, spleen -0.2.
  assert result.macro.difference == pytest.approx((0.7 / 3 - 0.2) / 2)
  assert (result.macro.low, result.macro.high) == (None, None)
  # Images: (0.1 - 0.2) / 2 = -0.05, 0, +0.6; ranks 1 and 2.
  found = result.signs
  assert (found.better, found.equal, found.worse) == (1, 1, 1)
  assert found.rank_biserial == pytest.approx((2 - 1) / 3)
  # Signs of two ranks: -3, -1, 1, 3. At least 1 away from 0: all four.
  assert found.p == 1
  d = np.array([-0.05, 0, 0.6])
  assert found.cohens_d == pytest.approx(d.mean() / d.std(ddof=1))
  liver, spleen = result.tasks
  assert (liver.task, liver.masks, liver.signs.equal) == (LIVER, 3, 1)
  assert liver.dice.difference == pytest.approx(0.7 / 3)
  assert liver.signs.p == 0.5  # both of two signs alike: 2 of 4
  assert liver.signs.rank_biserial == 1
  assert (spleen.signs.cohens_d, spleen.signs.rank_biserial) == (None, -1)
  assert [row.outcome for row in result.tasks] == ["tie", "tie"]


def test_exact_p_is_that_of_all_signs():
  """Without ties, with ties, with zeros: counted over all 2^n signs."""
  for told in (
    [0.1, -0.2, 0.3, 0.4, -0.05, 0.6, 0.7],
    [0.1, 0.1, -0.1, 0.3, 0.3, 0.4],
    [0.0, 0.2, 0.2, -0.1, 0.0, 0.5, 0.6],
  ):
    d = np.array([value for value in told if value])
    rank = stats.rankdata(np.abs(d))
    center = rank.sum() / 2
    seen = abs(rank[d > 0].sum() - center)
    sums = [
      sum(r for r, up in zip(rank, ups, strict=True) if up)
      for ups in itertools.product((0, 1), repeat=len(d))
    ]
    p = np.mean([abs(total - center) >= seen - 1e-12 for total in sums])
    assert signs(np.array(told)).p == pytest.approx(p)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("images", [8, 11, 14, 50, 51, 200])
def test_signs_are_scipys(images, tied):
  random = np.random.default_rng(images)
  d = random.normal(0.1, 0.3, images)
  d = np.round(d, 1) if tied else d
  found = signs(d)
  kept = np.round(d[d != 0], comparing.DIGITS)
  method = {"exact": "exact", "normal": "asymptotic"}.get(found.distribution)
  if method:
    expected = stats.wilcoxon(kept, method=method)
  else:
    permuted = stats.PermutationMethod(n_resamples=np.inf)
    expected = stats.wilcoxon(kept, method=permuted)
  assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
  plus = stats.wilcoxon(kept, alternative="greater", method="asymptotic")
  total = len(kept) * (len(kept) + 1) / 2
  assert found.rank_biserial == pytest.approx(2 * plus.statistic / total - 1)
  t = stats.ttest_1samp(d, 0).statistic
  assert found.cohens_d == pytest.approx(t / np.sqrt(images))


def test_differences_that_are_equal_on_paper_tie():
  d = np.array([0.8 - 0.6, 0.5 - 0.3, 0.4 - 0.2, 0.3 - 0.5])
  assert len(np.unique(np.abs(d))) > 1
  assert signs(d).rank_biserial == pytest.approx(0.5)
  # Differences without spread have no Cohen's d, though 0.1 + 0.2 != 0.3.
  assert signs(np.array([0.3 - 0.2, 0.2 - 0.1])).cohens_d is None


def test_bootstrap_is_numpys():
  """The interval of micro Dice, resampled image by image."""
  pairs = _random(0)
  result = compare(pairs, draws=4000, seed=1)
  images = sorted({pair.record for pair in pairs})
  d = {
    image: [pair.b - pair.a for pair in pairs if pair.record == image]
    for image in images
  }
  random = np.random.default_rng(99)
  means = [
    np.mean(np.concatenate([d[image] for image in drawn]))
    for drawn in random.choice(images, (4000, len(images)))
  ]
  assert len(images) == 30
  # Widened for 30 images: by hand, -2.0452 sqrt(30 / 29) = -2.0802.
  low, high = np.quantile(means, [0.01875, 1 - 0.01875])
  width = high - low
  assert result.micro.low == pytest.approx(low, abs=0.05 * width)
  assert result.micro.high == pytest.approx(high, abs=0.05 * width)
  assert result.micro.low < result.micro.difference < result.micro.high


def test_swapped_runs_give_mirrored_numbers():
  pairs = _random(3, shift=0.03)
  result = compare(pairs, draws=300)
  mirror = compare(_swapped(pairs), draws=300)
  outcomes = {"win": "loss", "loss": "win", "tie": "tie"}
  rows = [(result.macro, mirror.macro), (result.micro, mirror.micro)]
  for row, other in zip(result.tasks, mirror.tasks, strict=True):
    assert other.outcome == outcomes[row.outcome]
    assert other.holm == row.holm
    rows.append((row.dice, other.dice))
  for row, other in rows:
    assert other.difference == -row.difference
    assert (other.a, other.b) == (row.b, row.a)
    assert other.low == pytest.approx(-row.high, abs=1e-12)
    assert other.high == pytest.approx(-row.low, abs=1e-12)
  one, two = result.signs, mirror.signs
  assert (two.better, two.equal, two.worse) == (
    one.worse,
    one.equal,
    one.better,
  )
  assert (two.p, two.rank_biserial) == (one.p, -one.rank_biserial)
  assert two.cohens_d == -one.cohens_d


def test_identical_runs_differ_by_nothing():
  pairs = [dataclasses.replace(pair, b=pair.a) for pair in _random(1)]
  result = compare(pairs, draws=200)
  for row in (result.macro, result.micro, *(t.dice for t in result.tasks)):
    assert (row.difference, row.low, row.high) == (0, 0, 0)
  for found in (result.signs, *(row.signs for row in result.tasks)):
    assert (found.p, found.rank_biserial, found.cohens_d) == (1, 0, None)
    assert found.distribution == "none"
  assert [row.outcome for row in result.tasks] == ["tie"] * 3
  assert {row.holm for row in result.tasks} == {1}


def test_order_changes_nothing():
  pairs = _random(5)
  assert compare(pairs, draws=150) == compare(pairs[::-1], draws=150)
  assert compare(pairs, draws=150) != compare(pairs, draws=150, seed=1)


def test_a_single_image_has_no_interval():
  result = compare(_pairs([("1", LIVER, 0.1, 0.9), ("1", SPLEEN, 0.1, 0.9)]))
  assert result.macro.low is result.micro.low is None
  assert result.tasks[0].dice.low is None
  assert result.signs.p == 1


def test_a_task_of_one_image_has_no_interval():
  pairs = [*_random(2), Pair("000", Task("x", "heart"), 0.1, 0.2)]
  heart = compare(pairs, draws=200).tasks[-1]
  assert heart.task.name == "heart"
  assert (heart.dice.low, heart.dice.high) == (None, None)
  assert heart.dice.difference == pytest.approx(0.1)


def test_clear_gains_and_losses_are_seen():
  random = np.random.default_rng(0)
  rows = []
  for number in range(40):
    noise = random.normal(0, 0.02, 2)
    even = (-1) ** number * (1 + number // 2) / 1000  # as often up as down
    rows += [
      (f"{number}", LIVER, 0.5, 0.6 + noise[0]),
      (f"{number}", SPLEEN, 0.5, 0.4 + noise[1]),
      (f"{number}", Task("mr", "brain"), 0.5, 0.5 + even),
    ]
  result = compare(_pairs(rows), draws=200)
  outcome = {row.task.name: row.outcome for row in result.tasks}
  assert outcome == {"liver": "win", "spleen": "loss", "brain": "tie"}
  assert [result.count(word) for word in ("win", "tie", "loss")] == [1, 1, 1]
  assert result.tasks[0].dice.low > 0 > result.tasks[1].dice.high


def test_no_outcome_where_mean_and_ranks_disagree():
  """Many small gains and few large losses: lower on average, higher mostly."""
  random = np.random.default_rng(0)
  gains = random.uniform(0.01, 0.02, 40)
  rows = [(f"{n}", LIVER, 0.5, 0.5 + gain) for n, gain in enumerate(gains)]
  rows += [(f"l{n}", LIVER, 0.9, 0.1 + n / 100) for n in range(3)]
  (row,) = compare(_pairs(rows), draws=0).tasks
  assert row.dice.difference < 0 < row.signs.rank_biserial
  assert row.holm < comparing.ALPHA
  assert row.outcome == "tie"


def test_holm_by_hand():
  # Sorted 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1 = 0.04, 0.06, 0.06, 0.04.
  assert holm([0.04, 0.01, 0.03, 0.02]) == [0.06, 0.04, 0.06, 0.06]
  assert holm([0.6, 0.9]) == [1.0, 1.0]
  assert holm([0.2]) == [0.2]
  assert holm([]) == []


def test_holm_is_the_closed_bonferroni_test():
  """Rejected: every subset with the hypothesis has min p * size <= alpha."""
  random = np.random.default_rng(4)
  for _ in range(20):
    p = random.beta(0.3, 3, 5)
    corrected = holm(p.tolist())
    for place in range(5):
      others = [other for other in range(5) if other != place]
      closed = max(
        min(1.0, len(subset) * min(p[list(subset)]))
        for size in range(5)
        for rest in itertools.combinations(others, size)
        for subset in [(place, *rest)]
      )
      assert corrected[place] == pytest.approx(closed)


@pytest.mark.parametrize(
  ("pairs", "draws", "message"),
  [([], 0, "no mask"), (_random(0), 50, "draws=50 is too few")],
)
def test_what_cannot_be_compared_is_refused(pairs, draws, message):
  with pytest.raises(ValueError, match=message):
    compare(pairs, draws=draws)


def test_intervals_and_tests_err_as_often_as_they_say():
  """400 comparisons of runs that do not differ: about 5% seem to.

  1,000 gave 5.8% for macro, 5.6% for micro, 5.4% for the test and 5.8% for any
  task; of 400 the share varies by 1.2% (one standard deviation).
  """
  counts = np.zeros(4)
  for seed in range(400):
    pairs = _random((7, seed), images=60)
    result = compare(pairs, draws=200, seed=seed)
    for place, row in enumerate((result.macro, result.micro)):
      counts[place] += not row.low <= 0 <= row.high
    counts[2] += result.signs.p <= comparing.ALPHA
    counts[3] += any(row.outcome != "tie" for row in result.tasks)
  macro, micro, test, any_task = counts / 400
  assert 0.02 <= macro <= 0.09
  assert 0.02 <= micro <= 0.09
  assert 0.02 <= test <= 0.09
  assert 0.01 <= any_task <= 0.09
