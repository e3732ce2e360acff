"""One number that makes confidences honest: a temperature of their logits.

  calibrated = sigmoid(logit(confidence) / T)

T is the one that minimises, over the rows of a validation split,

  NLL = mean of  -outcome log(calibrated) - (1 - outcome) log(1 - calibrated)

which is convex in 1 / T and has one minimum, found as the root of its slope.
T above 1 tempers a model that is too sure. The order of confidences stays, and
0.5 stays 0.5: nothing changes about which masks are claimed at 0.5, nor about
AUROC or risk-coverage.

Confidence 0 says that the answer does not hold the target. It stays 0 and has
no part in the fit.
"""

from collections.abc import Sequence
import dataclasses
import json

from etils import epath
import numpy as np
import scipy.optimize
import scipy.special

from rcmed_jax.data import files
from rcmed_jax.eval import calibration

# Confidences nearer to 0 or 1 count as this near; in float32 the sigmoid of 17
# is 1, whose logit is infinite.
CLIP = 1e-6
# Temperatures beyond which no model is calibrated but the rows are odd.
COLDEST, HOTTEST = 0.02, 50.0
MIN_ROWS = 20  # one parameter; fewer rows mostly fit their own noise


@dataclasses.dataclass(frozen=True, slots=True)
class Temperature:
  """A temperature, and what it was fitted on."""

  value: float
  split: str  # name of the validation split
  rows: int
  nll_before: float  # nats, at temperature 1
  nll_after: float
  # Confidence, after the temperature, from which a class counts as present: the
  # highest that finds `recall` of the split's present ones. None: not known, or
  # none does.
  threshold: float | None = None
  recall: float | None = None

  def with_threshold(self, threshold: float | None, recall: float):
    """Returns it with the threshold of a recall.

    Args:
      threshold: of confidences before the temperature.
    """
    if threshold is None:
      return self
    after = float(self.apply([threshold])[0])
    return dataclasses.replace(self, threshold=after, recall=recall)

  def apply(self, confidences: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns calibrated confidences, float64, in their order; 0 stays 0.

    Raises:
      ValueError: a confidence outside of 0..1.
    """
    confidence_P = np.asarray(confidences, np.float64)
    if not ((confidence_P >= 0) & (confidence_P <= 1)).all():
      raise ValueError(
        f"each confidence must lie in 0..1, received {confidence_P.min()} to "
        f"{confidence_P.max()}."
      )
    calibrated_P = scipy.special.expit(_logit(confidence_P) / self.value)
    return np.where(confidence_P == 0, 0.0, calibrated_P)


def fit(
  confidences: Sequence[float], outcomes: Sequence[float], *, split: str
) -> Temperature:
  """Returns the temperature that minimises the NLL of a validation split.

  Args:
    confidences: 0..1, of targets that the answers hold.
    outcomes: 0..1, right or wrong, or a score that is estimated.
    split: whose rows these are; kept with the number.

  Raises:
    ValueError: fewer than `MIN_ROWS` rows of a confidence above 0, values
      outside of 0..1, or rows that no temperature fits: all right, all wrong,
      all at 0.5, or no relation of confidence and outcome.

  Source: Guo et al., ICML 2017.
  """
  confidence_P, outcome_P = calibration.checked(confidences, outcomes)
  held_P = confidence_P > 0
  confidence_P, outcome_P = confidence_P[held_P], outcome_P[held_P]
  where = f"temperature of split {split!r}"
  if len(confidence_P) < MIN_ROWS:
    raise ValueError(
      f"{where}: {len(confidence_P)} rows of a confidence above 0, expected "
      f"at least {MIN_ROWS}; evaluate a larger split."
    )
  if outcome_P.min() == outcome_P.max() and outcome_P[0] in (0, 1):
    raise ValueError(
      f"{where}: all {len(outcome_P)} outcomes are {outcome_P[0]:g}; a "
      "temperature needs rows that are right and rows that are wrong."
    )
  logit_P = _logit(confidence_P)

  def slope(inverse: float) -> float:
    wrong_P = scipy.special.expit(logit_P * inverse) - outcome_P
    return float(np.mean(logit_P * wrong_P))

  low, high = slope(1 / HOTTEST), slope(1 / COLDEST)
  if not low < 0 < high:
    reason = (
      "confidence does not rise with the outcome"
      if low >= 0
      else "confidences lie on the right side of 0.5 always"
    )
    raise ValueError(
      f"{where}: no temperature between {COLDEST} and {HOTTEST} fits, "
      f"{reason}; slopes of the NLL there are {high:.3g} and {low:.3g}."
    )
  inverse = scipy.optimize.root_scalar(
    slope, bracket=(1 / HOTTEST, 1 / COLDEST), method="brentq", xtol=1e-12
  ).root
  return Temperature(
    value=1 / inverse,
    split=split,
    rows=len(logit_P),
    nll_before=_nll(logit_P, outcome_P),
    nll_after=_nll(logit_P * inverse, outcome_P),
  )


def save(path: epath.PathLike, fitted: Temperature) -> None:
  """Writes a temperature as a small JSON; an existing one is replaced."""
  text = json.dumps(dataclasses.asdict(fitted), indent=2, allow_nan=False)
  files.write_whole(path, text + "\n")


def load(path: epath.PathLike) -> Temperature:
  """Returns a temperature that `save` wrote.

  Raises:
    ValueError: the file is no temperature.
    OSError: it cannot be read.
  """
  fields = {field.name for field in dataclasses.fields(Temperature)}
  try:
    values = json.loads(epath.Path(path).read_text(encoding="utf-8"))
  except ValueError as error:  # no JSON, or no text
    raise ValueError(f"{path} is no temperature: {error}.") from error
  # Those of earlier versions hold no threshold.
  optional = {"threshold", "recall"}
  if not isinstance(values, dict) or set(values) | optional != fields:
    raise ValueError(
      f"{path} is no temperature; expected the fields {sorted(fields)}. Fit "
      "it again."
    )
  value = values["value"]
  if not isinstance(value, int | float) or not COLDEST <= value <= HOTTEST:
    raise ValueError(
      f"{path}: value={value!r}, expected a temperature of {COLDEST} to "
      f"{HOTTEST}. Fit it again."
    )
  threshold = values.get("threshold")
  if threshold is not None and not (
    isinstance(threshold, int | float) and 0 < threshold <= 1
  ):
    raise ValueError(
      f"{path}: threshold={threshold!r}, expected a confidence above 0 and at "
      "most 1, or null. Fit it again."
    )
  return Temperature(**values)


def _logit(confidence_P: np.ndarray) -> np.ndarray:
  return scipy.special.logit(np.clip(confidence_P, CLIP, 1 - CLIP))


def _nll(logit_P: np.ndarray, outcome_P: np.ndarray) -> float:
  """Returns the mean cross-entropy in nats."""
  log_right = scipy.special.log_expit
  return -float(
    np.mean(
      outcome_P * log_right(logit_P) + (1 - outcome_P) * log_right(-logit_P)
    )
  )
