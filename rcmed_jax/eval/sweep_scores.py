"""Scores of many runs on one test split: means, intervals, paired differences.

A score of one run is a mean over groups of means over answers:

  dice, iou         groups are tasks; answers are masks
  recognition       one group; answers are (image, class), named or in the
                    reference: 1 where both, else 0, so TP / (TP + FP + FN)
  absent            one group; answers to questions for absent classes
  false_rejection   one group; answers to the same questions for present classes

Two intervals say how far a cell's mean could be off, each for another reason:

  seeds   Student's t over the runs: another seed, the same images
  images  bootstrap over images: other images, the same trained models. All
          runs meet the same resampled images, so that differences are paired.
"""

from collections.abc import (
  Hashable,
  Iterable,
  Mapping,
  Sequence,
  Set,
)
import dataclasses
import math
import pathlib

import numpy as np
from scipy import stats

from rcmed_jax.eval import metrics, resampling, row_lines
from rcmed_jax.eval.rows import Absent, MaskScore, Named, Present

SCORES = ("dice", "iou", "recognition", "absent", "false_rejection")

# Less is better.
LOWER = frozenset({"false_rejection"})

DRAWS = 1000  # resamplings of the images, as in an evaluation's report
LEVEL = resampling.LEVEL

# One answer: its image, its group, and what it counts, 0..1.
Answer = tuple[str, Hashable, float]


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A score, or a difference of scores, of one cell."""

  by_seed: Mapping[int, float]
  mean: float  # over seeds
  seeds_low: float | None  # 95%, Student's t; None with one seed
  seeds_high: float | None
  # 95%, bootstrap over images, the mean over seeds; None where a group has too
  # few images, see `resampling`.
  images_low: float | None
  images_high: float | None


@dataclasses.dataclass(frozen=True)
class SweepScores:
  """All runs together."""

  images: int  # in every run
  left_out: int  # in some runs only
  cells: Mapping[str, Mapping[str, Estimate]]  # cell -> score -> estimate
  # The same of differences to the baseline, over the seeds that both have.
  differences: Mapping[str, Mapping[str, Estimate]]


def read(folder: pathlib.Path, split: str) -> dict[str, list[Answer]]:
  """Score -> answers, from the files that an evaluation wrote.

  Raises:
    DataError: a file is missing, or a line of it is not as `outputs.py`
      writes it.
  """
  found: dict[str, list[Answer]] = {name: [] for name in SCORES}
  for row in row_lines.read(folder / f"metrics--{split}.jsonl", MaskScore):
    found["dice"].append((row.record, row.task, row.counts.dice))
    found["iou"].append((row.record, row.task, row.counts.iou))
  for row in row_lines.read(folder / f"present--{split}.jsonl", Present):
    found["false_rejection"].append((row.record, "", float(row.rejected)))
  for row in row_lines.read(folder / f"absent--{split}.jsonl", Absent):
    found["absent"].append((row.record, "", float(row.rejected)))
  for row in row_lines.read(folder / f"recognition--{split}.jsonl", Named):
    there, said = row.there, row.named
    for name in sorted(there | said):
      right = float(name in there and name in said)
      found["recognition"].append((row.record, "", right))
  return found


def compare(
  runs: Mapping[tuple[str, int], Mapping[str, Sequence[Answer]]],
  baseline: str,
  *,
  draws: int = DRAWS,
  seed: int = 0,
) -> SweepScores:
  """The estimates of all cells, and their differences to the baseline.

  Args:
    runs: (cell, seed) -> `read` of it; cells keep their order.
    baseline: a cell; where it has no run, there are no differences.
    draws, seed: of the bootstrap.

  A score that a run has no answers for is left out of its cell.
  """
  images, left_out = _images(runs.values())
  known = set(images)
  cells: dict[str, dict[str, Estimate]] = {}
  differences: dict[str, dict[str, Estimate]] = {}
  for score in SCORES:
    means = {
      run: _resampled(answers.get(score, ()), known, draws, seed)
      for run, answers in runs.items()
    }
    by_cell: dict[str, dict[int, _Score]] = {}
    for (cell, number), one in means.items():
      if one is not None:
        by_cell.setdefault(cell, {})[number] = one
    base = by_cell.get(baseline, {})
    for cell, by_seed in by_cell.items():
      cells.setdefault(cell, {})[score] = _estimate(by_seed)
      common = sorted(by_seed.keys() & base.keys())
      if cell != baseline and common:
        differences.setdefault(cell, {})[score] = _estimate(
          {number: by_seed[number].minus(base[number]) for number in common}
        )
  return SweepScores(len(images), left_out, cells, differences)


def student(values: Sequence[float]) -> tuple[float | None, float | None]:
  """The 95% interval of the mean of independent runs; None for one alone.

    mean ± t(0.975, n - 1) * s / sqrt(n)     s with n - 1 in the denominator

  Right where runs scatter normally, which a few of them cannot show.
  """
  if len(values) < 2:
    return None, None
  half = breadth(len(values)) * float(np.std(values, ddof=1))
  mean = float(np.mean(values))
  return mean - half, mean + half


def breadth(runs: int) -> float:
  """Half of the interval over seeds, in standard deviations of one run."""
  quantile = float(stats.t.ppf((1 + LEVEL) / 2, runs - 1))
  return quantile / math.sqrt(runs)


@dataclasses.dataclass(frozen=True)
class _Score:
  """A run's score, or a difference of two."""

  mean: float
  mean_K: np.ndarray  # on resampled images
  worth: float  # images; see `resampling.worth`
  drawn: int

  def minus(self, other: "_Score") -> "_Score":
    return _Score(
      self.mean - other.mean,
      self.mean_K - other.mean_K,
      min(self.worth, other.worth),
      self.drawn,
    )


def _estimate(by_seed: Mapping[int, _Score]) -> Estimate:
  values = {number: by_seed[number].mean for number in sorted(by_seed)}
  low, high = student(list(values.values()))
  scores = [by_seed[number] for number in values]
  images_low, images_high = resampling.interval(
    np.mean([one.mean_K for one in scores], axis=0),
    min(one.worth for one in scores),
    scores[0].drawn,
  )
  return Estimate(
    by_seed=values,
    mean=metrics.mean(values.values()),
    seeds_low=low,
    seeds_high=high,
    images_low=images_low,
    images_high=images_high,
  )


def _images(
  runs: Iterable[Mapping[str, Sequence[Answer]]],
) -> tuple[list[str], int]:
  """The images that every run holds, sorted; how many only some hold."""
  held = [
    {image for answers in run.values() for image, _, _ in answers}
    for run in runs
  ]
  if not held:
    return [], 0
  common = set.intersection(*held)
  return sorted(common), len(set.union(*held)) - len(common)


def _resampled(
  answers: Sequence[Answer], images: Set[str], draws: int, seed: int
) -> _Score | None:
  """The score on all the images and on resampled ones; None without answers."""
  known = [answer for answer in answers if answer[0] in images]
  if not known:
    return None
  names, groups, values = zip(*known, strict=True)
  found = resampling.resample(
    values, names, groups, draws=draws, seed=seed, universe=sorted(images)
  )
  return _Score(
    metrics.mean(found.mean_G), found.macro_K, found.worth, found.drawn
  )
