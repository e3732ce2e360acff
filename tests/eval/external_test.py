import pytest

from rcmed_jax.eval import external, report
from rcmed_jax.eval.evaluate import EvalConfig, evaluate
from rcmed_jax.eval.metrics import Counts
from rcmed_jax.eval.registry import Registry
from rcmed_jax.eval.rows import MaskScore

CONFIG = EvalConfig(bootstrap=0)


def _mask(record, dataset, name, inter, pred=10, ref=10):
  return MaskScore(
    *(record, dataset, "computed tomography", name, Counts(inter, pred, ref)),
    box_iou=0.0,
    present=True,
    confidence=0.5,
  )


MASKS = (
  _mask("a", "home", "liver tumor", 0),
  _mask("b", "away", "liver tumor", 5),  # Dice 1/2
  _mask("c", "away", "liver tumor", 10),
  _mask("c", "away", "spleen", 10),
  _mask("d", "abroad", "lung tumor", 2),  # Dice 1/5
)


def test_other_data_sets_by_hand():
  training = external.Training(frozenset({"home"}))
  found = external.table(MASKS, training, Registry.load(), CONFIG)
  assert found is not None
  assert found["datasets"] == ["abroad", "away"]
  assert (found["images"], found["masks"], found["tasks"]) == (3, 4, 3)
  assert found["dice"] == pytest.approx((0.75 + 1 + 0.2) / 3)
  assert found["iou"] == pytest.approx(((1 / 3 + 1) / 2 + 1 + 1 / 9) / 3)
  cancers = found["by_group"]["cancer"]
  assert {name: row["dice"] for name, row in cancers.items()} == pytest.approx(
    {"liver cancer": 0.75, "lung cancer": 0.2}
  )


@pytest.mark.parametrize(
  "training",
  [None, external.Training(frozenset({"home", "away", "abroad", "more"}))],
)
def test_nothing_is_said_where_none_is_known_to_be_external(training):
  assert external.table(MASKS, training, Registry.load(), CONFIG) is None


def test_the_page_shows_them_apart(world, oracle, tmp_path):
  model = oracle(world, shift=2)
  training = external.Training(frozenset({"toy", "chest"}), ("other<run>",))
  apart = evaluate(world, model, CONFIG, tmp_path / "a", training=training)
  found = apart.tables["external"]
  skin = [
    row for row in apart.tables["by_task"] if row["modality"] == "dermoscopy"
  ]
  assert found["dice"] == sum(row["dice"] for row in skin) / len(skin)
  page = report.write_report(tmp_path / "a.html", apart).read_text()
  assert "External validation" in page
  assert "did not train on: skin; 4 images, 2 tasks" in page
  assert "it began from other&lt;run&gt;" in page
  plain = evaluate(world, model, CONFIG, tmp_path / "b")
  assert plain.tables["external"] is None
  page = report.write_report(tmp_path / "b.html", plain).read_text()
  assert "External validation" not in page
