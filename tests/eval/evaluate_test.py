import dataclasses
import json
import pathlib
import sys
import threading

import numpy as np
import pytest

from rcmed_jax.data.records import Record
from rcmed_jax.eval import evaluate as evaluate_lib
from rcmed_jax.eval import protocols, rows, surfaces
from rcmed_jax.eval.evaluate import EvalConfig, evaluate
from rcmed_jax.eval.registry import Registry

CONFIG = EvalConfig(chunk=5, bootstrap=100, gallery=1, worst=2)

LIVER = ("images/ct--toy--01.png", "liver")


def _lines(path: pathlib.Path) -> list[dict]:
  return [json.loads(line) for line in path.read_text().splitlines()]


def _files(folder: pathlib.Path) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_perfect_model_scores_perfectly(world, oracle, tmp_path):
  summary = evaluate(world, oracle(world), CONFIG, tmp_path)
  assert summary.dice == summary.iou == summary.recognition == 1.0
  assert summary.absent == 1.0
  assert summary.false_rejection == 0.0
  assert (summary.images, summary.tasks) == (12, 8)
  controls = summary.tables["controls"]
  assert controls["wrong_name"]["control_dice"] == pytest.approx(0, abs=1e-6)
  assert controls["wrong_name"]["drop"] == pytest.approx(1, abs=1e-6)
  assert controls["noise"]["confident"] == 0


def test_scores_are_those_of_the_masks(world, oracle, tmp_path):
  summary = evaluate(world, oracle(world, shift=2), CONFIG, tmp_path)
  lines = _lines(tmp_path / "metrics--test.jsonl")
  expected = []
  for record in world:
    triplet = record.load()
    for name, ref_IJ in zip(triplet.classes, triplet.masks_GIJ, strict=True):
      pred_IJ = np.roll(ref_IJ, 2, axis=(0, 1))
      inter = float(np.sum(pred_IJ & ref_IJ))
      total = float(pred_IJ.sum() + ref_IJ.sum())
      dice = (2 * inter + 1e-7) / (total + 1e-7)
      expected.append((record.id, name, dice, inter / (total - inter)))
  found = [(x["record"], x["class"], x["dice"], x["iou"]) for x in lines]
  assert found == expected
  table = json.loads((tmp_path / "summary--test.json").read_text())
  dice = np.array([row[2] for row in expected])
  assert table["dice"] == pytest.approx(dice.mean(), abs=1e-12)
  iou = np.mean([row[3] for row in expected])
  assert table["global_iou"] == pytest.approx(iou, abs=1e-12)
  inter, total = (sum(x[key] for x in lines) for key in ("inter", "pred"))
  assert table["class_iou"] == pytest.approx(inter / (2 * total - inter))
  tasks = {}
  for line in lines:
    tasks.setdefault((line["modality"], line["class"]), []).append(line["dice"])
  macro = np.mean([np.mean(values) for values in tasks.values()])
  assert summary.dice == pytest.approx(macro, abs=1e-12)
  assert table["macro"]["dice_low"] is None  # tasks of up to four images


def test_tasks_of_enough_images_have_intervals(oracle, tmp_path, make_world):
  """Of each task 8 images or 12; the mean over tasks has an interval too."""
  world = make_world(per_set=12)
  config = dataclasses.replace(CONFIG, protocols=("named",), controls=())
  table = evaluate(world, oracle(world, shift=2), config, tmp_path).tables
  for row in (table["macro"], *table["by_task"]):
    assert row["dice_low"] < row["dice"] < row["dice_high"]


def test_files_name_what_they_hold(world, oracle, tmp_path):
  evaluate(world, oracle(world, shift=2), CONFIG, tmp_path, split="val")
  for name, key in (("class", "by_class"), ("mod", "by_modality")):
    held = json.loads((tmp_path / f"{name}_iou_avg--val.json").read_text())
    assert "Dice" in held.pop("_note")
    table = json.loads((tmp_path / "summary--val.json").read_text())[key]
    assert held == {group: row["dice"] for group, row in table.items()}


def test_chunks_and_repetition_change_no_byte(world, oracle, tmp_path):
  model = oracle(world, shift=1, blind=("spleen",))
  outputs = []
  for run, chunk in enumerate((1, 3, 3, 1000)):
    config = EvalConfig(chunk=chunk, bootstrap=100)
    folder = tmp_path / str(run)
    evaluate(world, model, config, folder)
    outputs.append(_files(folder))
  assert outputs[0] == outputs[1] == outputs[2] == outputs[3]
  assert len(outputs[0]) == 11


