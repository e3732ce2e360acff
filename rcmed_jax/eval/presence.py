"""Whether a confidence tells targets that are there from those that are not.

Every asked target has a confidence, 0 where the answer does not hold it; those
that the image holds are *present*, the others *absent*.

  AUROC             share of (present, absent) pairs in which the present one
                    has the higher confidence, a tie counts half: Mann and
                    Whitney's U / (present x absent)
  recall at t       share of the present of confidence t or more
  false-alarm rate  share of the absent of confidence t or more

Confidence 0 is a denial, which no threshold finds: a model that denies 12% of
the present reaches a recall of 0.88 at most (`reachable`), and has no threshold
for 0.9.

A threshold chosen on the rows that it is then counted on flatters: choose it
on one split with `threshold_at_recall` and count on another with `operate`.
"""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np
import scipy.stats

# The recall at which false alarms are counted.
RECALL = 0.9
# 0.07 x 100 is 7.000000000000001 in floats; 7 of 100 are enough.
SLACK = 1e-9


@dataclasses.dataclass(frozen=True, slots=True)
class Operating:
  """What one threshold finds, and what it makes up."""

  threshold: float
  present: int
  found: int
  absent: int
  alarms: int

  @property
  def recall(self) -> float | None:
    """found / present; None without a present target."""
    return self.found / self.present if self.present else None

  @property
  def false_alarm(self) -> float | None:
    """alarms / absent; None without an absent target."""
    return self.alarms / self.absent if self.absent else None


def auroc(present: Sequence[float], absent: Sequence[float]) -> float | None:
  """Returns the area under the ROC curve; None where either side has no row.

  Args:
    present, absent: confidences of the targets, on any scale.

  Raises:
    ValueError: a confidence that is not finite.

  Source: Hanley and McNeil, Radiology 1982.
  """
  present_P, absent_P = _checked(present), _checked(absent)
  if not present_P.size or not absent_P.size:
    return None
  # Ranks are whole or half numbers, so that their sum is exact.
  rank_P = scipy.stats.rankdata(np.concatenate([present_P, absent_P]))
  count = present_P.size
  u = rank_P[:count].sum() - count * (count + 1) / 2
  return float(u / (count * absent_P.size))


@dataclasses.dataclass(frozen=True, slots=True)
class Chosen:
  """A threshold, and the split on whose rows it was chosen."""

  threshold: float
  split: str


def reachable(present: Sequence[float]) -> float | None:
  """Returns the share of the present that is not denied; None without any."""
  present_P = _checked(present)
  return float(np.mean(present_P > 0)) if present_P.size else None


def threshold_at_recall(
  present: Sequence[float], recall: float = RECALL
) -> float | None:
  """Returns the largest threshold that finds at least `recall` of the present.

  None where so many are denied that none does.

  Raises:
    ValueError: no present target, a confidence that is not finite, a recall
      outside of 0..1 or of 0, which any threshold reaches.
  """
  present_P = _checked(present)
  if not present_P.size:
    raise ValueError("no present target; expected at least one to be found.")
  if not 0 < recall <= 1:
    raise ValueError(f"recall={recall} must lie above 0 and at most at 1.")
  needed = max(math.ceil(recall * present_P.size - SLACK), 1)
  found = float(np.sort(present_P)[-needed])
  return found if found > 0 else None


def operate(
  present: Sequence[float], absent: Sequence[float], threshold: float
) -> Operating:
  """Returns the counts of targets claimed, of confidence `threshold` or more.

  Raises:
    ValueError: a confidence that is not finite.
  """
  present_P, absent_P = _checked(present), _checked(absent)
  return Operating(
    threshold=threshold,
    present=present_P.size,
    found=int(np.count_nonzero(present_P >= threshold)),
    absent=absent_P.size,
    alarms=int(np.count_nonzero(absent_P >= threshold)),
  )


def _checked(confidences: Sequence[float]) -> np.ndarray:
  confidence_P = np.array(confidences, np.float64)
  if confidence_P.ndim != 1:
    raise ValueError(
      f"Expected a list of confidences, received the shape "
      f"{confidence_P.shape}."
    )
  odd = np.flatnonzero(~np.isfinite(confidence_P))
  if odd.size:
    raise ValueError(
      f"{odd.size} of {confidence_P.size} confidences are not finite; number "
      f"{odd[0]} is {confidence_P[odd[0]]}."
    )
  return confidence_P
