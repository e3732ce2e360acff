"""From the single scores of one split to its tables and headline numbers."""

import collections
from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import statistics
from typing import Any

import numpy as np

from rcmed_jax.eval import (
  averages,
  boxes,
  changed,
  confidence,
  external,
  failures,
  instances,
  metrics,
  negatives,
  presence,
  wording,
)
from rcmed_jax.eval.overlays import Gallery, Sample
from rcmed_jax.eval.protocols import EvalConfig
from rcmed_jax.eval.registry import Registry
from rcmed_jax.eval.rows import MaskScore, Quarantined, Tally
from rcmed_jax.eval.tasks import Task

# Numbers of surfaces, by unit.
SURFACES = (
  *("masks_mm", "masks_px", "nsd_mm", "nsd_px", "hd95_mm", "hd95_px"),
)


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
  false_rejection: float | None  # of present classes asked alone; None as above
  tables: Mapping[str, Any]  # what summary--<split>.json holds
  quarantine: Sequence[Quarantined]
  examples: Sequence[Sample]
  lowest: Sequence[Sample]
  highest: Sequence[Sample]
  median: Sequence[Sample]  # nearest to the median image
  failures: Mapping[str, Sample]  # reason -> an example
  claims: Sequence[tuple[float, float]]  # `confidence.claims`


def summarize(
  tally: Tally,
  config: EvalConfig,
  split: str,
  gallery: Gallery,
  registry: Registry,
  chosen: presence.Chosen | None = None,
  training: external.Training | None = None,
) -> Summary:
  """Returns the tables of a split.

  Args:
    registry: which tasks belong together.
    chosen: the threshold from which a class counts as found, of another split.
    training: what the weights were trained on; None: it is not known.

  Raises:
    ValueError: not a single mask was scored.
  """
  if not tally.masks:
    reasons = "".join(f"\n  {row.reason}" for row in tally.quarantine[:5])
    raise ValueError(
      f"split {split!r}: no mask could be scored; {tally.images} images were "
      f"read and {len(tally.quarantine)} quarantined. Repair the data.{reasons}"
    )
  tables = _tables(tally, config, split, registry, training)
  tables["presence"] = there = confidence.presence_table(tally, chosen)
  macro = tables["macro"]
  found = tables["recognition"]
  return Summary(
    split=split,
    images=tally.images,
    masks=len(tally.masks),
    tasks=tables["tasks"],
    dice=macro["dice"],
    iou=macro["iou"],
    recognition=found["accuracy"] if found else None,
    absent=there["absent_rejection"],
    false_rejection=there["false_rejection"],
    tables=tables,
    quarantine=tuple(tally.quarantine),
    examples=tuple(gallery.examples),
    lowest=tuple(gallery.lowest),
    highest=tuple(gallery.highest),
    median=tuple(gallery.near(_median(tally.masks))),
    failures=dict(gallery.failures),
    claims=confidence.claims(tally),
  )


def _tables(
  tally: Tally,
  config: EvalConfig,
  split: str,
  registry: Registry,
  training: external.Training | None,
) -> dict[str, Any]:
  """Returns what summary--<split>.json holds."""
  masks = tally.masks
  drawn = {"draws": config.bootstrap, "seed": config.seed}

  def table(by: Callable[[MaskScore], Any]) -> dict[Any, dict[str, Any]]:
    rows = averages.aggregate(masks, by, **drawn)
    return {key: dataclasses.asdict(row) for key, row in rows.items()}

  by_task = averages.by_task(masks, **drawn)
  overall = table(lambda score: split)[split]
  low, high = averages.macro_interval(masks, **drawn)
  names = _names(masks)
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
    **{name: overall[name] for name in SURFACES},
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
      {
        "modality": task.modality,
        "class": task.name,
        "names": names[task],
        "known": registry.task(task.modality, task.name).known,
        **row,
      }
      for task, row in by_task.items()
    ],
    "by_group": averages.by_group(by_task, registry),
    "external": external.table(masks, training, registry, config),
    "box_ap": _box_ap(tally),
    "instances": _instances(masks),
    "by_class": table(lambda score: score.name),
    "by_dataset": table(lambda score: score.dataset),
    "recognition": _recognition(tally),
    "wording": _wording(tally),
    "presence_by_task": negatives.by_task(tally),
    "failures": failures.table(tally),
    "calibration": confidence.calibration_table(tally),
    "controls": changed.controls(tally, config),
    "phrases": changed.phrases(tally, config),
    "config": _settings(config),
  }