def test_surfaces_boxes_and_groups_of_a_shifted_model(world, oracle, tmp_path):
  """Each row against the definitions, on the images themselves."""
  summary = evaluate(world, oracle(world, shift=2), CONFIG, tmp_path)
  lines = _lines(tmp_path / "metrics--test.jsonl")
  masks = {}
  for record in world:
    triplet = record.load()
    for name, mask_IJ in zip(triplet.classes, triplet.masks_GIJ, strict=True):
      masks[record.id, name] = mask_IJ
  for line in lines:
    ref_IJ = masks[line["record"], line["class"]]
    pred_IJ = np.roll(ref_IJ, 2, axis=(0, 1))
    found = surfaces.compare(pred_IJ, ref_IJ, (2.0,))
    assert (line["nsd"], line["hd95"]) == (found.nsd[0], found.hd95)
    assert (line["unit"], line["tolerance"]) == ("px", 2.0)
    rows, columns = ref_IJ.any(1).nonzero()[0], ref_IJ.any(0).nonzero()[0]
    box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert line["ref_box"] == box
  table = summary.tables
  assert table["nsd_px"] == pytest.approx(np.mean([x["nsd"] for x in lines]))
  assert (table["masks_mm"], table["nsd_mm"]) == (0, None)
  assert table["hd95_px"] == pytest.approx(np.mean([x["hd95"] for x in lines]))
  assert table["hd95_mm"] is None
  assert table["box_ap"]["refs"] == len(lines)
  assert 0 < table["box_ap"]["ap"] < table["box_ap"]["ap50"] <= 1
  dice = {(x["modality"], x["class"]): x["dice"] for x in table["by_task"]}
  by_modality = table["by_group"]["modality"]
  ct = [d for (modality, _), d in dice.items() if modality.startswith("comp")]
  assert by_modality["computed tomography"]["dice"] == pytest.approx(
    np.mean(ct)
  )
  assert "abdomen" in table["by_group"]["region"]


def test_known_spacing_makes_millimetres(world, oracle, tmp_path):
  @dataclasses.dataclass(frozen=True)
  class Spaced(Record):
    def load(self, on_fault=None):
      found = Record.load(self, on_fault)
      return dataclasses.replace(found, spacing_mm=(0.5, 2.0))

  names = [field.name for field in dataclasses.fields(Record)]
  spaced = [
    Spaced(**{name: getattr(record, name) for name in names})
    for record in world
  ]
  summary = evaluate(spaced, oracle(world, shift=2), CONFIG, tmp_path)
  lines = _lines(tmp_path / "metrics--test.jsonl")
  (line,) = (x for x in lines if (x["record"], x["class"]) == LIVER)
  ref_IJ = world[1].load().masks_GIJ[world[1].classes.index("liver")]
  tolerance = Registry.load().task("ct", "liver").tolerance_mm
  found = surfaces.compare(
    np.roll(ref_IJ, 2, axis=(0, 1)), ref_IJ, (tolerance,), (0.5, 2.0)
  )
  assert line["unit"] == "mm"
  assert line["tolerance"] == tolerance
  assert (line["nsd"], line["hd95"]) == (found.nsd[0], found.hd95)
  # Skin has no tolerance in mm: pixels, and apart from the others.
  assert {x["unit"] for x in lines if x["modality"] == "dermoscopy"} == {"px"}
  table = summary.tables
  for name in ("nsd", "hd95"):
    for unit in ("mm", "px"):
      values = [x[name] for x in lines if x["unit"] == unit]
      assert table[f"{name}_{unit}"] == pytest.approx(np.mean(values))
      assert table[f"masks_{unit}"] == len(values) > 0


def test_confidences_of_a_model_that_always_says_the_same(
  world, oracle, tmp_path
):
  """0.9 on masks of IoU 1, 0 on what is denied: worked by hand."""
  summary = evaluate(world, oracle(world), CONFIG, tmp_path)
  table = summary.tables["calibration"]
  assert table["claims"] == summary.masks
  assert table["ece"] == pytest.approx(0.1)
  assert table["brier"] == pytest.approx(0.01)
  assert table["aurc"] == 0
  there = summary.tables["presence"]
  assert there["auroc"] == 1.0
  assert there["at_recall"]["false_alarm"] == 0.0
  assert there["at_recall"]["threshold"] == 0.9
  assert set(summary.claims) == {(0.9, 1.0)}


