"""From the single scores of one split to its tables and headline numbers."""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from rcmed_jax.eval import metrics
from rcmed_jax.eval.metrics import MaskScore, share
from rcmed_jax.eval.overlays import Gallery, Sample
from rcmed_jax.eval.protocols import EvalConfig


@dataclasses.dataclass(frozen=True, slots=True)
class Absent:
  """The answer to a question about a class that the image lacks."""

  record: str
  dataset: str
  modality: str
  name: str
  rejected: bool
  confidence: float


@dataclasses.dataclass(frozen=True, slots=True)
class Control:
  """The answer to one class of a control."""

  kind: str
  record: str
  modality: str
  asked: str  # the class in the question
  target: str  # the class it is compared with
  dice: float | None  # against the target's reference; None over noise
  present: bool
  confidence: float


@dataclasses.dataclass(frozen=True, slots=True)
class Quarantined:
  """A record that could not be read."""

  record: str
  path: str
  field: str
  reason: str


@dataclasses.dataclass
class Tally:
  """All scores of a split, without any image."""

  images: int = 0  # read
  masks: list[MaskScore] = dataclasses.field(default_factory=list)
  open_masks: list[MaskScore] = dataclasses.field(default_factory=list)
  named: list[metrics.Named] = dataclasses.field(default_factory=list)
  absent: list[Absent] = dataclasses.field(default_factory=list)
  controls: list[Control] = dataclasses.field(default_factory=list)
  quarantine: list[Quarantined] = dataclasses.field(default_factory=list)

  def extend(self, other: "Tally") -> None:
    """Adds another's scores after these."""
    self.images += other.images
    for name, rows in vars(other).items():
      if name != "images":
        getattr(self, name).extend(rows)


@dataclasses.dataclass(frozen=True)
class Summary:
  """The outcome of one split."""

  split: str
  images: int  # read and asked about
  masks: int  # scored in the named protocol
  tasks: int  # modality x class
  dice: float  # named: mean over tasks of the mean over masks
  iou: float  # the same of IoU
  recognition: float | None  # open: TP / (TP + FP + FN); None if not run
  absent: float | None  # share of absent classes rejected; None if none asked
  false_rejection: float  # named: share of present classes rejected
  tables: Mapping[str, Any]  # what summary--<split>.json holds
  quarantine: Sequence[Quarantined]
  examples: Sequence[Sample]
  lowest: Sequence[Sample]


def summarize(
  tally: Tally, config: EvalConfig, split: str, gallery: Gallery
) -> Summary:
  """Returns the tables of a split.

  Raises:
    ValueError: not a single mask was scored.
  """
  if not tally.masks:
    reasons = "".join(f"\n  {row.reason}" for row in tally.quarantine[:5])
    raise ValueError(
      f"split {split!r}: no mask could be scored; {tally.images} images were "
      f"read and {len(tally.quarantine)} quarantined. Repair the data.{reasons}"
    )
  tables = _tables(tally, config, split)
  macro, presence = tables["macro"], tables["presence"]
  found = tables["recognition"]
  examples = sorted(
    gallery.examples, key=lambda s: (s.modality.lower(), s.record)
  )
  return Summary(
    split=split,
    images=tally.images,
    masks=len(tally.masks),
    tasks=tables["tasks"],
    dice=macro["dice"],
    iou=macro["iou"],
    recognition=found["accuracy"] if found else None,
    absent=presence["absent_rejection"],
    false_rejection=presence["false_rejection"],
    tables=tables,
    quarantine=tuple(tally.quarantine),
    examples=tuple(examples),
    lowest=tuple(gallery.lowest),
  )


def _tables(tally: Tally, config: EvalConfig, split: str) -> dict[str, Any]:
  """Returns what summary--<split>.json holds."""
  masks = tally.masks

  def table(by: Callable[[MaskScore], Any]) -> dict[Any, dict[str, Any]]:
    rows = metrics.aggregate(
      masks, by, draws=config.bootstrap, seed=config.seed
    )
    return {key: dataclasses.asdict(row) for key, row in rows.items()}

  by_task = table(lambda score: score.task)
  overall = table(lambda score: split)[split]
  low, high = _macro_interval(masks, config)
  return {
    "split": split,
    "images": tally.images,
    "masks": len(masks),
    "tasks": len(by_task),
    "quarantined": len(tally.quarantine),
    # The three names of the release, over masks.
    "global_iou": overall["iou"],
    "class_iou": overall["ciou"],
    "dice": overall["dice"],
    "dice_low": overall["dice_low"],
    "dice_high": overall["dice_high"],
    "box_iou": overall["box_iou"],
    "macro": {
      "dice": metrics.mean(row["dice"] for row in by_task.values()),
      "dice_low": low,
      "dice_high": high,
      "iou": metrics.mean(row["iou"] for row in by_task.values()),
    },
    "dice_histogram": _histogram(score.counts.dice for score in masks),
    "confidence_histogram": _histogram(score.confidence for score in masks),
    "by_modality": table(lambda score: score.modality),
    "by_task": [
      {"modality": task.modality, "class": task.name, **row}
      for task, row in by_task.items()
    ],
    "by_class": table(lambda score: score.name),
    "by_dataset": table(lambda score: score.dataset),
    "recognition": _recognition(tally),
    "presence": _presence(tally),
    "controls": _controls(tally, config),
    "config": _settings(config),
  }


