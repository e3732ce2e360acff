"""The page of a GPU's rows: which goals are met, and by whose numbers."""

import json

import pytest

from benchmarks import gpu_report

KERNELS = {
  ("global", "XLA"): (26.0, 0.004),
  ("global", "XLA, by blocks"): (40.0, 0.004),
  ("global", "cuDNN, concatenated"): (12.0, 0.006),
  ("global", "ours"): (10.0, 0.004),
  ("windows", "XLA"): (3.0, 0.004),
  ("windows", "XLA, by blocks"): (9.0, 0.004),
  ("windows", "cuDNN, concatenated"): (2.0, 0.006),
  ("windows", "ours"): (4.0, 0.004),
}


def _kernels(**changed):
  rows = []
  for (problem, by), (ms, error) in KERNELS.items():
    row = dict(part="kernels", problem=f"{problem}, ViT-H", by=by)
    row |= dict(ms=ms, error=error, tflops=80.0, share=0.1, temporary_gb=1.0)
    rows.append(row | changed.get(by, {}))
  return rows


def _step(part, rows, per_s, **more):
  return dict(
    part=part,
    rows=rows,
    text=200,
    ms=1.0,
    per_s=per_s,
    tflop_each=51.0,
    tflops=300.0,
    share=0.4,
    **more,
  )


def _write(path, rows):
  text = "".join(json.dumps(row) + "\n" for row in rows)
  (path / gpu_report.ROWS).write_text(text)


def _goals(path, rows):
  """Name -> the last two cells of its line."""
  _write(path, rows)
  gpu_report.write(path)
  lines = (path / gpu_report.TABLE).read_text().splitlines()
  cells = [[c.strip() for c in line.split("|")] for line in lines]
  return {c[1]: (c[3], c[4]) for c in cells if len(c) == 6}


def test_goals_are_met_or_missed_by_the_rows_that_count(tmp_path):
  told = _goals(
    tmp_path,
    [
      _step("train", 8, 5.0, peak_gb=90.0),
      _step("train", 12, 5.5, peak_gb=121.0),
      _step("train", 12, 9.0) | {"text": 513},  # of longer texts
      _step("torch", 8, 2.5, step="train"),
      _step("evaluate", 1, 20.0),  # fewer rows than the goal asks
      _step("evaluate", 8, 13.0),
      *_kernels(),
    ],
  )
  assert told["training, images/s, twice the release's"] == ("5.50", "met")
  assert told["training, images/s, aim"] == ("5.50", "**missed**")
  assert told["training, against PyTorch here"] == ("2.20", "met")
  assert told["evaluation from 8 rows on, images/s"] == ("13.00", "**missed**")
  assert told["training's best batch, GB at the peak"] == (
    "121.00",
    "**missed**",
  )
  assert told["global attention, ours against XLA's best"] == ("2.60", "met")
  assert told["global attention, ours against any other"] == (
    "1.20",
    "**missed**",
  )
  assert told["windows' attention, ours against any other"] == (
    "0.50",
    "**missed**",
  )


def test_what_was_not_measured_is_neither(tmp_path):
  failed = dict(part="train", rows=8, text=200, failed="out of memory")
  told = _goals(tmp_path, [failed])
  assert {verdict for _, verdict in told.values()} >= {"not measured"}
  assert not {"met", "**missed**"} & {verdict for _, verdict in told.values()}
  assert (
    "| ours |  | 8 | 200 | out of memory |"
    in (tmp_path / gpu_report.TABLE).read_text()
  )


def test_toy_sizes_are_not_judged(tmp_path):
  facts = dict(part="train", facts=True, toy=True, device="cpu")
  told = _goals(tmp_path, [facts, _step("train", 2, 1000.0)])
  assert "training, images/s, aim" not in told


@pytest.mark.parametrize(
  ("changed", "expected"),
  [
    ({}, "cudnn"),  # 28 * 2 + 4 * 12 against ours, 28 * 4 + 4 * 10
    ({"cuDNN, concatenated": {"error": 0.5}}, "pallas"),
    ({"cuDNN, concatenated": {"error": float("nan")}}, "pallas"),
    (
      {
        "cuDNN, concatenated": {"error": 0.5},
        "ours": {"error": 0.5},
      },
      "reference",
    ),
  ],
)
def test_the_fastest_attention_that_is_right_is_used(
  tmp_path, changed, expected
):
  _write(tmp_path, _kernels(**changed))
  assert gpu_report.fastest(tmp_path) == expected


def test_nothing_measured_leaves_the_choice_to_the_model(tmp_path):
  assert gpu_report.fastest(tmp_path) == "auto"


def test_a_part_that_runs_again_replaces_its_rows_only(tmp_path):
  _write(tmp_path, [_step("train", 8, 5.0), _step("evaluate", 8, 15.0)])
  gpu_report.forget(tmp_path, "train")
  assert not gpu_report.measured(tmp_path, "train")
  assert gpu_report.measured(tmp_path, "evaluate")