def test_other_words_for_a_class(world, oracle, tmp_path):
  """A model that knows names by their letters alone loses those of others."""
  config = dataclasses.replace(CONFIG, protocols=("named", "phrases"))
  model = oracle(world)
  summary = evaluate(world, model, config, tmp_path)
  table = summary.tables["phrases"]
  assert {"typo", "case"} <= set(table)
  for row in table.values():
    assert row["name_dice"] == pytest.approx(1, abs=1e-6)
  # "hairr" still holds "hair".
  assert table["typo"]["drop"] > 0.8
  assert table["typo"]["claimed"] < 0.2
  assert table["case"]["drop"] == pytest.approx(1, abs=1e-6)
  lines = _lines(tmp_path / "phrases--test.jsonl")
  plain = [line for line in lines if line["kind"] == "name"]
  assert len(plain) == len({line["record"] for line in lines}) == 12
  questions = {request.question for request in model.requests}
  for line in lines:
    assert any(line["phrase"] in question for question in questions)


def test_descriptions_are_compared_and_never_shown(world, oracle, tmp_path):
  summary = evaluate(world, oracle(world), CONFIG, tmp_path)
  wording = summary.tables["wording"]
  assert wording["texts"] == 12
  assert 0 < wording["rougeL"] < 0.3  # the oracle's words share "holds"
  (first, *_) = _lines(tmp_path / "recognition--test.jsonl")
  assert first["description"] == world[0].description


def test_earlier_records_name_the_negative_protocol_otherwise():
  config = EvalConfig(protocols=("named", "absent"))
  assert config.protocols == ("named", "negative")


class Killed(BaseException):
  """What ends an evaluation without a word."""


@pytest.mark.parametrize("at, done", [(0, 0), (20, 0), (55, 1), (70, 2)])
def test_stopped_anywhere_it_goes_on(world, oracle, tmp_path, at, done):
  """All files as if nothing had happened, and no finished chunk done again."""
  pathlib.Path(world[5].image).write_bytes(b"not a picture")
  model = oracle(world, shift=1)
  whole = evaluate(world, model, CONFIG, tmp_path / "whole")
  asked = [request.question for request in model.requests]
  model.requests.clear()

  def dies(requests):
    for number, answer in model(requests):
      if len(model.requests) > at:
        raise Killed
      yield number, answer

  folder = tmp_path / "stopped"
  with pytest.raises(Killed):
    evaluate(world, dies, CONFIG, folder)
  scores = folder / "partial--test" / "scores-0.jsonl"
  assert len(scores.read_text().splitlines()) == 1 + done
  with scores.open("a") as file:
    file.write('{"chunk": 2, "images"')  # half a line
  model.requests.clear()
  again = evaluate(world, model, CONFIG, folder)
  assert _files(folder) == _files(tmp_path / "whole")
  rest = [request.question for request in model.requests]
  assert rest == asked[-len(rest) :]
  assert (len(rest) < len(asked)) == bool(done)
  assert [s.record for s in again.lowest] == [s.record for s in whole.lowest]
  assert again.examples == whole.examples


def test_records_are_read_while_others_are_answered(world, oracle, tmp_path):
  """The second record is read before the first question has its answer."""
  begun = threading.Event()

  class Watched:
    def __init__(self, record):
      self._record = record

    def __getattr__(self, name):
      return getattr(self._record, name)

    def load(self):
      if self._record is world[1]:
        begun.set()
      return self._record.load()

  model = oracle(world)

  def answers(requests):
    for number, request in enumerate(requests):
      assert begun.wait(10)
      yield number, model.answer(request)

  config = dataclasses.replace(CONFIG, protocols=("named",), controls=())
  told = evaluate([*map(Watched, world)], answers, config, tmp_path / "a")
  assert told.tables == evaluate(world, model, config, tmp_path / "b").tables


def test_processes_share_the_chunks(world, oracle, tmp_path):
  model = oracle(world, shift=1)
  evaluate(world, model, CONFIG, tmp_path / "one")
  folder = tmp_path / "two"
  asked = []
  for part in (1, 0):  # the first reads what the second wrote
    model.requests.clear()
    found = evaluate(world, model, CONFIG, folder, part=part, parts=2)
    assert (found is None) == bool(part)
    asked.append(len(model.requests))
  assert _files(folder) == _files(tmp_path / "one")
  assert all(asked)


