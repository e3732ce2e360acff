"""The whole product at its smallest: drawn data to report, and what follows."""

import json
import re
import types

import cv2
import numpy as np
import pytest

from rcmed_jax import cli
from rcmed_jax.apps import answering, evaluate, manifest, settings
from rcmed_jax.eval import temperature
from rcmed_jax.serve.assistant import Question

# Eight virtual devices share a batch of eight.
SETTINGS = (
  "--config=configs/demo.py:tiny",
  "--config.mesh.data=8",
  "--config.train.batch_size=8",
)
LINE = (
  r"demo: dice=\d\.\d+ iou=\d\.\d+ recognition=\d\.\d+ absent=\d\.\d+ "
  r"tasks=\d+ images=18 seconds=\d+\n$"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "demo"
  told = ("--images", "18", "--held-out", "18", "--workdir", str(workdir))
  assert cli.main(["demo", *told, *SETTINGS]) == 0
  return workdir


@pytest.fixture(scope="module")
def assistant(run):
  return answering.load_assistant(run, rows=2)


def picture(run):
  return str(sorted((run / "data/images").glob("ct--*.png"))[0])


def test_demo_leaves_a_run_with_report_and_curves(run):
  page = (run / "report/index.html").read_text(encoding="utf-8")
  assert "<svg" in page and "data:image/png" in page
  for name in ("contact_sheet.png", "image2label_test.json"):
    assert (run / "data" / name).is_file()
  steps = [
    json.loads(line)["step"]
    for line in (run / "metrics.jsonl").read_text().splitlines()
  ]
  assert steps == [2, 4, 6]
  assert list((run / "tensorboard").glob("events*"))
  start, *_ = manifest.read(run)
  assert start["command"][:2] == ["rcmed", "demo"]
  assert "liver" in start["tasks"]["computed tomography"]


def test_demo_ends_with_its_line_and_can_be_repeated(run, capsys):
  # The same folder: everything is there, so training goes on after its end.
  told = ("--images", "18", "--held-out", "18", "--workdir", str(run))
  before = (run / "report/summary--test.json").read_bytes()
  assert cli.main(["demo", *told, *SETTINGS]) == 0
  assert re.search(LINE, capsys.readouterr().out)
  assert (run / "report/summary--test.json").read_bytes() == before


def test_run_with_other_settings_is_refused(run, capsys):
  told = ("--workdir", str(run), "--images", "18", "--held-out", "18")
  other = "--config.optimizer.learning_rate=0.5"
  assert cli.main(["demo", *told, *SETTINGS, other]) == 2
  message = capsys.readouterr().err
  assert "0.5" in message and "another --workdir" in message


def test_predict_writes_masks_overlay_and_answer(run, tmp_path, capsys):
  image = picture(run)
  prompt = "Can you segment the liver in this computed tomography image?"
  told = ("--workdir", str(run), "--image", image, "--prompt", prompt)
  assert cli.main(["predict", *told, "--out", str(tmp_path)]) == 0
  answer = json.loads((tmp_path / "answer.json").read_text())
  assert answer["prompt"] == prompt and isinstance(answer["text"], str)
  shape = cv2.imread(image).shape
  assert cv2.imread(str(tmp_path / "overlay.png")).shape == shape
  for target in answer["targets"]:
    assert 0 <= target["confidence"] <= 1
    assert (target["mask"] is not None) == target["present"]


@pytest.mark.parametrize(
  ("image", "prompt", "said"),
  [
    ("missing.png", "the liver", "there is no such file"),
    (None, "  ", "the prompt has no text"),
  ],
)
def test_predict_refuses_bad_input_by_name(run, capsys, image, prompt, said):
  told = ["--workdir", str(run), "--image", image or picture(run)]
  assert cli.main(["predict", *told, "--prompt", prompt]) == 2
  assert said in capsys.readouterr().err


def test_predict_without_a_run_says_what_to_give(tmp_path, capsys, run):
  told = ["--workdir", str(tmp_path), "--image", picture(run), "--prompt", "x"]
  assert cli.main(["predict", *told]) == 2
  assert "is not the folder of a run" in capsys.readouterr().err


def test_evaluate_gives_the_demos_scores_again(run, tmp_path):
  index = str(run / "data/image2label_test.json")
  told = ("--workdir", str(run), "--index", index, "--out", str(tmp_path))
  assert cli.main(["evaluate", *told]) == 0
  name = "summary--test.json"
  assert (tmp_path / name).read_bytes() == (run / "report" / name).read_bytes()


def test_train_reports_a_missing_index_and_a_wrong_key(tmp_path, capsys):
  told = ["train", "--workdir", str(tmp_path), *SETTINGS]
  assert cli.main([*told, "--config.data.index=gone.json"]) == 2
  assert "gone.json: index: there is no such file" in capsys.readouterr().err
  assert cli.main([*told, "--config.train.stpes=3"]) == 2
  assert "config.train.steps (int)" in capsys.readouterr().err
  assert cli.main([*told, "--config.train.steps=many"]) == 2
  assert "must be int" in capsys.readouterr().err


def test_data_phantom_draws_an_index(tmp_path, capsys):
  told = ["--out", str(tmp_path), "--images", "9", "--size", "64"]
  assert cli.main(["data", "phantom", *told]) == 0
  index = json.loads((tmp_path / "image2label_train.json").read_text())
  assert len(index) == 9
  assert "contact_sheet.png" in capsys.readouterr().out


def test_answers_do_not_depend_on_company_or_padding(run, assistant):
  told = settings.load(run)
  rng = np.random.default_rng(0)
  images = [
    rng.integers(0, 256, (40, 64, 3), np.uint8),
    rng.integers(0, 256, (64, 30, 3), np.uint8),
    rng.integers(0, 256, (50, 50, 3), np.uint8),
  ]
  asked = [Question(image, "Where is the heart?") for image in images]
  together = assistant.ask_many(asked)
  alone = [assistant.ask(q.image_IJC, q.text) for q in asked]
  assert [a.text for a in together] == [a.text for a in alone]
  for question, answer in zip(asked, together, strict=True):
    assert len(answer.targets) <= 2 * told.data.max_targets
    for target in answer.targets:
      if target.mask_IJ is not None:
        assert target.mask_IJ.shape == question.image_IJC.shape[:2]


def test_a_validation_split_gives_the_threshold_of_others(tmp_path):
  """Chosen before the temperature, kept after it, and not for its own split."""
  path = tmp_path / answering.TEMPERATURE
  assert evaluate.kept_threshold(path, "test") is None
  random = np.random.default_rng(0)
  confidence = random.uniform(0.05, 0.95, 400)
  right = (random.random(400) < confidence) * 1.0
  at_recall = {"threshold": 0.6, "target": 0.9}
  summary = types.SimpleNamespace(
    split="validation",
    claims=tuple(zip(confidence, right, strict=True)),
    tables={"presence": {"at_recall": at_recall}},
  )
  evaluate._calibrate(summary, path)
  found = evaluate.kept_threshold(path, "test")
  assert found.split == "validation"
  assert found.threshold == temperature.load(path).apply([0.6])[0] != 0.6
  assert evaluate.kept_threshold(path, "validation") is None
  summary.tables["presence"]["at_recall"] = None  # no class was asked alone
  evaluate._calibrate(summary, path)
  assert evaluate.kept_threshold(path, "test") is None


def test_confidences_get_the_temperature_of_their_run(run, tmp_path):
  """0.9 has a logit of log 9, half of which is that of 0.75."""
  path = tmp_path / answering.TEMPERATURE
  temperature.save(path, temperature.Temperature(2.0, "validation", 20, 1, 1))
  told = dict(rows=2, fitted=path)
  assert answering.load_assistant(run, **told).calibrate(0.9) == (
    pytest.approx(0.75)
  )
  plain = answering.load_assistant(run, **told, calibrated=False)
  assert plain.calibrate(0.9) == 0.9
  assert answering.load_assistant(run, rows=2).calibrate(0.9) == 0.9
