"""`rcmed adapt`, and what its file does in predict and evaluate."""

import dataclasses
import json

import cv2
import numpy as np
import pytest
import torch_files
import toy

from rcmed_jax import cli
from rcmed_jax.data import tokens
from rcmed_jax.serve import new_classes

WORDS = [
  "Can you segment the lump in this computed tomography image?",
  "This is a <p> computed tomography </p> image. The image contains "
  "<p> lump </p> [SEG].</s>",
]
MODALITY = "computed tomography"
QUESTION = f"Where is the LUMP in this {MODALITY} image?"


def _rcmed(*argv) -> int:
  return cli.main([*map(str, argv)])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
  """A converted checkpoint of noise."""
  folder = tmp_path_factory.mktemp("checkpoint")
  tokenizer = folder / "tokenizer.model"
  vocabulary = tokens.train_tokenizer(WORDS, 340, tokenizer).vocabulary
  config = toy.model_config()
  language = dataclasses.replace(config.language, vocabulary=vocabulary)
  torch_files.write_release(
    folder / "syre", dataclasses.replace(config, language=language)
  )
  assert not _rcmed(
    "convert",
    "import",
    "--from=syre",
    folder / "syre",
    folder / "ours",
    "--tokenizer",
    tokenizer,
  )
  return folder / "ours"


@pytest.fixture(scope="module")
def support(tmp_path_factory):
  """Three images with a bright lump in about one place."""
  folder = tmp_path_factory.mktemp("support")
  rng = np.random.default_rng(0)
  for kind in ("images", "masks"):
    (folder / kind).mkdir()
  for index in range(3):
    image = rng.integers(0, 60, (48, 64, 3), np.uint8)
    mask = np.zeros((48, 64), np.uint8)
    mask[10 + index : 34, 16:44] = 255
    image[mask > 0] += 150
    cv2.imwrite(str(folder / f"images/ct--mine--{index}.png"), image)
    cv2.imwrite(str(folder / f"masks/ct--mine--{index}.png"), mask)
  return folder


@pytest.fixture(scope="module")
def learnt(checkpoint, support, tmp_path_factory):
  out = tmp_path_factory.mktemp("learnt") / "lump.npz"
  told = ("--checkpoint", checkpoint, "--support", support, "--class", "lump")
  assert _rcmed("adapt", *told, "--out", out) == 0
  return out


def test_the_file_and_the_report_tell_what_was_learnt(learnt, capsys):
  held = new_classes.load(learnt)
  assert (held.name, held.modality, held.supports) == ("lump", MODALITY, 3)
  assert held.agreement > 0.9  # so the prior is on
  assert held.strengths == new_classes.Strengths(0.3, 0.5, 0.5)
  assert np.linalg.norm(held.prototype_C) == pytest.approx(1, abs=1e-6)
  report = json.loads(learnt.with_suffix(".json").read_text())
  assert len(report["left_out"]) == 3
  for key in ("dice_without", "dice_with"):
    rows = [row[key] for row in report["left_out"]]
    assert report[key] == pytest.approx(np.mean(rows))


def test_predict_shows_the_class_and_the_strengths_matter(
  learnt, checkpoint, support, tmp_path, capsys
):
  image = support / "images/ct--mine--0.png"
  held = new_classes.load(learnt)
  strong = dataclasses.replace(
    held, strengths=new_classes.Strengths(0.0, 0.0, 10.0)
  )
  strong.save(tmp_path / "strong.npz")
  masks = {}
  for name, path in (("own", learnt), ("strong", tmp_path / "strong.npz")):
    told = ("--workdir", checkpoint, "--image", image, "--prompt", QUESTION)
    out = tmp_path / name
    assert _rcmed("predict", *told, "--classes", path, "--out", out) == 0
    answer = json.loads((out / "answer.json").read_text())
    assert answer["text"].endswith("The image contains <p> lump </p> [SEG].")
    assert [target["class"] for target in answer["targets"]] == ["lump"]
    masks[name] = answer["targets"][0]
  # Where every support lay, the prior outweighs weights of noise.
  mask = cv2.imread(str(tmp_path / "strong" / masks["strong"]["mask"]), 0)
  assert mask[16:30, 20:40].all()


def test_a_request_for_something_else_is_answered_as_ever(
  learnt, checkpoint, support, tmp_path
):
  said = []
  for name, more in (("plain", ()), ("known", ("--classes", learnt))):
    told = (
      "--workdir",
      checkpoint,
      "--image",
      support / "images/ct--mine--1.png",
    )
    out = tmp_path / name
    prompt = ("--prompt", "Where are the lumps?")  # another word
    assert _rcmed("predict", *told, *prompt, *more, "--out", out) == 0
    said.append((out / "answer.json").read_text())
  assert said[0] == said[1]


def test_evaluate_asks_for_the_class_alone(
  learnt, checkpoint, support, tmp_path
):
  index = tmp_path / "image2label_test.json"
  image, other = (f"ct--mine--{i}.png" for i in range(2))
  index.write_text(
    json.dumps(
      {
        str(support / "images" / image): [
          {str(support / "masks" / image): "lump"},
          {str(support / "masks" / other): "bone"},
        ]
      }
    )
  )
  assert not _rcmed(
    "evaluate",
    "--workdir",
    checkpoint,
    "--index",
    index,
    "--classes",
    learnt,
    "--config.eval.rows=1",
    "--config.eval.bootstrap=0",
    "--out",
    tmp_path / "report",
  )
  lines = (tmp_path / "report/metrics--test.jsonl").read_text().splitlines()
  assert len(lines) == 2
  dice = {row["class"]: row["dice"] for row in map(json.loads, lines)}
  assert dice["lump"] > 0.5


@pytest.mark.parametrize(
  ("flags", "said"),
  [
    (("--class", "lump", "--support", "{tmp}"), "there is no example in it"),
    (("--class", "lump", "--pixels", "-1"), "must lie in 0..10"),
    (("--class", "lump", "--out", "{tmp}/x.json"), "ends in .npz"),
  ],
)
def test_what_cannot_be_learnt_is_named(
  flags, said, checkpoint, support, tmp_path, capsys
):
  flags = [flag.format(tmp=tmp_path) for flag in flags]
  if "--support" not in flags:
    flags += ["--support", support]
  told = ("--checkpoint", checkpoint, "--out", tmp_path / "x.npz")
  assert _rcmed("adapt", *told, *flags) == cli.BAD_INPUT
  assert said in capsys.readouterr().err


def test_another_model_s_class_is_refused(
  learnt, checkpoint, support, tmp_path, capsys
):
  held = dataclasses.replace(new_classes.load(learnt), fingerprint="other")
  held.save(tmp_path / "other.npz")
  told = (
    "--workdir",
    checkpoint,
    "--image",
    support / "images/ct--mine--0.png",
  )
  foreign = ("--classes", tmp_path / "other.npz")
  assert _rcmed("predict", *told, "--prompt", QUESTION, *foreign) == 2
  assert "made with other weights" in capsys.readouterr().err