def test_pictures_of_a_stopped_evaluation_come_once(world, oracle, tmp_path):
  """Two processes go on with what both put down; two questions an image."""
  config = dataclasses.replace(CONFIG, chunk=3, classes_per_question=1)
  model = oracle(world, shift=1)
  whole = evaluate(world, model, config, tmp_path / "one")

  def dies(requests):
    for number, answer in model(requests):
      if len(model.requests) > limit:
        raise Killed
      yield number, answer

  for part in (0, 1):
    model.requests.clear()
    limit = 25
    with pytest.raises(Killed):
      evaluate(world, dies, config, tmp_path / "two", part=part, parts=2)
  for part in (1, 0):
    found = evaluate(world, model, config, tmp_path / "two", part=part, parts=2)
  assert found.examples == whole.examples
  assert found.lowest == whole.lowest


def test_scores_of_two_evaluations_are_not_mixed(world, oracle, tmp_path):
  def dies(requests):
    raise Killed
    yield  # a generator

  with pytest.raises(Killed):
    evaluate(world, dies, CONFIG, tmp_path, model="step 6")
  with pytest.raises(ValueError, match="another model; delete it"):
    evaluate(world, oracle(world), CONFIG, tmp_path, model="step 8")
  other = EvalConfig(chunk=5, absent_per_image=1)
  with pytest.raises(ValueError, match="another absent_per_image"):
    evaluate(world, oracle(world), other, tmp_path, model="step 6")
  with pytest.raises(ValueError, match=r"another .*, records"):
    evaluate(world[:7], oracle(world), CONFIG, tmp_path, model="step 6")


def _stopped(index, config, folder):
  """Begins an evaluation that scores nothing."""

  def dies(requests):
    raise Killed
    yield  # a generator

  with pytest.raises(Killed):
    evaluate(index, dies, config, folder)


def _description(world):
  return [dataclasses.replace(world[0], description="other"), *world[1:]]


def _mask_file(world):
  ((path, name), *masks) = world[0].masks
  masks = ((path + ".other", name), *masks)
  return [dataclasses.replace(world[0], masks=masks), *world[1:]]


def _picture(world):
  path = pathlib.Path(world[0].image)
  path.write_bytes(path.read_bytes() + b" ")
  return world


def _other_class(world):
  (*masks, (path, _)) = world[-1].masks
  masks = (*masks, (path, "mole"))
  return [*world[:-1], dataclasses.replace(world[-1], masks=masks)]


@pytest.mark.parametrize(
  ("change", "named"),
  [
    (_description, "descriptions"),
    (_mask_file, "files, sizes of files"),
    (_picture, "sizes of files"),
    (_other_class, "classes"),
  ],
)
def test_what_scores_depend_on_is_not_mixed(
  world, oracle, tmp_path, change, named
):
  """Also the classes of records that `limit` leaves out."""
  drawn = protocols.draw(world, 5, seed=0)
  index = sorted(world, key=lambda record: record.id not in drawn)
  assert index[-1].id not in drawn
  config = dataclasses.replace(CONFIG, limit=5)
  _stopped(index, config, tmp_path)
  with pytest.raises(ValueError, match=rf"with another {named}; delete it"):
    evaluate(change(index), oracle(world), config, tmp_path)


def test_tasks_and_pictures_are_not_mixed(world, oracle, tmp_path):
  """The file of tasks may lie elsewhere, and must hold the same."""
  lines = (
    "class,modalities,kind,tolerance_mm,tolerance_source\n"
    "liver,ct,organ,{},us\n"
  )
  files = [tmp_path / name for name in ("a.csv", "b.csv", "c.csv")]
  for file, tolerance in zip(files, (1, 1, 2), strict=True):
    file.write_text(lines.format(tolerance))
  first, same, other = (
    dataclasses.replace(CONFIG, tasks=str(file)) for file in files
  )
  _stopped(world, first, tmp_path / "out")
  _stopped(world, same, tmp_path / "out")
  with pytest.raises(ValueError, match="with another tasks; delete it"):
    evaluate(world, oracle(world), other, tmp_path / "out")
  more = dataclasses.replace(first, worst=5, gallery=3, bootstrap=0)
  with pytest.raises(ValueError, match="with another gallery, worst; delete"):
    evaluate(world, oracle(world), more, tmp_path / "out")


