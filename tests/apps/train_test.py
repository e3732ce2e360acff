"""`rcmed train --from`: weights of another, and what a start leaves behind."""

import dataclasses
import json

import cv2
import jax.numpy as jnp
import numpy as np
import pytest
import torch_files
import toy

from rcmed_jax import cli
from rcmed_jax.apps import manifest, runs, settings, starting
from rcmed_jax.convert import store
from rcmed_jax.data import phantoms, tokens
from rcmed_jax.train import checkpoints, initial, replay
from rcmed_jax.train.step import TrainState

WORDS = ["This is a <p> computed tomography </p> image with a liver in it."]


def _rcmed(*argv) -> int:
  return cli.main([*map(str, argv)])


@pytest.fixture
def converted(tmp_path):
  """A converted checkpoint of noise, with its tokenizer."""
  path = tmp_path / "tokenizer.model"
  vocabulary = tokens.train_tokenizer(WORDS, 320, path).vocabulary
  config = toy.model_config()
  language = dataclasses.replace(config.language, vocabulary=vocabulary)
  config = dataclasses.replace(config, language=language, channel_order="bgr")
  torch_files.write_release(tmp_path / "syre", config)
  out = tmp_path / "ours"
  told = ("convert", "import", "--from=syre", tmp_path / "syre", out)
  assert _rcmed(*told, "--tokenizer", path) == 0
  return out


@pytest.fixture
def index(tmp_path):
  rng = np.random.default_rng(0)
  mask = np.zeros((32, 32), np.uint8)
  mask[8:20, 8:20] = 1
  entries = {}
  for number in range(2):
    name = f"ct--mine--{number}.png"
    image = rng.integers(0, 255, (32, 32, 3), np.uint8)
    cv2.imwrite(str(tmp_path / name), image)
    cv2.imwrite(str(tmp_path / f"mask-{name}"), mask)
    entries[name] = [{f"mask-{name}": "liver"}]
  path = tmp_path / "image2label_mine.json"
  path.write_text(json.dumps(entries))
  return path


def _train(index, workdir, start, *more) -> int:
  return _rcmed(
    "train",
    "--config=configs/finetune.py:tiny",
    f"--from={start}",
    f"--workdir={workdir}",
    f"--config.data.index={index}",
    "--config.data.lengths=(256,)",
    "--config.data.mask_size=64",
    "--config.model.lora.rank=2",
    "--config.optimizer.trainable=lora",
    "--config.train.batch_size=8",
    "--config.mesh.data=8",
    "--config.optimizer.warmup_steps=0",
    "--config.train.steps=2",
    *more,
  )


@pytest.mark.heavy
def test_low_rank_updates_train_on_converted_weights_and_leave(
  converted, index, tmp_path
):
  run = tmp_path / "run"
  assert not _train(index, run, converted)
  held = store.read(converted)
  model = settings.load(run).model
  assert (model.image, model.decoder) == (held.model.image, held.model.decoder)
  assert (model.channel_order, model.lora.rank) == ("bgr", 2)
  with checkpoints.Checkpoints(run) as saved:
    language = saved.weights()["language"]["layers"]
  up = np.asarray(language["q"]["up"])
  assert np.abs(up).max() > 0  # it started at zero
  base = np.asarray(held.tensors["language.layers.q.kernel"]).astype(np.float32)
  kernel = np.asarray(language["q"]["kernel"])  # held in bfloat16
  np.testing.assert_allclose(np.float32(kernel), base, rtol=1e-2, atol=1e-4)

  # Another run goes on from them, at step 0 and with other data seeds.
  other = tmp_path / "other"
  assert not _train(index, other, run, "--config.data.seed=5")
  (entry,) = manifest.read(other)
  assert (entry["from"], entry["seeds"]["data"]) == (str(run), 5)
  with checkpoints.Checkpoints(other) as saved:
    assert saved.meta()["step"] == 2
    further = saved.weights()["language"]["layers"]["q"]
  assert (run / "tokenizer.model").read_bytes() == (
    other / "tokenizer.model"
  ).read_bytes()
  np.testing.assert_array_equal(np.asarray(further["kernel"]), kernel)
  # Nearer to what it began from than to nothing.
  moved = np.abs(
    np.asarray(further["down"]) - np.asarray(language["q"]["down"])
  )
  assert 0 < moved.max() < 0.5 * np.abs(np.asarray(further["down"])).max()

  # Out and in again, merged: only what trained has moved.
  assert _rcmed("convert", "export", run, tmp_path / "out") == 0
  back = ("convert", "import", "--from=syre", tmp_path / "out")
  assert _rcmed(*back, tmp_path / "back") == 0
  again = store.read(tmp_path / "back").tensors
  merged = np.float32(np.asarray(again["language.layers.q.kernel"]))
  down = np.asarray(language["q"]["down"])
  scale = model.lora.alpha / model.lora.rank
  expected = np.float32(kernel) + scale * down @ up
  np.testing.assert_allclose(merged, expected, rtol=1e-2, atol=1e-3)
  np.testing.assert_array_equal(
    np.asarray(again["language.embedding"]),
    np.asarray(held.tensors["language.embedding"]),
  )
  np.testing.assert_allclose(
    np.asarray(again["mask_decoder.quality_token"], np.float32),
    np.asarray(held.tensors["mask_decoder.quality_token"], np.float32),
    rtol=1e-2,
  )


