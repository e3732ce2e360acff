"""What confidences are worth: present against absent, and calibration.

A confidence estimates the IoU of the mask it comes with (`serve/assistant.py`),
and is 0 where the answer does not hold the target.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

from rcmed_jax.eval import calibration, presence
from rcmed_jax.eval.metrics import share
from rcmed_jax.eval.rows import Absent, MaskScore, Present, Tally

# Points of the risk-coverage curve that the summary holds.
POINTS = 50


def claims(tally: Tally) -> tuple[tuple[float, float], ...]:
  """(confidence, IoU) of every mask that an answer holds; 0 if it is absent."""
  return (
    *((s.confidence, s.counts.iou) for s in tally.masks if s.confidence > 0),
    *((row.confidence, 0.0) for row in tally.absent if row.confidence > 0),
  )


def calibration_table(tally: Tally) -> dict[str, Any] | None:
  """Whether confidences are the IoU that they estimate; None without any."""
  held = claims(tally)
  if not held:
    return None
  confidences, outcomes = zip(*held, strict=True)
  bins = {
    equal: calibration.reliability(confidences, outcomes, equal=equal)
    for equal in ("mass", "width")
  }
  curve = calibration.risk_coverage(confidences, outcomes)
  step = max(len(curve.coverage) // POINTS, 1)
  kept = sorted({*range(0, len(curve.coverage), step), len(curve.coverage) - 1})
  return {
    "claims": len(held),
    "ece": calibration.ece(bins["mass"]),
    "ece_equal_width": calibration.ece(bins["width"]),
    "brier": calibration.brier(confidences, outcomes),
    "aurc": curve.aurc,
    "excess_aurc": curve.excess,
    "bins": [dataclasses.asdict(one) for one in bins["mass"]],
    "risk_coverage": [
      {
        "threshold": curve.thresholds[place],
        "coverage": curve.coverage[place],
        "risk": curve.risk[place],
      }
      for place in kept
    ],
  }


def presence_table(
  tally: Tally, chosen: presence.Chosen | None = None
) -> dict[str, Any]:
  """How present classes are told from absent ones, in all and by modality.

  Both are asked alone and in the same form; the named protocol's targets, which
  come several in a question, are counted by themselves.

  Args:
    chosen: a threshold from other rows; None: one is chosen on these.
  """
  modalities = sorted({row.modality for row in [*tally.masks, *tally.absent]})
  return {
    **_row(tally.present, tally.absent, tally.masks, chosen),
    "by_modality": {
      modality: _row(
        [row for row in tally.present if row.modality == modality],
        [row for row in tally.absent if row.modality == modality],
        [row for row in tally.masks if row.modality == modality],
        chosen,
      )
      for modality in modalities
    },
  }


def _row(
  present: Sequence[Present],
  absent: Sequence[Absent],
  masks: Sequence[MaskScore],
  chosen: presence.Chosen | None,
) -> dict[str, Any]:
  """Returns counts and shares; a share of nothing is None."""
  there = [row.confidence for row in present]
  missing = [row.confidence for row in absent]
  false = sum(row.rejected for row in present)
  rejected = sum(row.rejected for row in absent)
  denied = sum(not score.present for score in masks)
  return {
    "asked_present": len(present),
    "rejected_present": false,
    "false_rejection": share(false, len(present)) if present else None,
    "asked_named": len(masks),
    "rejected_named": denied,
    "named_rejection": share(denied, len(masks)) if masks else None,
    "asked_absent": len(absent),
    "rejected_absent": rejected,
    "absent_rejection": share(rejected, len(absent)) if absent else None,
    "auroc": presence.auroc(there, missing),
    "at_recall": _at_recall(there, missing, chosen) if there else None,
  }


def _at_recall(
  there: Sequence[float],
  missing: Sequence[float],
  chosen: presence.Chosen | None,
) -> dict[str, Any]:
  """Returns what the threshold finds that is to find 90% of the present.

  Where it was chosen on the same rows, this is what a threshold chosen on
  another split would at best reach. None where too many are denied.
  """
  threshold = (
    chosen.threshold if chosen else presence.threshold_at_recall(there)
  )
  table: dict[str, Any] = {
    "target": presence.RECALL,
    "reachable": presence.reachable(there),
    "chosen_on": chosen and chosen.split,  # None: on these rows
    "threshold": threshold,
    "recall": None,
    "false_alarm": None,
  }
  if threshold is not None:
    found = presence.operate(there, missing, threshold)
    table |= {"recall": found.recall, "false_alarm": found.false_alarm}
  return table