def test_scores_stay_until_all_is_made_of_them(world, oracle, tmp_path):
  model = oracle(world, shift=1)
  evaluate(world, model, CONFIG, tmp_path / "whole")

  def fails(summary):
    assert (tmp_path / "out" / "summary--test.json").exists()
    raise FileNotFoundError("metrics.jsonl")

  with pytest.raises(FileNotFoundError):
    evaluate(world, model, CONFIG, tmp_path / "out", finish=fails)
  model.requests.clear()
  made = []
  found = evaluate(world, model, CONFIG, tmp_path / "out", finish=made.append)
  assert not model.requests
  assert made == [found]
  assert _files(tmp_path / "out") == _files(tmp_path / "whole")


def test_what_the_index_rejects_is_counted_and_listed(world, oracle, tmp_path):
  rejected = [rows.Quarantined("images/a.png", "a.png", "modality", "unknown")]
  pathlib.Path(world[5].image).write_bytes(b"not a picture")
  summary = evaluate(world, oracle(world), CONFIG, tmp_path, rejected=rejected)
  assert summary.tables["quarantined"] == 2
  assert summary.images == 11
  assert [row.record for row in summary.quarantine] == [
    "images/a.png",
    world[5].id,
  ]
  lines = _lines(tmp_path / "quarantine--test.jsonl")
  assert [line["record"] for line in lines] == ["images/a.png", world[5].id]


def test_records_without_a_target_are_refused_before_the_first_question(
  world, oracle, tmp_path
):
  model = oracle(world)
  empty = [dataclasses.replace(record, masks=()) for record in world]
  with pytest.raises(ValueError, match="none of 12 records has a target"):
    evaluate(empty, model, CONFIG, tmp_path)
  assert not model.requests
  assert not tmp_path.joinpath("partial--test").exists()