def test_a_folder_without_weights_is_refused(tmp_path):
  with pytest.raises(FileNotFoundError, match="is not the folder of a run"):
    starting.open_weights(tmp_path)


@pytest.mark.parametrize("window", ["10", "9:8", "0:4", "a:b"])
def test_a_wrong_window_is_refused(window, tmp_path, capsys):
  with pytest.raises(SystemExit):
    _rcmed("train", f"--workdir={tmp_path}", f"--profile={window}")
  assert "expected FIRST:LAST" in capsys.readouterr().err


def test_a_replay_names_the_record_at_fault(tmp_path, monkeypatch, capsys):
  def replayed(*args):
    assert args[6] == 5
    good, bad = {"loss": 1.5}, {"loss": float("nan")}
    return replay.Replay(
      weights_step=4,
      exact=True,
      whole=replay.Outcome(None, {**bad, "non_finite": 1.0}),
      alone=(
        replay.Outcome(0, {**good, "non_finite": 0.0}),
        replay.Outcome(1, {**bad, "non_finite": 1.0}),
        replay.Outcome(-1, {**good, "non_finite": 0.0}),
      ),
    )

  monkeypatch.setattr(replay, "replay", replayed)
  phantoms.write(tmp_path / "data", 9, seed=0)
  index = f"--config.data.index={tmp_path / 'data/image2label_train.json'}"
  command = ("train", "--config=configs/demo.py:tiny", index)
  run = tmp_path / "run"
  assert _rcmed(*command, f"--workdir={run}", "--replay=5") == 2
  assert "is not the folder of a run" in capsys.readouterr().err
  begun = runs.start(settings.parse(command[1:]), run)
  assert _rcmed(*command, f"--workdir={run}", "--replay=5") == 0
  said = capsys.readouterr().out.splitlines()
  assert said[0].endswith("step 5, weights after step 4, which it met")
  assert said[1] == "  NOT FINITE  all records: loss=nan"
  assert said[2] == f"  finite      record 0, {begun.items[0].id}: loss=1.5"
  assert said[3] == f"  NOT FINITE  record 1, {begun.items[1].id}: loss=nan"
  assert said[4] == "  finite      a row left empty: loss=1.5"


def _state():
  return TrainState(
    step=jnp.int32(0),
    trainable={"head": {"kernel": jnp.zeros((2, 3))}},
    frozen={
      "body": {"kernel": jnp.ones((2,), jnp.bfloat16)},
      "wide": {"kernel": jnp.ones((128, 64))},
      "language": {"head": {"kernel": jnp.ones((4, 128))}},
    },
    moments={},
  )


def _with_weights(given):
  """Of a model with a vocabulary of 96, which the state fills up to 128."""
  state = _state()
  own = {**state.trainable, **state.frozen}
  own["language"] = {"head": {"kernel": np.ones((4, 96))}}
  return initial.with_weights(state, given, own)


def test_weights_take_the_dtype_and_place_of_the_state_s_own():
  given = {"body.kernel": np.float32([2, 3])}
  found = _with_weights(given)
  assert found.frozen["body"]["kernel"].dtype == "bfloat16"
  assert found.frozen["body"]["kernel"].tolist() == [2, 3]
  assert not found.trainable["head"]["kernel"].any()
  given = {"language.head.kernel": np.full((4, 96), 2.0)}
  head = _with_weights(given).frozen["language"]["head"]
  assert (head["kernel"].sum(), head["kernel"][:, 96:].sum()) == (4 * 96 * 2, 0)
  given = {"language.head.kernel": np.full((4, 128), 2.0)}  # of another run
  head = _with_weights(given).frozen["language"]["head"]
  assert head["kernel"].sum() == 4 * 128 * 2


@pytest.mark.parametrize(
  ("given", "said"),
  [
    ({"tail": np.zeros(2)}, "no place for tail"),
    ({"body.kernel": np.zeros(3)}, r"shape \(3,\), the model \(2,\)"),
    # Only a vocabulary is filled up.
    ({"wide.kernel": np.zeros((96, 64))}, r"shape \(96, 64\), the model"),
    (
      {"language.head.kernel": np.zeros((3, 96))},
      r"shape \(3, 96\), the model \(4, 96\)",
    ),
    # Tokens that it lacks would have no embedding.
    ({"language.head.kernel": np.zeros((4, 90))}, "shape"),
  ],
)
def test_weights_of_another_model_are_refused(given, said):
  with pytest.raises(ValueError, match=said):
    _with_weights(given)
