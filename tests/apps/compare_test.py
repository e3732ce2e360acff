import json
import pathlib

import pytest

from rcmed_jax.apps import compare
from rcmed_jax.eval import row_lines
from rcmed_jax.eval.metrics import Counts
from rcmed_jax.eval.rows import MaskScore


def _run(folder, scores):
  """A run's folder with a report; class "liver", 10 pixels each."""
  (folder / "report").mkdir(parents=True)
  rows = [
    MaskScore(
      record, "toy", "ct", "liver", Counts(inter, 10, 10), 0.5, True, 0.9
    )
    for record, inter in scores.items()
  ]
  text = "".join(json.dumps(row_lines.of(row)) + "\n" for row in rows)
  (folder / "report/metrics--valid.jsonl").write_text(text)
  return str(folder)


def test_compares_two_runs(tmp_path, capsys):
  a = _run(tmp_path / "old", {f"{n}": 5 for n in range(12)})
  b = _run(tmp_path / "new", {f"{n}": 7 + n % 2 for n in range(12)})
  out = tmp_path / "out"
  arguments = [a, b, "--out", str(out), "--split", "valid", "--draws", "100"]
  assert compare.main(arguments) == 0
  printed = capsys.readouterr().out
  assert printed.startswith("new scores higher in macro Dice")
  assert printed.endswith(f"compare: report={out / 'index.html'}\n")
  numbers = json.loads((out / "comparison.json").read_text())
  assert numbers["names"] == {"a": "old", "b": "new"}
  assert numbers["macro"]["difference"] == pytest.approx(0.25)
  assert numbers["draws"] == 100
  assert numbers["facts"]["split"] == "valid"


def test_other_masks_are_refused_unless_common(tmp_path):
  a = _run(tmp_path / "a", {"1": 5, "2": 5})
  b = _run(tmp_path / "b", {"2": 6, "3": 6})
  arguments = [a, b, "--out", str(tmp_path / "out"), "--split", "valid"]
  with pytest.raises(ValueError, match="a lacks 1 masks of b: 'liver' of 3"):
    compare.main(arguments)
  assert not (tmp_path / "out").exists()
  assert compare.main([*arguments, "--common", "--names", "x", "y"]) == 0
  numbers = json.loads((tmp_path / "out/comparison.json").read_text())
  assert (numbers["masks"], numbers["names"]["b"]) == (1, "y")
  assert numbers["only_in_a"] == [{"class": "liver", "record": "1"}]


def test_a_missing_split_is_named(tmp_path):
  a = _run(tmp_path / "a", {"1": 5})
  with pytest.raises(ValueError, match="splits that are: valid"):
    compare.main([a, a, "--out", str(tmp_path / "out")])


def test_runs_of_one_name_are_told_apart(tmp_path):
  a, b = str(tmp_path / "a/run"), str(tmp_path / "b/run")
  assert compare._names(a, b) == (a, b)
  assert compare._names(a, a) == (f"{a} (A)", f"{a} (B)")
  assert compare._names(a, str(tmp_path / "b/new")) == ("run", "new")


def _summary(folder, config, made=None):
  told = {"config": config, "made": made or {}}
  path = pathlib.Path(folder) / "report/summary--valid.json"
  path.write_text(json.dumps(told))


def test_other_questions_are_told_on_page_and_as_a_warning(tmp_path, capsys):
  a, b = (_run(tmp_path / name, {"1": 5, "2": 6}) for name in "ab")
  arguments = [a, b, "--out", str(tmp_path / "out"), "--split", "valid"]
  same = {"seed": 0, "protocols": ["named"], "bootstrap": 100}
  weights = {"weights": {"step": 1}}
  _summary(a, {**same, "classes_per_question": 0}, weights)
  _summary(b, {**same, "classes_per_question": 0, "bootstrap": 0})
  assert compare.main(arguments) == 0
  assert capsys.readouterr().err == ""  # weights and intervals may differ
  page = (tmp_path / "out/index.html").read_text()
  assert "Asked differently" not in page
  _summary(
    b,
    {**same, "classes_per_question": 1, "seed": 2, "limit": 9},
    {"data": {"index": "<set>"}},
  )
  assert compare.main(arguments) == 0
  told = capsys.readouterr().err.splitlines()
  assert [line.partition("differently: ")[2] for line in told] == [
    "data, index: not told in A, <set> in B",
    "eval.classes_per_question: 0 in A, 1 in B",
    "eval.limit: not told in A, 9 in B",
    "eval.seed: 0 in A, 2 in B",
  ]
  page = (tmp_path / "out/index.html").read_text()
  assert page.index("Asked differently") < page.index("Verdict")
  assert "<set>" not in page
  numbers = json.loads((tmp_path / "out/comparison.json").read_text())
  assert numbers["asked_differently"][1] == {
    "what": "eval.classes_per_question",
    "a": "0",
    "b": "1",
  }


def test_a_damaged_summary_is_named(tmp_path):
  a = _run(tmp_path / "a", {"1": 5})
  (tmp_path / "a/report/summary--valid.json").write_text("[1]")
  with pytest.raises(ValueError, match=r"summary--valid.json: config: cannot"):
    compare.main([a, a, "--out", str(tmp_path / "o"), "--split", "valid"])
