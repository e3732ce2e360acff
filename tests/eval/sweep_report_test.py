import dataclasses
import html.parser
import json
import re

import pytest

from rcmed_jax.eval import row_lines, sweep_plot, sweep_report
from rcmed_jax.eval.metrics import Counts
from rcmed_jax.eval.rows import Absent, MaskScore, Named, Present
from rcmed_jax.eval.sweep_scores import Estimate
from rcmed_jax.eval.sweep_text import Run, Told, caution

VOID = {"meta", "img"}


class _Parser(html.parser.HTMLParser):
  """Fails on a tag closed out of order; collects text, ids and links."""

  def __init__(self):
    super().__init__()
    self.open, self.text, self.ids, self.links = [], [], [], []

  def handle_starttag(self, tag, attrs):
    told = dict(attrs)
    self.ids += [told["id"]] if "id" in told else []
    self.links += [told["href"]] if tag == "a" else []
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    pass

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


def write_run(folder, dice):
  """An evaluated run of two images, one task each, as `outputs` writes it."""
  report = folder / "report"
  report.mkdir(parents=True)
  masks = [
    MaskScore(
      record=image,
      dataset="toy",
      modality="CT",
      name=name,
      counts=Counts(round(1000 * value), 1000, 1000),
      box_iou=value,
      present=value > 0,
      confidence=value,
    )
    for (image, name), value in zip(
      (("x", "liver"), ("y", "spleen")), dice, strict=True
    )
  ]
  for name, rows in (
    ("metrics", masks),
    ("absent", [Absent("x", "toy", "CT", "heart", True, 0.0)]),
    ("present", [Present("x", "toy", "CT", "liver", False, 1.0)]),
    ("recognition", [Named("x", "CT", "CT", ("liver",), ("liver",))]),
  ):
    text = "".join(json.dumps(row_lines.of(row)) + "\n" for row in rows)
    (report / f"{name}--test.jsonl").write_text(text)
  rates = [{"step": step, "images_per_s": rate} for step, rate in SPEED.items()]
  (folder / "metrics.jsonl").write_text(
    "".join(json.dumps(line) + "\n" for line in rates)
  )


SPEED = {10: 20.0, 20: 40.0, 30: 40.0}  # images per second
ERROR = "ValueError: <b>step</b> 3 | not finite"
TOLD = Told(
  title="Sweep loop",
  baseline="K=0",
  overrides={"K=0": {"model.correlation.steps": 0}, "K=2": {}, "K=3": {}},
  facts={"config": "configs/demo.py"},
)


@pytest.fixture
def runs(tmp_path):
  """Three cells by two seeds: two finished, one failed and missing."""
  dice = {
    ("K=0", 0): (0.4, 0.6),
    ("K=0", 1): (0.5, 0.5),
    ("K=2", 0): (0.6, 0.8),
    ("K=2", 1): (0.8, 0.6),
  }
  found = []
  for seed in (0, 1):
    for cell in TOLD.overrides:
      folder = tmp_path / cell / f"seed{seed}"
      state, error = ("failed", ERROR) if seed == 0 else ("missing", "")
      if (cell, seed) in dice:
        write_run(folder, dice[cell, seed])
        state, error = "finished", ""
      found.append(Run(cell, seed, folder, state, error, batch_size=8))
  return found


def test_table_holds_hand_worked_numbers(runs, tmp_path):
  sweep_report.write(tmp_path / "out", runs, TOLD, split="test")
  table = json.loads((tmp_path / "out/sweep.json").read_text())
  base, two = table["cells"]["K=0"], table["cells"]["K=2"]
  assert base["scores"]["dice"]["by_seed"] == {"0": 0.5, "1": 0.5}
  assert two["scores"]["dice"]["mean"] == 0.7
  gap = two["difference_to_baseline"]["dice"]
  assert gap["by_seed"] == {"0": 0.2, "1": 0.2}
  assert (gap["seeds_low"], gap["seeds_high"]) == (0.2, 0.2)
  # One image a task tells nothing of others.
  assert (gap["images_low"], gap["images_high"]) == (None, None)
  assert base["difference_to_baseline"] == {}
  assert two["seconds_a_step"] == 8 / 40  # the median
  assert table["cells"]["K=3"]["scores"] == {}
  assert table["runs"]["K=3/seed0"] == {"state": "failed", "error": ERROR}
  text = (tmp_path / "out/sweep.md").read_text()
  assert "| K=2 | 2 | 0.700 ± 0.000 [–]" in text
  assert "| K=2 | 2 | +0.200 ± 0.000 [–]" in text
  assert "s/step: median seconds" in text and "no measurement" in text
  assert "| K=3/seed1 | missing |" in text
  assert r"step</b> 3 \| not finite" in text
  assert "3 cells, 2 seeds: 4 of 6 runs finished, 1 failed; 2 test images" in (
    text
  )


