"""Whether one run is better than another, and by how much.

All differences are B - A in Dice, of the same masks. The unit that varies is
the image, since the masks of one image are not independent: intervals come
from resampling images, and each image enters a test once.

  macro   mean over tasks of the mean over a task's masks
  micro   mean over masks

Interval: paired bootstrap over images, see `resampling`; none where a task has
too few.

Test: Wilcoxon's signed ranks of the images' differences, two-sided. Images
without a difference are left out, as Wilcoxon did; equal differences share
their mean rank. The distribution is exact for few images, see `_distribution`.
Over tasks, p is corrected by Holm's method.

Effect sizes: the rank-biserial correlation of matched pairs, (sum of ranks for
B - sum for A) / sum of ranks (Kerby 2014), from -1 to 1; and Cohen's d for
pairs, mean / standard deviation of the images' differences.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

import numpy as np
from scipy import stats

from rcmed_jax.eval import metrics, resampling
from rcmed_jax.eval.pairing import Pair
from rcmed_jax.eval.tasks import Task

ALPHA = 0.05  # of the tests over all tasks together
DRAWS = 2000  # of the bootstrap

# Differences are rounded, so that those that are equal on paper tie: 0.8 - 0.6
# and 0.5 - 0.3 are not the same number. What is smaller means nothing.
DIGITS = 12

# Most images for which the test's distribution is exact: without ties by
# recursion (SciPy's own bound), with ties by trying all signs, 2^13 of them.
EXACT, EXACT_TIED = 50, 13


@dataclasses.dataclass(frozen=True)
class Change:
  """A mean Dice of both runs, and its difference."""

  a: float
  b: float
  difference: float  # b - a
  low: float | None  # 95% interval of the difference; None: there is none
  high: float | None


@dataclasses.dataclass(frozen=True)
class Signs:
  """The images' differences: their direction, test and effect sizes."""

  images: int
  better: int  # images on which B is higher
  equal: int
  worse: int
  p: float  # Wilcoxon, two-sided; 1 where no image differs
  distribution: str  # of p: see `_distribution`
  rank_biserial: float  # -1 to 1, above 0 for B; 0 where no image differs
  cohens_d: float | None  # None where all images differ by the same


@dataclasses.dataclass(frozen=True)
class TaskResult:
  """One task."""

  task: Task
  masks: int
  dice: Change
  signs: Signs
  holm: float  # p corrected for the number of tasks
  outcome: str  # win, loss: B is better, worse, at ALPHA; tie: not shown


@dataclasses.dataclass(frozen=True)
class Comparison:
  """Run B against run A."""

  images: int
  masks: int
  macro: Change
  micro: Change
  signs: Signs  # of the images' mean differences
  tasks: tuple[TaskResult, ...]
  draws: int
  seed: int

  def count(self, outcome: str) -> int:
    """Returns the number of tasks with this outcome."""
    return sum(row.outcome == outcome for row in self.tasks)


def compare(
  pairs: Sequence[Pair], *, draws: int = DRAWS, seed: int = 0
) -> Comparison:
  """Returns how B differs from A.

  Args:
    pairs: at least one mask.
    draws: resamplings behind each interval; 0: no intervals.
    seed: of the resampling. Swapped runs give mirrored numbers.

  Raises:
    ValueError: there is no mask, or `draws` is too few for a 95% interval.
  """
  if not pairs:
    raise ValueError("there is no mask to compare; expected at least one.")
  if 0 < draws < 100:
    raise ValueError(
      f"draws={draws} is too few for a 95% interval; use 0 for none, or at "
      "least 100."
    )
  pairs = sorted(pairs, key=lambda pair: (pair.record, pair.task))
  images = [pair.record for pair in pairs]
  names = [pair.task for pair in pairs]
  difference_N = _differences(pairs)
  by_task, whole = (
    resampling.resample(
      difference_N.tolist(), images, groups, draws=draws, seed=seed
    )
    for groups in (names, [""] * len(pairs))
  )
  tasks = _tasks(pairs, by_task)
  return Comparison(
    images=len(set(images)),
    masks=len(pairs),
    macro=Change(
      metrics.mean(row.dice.a for row in tasks),
      metrics.mean(row.dice.b for row in tasks),
      metrics.mean(row.dice.difference for row in tasks),
      *by_task.macro(),
    ),
    micro=_mean(pairs, whole.macro()),
    signs=signs(_by_image(images, difference_N)),
    tasks=tasks,
    draws=draws,
    seed=seed,
  )


