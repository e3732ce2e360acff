"""From rows to averages: by any group, and of what was named unasked."""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import itertools
from typing import Any

import numpy as np

from rcmed_jax.eval import resampling
from rcmed_jax.eval.metrics import mean, share
from rcmed_jax.eval.registry import Registry
from rcmed_jax.eval.rows import MaskScore, Named
from rcmed_jax.eval.tasks import Task


@dataclasses.dataclass(frozen=True, slots=True)
class Aggregate:
  """One row of a table."""

  images: int
  masks: int
  dice: float  # mean over masks
  iou: float  # mean over masks
  ciou: float  # pooled over pixels: sum of inter / sum of union
  box_iou: float  # mean over masks
  # Of surfaces in millimetres, where spacing and tolerance are known, and in
  # pixels: never averaged together. None where there is no such mask.
  masks_mm: int
  masks_px: int
  nsd_mm: float | None  # mean over masks, each at its task's tolerance
  nsd_px: float | None
  hd95_mm: float | None  # mean over masks
  hd95_px: float | None
  dice_low: (
    float | None
  )  # 95% interval of dice; None where `resampling` has none
  dice_high: float | None


@dataclasses.dataclass(frozen=True, slots=True)
class Recognition:
  """Classes named without being asked for, against the reference."""

  images: int
  accuracy: float  # TP / (TP + FP + FN) over all (image, class)
  exact: float  # share of images whose set of classes is right
  macro_f1: float  # mean over the classes of the reference
  modality: float  # share of images whose modality is right
  tp: int
  fp: int
  fn: int
  classes: Mapping[str, tuple[int, ...]]  # class -> tp, fp, fn
  confusions: Mapping[tuple[str, str], int]  # (missed, said instead) -> images


def aggregate(
  scores: Sequence[MaskScore],
  by: Callable[[MaskScore], Any],
  *,
  draws: int,
  seed: int,
) -> dict[Any, Aggregate]:
  """Returns one row per value of `by`, in sorted order.

  Args:
    by: the group of a mask; its values can be hashed and sorted.
    draws, seed: of the bootstrap behind the interval.
  """
  groups: dict[Any, list[MaskScore]] = {}
  for score in scores:
    groups.setdefault(by(score), []).append(score)
  drawn = resampling.resample(
    [score.counts.dice for score in scores],
    [score.record for score in scores],
    [by(score) for score in scores],
    draws=draws,
    seed=seed,
  )
  return {key: _row(groups[key], *drawn.interval(key)) for key in drawn.groups}


def by_task(
  scores: Sequence[MaskScore], *, draws: int, seed: int
) -> dict[Task, dict[str, Any]]:
  """Returns the fields of one `Aggregate` a task; arguments as `aggregate`."""
  rows = aggregate(scores, lambda score: score.task, draws=draws, seed=seed)
  return {task: dataclasses.asdict(row) for task, row in rows.items()}


def by_group(
  tasks: Mapping[Task, Mapping[str, Any]], registry: Registry
) -> dict[str, dict[str, dict[str, Any]]]:
  """Grouping -> group -> the mean over its tasks that have the number."""
  return {
    grouping: {
      group: {
        "tasks": len(members),
        "masks": sum(tasks[task]["masks"] for task in members),
        **{
          name: _mean_of(tasks[task][name] for task in members)
          for name in ("dice", "iou", "nsd_mm", "nsd_px")
        },
      }
      for group, members in groups.items()
    }
    for grouping, groups in registry.groups(tasks).items()
  }


def macro_interval(
  scores: Sequence[MaskScore], *, draws: int, seed: int
) -> resampling.Interval:
  """Returns the 95% interval of the mean Dice over tasks."""
  return resampling.resample(
    [score.counts.dice for score in scores],
    [score.record for score in scores],
    [score.task for score in scores],
    draws=draws,
    seed=seed,
  ).macro()


def recognition(answers: Sequence[Named]) -> Recognition:
  """Returns how well open answers name what is in the images.

  Names are compared in lower case. `macro_f1` averages over the classes of
  the reference; a name that no reference holds costs accuracy only.
  """
  table: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0, 0])
  confusions: collections.Counter[tuple[str, str]] = collections.Counter()
  exact = modality = 0
  for answer in answers:
    ref, said = answer.there, answer.named
    for column, names in enumerate((ref & said, said - ref, ref - said)):
      for name in names:
        table[name][column] += 1
    confusions.update(itertools.product(ref - said, (said - ref) or {""}))
    exact += ref == said
    said_modality = answer.said_modality or ""
    modality += said_modality.lower() == answer.modality.lower()
  classes = {name: tuple(table[name]) for name in sorted(table)}
  tp, fp, fn = np.sum([(0, 0, 0), *classes.values()], axis=0).tolist()
  f1 = [
    2 * right / (2 * right + wrong + missed)
    for right, wrong, missed in classes.values()
    if right + missed
  ]
  images = len(answers)
  return Recognition(
    images=images,
    accuracy=share(tp, tp + fp + fn),
    exact=share(exact, images),
    macro_f1=share(sum(f1), len(f1)),
    modality=share(modality, images),
    tp=tp,
    fp=fp,
    fn=fn,
    classes=classes,
    confusions=dict(
      sorted(confusions.items(), key=lambda item: (-item[1], item[0]))
    ),
  )


def _row(
  scores: Sequence[MaskScore], low: float | None, high: float | None
) -> Aggregate:
  inter = sum(score.counts.inter for score in scores)
  union = sum(score.counts.pred + score.counts.ref for score in scores) - inter
  return Aggregate(
    images=len({score.record for score in scores}),
    masks=len(scores),
    dice=mean(score.counts.dice for score in scores),
    iou=mean(score.counts.iou for score in scores),
    ciou=share(inter, union),
    box_iou=mean(score.box_iou for score in scores),
    masks_mm=sum(score.unit == "mm" for score in scores),
    masks_px=sum(score.unit == "px" for score in scores),
    nsd_mm=_in(scores, "mm", lambda score: score.nsd),
    nsd_px=_in(scores, "px", lambda score: score.nsd),
    hd95_mm=_in(scores, "mm", lambda score: score.hd95),
    hd95_px=_in(scores, "px", lambda score: score.hd95),
    dice_low=low,
    dice_high=high,
  )


def _mean_of(values: Iterable[float | None]) -> float | None:
  """Returns the mean of what is there; None where nothing is."""
  there = [value for value in values if value is not None]
  return mean(there) if there else None


def _in(
  scores: Sequence[MaskScore], unit: str, of: Callable[[MaskScore], float]
) -> float | None:
  """Returns the mean of a number over the masks of one unit."""
  found = [of(score) for score in scores if score.unit == unit]
  return mean(found) if found else None
