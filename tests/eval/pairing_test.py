import json

import pytest

from rcmed_jax.data.checks import DataError
from rcmed_jax.eval import pairing, row_lines
from rcmed_jax.eval.compare import compare
from rcmed_jax.eval.evaluate import EvalConfig, evaluate
from rcmed_jax.eval.metrics import Counts
from rcmed_jax.eval.pairing import Scored, match
from rcmed_jax.eval.rows import MaskScore
from rcmed_jax.eval.tasks import Task


def _line(record="a", name="liver", inter=5, pred=10, ref=10, **more):
  row = MaskScore(
    record, "toy", "ct", name, Counts(inter, pred, ref), 0.5, True, 0.9
  )
  return json.dumps({**row_lines.of(row), **more})


def _write(folder, *lines):
  path = folder / "metrics--test.jsonl"
  path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
  return path


def _scored(ref=10, inter=5, modality="ct"):
  return Scored(modality, Counts(inter, 10, ref))


def test_lines_are_read_by_record_and_class(tmp_path):
  path = _write(
    tmp_path,
    _line(),
    _line("b", "left kidney", 3, 4, 6),
  )
  found = pairing.read(path)
  assert found == {
    ("a", "liver"): Scored("ct", Counts(5, 10, 10)),
    ("b", "left kidney"): Scored("ct", Counts(3, 4, 6)),
  }


def test_what_is_no_score_is_refused(tmp_path):
  with pytest.raises(DataError, match="holds no mask"):
    pairing.read(_write(tmp_path))
  with pytest.raises(DataError, match="line 2: record: 'liver' of a comes twi"):
    pairing.read(_write(tmp_path, _line(), _line()))
  with pytest.raises(DataError, match=r"line 1: dice: 0\.6 is not that of its"):
    pairing.read(_write(tmp_path, _line(dice=0.6)))


def test_a_run_is_found_where_evaluation_puts_it(tmp_path):
  report = tmp_path / "run/report"
  report.mkdir(parents=True)
  path = _write(report, _line())
  for run in (tmp_path / "run", report, path):
    assert pairing.find(run, "test") == path
  with pytest.raises(DataError, match=r"splits that are: test\. Give --split"):
    pairing.find(tmp_path / "run", "valid")
  with pytest.raises(DataError, match=r"is not there\. Run `rcmed evaluate`"):
    pairing.find(tmp_path, "test")


def test_masks_are_paired_by_record_and_class():
  a = {("b", "liver"): _scored(inter=2), ("a", "liver"): _scored()}
  b = {("a", "liver"): _scored(inter=10), ("b", "liver"): _scored()}
  found = match(a, b)
  assert [pair.record for pair in found.pairs] == ["a", "b"]
  first = found.pairs[0]
  assert first.task == Task("ct", "liver")
  assert (first.a, first.b) == (Counts(5, 10, 10).dice, 1.0)
  assert found.only_a == found.only_b == ()


def test_masks_that_a_run_lacks_are_refused_or_listed():
  a = {(f"{number}", "liver"): _scored() for number in range(6)}
  b = {(f"{number}", "liver"): _scored() for number in range(5, 7)}
  message = (
    r"old lacks 1 masks of new: 'liver' of 6; new lacks 5 masks of old: "
    r"'liver' of 0, 'liver' of 1, 'liver' of 2 and 2 more\. 1 masks are in "
    r"both.*--common"
  )
  with pytest.raises(ValueError, match=message):
    match(a, b, ("old", "new"))
  found = match(a, b, common=True)
  assert [pair.record for pair in found.pairs] == ["5"]
  assert found.only_b == (("6", "liver"),)
  assert len(found.only_a) == 5


@pytest.mark.parametrize("common", [False, True])
def test_runs_of_other_data_are_refused(common):
  a = {("1", "liver"): _scored()}
  with pytest.raises(ValueError, match="none of them the same"):
    match(a, {("2", "liver"): _scored()}, common=common)
  with pytest.raises(ValueError, match="1 of 1 masks have another reference"):
    match(a, {("1", "liver"): _scored(ref=11)}, common=common)
  with pytest.raises(ValueError, match="1 of 1 masks have another modality"):
    match(a, {("1", "liver"): _scored(modality="mr")}, common=common)


def test_what_evaluation_writes_can_be_compared(world, oracle, tmp_path):
  """The averages of a comparison are those of the evaluation."""
  config = EvalConfig(bootstrap=0)
  told = [
    evaluate(world, oracle(world, shift=shift), config, tmp_path / f"{shift}")
    for shift in (1, 3)
  ]
  a, b = (
    pairing.read(pairing.find(tmp_path / f"{shift}", "test"))
    for shift in (1, 3)
  )
  result = compare(match(a, b).pairs, draws=100)
  assert (result.masks, result.images) == (told[0].masks, told[0].images)
  assert len(result.tasks) == told[0].tasks
  assert result.macro.a == pytest.approx(told[0].dice, abs=1e-12)
  assert result.macro.b == pytest.approx(told[1].dice, abs=1e-12)
  assert result.macro.high is None  # tasks of up to four images
  assert result.micro.high < 0
