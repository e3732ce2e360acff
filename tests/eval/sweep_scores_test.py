import json

import numpy as np
import pytest
from scipy import stats

from rcmed_jax.eval import evaluate, sweep_scores
from rcmed_jax.eval.protocols import EvalConfig


def answers(**scores):
  """Score -> answers from (image, group, value) rows."""
  return scores


@pytest.fixture
def evaluated(world, oracle, tmp_path):
  """A folder with an evaluation's files, and its summary."""
  config = EvalConfig(bootstrap=200)
  model = oracle(world, shift=3, blind=("hair", "spleen"))
  return tmp_path / "report", evaluate.evaluate(
    world, model, config, tmp_path / "report"
  )


def test_scores_are_those_of_the_evaluation(evaluated):
  folder, summary = evaluated
  runs = {("a", 0): sweep_scores.read(folder, "test")}
  found = sweep_scores.compare(runs, "a", draws=200, seed=0)
  mean = {name: one.mean for name, one in found.cells["a"].items()}
  assert mean == pytest.approx(
    {
      "dice": summary.dice,
      "iou": summary.iou,
      "recognition": summary.recognition,
      "absent": summary.absent,
      "false_rejection": summary.false_rejection,
    }
  )
  assert 0 < summary.false_rejection < 1 and 0 < summary.recognition < 1
  assert (found.images, found.left_out) == (summary.images, 0)
  # The evaluation resamples by other means, with the same draws.
  macro, one = summary.tables["macro"], found.cells["a"]["dice"]
  assert (one.images_low, one.images_high) == pytest.approx(
    (macro["dice_low"], macro["dice_high"])
  )
  assert one.seeds_low is None and not found.differences


def test_means_over_tasks_then_over_seeds():
  # Task A: 1.0 and 0.0; task B: 0.8. Then (0.5 + 0.8) / 2. The other: 0.25.
  first = answers(dice=[("x", "A", 1.0), ("y", "A", 0.0), ("y", "B", 0.8)])
  second = answers(dice=[("x", "A", 0.5), ("y", "A", 0.5), ("y", "B", 0.0)])
  runs = {("a", 0): first, ("a", 1): second}
  one = sweep_scores.compare(runs, "a").cells["a"]["dice"]
  assert one.by_seed == pytest.approx({0: 0.65, 1: 0.25})
  assert one.mean == pytest.approx(0.45)
  # t(0.975, 1) = 12.7062; s = 0.4 / sqrt(2), over sqrt(2): 0.2.
  assert one.seeds_high - one.mean == pytest.approx(12.7062 * 0.2, rel=1e-5)


def test_interval_over_seeds_is_student_s():
  values = [0.5, 0.6, 0.7]
  low, high = sweep_scores.student(values)
  # t(0.975, 2) = 4.30265, s = 0.1.
  assert high - 0.6 == pytest.approx(4.30265 * 0.1 / np.sqrt(3), rel=1e-5)
  expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
  assert (low, high) == pytest.approx((expected.low, expected.high))
  assert sweep_scores.student([0.5]) == (None, None)
  assert sweep_scores.breadth(3) == pytest.approx(2.4841, rel=1e-4)


def test_interval_over_seeds_holds_the_truth_in_19_of_20_sweeps():
  random = np.random.default_rng(0)
  held = []
  for _ in range(2000):
    low, high = sweep_scores.student(random.normal(0.7, 0.02, 3).tolist())
    held.append(low <= 0.7 <= high)
  assert 0.935 <= np.mean(held) <= 0.965


def test_differences_are_paired_by_seed_and_image():
  random = np.random.default_rng(1)
  hard = {f"{place:03d}": random.uniform(0, 1) for place in range(60)}
  runs = {}
  for seed, luck in enumerate((-0.2, 0.0, 0.2)):
    # Images and seeds differ by far more than the cells, whose gap is 0.05.
    for cell, gain in (("base", 0.0), ("better", 0.05)):
      rows = [
        (image, "A", value + luck + gain) for image, value in hard.items()
      ]
      runs[cell, seed] = answers(dice=rows)
  found = sweep_scores.compare(runs, "base")
  gap = found.differences["better"]["dice"]
  for value in (gap.seeds_low, gap.seeds_high, gap.images_low, gap.images_high):
    assert value == pytest.approx(0.05)
  alone = found.cells["better"]["dice"]
  assert alone.images_high - alone.images_low > 0.1
  assert alone.seeds_high - alone.seeds_low > 0.5
  assert "base" not in found.differences


def test_only_seeds_and_images_that_both_have_are_compared():
  runs = {
    ("base", 0): answers(dice=[("x", "A", 0.4), ("y", "A", 0.2)]),
    ("base", 1): answers(dice=[("x", "A", 0.9), ("y", "A", 0.9)]),
    ("other", 0): answers(dice=[("x", "A", 0.6)], absent=[("x", "", 1.0)]),
  }
  found = sweep_scores.compare(runs, "base")
  assert (found.images, found.left_out) == (1, 1)
  assert found.cells["base"]["dice"].by_seed == {0: 0.4, 1: 0.9}
  gap = found.differences["other"]["dice"]
  assert gap.by_seed == pytest.approx({0: 0.2})
  assert gap.seeds_low is None
  # The baseline was not asked for absent classes.
  assert "absent" in found.cells["other"]
  assert "absent" not in found.differences["other"]


def test_nothing_finished_is_no_error():
  found = sweep_scores.compare({}, "base")
  assert (found.images, found.cells, found.differences) == (0, {}, {})


def test_recognition_counts_names_once_in_any_case(evaluated):
  folder, _ = evaluated
  row = {
    "record": "x",
    "modality": "ct",
    "said_modality": None,
    "classes": ["Liver", "spleen"],
    "said_classes": ["liver", "kidney"],
  }
  (folder / "recognition--test.jsonl").write_text(json.dumps(row) + "\n")
  found = sweep_scores.read(folder, "test")["recognition"]
  assert sorted(value for _, _, value in found) == [0.0, 0.0, 1.0]


def test_missing_and_cut_files_are_named(evaluated):
  folder, _ = evaluated
  path = folder / "metrics--test.jsonl"
  path.write_text(path.read_text()[:-20])
  lines = len(path.read_text().splitlines())
  with pytest.raises(ValueError, match=rf"jsonl, line {lines}: .*again"):
    sweep_scores.read(folder, "test")
  path.unlink()
  with pytest.raises(ValueError, match=r"cannot be read.*evaluate"):
    sweep_scores.read(folder, "test")