def test_a_library_that_is_missing_is_missed_before_the_first_question(
  world, oracle, tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
  model = oracle(world)
  with pytest.raises(NotImplementedError, match="need sacrebleu"):
    evaluate(world, model, CONFIG, tmp_path)
  assert not model.requests
  named = dataclasses.replace(CONFIG, protocols=("named",))
  assert evaluate(world, model, named, tmp_path)


@pytest.mark.parametrize("confidence", [float("nan"), 1.5, -0.1])
def test_a_confidence_that_is_none_is_named_when_it_is_said(
  world, oracle, tmp_path, confidence
):
  model = oracle(world)
  honest = model.found

  def odd(name, masks):
    return dataclasses.replace(honest(name, masks), confidence=confidence)

  model.found = odd
  with pytest.raises(ValueError, match=r"images/\S+: the confid") as caught:
    evaluate(world, model, CONFIG, tmp_path)
  assert len(str(caught.value)) < 250
  assert len(model.requests) < 4


def test_order_of_records_changes_no_score(world, oracle, tmp_path):
  model = oracle(world, shift=1)
  first = evaluate(world, model, CONFIG, tmp_path / "a")
  again = evaluate(world[::-1], model, CONFIG, tmp_path / "b")
  for ours, theirs in zip(
    first.tables["by_task"], again.tables["by_task"], strict=True
  ):
    assert ours.pop("names") == theirs.pop("names")
    assert ours == pytest.approx(theirs, abs=1e-12)
  assert first.tables["presence"] == again.tables["presence"]


def test_a_false_rejection_counts_as_dice_zero(world, oracle, tmp_path):
  model = oracle(world, blind=("skin lesion",))
  summary = evaluate(world, model, CONFIG, tmp_path)
  lines = _lines(tmp_path / "metrics--test.jsonl")
  lost = [line for line in lines if line["class"] == "skin lesion"]
  assert len(lost) == 4
  for line in lost:
    assert not line["present"]
    assert (line["pred"], line["confidence"]) == (0, 0.0)
    assert line["dice"] == pytest.approx(0, abs=1e-6)
  assert summary.tables["presence"]["named_rejection"] == 4 / len(lines)
  assert summary.dice == pytest.approx(7 / 8, abs=1e-6)
  assert summary.tables["recognition"]["fn"] == 4
  worst = {sample.modality for sample in summary.lowest}
  assert worst == {"dermoscopy"}


def test_a_claim_of_an_absent_class_is_no_rejection(world, oracle, tmp_path):
  model = oracle(world)
  honest = model.found

  def boast(name, masks):
    found = honest(name, masks)
    if found.present:
      return found
    mask_IJ = next(iter(masks.values()), np.zeros((48, 56), bool))
    return type(found)(name, True, mask_IJ, None, 0.8)

  model.found = boast
  summary = evaluate(world, model, CONFIG, tmp_path)
  assert summary.absent == 0.0
  assert summary.tables["controls"]["noise"]["confident_share"] == 1.0
  wrong = summary.tables["controls"]["wrong_name"]
  assert wrong["claimed"] == 1.0
  assert wrong["control_dice"] > 0.2  # one of the image's masks, often its own


def test_a_bad_record_is_listed_and_not_replaced(world, oracle, tmp_path):
  pathlib.Path(world[5].image).write_bytes(b"not a picture")
  summary = evaluate(world, oracle(world), CONFIG, tmp_path)
  assert summary.images == 11
  (row,) = _lines(tmp_path / "quarantine--test.jsonl")
  assert row["record"] == world[5].id
  assert world[5].image in row["reason"]
  lines = _lines(tmp_path / "metrics--test.jsonl")
  ids = [line["record"] for line in lines]
  assert world[5].id not in ids
  expected = sum(len(r.masks) for r in world if r is not world[5])
  assert len(lines) == expected == summary.masks
  assert len({(x["record"], x["class"]) for x in lines}) == len(lines)


def test_no_reference_text_reaches_the_model(world, oracle, tmp_path):
  assert all("SECRET" in (record.description or "") for record in world)
  model = oracle(world)
  evaluate(world, model, CONFIG, tmp_path)
  fields = {"image_IJC", "question", "classes"}
  for request in model.requests:
    assert set(vars(request)) == fields
    assert "SECRET" not in request.question
    assert "[SEG]" not in request.question
    if request.classes is None:
      assert not any(name in request.question for name in model.names)


def test_limit_draws_records_and_keeps_all_classes(world, oracle, tmp_path):
  config = EvalConfig(limit=5, control_limit=2, bootstrap=0)
  summary = evaluate(world, oracle(world), config, tmp_path)
  assert summary.images == 5
  assert summary.tables["controls"]["noise"]["images"] == 2
  assert summary.tables["macro"]["dice_low"] is None


def test_protocols_left_out_are_none(world, oracle, tmp_path):
  config = EvalConfig(protocols=("named",), controls=(), bootstrap=0)
  summary = evaluate(world, oracle(world), config, tmp_path)
  assert summary.recognition is None
  assert summary.absent is None
  assert summary.tables["controls"] == {}


def test_progress_wraps_the_records(world, oracle, tmp_path):
  seen = []
  at_answers = []
  model = oracle(world)

  def progress(chosen):
    for record in chosen:
      seen.append(record.id)
      yield record

  def answers(requests):
    for answer in model(requests):
      at_answers.append(len(seen))
      yield answer

  evaluate(world, answers, CONFIG, tmp_path, progress=progress)
  assert seen == [record.id for record in world]
  # They are read as they are asked about, not all before.
  assert at_answers[0] < len(world)


def test_answers_that_do_not_fit_are_refused(world, oracle, tmp_path):
  model = oracle(world)
  with pytest.raises(ValueError, match="1 of 40 requests have no answer"):
    evaluate(world, lambda r: list(model(r))[:-1], CONFIG, tmp_path)
  with pytest.raises(ValueError, match="numbered 1, but that request"):
    evaluate(world, lambda r: [*model(r), (1, None)], CONFIG, tmp_path)
  with pytest.raises(ValueError, match="holds no record"):
    evaluate([], model, CONFIG, tmp_path)
  honest = model.found

  def small(name, masks):
    found = honest(name, masks)
    return type(found)(name, True, np.zeros((4, 4), bool), None, 1.0)

  model.found = small
  with pytest.raises(ValueError, match=r"\(4, 4\), expected \(48, 56\)"):
    evaluate(world, model, CONFIG, tmp_path)


def test_a_split_without_a_readable_record_says_so(world, oracle, tmp_path):
  model = oracle(world)
  for record in world:
    pathlib.Path(record.image).write_bytes(b"")
  with pytest.raises(ValueError, match="0 images were read and 12 quarantined"):
    evaluate(world, model, CONFIG, tmp_path)


def test_public_names():
  for name in evaluate_lib.__all__:
    assert hasattr(evaluate_lib, name)
