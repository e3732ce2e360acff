"""Scores of many runs on one test split: means, intervals, paired differences.

A score of one run is a mean over groups of means over answers:

  dice, iou         groups are tasks; answers are masks
  recognition       one group; answers are (image, class), named or in the
                    reference: 1 where both, else 0, so TP / (TP + FP + FN)
  absent            one group; answers to questions for absent classes
  false_rejection   one group; masks of present classes, 1 where denied

Two intervals say how far a cell's mean could be off, each for another reason:

  seeds   Student's t over the runs: another seed, the same images
  images  bootstrap over images: other images, the same trained models. All
          runs meet the same resampled images, so that differences are paired.
"""

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
import dataclasses
import math
import pathlib

import numpy as np
from scipy import sparse, stats

from rcmed_jax.eval import metrics, row_lines
from rcmed_jax.eval.rows import Absent, MaskScore, Named

SCORES = ("dice", "iou", "recognition", "absent", "false_rejection")

# Less is better.
LOWER = frozenset({"false_rejection"})

DRAWS = 1000  # resamplings of the images, as in an evaluation's report
LEVEL = 0.95

# Resamplings whose weights are held at once: 100 of 100,000 images are 80 MB.
_CHUNK = 100

# One answer: its image, its group, and what it counts, 0..1.
Answer = tuple[str, Hashable, float]


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A score, or a difference of scores, of one cell."""

  by_seed: Mapping[int, float]
  mean: float  # over seeds
  seeds_low: float | None  # 95%, Student's t; None with one seed
  seeds_high: float | None
  images_low: float  # 95%, bootstrap over images, the mean over seeds
  images_high: float


@dataclasses.dataclass(frozen=True)
class Comparison:
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
    found["false_rejection"].append((row.record, "", float(not row.present)))
  for row in row_lines.read(folder / f"absent--{split}.jsonl", Absent):
    found["absent"].append((row.record, "", float(row.rejected)))
  for row in row_lines.read(folder / f"recognition--{split}.jsonl", Named):
    there = {name.lower() for name in row.classes}
    said = {name.lower() for name in row.said_classes}
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
) -> Comparison:
  """The estimates of all cells, and their differences to the baseline.

  Args:
    runs: (cell, seed) -> `read` of it; cells keep their order.
    baseline: a cell; where it has no run, there are no differences.
    draws, seed: of the bootstrap.

  A score that a run has no answers for is left out of its cell.
  """
  images, left_out = _images(runs.values())
  places = {image: place for place, image in enumerate(images)}
  cells: dict[str, dict[str, Estimate]] = {}
  differences: dict[str, dict[str, Estimate]] = {}
  for score in SCORES:
    means = {
      run: _resampled(answers.get(score, ()), places, draws, seed)
      for run, answers in runs.items()
    }
    by_cell: dict[str, dict[int, np.ndarray]] = {}
    for (cell, number), mean_K in means.items():
      if mean_K is not None:
        by_cell.setdefault(cell, {})[number] = mean_K
    base = by_cell.get(baseline, {})
    for cell, by_seed in by_cell.items():
      cells.setdefault(cell, {})[score] = _estimate(by_seed)
      common = sorted(by_seed.keys() & base.keys())
      if cell != baseline and common:
        differences.setdefault(cell, {})[score] = _estimate(
          {number: by_seed[number] - base[number] for number in common}
        )
  return Comparison(len(images), left_out, cells, differences)


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


def _estimate(by_seed: Mapping[int, np.ndarray]) -> Estimate:
  """From each run's score: [0] as it is, [1:] on resampled images."""
  values = {number: float(by_seed[number][0]) for number in sorted(by_seed)}
  low, high = student(list(values.values()))
  pooled_K = np.mean(
    [by_seed[number][1:] for number in sorted(by_seed)], axis=0
  )
  images_low, images_high = np.nanpercentile(pooled_K, metrics.INTERVAL)
  return Estimate(
    by_seed=values,
    mean=metrics.mean(values.values()),
    seeds_low=low,
    seeds_high=high,
    images_low=float(images_low),
    images_high=float(images_high),
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
  answers: Sequence[Answer], places: Mapping[str, int], draws: int, seed: int
) -> np.ndarray | None:
  """float64[1 + draws]: the score, then on each resampling of the images.

  None without an answer. NaN where a resampling holds none.
  """
  known = [answer for answer in answers if answer[0] in places]
  if not known:
    return None
  groups = {group: None for _, group, _ in known}
  columns = {
    group: column for column, group in enumerate(sorted(groups, key=str))
  }
  at = (
    [places[image] for image, _, _ in known],
    [columns[group] for _, group, _ in known],
  )
  shape = (len(places), len(columns))
  values = [value for _, _, value in known]
  total_IG = sparse.csr_array((values, at), shape=shape)
  number_IG = sparse.csr_array((np.ones(len(known)), at), shape=shape)
  means = []
  for weights_KI in _weights(len(places), draws, seed):
    total_KG = weights_KI @ total_IG
    number_KG = weights_KI @ number_IG
    mean_KG = np.full(total_KG.shape, np.nan)
    np.divide(total_KG, number_KG, out=mean_KG, where=number_KG > 0)
    asked_K = np.isfinite(mean_KG).sum(axis=1)
    sum_K = np.nansum(mean_KG, axis=1)
    means.append(np.where(asked_K > 0, sum_K / np.maximum(asked_K, 1), np.nan))
  return np.concatenate(means)


def _weights(images: int, draws: int, seed: int) -> Iterator[np.ndarray]:
  """How often each image counts: once each, then in every resampling."""
  yield np.ones((1, images))
  random = np.random.default_rng(seed)
  for start in range(0, draws, _CHUNK):
    yield np.stack(
      [
        np.bincount(random.integers(0, images, images), minlength=images)
        for _ in range(min(_CHUNK, draws - start))
      ]
    ).astype(np.float64)
