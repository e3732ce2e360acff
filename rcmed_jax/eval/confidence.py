"""What confidences are worth: present against absent, and calibration.

A confidence estimates the IoU of the mask it comes with (`serve/assistant.py`),
and is 0 where the answer does not hold the target.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any

from rcmed_jax.eval import calibration, presence
from rcmed_jax.eval.metrics import share
from rcmed_jax.eval.rows import Absent, MaskScore, Tally

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


def presence_table(tally: Tally) -> dict[str, Any]:
  """How present classes are told from absent ones, in all and by modality."""
  modalities = sorted({row.modality for row in [*tally.masks, *tally.absent]})
  return {
    **_row(tally.masks, tally.absent),
    "by_modality": {
      modality: _row(
        [score for score in tally.masks if score.modality == modality],
        [row for row in tally.absent if row.modality == modality],
      )
      for modality in modalities
    },
  }


def _row(
  masks: Sequence[MaskScore], absent: Sequence[Absent]
) -> dict[str, Any]:
  """Returns counts and shares; a share of nothing is None."""
  there = [score.confidence for score in masks]
  missing = [row.confidence for row in absent]
  false = sum(not score.present for score in masks)
  rejected = sum(row.rejected for row in absent)
  return {
    "asked_present": len(masks),
    "rejected_present": false,
    "false_rejection": share(false, len(masks)) if masks else None,
    "asked_absent": len(absent),
    "rejected_absent": rejected,
    "absent_rejection": share(rejected, len(absent)) if absent else None,
    "auroc": presence.auroc(there, missing),
    # At the highest threshold that finds 90% of the present, chosen on the
    # same rows: what a threshold chosen on another split would at best reach.
    "at_recall": _at_recall(there, missing) if there else None,
  }


def _at_recall(
  there: Sequence[float], missing: Sequence[float]
) -> dict[str, Any]:
  threshold = presence.threshold_at_recall(there)
  found = presence.operate(there, missing, threshold)
  return {
    "threshold": threshold,
    "recall": found.recall,
    "false_alarm": found.false_alarm,
  }
