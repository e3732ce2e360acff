"""Whether a confidence means what it says: bins, ECE, Brier, risk-coverage.

A row is a confidence in 0..1 and its outcome in 0..1: 1 or 0 for right or
wrong (a mask of Dice 0.5 or more, say), or a score itself, such as the IoU
that the confidence estimates.

  ECE            sum over bins of  count / total x |mean confidence - mean
                 outcome|, of `BINS` bins
  Brier          mean of (confidence - outcome)^2
  risk           1 - outcome
  risk-coverage  mean risk of the share of rows with the highest confidence
  AURC           mean over 1, 2 .. all rows of the risk of that many

Bins of equal width make a reliability diagram; those of equal mass do not
depend on where confidences crowd, and give the ECE to compare models by. Rows
of one confidence are never parted: they fall into one bin, and a coverage that
cuts through them has the mean over all orders. All results are therefore the
same for any order of the rows.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Literal

import numpy as np

# As in Guo et al., ICML 2017.
BINS = 15


@dataclasses.dataclass(frozen=True, slots=True)
class Bin:
  """Rows of similar confidence."""

  low: float  # of equal width: the bin's edges, high outside but for 1;
  high: float  # of equal mass: smallest and largest confidence held
  count: int
  confidence: float | None  # mean; None in an empty bin
  outcome: float | None  # mean


@dataclasses.dataclass(frozen=True, slots=True)
class Curve:
  """Risk over coverage, one point for every confidence that occurs."""

  thresholds: tuple[float, ...]  # descending
  coverage: tuple[float, ...]  # share of rows of that confidence or more
  risk: tuple[float, ...]  # their mean risk
  aurc: float
  # AURC less that of the best order of the same risks; 0 is perfect.
  excess: float


def reliability(
  confidences: Sequence[float],
  outcomes: Sequence[float],
  *,
  bins: int = BINS,
  equal: Literal["mass", "width"],
) -> tuple[Bin, ...]:
  """Returns the bins of a reliability diagram, ascending.

  Args:
    confidences, outcomes: 0..1, of one length.
    equal: "width": `bins` bins of 0..1, empty ones included. "mass": at most
      `bins` bins of about as many rows; fewer where confidences repeat.

  Raises:
    ValueError: no row, lengths that differ, a value outside of 0..1.

  Source: Guo et al., ICML 2017 (width); Nixon et al., CVPR Workshops 2019
  (mass).
  """
  if bins < 1:
    raise ValueError(f"bins={bins}; expected at least 1.")
  confidence_P, outcome_P = checked(confidences, outcomes)
  if equal == "width":
    edges = np.linspace(0, 1, bins + 1)
    place_P = np.minimum(
      np.searchsorted(edges, confidence_P, side="right") - 1, bins - 1
    )
    spans = list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))
    used = range(bins)
  else:
    first_P = np.searchsorted(confidence_P, confidence_P)
    place_P = first_P * bins // len(first_P)
    used = np.unique(place_P).tolist()
    spans = [
      (float(held.min()), float(held.max()))
      for held in (confidence_P[place_P == place] for place in used)
    ]
  return tuple(
    _bin(*span, confidence_P[place_P == place], outcome_P[place_P == place])
    for span, place in zip(spans, used, strict=True)
  )


def ece(bins: Sequence[Bin]) -> float:
  """Returns the expected calibration error of bins, 0..1."""
  total = sum(row.count for row in bins)
  return math.fsum(
    row.count / total * abs(row.confidence - row.outcome)
    for row in bins
    if row.confidence is not None and row.outcome is not None
  )


def brier(confidences: Sequence[float], outcomes: Sequence[float]) -> float:
  """Returns the mean squared difference of confidence and outcome, 0..1.

  Raises:
    ValueError: as `reliability`.
  """
  confidence_P, outcome_P = checked(confidences, outcomes)
  return float(np.mean((confidence_P - outcome_P) ** 2))


def risk_coverage(
  confidences: Sequence[float], outcomes: Sequence[float]
) -> Curve:
  """Returns the risk that remains if only confident rows are answered.

  Raises:
    ValueError: as `reliability`.

  Source: Geifman and El-Yaniv, NeurIPS 2017; AURC and its excess, Geifman et
  al., ICLR 2019. The best order is computed, not approximated.
  """
  confidence_P, outcome_P = checked(confidences, outcomes)
  risk_P = 1 - outcome_P
  values, place_P, count_K = np.unique(
    -confidence_P, return_inverse=True, return_counts=True
  )
  total_K = np.bincount(place_P, risk_P)
  covered_K, summed_K = np.cumsum(count_K), np.cumsum(total_K)
  # Within a run of equal confidences the risk summed grows evenly, on average
  # over the run's orders.
  mean_P = np.repeat(total_K / count_K, count_K)
  aurc = _area(mean_P)
  return Curve(
    thresholds=tuple((-values).tolist()),
    coverage=tuple((covered_K / len(risk_P)).tolist()),
    risk=tuple((summed_K / covered_K).tolist()),
    aurc=aurc,
    excess=max(aurc - _area(np.sort(risk_P)), 0.0),
  )


def checked(
  confidences: Sequence[float], outcomes: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
  """Returns both as float64[P], sorted by confidence, then outcome.

  Raises:
    ValueError: no row, lengths that differ, a value outside of 0..1.
  """
  confidence_P = np.array(confidences, np.float64)
  outcome_P = np.array(outcomes, np.float64)
  if confidence_P.shape != outcome_P.shape or confidence_P.ndim != 1:
    raise ValueError(
      f"Expected one outcome per confidence, received {outcome_P.shape} and "
      f"{confidence_P.shape}."
    )
  if not confidence_P.size:
    raise ValueError("no confidence; expected at least one.")
  for name, values_P in (("confidence", confidence_P), ("outcome", outcome_P)):
    if not ((values_P >= 0) & (values_P <= 1)).all():
      raise ValueError(
        f"each {name} must lie in 0..1, received {values_P.min()} to "
        f"{values_P.max()}."
      )
  order = np.lexsort((outcome_P, confidence_P))
  return confidence_P[order], outcome_P[order]


def _bin(
  low: float, high: float, confidence_P: np.ndarray, outcome_P: np.ndarray
) -> Bin:
  count = len(confidence_P)
  if not count:
    return Bin(low, high, 0, None, None)
  return Bin(
    low, high, count, float(confidence_P.mean()), float(outcome_P.mean())
  )


def _area(risk_P: np.ndarray) -> float:
  """Returns the mean of the running means of risks, most confident first."""
  return float(np.mean(np.cumsum(risk_P) / np.arange(1, len(risk_P) + 1)))
