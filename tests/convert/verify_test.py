"""Bounds and faults of the comparison, by hand."""

import numpy as np
import pytest

from rcmed_jax.convert import verify


def _compare(ours, reference, name="hidden", **told):
  (row,) = verify.compare(
    {name: np.float32(ours)}, {name: np.float32(reference)}, **told
  )
  return row


def test_errors_are_relative_in_length():
  row = _compare([3.0, 4.1], [3.0, 4.0])
  assert row.error == pytest.approx(0.1 / 5, rel=1e-5)
  assert not row.passed
  assert _compare([3.0, 4.0001], [3.0, 4.0]).passed


def test_errors_of_losses_are_absolute():
  assert _compare(100.00001, 100.0, "ce").passed
  row = _compare(1.00002, 1.0, "loss")
  assert row.error == pytest.approx(2e-5, rel=0.01)
  assert not row.passed


def test_nan_never_passes():
  assert not _compare([np.nan], [1.0]).passed
  assert not _compare([1.0], [np.nan]).passed


def test_a_reference_of_zeros_is_met_by_zeros_alone():
  assert _compare([0.0, 0.0], [0.0, 0.0], "grad/a").passed
  assert not _compare([0.0, 0.1], [0.0, 0.0], "grad/a").passed


def test_bfloat16_holds_the_parts_and_reports_the_masks():
  assert _compare([1.02], [1.0], bfloat16=True).passed
  assert not _compare([1.04], [1.0], bfloat16=True).passed
  masks = _compare([1.5], [1.0], "masks", bfloat16=True)
  assert (masks.bound, masks.passed) == (None, True)


def test_all_tensors_of_other_sizes_are_listed():
  found = {"hidden": np.zeros((2, 3))}
  references = {"hidden": np.zeros((2, 4)), "other": np.zeros(5)}
  with pytest.raises(ValueError) as error:
    verify.compare(found, references)
  assert "hidden: expected (2, 4), computed (2, 3)" in str(error.value)
  assert "other: expected (5,), computed nothing" in str(error.value)
