"""Models that do not look, or call things otherwise, gain nothing by it."""

import dataclasses
import json

import cv2
import numpy as np
import pytest

from rcmed_jax.data import readers
from rcmed_jax.eval import confidence, presence, report, rows
from rcmed_jax.eval.evaluate import EvalConfig, evaluate
from rcmed_jax.eval.rows import Tally

ALONE = EvalConfig(
  protocols=("named", "negative"), controls=(), bootstrap=0, gallery=0, worst=0
)


def _spoilt(oracle, world, change):
  """The oracle, with `change` made to each of its answers."""
  model = oracle(world)
  honest = model.answer
  model.answer = lambda request: change(request, honest(request))
  return model


def test_yes_wherever_several_are_named_tells_nothing(world, oracle, tmp_path):
  """Never looks: present alone and absent alone are denied alike."""

  def change(request, answer):
    several = len(request.classes or ()) > 1
    targets = tuple(
      dataclasses.replace(
        target,
        present=several,
        mask_IJ=np.ones(request.image_IJC.shape[:2], bool),
        confidence=0.9 if several else 0.0,
      )
      for target in answer.targets
    )
    return dataclasses.replace(answer, targets=targets)

  model = _spoilt(oracle, world, change)
  summary = evaluate(world, model, ALONE, tmp_path)
  table = summary.tables["presence"]
  # Eight images lack a class of their data set; each is asked for one it holds.
  assert (table["asked_present"], table["asked_absent"]) == (8, 8)
  assert (summary.absent, summary.false_rejection) == (1.0, 1.0)
  assert table["auroc"] == 0.5
  assert table["named_rejection"] < 0.5
  assert table["at_recall"]["threshold"] is None
  assert table["at_recall"]["reachable"] == 0.0
  page = report.write_report(tmp_path / "index.html", summary).read_text()
  assert "recall of 0.9: the model denies too many" in page


def test_a_claim_under_another_name_is_no_rejection(world, oracle, tmp_path):
  def change(request, answer):
    whole_IJ = np.ones(request.image_IJC.shape[:2], bool)
    found = dataclasses.replace(
      answer.targets[0],
      name="the spleen",
      present=True,
      mask_IJ=whole_IJ,
      confidence=0.99,
    )
    return dataclasses.replace(answer, targets=(found,))

  model = _spoilt(oracle, world, change)
  summary = evaluate(world, model, ALONE, tmp_path)
  assert (summary.absent, summary.false_rejection) == (0.0, 0.0)
  assert summary.tables["presence"]["auroc"] == 0.5
  first = (tmp_path / "absent--test.jsonl").read_text().splitlines()[0]
  assert json.loads(first)["confidence"] == 0.99
  assert json.loads(first)["box"] == [0, 0, 56, 48]


def test_more_classes_than_masks_lose_none(world, oracle, tmp_path):
  """An answer holds one mask; questions for two would lose the second."""

  def change(request, answer):
    if request.classes is None:
      return answer
    return dataclasses.replace(answer, targets=answer.targets[:1])

  model = _spoilt(oracle, world, change)
  found = evaluate(world, model, ALONE, tmp_path / "1", most_targets=1)
  assert found.dice == pytest.approx(1)
  assert found.tables["presence"]["named_rejection"] == 0
  lost = evaluate(world, model, ALONE, tmp_path / "0")
  assert lost.dice < 0.8


def _modality_said(request, answer):
  words = request.question.rpartition(" image")[0]
  said = next(
    name for name in readers.MODALITIES.values() if words.endswith(name)
  )
  return dataclasses.replace(answer, modality=said)


@pytest.mark.parametrize("listens", [False, True])
def test_the_name_of_another_modality(world, oracle, tmp_path, listens):
  """The oracle looks; the other names the question's, and finds less then."""
  true = {
    record.load().image_IJC.tobytes(): record.modality for record in world
  }

  def change(request, answer):
    if request.classes is None:
      return answer
    found = _modality_said(request, answer)
    if found.modality == true.get(request.image_IJC.tobytes()):
      return found
    return dataclasses.replace(found, targets=())

  config = dataclasses.replace(
    ALONE, protocols=("named",), controls=("wrong_modality",)
  )
  model = _spoilt(oracle, world, change) if listens else oracle(world)
  summary = evaluate(world, model, config, tmp_path)
  table = summary.tables["controls"]["wrong_modality"]
  assert table["images"] == 12
  assert table["said_true"] == float(not listens)
  assert table["said_asked"] == float(listens)
  assert table["drop"] == pytest.approx(float(listens), abs=1e-6)
  assert table["claimed"] == float(not listens)
  page = report.write_report(tmp_path / "index.html", summary).read_text()
  assert "Answers that name the true modality" in page


