"""Temperatures: found again, the same in any order, refused where none fits."""

import dataclasses
import json

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from rcmed_jax.eval import calibration, temperature


def rows(seed, factor, count=5_000):
  """Confidences whose logits are `factor` times too large, and outcomes."""
  random = np.random.default_rng(seed)
  logit = random.normal(0.5, 1.0, count)
  outcome = random.random(count) < scipy.special.expit(logit)
  return scipy.special.expit(factor * logit), outcome * 1.0


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_finds_the_temperature_again(factor):
  fitted = temperature.fit(*rows(0, factor), split="validation")
  assert fitted.value == pytest.approx(factor, rel=0.1)
  assert (fitted.split, fitted.rows) == ("validation", 5_000)
  assert fitted.nll_after <= fitted.nll_before


def test_minimum_is_the_one_that_a_search_of_the_nll_finds():
  for seed in range(5):
    confidence, outcome = rows(seed, 2.0, count=100)
    outcome = 0.7 * outcome + 0.1  # scores, not only right and wrong
    fitted = temperature.fit(confidence, outcome, split="validation")

    def nll(log_t, confidence=confidence, outcome=outcome):
      p = scipy.special.expit(scipy.special.logit(confidence) / np.exp(log_t))
      return -np.mean(outcome * np.log(p) + (1 - outcome) * np.log(1 - p))

    found = scipy.optimize.minimize_scalar(nll, bounds=(-4, 4))
    assert fitted.value == pytest.approx(np.exp(found.x), rel=1e-4)
    assert fitted.nll_before == pytest.approx(nll(0.0), abs=1e-12)
    assert fitted.nll_after == pytest.approx(found.fun, abs=1e-10)


def test_calibrates_rows_that_it_has_not_seen():
  fitted = temperature.fit(*rows(0, 3.0), split="validation")
  confidence, outcome = rows(1, 3.0)

  def ece(values):
    return calibration.ece(
      calibration.reliability(values, outcome, equal="mass")
    )

  assert ece(confidence) > 0.1
  assert ece(fitted.apply(confidence)) < 0.03
  sure = calibration.risk_coverage(confidence, outcome)
  tempered = calibration.risk_coverage(fitted.apply(confidence), outcome)
  assert tempered.aurc == pytest.approx(sure.aurc, abs=1e-9)


def test_order_of_rows_changes_no_bit():
  confidence, outcome = rows(0, 2.0)
  order = np.random.default_rng(1).permutation(len(confidence))
  first = temperature.fit(confidence, outcome, split="validation")
  again = temperature.fit(confidence[order], outcome[order], split="validation")
  assert first == again


def test_absent_half_and_certain():
  """0 stays 0, 0.5 stays 0.5; 1 is very sure, not infinitely so."""
  fitted = temperature.fit(*rows(0, 3.0), split="validation")
  absent, half, certain = fitted.apply([0.0, 0.5, 1.0])
  assert (absent, half) == (0, 0.5)
  assert 0.95 < certain < 1
  confidence, outcome = rows(0, 3.0)
  padded = temperature.fit(
    [*confidence, 0.0, 0.0], [*outcome, 0.0, 1.0], split="validation"
  )
  assert padded == fitted
  one_wrong = temperature.fit(
    [*confidence, 1.0], [*outcome, 0.0], split="validation"
  )
  assert np.isfinite(one_wrong.nll_before)
  with pytest.raises(ValueError, match=r"0\.\.1"):
    fitted.apply([1.2])


def test_a_file_holds_it(tmp_path):
  fitted = temperature.fit(*rows(0, 1.7), split="validation")
  path = tmp_path / "temperature.json"
  temperature.save(path, fitted)
  assert temperature.load(path) == fitted
  assert json.loads(path.read_text())["split"] == "validation"
  temperature.save(path, dataclasses.replace(fitted, split="other"))
  assert temperature.load(path).split == "other"


def test_a_threshold_is_kept_as_calibrated_confidences_have_it(tmp_path):
  fitted = temperature.fit(*rows(0, 3.0), split="validation")
  assert fitted.with_threshold(None, 0.9) == fitted
  found = fitted.with_threshold(0.8, 0.9)
  assert found.threshold == fitted.apply([0.8])[0] < 0.8
  assert (found.recall, found.value) == (0.9, fitted.value)
  path = tmp_path / "temperature.json"
  temperature.save(path, found)
  assert temperature.load(path) == found
  # Files of earlier versions hold none; odd ones are refused.
  values = dataclasses.asdict(fitted)
  old = {k: v for k, v in values.items() if k not in ("threshold", "recall")}
  path.write_text(json.dumps(old))
  assert temperature.load(path) == fitted
  path.write_text(json.dumps(values | {"threshold": 0}))
  with pytest.raises(ValueError, match="threshold=0, expected"):
    temperature.load(path)


@pytest.mark.parametrize(
  "text", ["no json", "[]", '{"value": 1.0}', b"\xff\xfe"]
)
def test_another_file_is_refused(tmp_path, text):
  path = tmp_path / "temperature.json"
  path.write_bytes(text if isinstance(text, bytes) else text.encode())
  with pytest.raises(ValueError, match=r"temperature\.json is no temperature"):
    temperature.load(path)


def test_a_file_with_an_odd_temperature_is_refused(tmp_path):
  path = tmp_path / "temperature.json"
  fitted = temperature.fit(*rows(0, 1.7), split="validation")
  for value in (0, -1, 1e9, "1"):
    path.write_text(json.dumps(dataclasses.asdict(fitted) | {"value": value}))
    with pytest.raises(ValueError, match="Fit it again"):
      temperature.load(path)


def test_rows_that_no_temperature_fits_are_refused():
  confidence, outcome = rows(0, 1.0, count=200)

  def refused(confidence, outcome, match):
    with pytest.raises(ValueError, match=match):
      temperature.fit(confidence, outcome, split="validation")

  refused(confidence[:19], outcome[:19], "19 rows.*at least 20")
  refused(np.zeros(200), outcome, "0 rows")
  refused(confidence, np.ones(200), "all 200 outcomes are 1")
  refused(np.full(200, 0.5), outcome, "does not rise")
  refused(1 - confidence, outcome, "does not rise")
  separated = np.where(outcome > 0, 0.9, 0.1)
  refused(separated, outcome, "right side of 0.5")
  refused(confidence, outcome * 2, "outcome must lie")