def _names(masks: Sequence[MaskScore]) -> dict[Task, list[str]]:
  """Returns what the data calls the class of each task."""
  names: dict[Task, list[str]] = {}
  for task, name in sorted({(score.task, score.name) for score in masks}):
    names.setdefault(task, []).append(name)
  return names


def _median(masks: Sequence[MaskScore]) -> float:
  """Returns the median over images of the mean Dice over an image's masks."""
  images: dict[str, list[float]] = {}
  for score in masks:
    images.setdefault(score.record, []).append(score.counts.dice)
  return statistics.median(map(metrics.mean, images.values()))


def _histogram(values: Iterable[float]) -> list[int]:
  """Returns how many values lie in each twentieth of 0..1."""
  return np.histogram(list(values), bins=20, range=(0, 1))[0].tolist()


def _box_ap(tally: Tally) -> dict[str, Any]:
  """Average precision of boxes, the mean over tasks."""
  pairs: dict[Task, list[boxes.BoxPair]] = collections.defaultdict(list)
  for score in tally.masks:
    pair = boxes.BoxPair(score.pred_box, score.ref_box, score.confidence)
    pairs[score.task].append(pair)
  for row in tally.absent:
    pair = boxes.BoxPair(row.box, None, row.confidence)
    pairs[row.task].append(pair)
  mean, _ = boxes.by_class(pairs)
  return dataclasses.asdict(mean)


def _instances(masks: Sequence[MaskScore]) -> list[dict[str, Any]]:
  """Tasks that are counted one by one, pooled over images."""
  found: dict[Task, list[instances.InstanceScore]] = {}
  for score in masks:
    if score.instances is not None:
      found.setdefault(score.task, []).append(score.instances)
  rows = []
  for task, scores in sorted(found.items()):
    total = instances.pool(scores)
    ap, f1 = (
      dict(zip(map(str, total.thresholds), values, strict=True))
      for values in (total.ap, total.f1)
    )
    rows.append(
      {
        "modality": task.modality,
        "class": task.name,
        "images": len(scores),
        "predicted": total.preds,
        "reference": total.refs,
        "aji": total.aji,
        "pq": total.pq,
        "dq": total.dq,
        "sq": total.sq,
        "ap": ap,
        "f1": f1,
      }
    )
  return rows


def _wording(tally: Tally) -> dict[str, Any] | None:
  """Descriptions against the data's; None where it has none."""
  pairs = [
    (row.said, row.description) for row in tally.named if row.description
  ]
  if not pairs:
    return None
  said, wanted = zip(*pairs, strict=True)
  return dataclasses.asdict(wording.compare(said, wanted))


def _recognition(tally: Tally) -> dict[str, Any] | None:
  if not tally.named:
    return None
  found = averages.recognition(tally.named)
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
  # Of all reference masks, where a class not named has Dice 0, and of those
  # alone whose class was named.
  for name, scores in (
    ("dice", tally.open_masks),
    ("dice_named", [score for score in tally.open_masks if score.present]),
  ):
    dice = [score.counts.dice for score in scores]
    table[name] = metrics.mean(dice) if dice else None
  return table


def _settings(config: EvalConfig) -> dict[str, Any]:
  """Returns the settings that numbers depend on."""
  settings = dataclasses.asdict(config)
  for name in ("batch_size", "chunk", "gallery", "worst"):
    del settings[name]
  return settings