def _tally(there, missing) -> Tally:
  def row(kind, number, value):
    return kind(f"{number}", "toy", "CT", "liver", value == 0, value)

  return Tally(
    present=[row(rows.Present, n, value) for n, value in enumerate(there)],
    absent=[row(rows.Absent, n, value) for n, value in enumerate(missing)],
  )


def test_a_recall_that_cannot_be_reached_has_no_false_alarms():
  """12 of 100 present are denied, and all absent: no threshold finds 90."""
  table = confidence.presence_table(_tally([0.9] * 88 + [0.0] * 12, [0.0] * 50))
  assert table["at_recall"] == {
    "target": 0.9,
    "reachable": 0.88,
    "chosen_on": None,
    "threshold": None,
    "recall": None,
    "false_alarm": None,
  }


def test_a_threshold_of_another_split_is_applied_and_named():
  tally = _tally([0.9, 0.8, 0.6, 0.4], [0.7, 0.5, 0.0, 0.0])
  own = confidence.presence_table(tally)["at_recall"]
  assert (own["threshold"], own["false_alarm"]) == (0.4, 0.5)
  chosen = presence.Chosen(0.55, "validation")
  table = confidence.presence_table(tally, chosen)["at_recall"]
  assert table["chosen_on"] == "validation"
  assert (table["threshold"], table["recall"]) == (0.55, 0.75)
  assert table["false_alarm"] == 0.25


def test_instances_of_the_index_are_used(world, oracle, tmp_path):
  """Two hairs that touch are two files: 8 x 4 pixels each, one part."""
  record = next(r for r in world if "hair" in r.classes)
  masks = [mask for mask in record.masks if mask[1] != "hair"]
  for number, columns in enumerate((slice(4, 8), slice(8, 12))):
    mask_IJ = np.zeros((48, 56), np.uint8)
    mask_IJ[4:12, columns] = 255
    path = str(tmp_path / f"hair{number}.png")
    cv2.imwrite(path, mask_IJ)
    masks.append((path, "hair"))
  record = dataclasses.replace(record, masks=tuple(masks))
  config = dataclasses.replace(ALONE, protocols=("named",))
  summary = evaluate([record], oracle([record]), config, tmp_path / "out")
  (row,) = summary.tables["instances"]
  # The whole is predicted as one: IoU 32 / 64 with either, a pair at 0.5.
  assert (row["reference"], row["predicted"]) == (2, 1)
  assert row["f1"]["0.5"] == pytest.approx(2 / 3)
  assert row["pq"] == 0
  assert summary.dice == pytest.approx(1)


def test_names_of_one_task_are_one_task(world, oracle, tmp_path):
  """One data set says postcava, the other inferior vena cava."""
  names = {"liver": "postcava", "left lung": "inferior vena cava"}
  renamed = [
    dataclasses.replace(
      record,
      modality="computed tomography",
      masks=tuple((path, names.get(name, name)) for path, name in record.masks),
    )
    for record in world
  ]
  config = dataclasses.replace(
    ALONE, protocols=("named",), controls=("wrong_name",)
  )
  summary = evaluate(renamed, oracle(renamed), config, tmp_path)
  tasks = {row["class"]: row for row in summary.tables["by_task"]}
  assert "postcava" not in tasks
  cava = tasks["inferior vena cava"]
  assert cava["names"] == ["inferior vena cava", "postcava"]
  held = [r for r in renamed if set(r.classes) & set(names.values())]
  assert cava["masks"] == len(held)
  lines = (tmp_path / "metrics--test.jsonl").read_text().splitlines()
  raw = {json.loads(line)["class"] for line in lines}
  assert {"postcava", "inferior vena cava"} <= raw
  ids = {record.id for record in held}
  for line in (tmp_path / "controls--test.jsonl").read_text().splitlines():
    row = json.loads(line)
    assert row["record"] not in ids or row["asked"] not in names.values()