def _macro_interval(
  masks: Sequence[MaskScore], config: EvalConfig
) -> tuple[float | None, float | None]:
  """Returns the 95% interval of the mean Dice over tasks."""
  means_KG = metrics.bootstrap(
    [score.counts.dice for score in masks],
    [score.record for score in masks],
    [score.task for score in masks],
    draws=config.bootstrap,
    seed=config.seed,
  )
  return metrics.interval(np.nanmean(means_KG, axis=1))


def _histogram(values: Iterable[float]) -> list[int]:
  """Returns how many values lie in each twentieth of 0..1."""
  return np.histogram(list(values), bins=20, range=(0, 1))[0].tolist()


def _recognition(tally: Tally) -> dict[str, Any] | None:
  if not tally.named:
    return None
  found = metrics.recognition(tally.named)
  table = {
    field.name: getattr(found, field.name)
    for field in dataclasses.fields(found)
  }
  table["classes"] = {
    name: {"tp": tp, "fp": fp, "fn": fn}
    for name, (tp, fp, fn) in found.classes.items()
  }
  table["confusions"] = [
    {"missed": missed, "said": said, "images": images}
    for (missed, said), images in found.confusions.items()
  ]
  # The masks that came with the names; a class not named has Dice 0.
  dice = [score.counts.dice for score in tally.open_masks]
  table["dice"] = metrics.mean(dice) if dice else None
  return table


def _presence(tally: Tally) -> dict[str, Any]:
  modalities = sorted({row.modality for row in [*tally.masks, *tally.absent]})
  return {
    **_presence_row(tally.masks, tally.absent),
    "by_modality": {
      modality: _presence_row(
        [score for score in tally.masks if score.modality == modality],
        [row for row in tally.absent if row.modality == modality],
      )
      for modality in modalities
    },
  }


def _presence_row(
  masks: Sequence[MaskScore], absent: Sequence[Absent]
) -> dict[str, Any]:
  """Returns counts and shares; a share of nothing is None."""
  false = sum(not score.present for score in masks)
  rejected = sum(row.rejected for row in absent)
  return {
    "asked_present": len(masks),
    "rejected_present": false,
    "false_rejection": share(false, len(masks)) if masks else None,
    "asked_absent": len(absent),
    "rejected_absent": rejected,
    "absent_rejection": share(rejected, len(absent)) if absent else None,
  }


def _controls(tally: Tally, config: EvalConfig) -> dict[str, Any]:
  kinds: dict[str, list[Control]] = collections.defaultdict(list)
  for row in tally.controls:
    kinds[row.kind].append(row)
  named = {(s.record, s.name): s.counts.dice for s in tally.masks}
  return {
    kind: _noise(rows, config)
    if kind == "noise"
    else _paired(rows, named, config)
    for kind, rows in sorted(kinds.items())
  }


def _paired(
  rows: Sequence[Control],
  named: Mapping[tuple[str, str], float],
  config: EvalConfig,
) -> dict[str, Any]:
  """Compares a control with the named Dice of the same targets."""
  dice = [row.dice or 0.0 for row in rows]
  normal = [named[row.record, row.target] for row in rows]
  drops = [before - after for before, after in zip(normal, dice, strict=True)]
  means_KG = metrics.bootstrap(
    drops,
    [row.record for row in rows],
    ["all"] * len(rows),
    draws=config.bootstrap,
    seed=config.seed,
  )
  low, high = metrics.interval(means_KG[:, 0])
  return {
    "targets": len(rows),
    "images": len({row.record for row in rows}),
    "named_dice": metrics.mean(normal),
    "control_dice": metrics.mean(dice),
    "drop": metrics.mean(drops),
    "drop_low": low,
    "drop_high": high,
    "claimed": share(sum(row.present for row in rows), len(rows)),
  }


def _noise(rows: Sequence[Control], config: EvalConfig) -> dict[str, Any]:
  """Counts what is still claimed where there is nothing to see."""
  confident = [
    row.present and row.confidence >= config.confident for row in rows
  ]
  return {
    "targets": len(rows),
    "images": len({row.record for row in rows}),
    "claimed": share(sum(row.present for row in rows), len(rows)),
    "threshold": config.confident,
    "confident": sum(confident),
    "confident_share": share(sum(confident), len(rows)),
    "mean_confidence": metrics.mean(row.confidence for row in rows),
  }


def _settings(config: EvalConfig) -> dict[str, Any]:
  """Returns the settings that numbers depend on."""
  settings = dataclasses.asdict(config)
  for name in ("batch_size", "chunk", "gallery", "worst"):
    del settings[name]
  return settings