def test_page_is_whole_escaped_and_needs_nothing_else(runs, tmp_path):
  sweep_report.write(tmp_path, runs, TOLD, split="test")
  page = (tmp_path / "index.html").read_text()
  parser = _Parser()
  parser.feed(page)
  parser.close()
  assert parser.open == []
  assert [f"#{id}" for id in parser.ids] == parser.links
  assert "failed-and-missing" in parser.ids
  assert ERROR in parser.text and ERROR not in page
  assert not re.findall(r"https?:|@import|<link|url\(", page)
  assert page.count("<svg") == 5 + 5
  assert "$" not in page


def test_same_runs_same_bytes(runs, tmp_path):
  names = ("sweep.json", "sweep.md", "index.html")
  for out in ("a", "b"):
    sweep_report.write(tmp_path / out, runs, TOLD, split="test")
  for name in names:
    first = (tmp_path / "a" / name).read_bytes()
    assert first == (tmp_path / "b" / name).read_bytes()
  assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(names)


def test_sweep_without_a_finished_run_has_a_page(tmp_path):
  runs = [Run("K=0", 0, tmp_path / "none", "missing")]
  sweep_report.write(tmp_path, runs, TOLD, split="test")
  assert "No run is finished" in (tmp_path / "index.html").read_text()
  assert "| K=0/seed0 | missing |" in (tmp_path / "sweep.md").read_text()


def test_caution_tells_what_few_seeds_cannot():
  told = caution({"a": 3, "b": 3})[-1]
  assert "With 3 seeds the interval" in told
  assert "2.48 standard deviations" in told
  assert "once in 4 times" in told
  assert "One seed tells nothing" in caution({"a": 1})[-1]


def test_caution_counts_finished_seeds_cell_by_cell(runs, tmp_path):
  write_run(runs[2].folder, (0.4, 0.4))  # K=3/seed0
  runs[2] = dataclasses.replace(runs[2], state="finished", error="")
  sweep_report.write(tmp_path / "out", runs, TOLD, split="test")
  for name in ("sweep.md", "index.html"):
    text = (tmp_path / "out" / name).read_text()
    # Two of them: t(0.975, 1) / sqrt(2); planned seeds count for nothing.
    assert (
      "With 2 seeds (K=0, K=2) the interval over seeds reaches 8.98" in text
    )
    assert "One seed (K=3) tells nothing" in text


def test_differences_are_of_the_seeds_that_both_have(runs, tmp_path):
  runs[3] = dataclasses.replace(runs[3], state="failed")  # K=0/seed1
  sweep_report.write(tmp_path / "out", runs, TOLD, split="test")
  text = (tmp_path / "out/sweep.md").read_text()
  assert "| K=2 | 1 | +0.200 [" in text
  assert "One seed (K=0, K=2 less K=0) tells nothing" in text


def test_drawing_puts_values_in_their_places():
  one = Estimate({0: 0.2, 1: 0.4}, 0.3, 0.1, 0.5, 0.2, 0.4)
  svg = sweep_plot.rows("t", {"a": one}, zero=True)
  ends = re.findall(r'<line x1="([\d.]+)" x2="([\d.]+)"', svg)
  zero, images, seeds = (tuple(map(float, pair)) for pair in ends)
  (mean,) = re.findall(r'cx="([\d.]+)" cy="[\d.]+" r="4.6"', svg)
  assert zero[0] < seeds[0] < images[0] < float(mean) < images[1] < seeds[1]
  unit = (seeds[1] - seeds[0]) / 0.4
  assert float(mean) - zero[0] == pytest.approx(0.3 * unit, abs=0.2)
  assert sweep_plot.rows("t", {}) == ""
