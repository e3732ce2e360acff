"""What is measured on a GPU, in which order, until when, and what it counts."""

import pytest

from benchmarks import gpu_cases


class Time:
  """Stands still unless it is told to go on."""

  now = 0.0

  def __call__(self):
    return self.now


def test_what_fails_leaves_out_larger_batches_of_its_setting_only():
  tried, rows = [], []

  def measure(setting, count):
    tried.append((setting, count))
    if setting == "dots" and count > 4:
      return {"failed": "out of memory"}
    return {"per_s": count}

  cases = [("full", 8), ("dots", 4), ("dots", 8), ("dots", 12), ("full", 16)]
  best = gpu_cases.sweep(cases, measure, rows.append, gpu_cases.Clock(60))
  assert tried == [("full", 8), ("dots", 4), ("dots", 8), ("full", 16)]
  assert best == ("full", 16)
  assert [row.get("per_s") for row in rows] == [8, 4, None, 16]


def test_no_case_begins_that_would_not_end_in_time():
  time = Time()
  done = []
  for case in gpu_cases.Clock(100, time).cases(range(9)):
    done.append(case)
    time.now += 30
  assert done == [0, 1, 2]  # 90 of 100 seconds are gone


def test_a_step_counts_what_the_issue_counts():
  """61 TFLOP a sample of 513 tokens in training, 27.4 in evaluation."""
  given = gpu_cases.sizes(toy=False)
  train = gpu_cases.speed("train", 2.0, 8, 513, given, ceiling=800.0)
  assert train["tflop_each"] == pytest.approx(61, rel=0.03)
  assert train["per_s"] == 4.0
  assert train["share"] == pytest.approx(train["tflop_each"] * 4 / 800)
  forward = gpu_cases.speed("evaluate", 2.0, 8, 513, given, ceiling=800.0)
  assert forward["tflop_each"] == pytest.approx(27.4, rel=0.03)


def test_decoding_counts_every_token():
  given = gpu_cases.sizes(toy=False)
  row = gpu_cases.speed("decode", 0.5, 8, 200, given, ceiling=800.0)
  assert row["per_s"] == 8 * given.new / 0.5
  assert row["ms"] == 500 / given.new
  # 6.6 billion weights of the language model and its head, twice.
  assert row["tflop_each"] == pytest.approx(2 * 6.6e-3, rel=0.1)


def test_memory_is_told_from_other_reasons():
  memory = gpu_cases.reason(RuntimeError("RESOURCE_EXHAUSTED: 9 GB\nmore"))
  assert memory == "out of memory (RuntimeError: RESOURCE_EXHAUSTED: 9 GB)"
  assert gpu_cases.reason(ValueError("odd\nmore")) == "ValueError: odd"
