"""External validation: scores on data sets that the weights never met.

A split may hold data sets that a run trained on beside others. Of the others
alone, by type of cancer as well: whether a model finds a tumour in the pictures
of another hospital says more of it than its mean over all.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

from rcmed_jax.eval import averages, metrics
from rcmed_jax.eval.protocols import EvalConfig
from rcmed_jax.eval.registry import Registry
from rcmed_jax.eval.rows import MaskScore


@dataclasses.dataclass(frozen=True)
class Training:
  """What weights were trained on."""

  datasets: frozenset[str]
  # Weights that they began from, whose data is not known.
  unknown: tuple[str, ...] = ()


def table(
  masks: Sequence[MaskScore],
  training: Training | None,
  registry: Registry,
  config: EvalConfig,
) -> dict[str, Any] | None:
  """Returns means over the tasks of other data sets; None where there is none.

  Args:
    masks: of the named protocol.
    training: None: it is not known.
  """
  if training is None:
    return None
  others = [score for score in masks if score.dataset not in training.datasets]
  if not others:
    return None
  by_task = averages.by_task(others, draws=config.bootstrap, seed=config.seed)
  low, high = averages.macro_interval(
    others, draws=config.bootstrap, seed=config.seed
  )
  return {
    "datasets": sorted({score.dataset for score in others}),
    "unknown": list(training.unknown),
    "images": len({score.record for score in others}),
    "masks": len(others),
    "tasks": len(by_task),
    "dice": metrics.mean(row["dice"] for row in by_task.values()),
    "dice_low": low,
    "dice_high": high,
    "iou": metrics.mean(row["iou"] for row in by_task.values()),
    "by_group": averages.by_group(by_task, registry),
  }