def signs(difference_N: np.ndarray) -> Signs:
  """Returns direction, test and effect sizes of the images' differences.

  Args:
    difference_N: float64, one number an image, B - A.
  """
  difference_N = np.round(np.asarray(difference_N, np.float64), DIGITS)
  told_N = difference_N[difference_N != 0]
  better, worse = int(np.sum(told_N > 0)), int(np.sum(told_N < 0))
  spread = float(np.std(difference_N, ddof=1)) if len(difference_N) > 1 else 0.0
  p, distribution, biserial = 1.0, "none", 0.0
  if told_N.size:
    rank_N = stats.rankdata(np.abs(told_N))
    biserial = float(np.sum(rank_N * np.sign(told_N)) / np.sum(rank_N))
    distribution, method = _distribution(told_N)
    test: Any = stats.wilcoxon(told_N, method=method)
    p = float(test.pvalue)
  # A spread of rounding errors is none.
  same = spread < 10.0**-DIGITS
  return Signs(
    images=len(difference_N),
    better=better,
    equal=len(difference_N) - better - worse,
    worse=worse,
    p=p,
    distribution=distribution,
    rank_biserial=biserial,
    cohens_d=None if same else float(np.mean(difference_N) / spread),
  )


def holm(p_N: Sequence[float]) -> list[float]:
  """Returns p values corrected for their number by Holm's method.

  The i-th smallest of n, from 0, becomes the largest of min(1, (n - j) p_j)
  over j up to i.

  Source: Holm, Scandinavian Journal of Statistics 1979.
  """
  order = np.argsort(p_N, kind="stable")
  corrected, largest = [0.0] * len(order), 0.0
  for place, index in enumerate(order):
    largest = max(largest, min(1.0, (len(order) - place) * p_N[index]))
    corrected[index] = largest
  return corrected


def _tasks(
  pairs: Sequence[Pair], by_task: resampling.Draws
) -> tuple[TaskResult, ...]:
  """Returns the tasks in sorted order."""
  groups: dict[Task, list[Pair]] = {}
  for pair in pairs:
    groups.setdefault(pair.task, []).append(pair)
  tasks = sorted(groups)
  found = [
    signs(
      _by_image(
        [pair.record for pair in groups[task]], _differences(groups[task])
      )
    )
    for task in tasks
  ]
  corrected = holm([row.p for row in found])
  rows = []
  for place, task in enumerate(tasks):
    dice = _mean(groups[task], by_task.interval(task))
    rows.append(
      TaskResult(
        task=task,
        masks=len(groups[task]),
        dice=dice,
        signs=found[place],
        holm=corrected[place],
        outcome=_outcome(dice, found[place], corrected[place]),
      )
    )
  return tuple(rows)


def _outcome(dice: Change, found: Signs, p: float) -> str:
  """A win or loss only where mean and ranks point the same way."""
  if p > ALPHA or dice.difference * found.rank_biserial <= 0:
    return "tie"
  return "win" if dice.difference > 0 else "loss"


def _distribution(
  told_N: np.ndarray,
) -> tuple[str, Any]:
  """Returns what p comes from, and SciPy's method for it.

  exact   the distribution of the rank sum
  signs   that of the mean ranks at hand, over all signs: the exact one of ties
  normal  its approximation, with the variance of ties, without continuity
          correction
  """
  tied = len(np.unique(np.abs(told_N))) < len(told_N)
  if not tied and len(told_N) <= EXACT:
    return "exact", "exact"
  if len(told_N) <= EXACT_TIED:
    return "signs", stats.PermutationMethod(n_resamples=2**EXACT_TIED)
  return "normal", "asymptotic"


def _differences(pairs: Sequence[Pair]) -> np.ndarray:
  return np.round([pair.b - pair.a for pair in pairs], DIGITS)


def _by_image(images: Sequence[str], difference_N: np.ndarray) -> np.ndarray:
  """Returns the mean difference of each image, images sorted."""
  _, image_N = np.unique(images, return_inverse=True)
  return np.bincount(image_N, difference_N) / np.bincount(image_N)


def _mean(pairs: Sequence[Pair], interval: resampling.Interval) -> Change:
  return Change(
    metrics.mean(pair.a for pair in pairs),
    metrics.mean(pair.b for pair in pairs),
    float(np.mean(_differences(pairs))),
    *interval,
  )
