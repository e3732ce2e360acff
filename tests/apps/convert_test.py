"""`rcmed convert` from the command line, and what its folders are good for."""

import dataclasses
import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import parts
import pytest
import torch_files
import toy

from rcmed_jax import cli
from rcmed_jax.apps import answering, settings
from rcmed_jax.convert import store, torch_io
from rcmed_jax.data import tokens
from rcmed_jax.data.pipeline import DataConfig
from rcmed_jax.eval.protocols import EvalConfig
from rcmed_jax.model.rcmed import RCMed
from rcmed_jax.parallel.mesh import MeshConfig
from rcmed_jax.train import averages, checkpoints, reading
from rcmed_jax.train import step as steps
from rcmed_jax.train.config import TrainConfig
from rcmed_jax.train.optimizer import OptimizerConfig

WORDS = ["Can you segment the liver in this computed tomography image?"]
STEP = 7


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
  path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
  return tokens.train_tokenizer(WORDS, 300, path), path


@pytest.fixture(scope="module")
def source(tokenizer, tmp_path_factory):
  """A checkpoint of noise with the tokenizer's vocabulary."""
  config = toy.model_config()
  size = tokenizer[0].vocabulary
  config = dataclasses.replace(
    config, language=dataclasses.replace(config.language, vocabulary=size)
  )
  folder = tmp_path_factory.mktemp("source") / "syre"
  torch_files.write_release(folder, config)
  return folder


def _rcmed(*argv):
  return cli.main(["convert", *map(str, argv)])


def test_there_and_back(source, tokenizer, tmp_path, capsys):
  ours, back = tmp_path / "ours", tmp_path / "back"
  told = ("--source", "SyRe", "--licence", "CC BY-NC", "--tokenizer")
  assert _rcmed("import", "--from=syre", source, ours, *told, tokenizer[1]) == 0
  assert capsys.readouterr().out == f"convert: written to {ours}\n"
  manifest = json.loads((ours / store.MANIFEST).read_text())
  assert (manifest["source"], manifest["licence"]) == ("SyRe", "CC BY-NC")
  assert "tokenizer.model" in manifest["files"]
  assert _rcmed("export", ours, back) == 0
  found, expected = torch_io.read(back), torch_io.read(source)
  assert found.keys() == expected.keys()
  for name, tensor in expected.items():
    assert np.asarray(found[name]).tobytes() == np.asarray(tensor).tobytes()
  copied = (back / "tokenizer.model").read_bytes()
  assert copied == tokenizer[1].read_bytes()


def test_a_converted_checkpoint_answers(source, tokenizer, tmp_path, capsys):
  ours = tmp_path / "ours"
  assert _rcmed("import", "--from", "syre", source, ours) == 0
  with pytest.raises(FileNotFoundError, match=r"has no tokenizer\.model; copy"):
    answering.load_assistant(ours)
  (ours / "tokenizer.model").write_bytes(tokenizer[1].read_bytes())
  image = np.zeros((40, 64, 3), np.uint8)
  answer = answering.load_assistant(ours).ask(image, WORDS[0])
  assert isinstance(answer.text, str)


def test_a_converted_checkpoint_is_evaluated_as_asked(
  source, tokenizer, tmp_path, capsys
):
  ours, data, out = tmp_path / "ours", tmp_path / "data", tmp_path / "report"
  assert _rcmed("import", "--from", "syre", source, ours) == 0
  (ours / "tokenizer.model").write_bytes(tokenizer[1].read_bytes())
  drawn = ("phantom", "--out", data, "--images", 2, "--seed", 0)
  assert cli.main(["data", *map(str, drawn)]) == 0
  told = ("--workdir", ours, "--index", data / "image2label_train.json")
  most = ("--config.eval.max_new=4", "--config.eval.bootstrap=0")
  argv = ["evaluate", *map(str, told), "--out", str(out), *most]
  assert cli.main(argv) == 0
  assert "tasks=" in capsys.readouterr().out
  summary = json.loads((out / "summary--test.json").read_text())
  assert summary["images"] == 2
  assert summary["config"]["max_new"] == 4
  # The answers themselves were cut there, not only the record of it.
  asked = EvalConfig(max_new=4)
  answer = answering.load_assistant(ours, asked=asked).ask(
    np.zeros((40, 64, 3), np.uint8), WORDS[0]
  )
  assert len(answer.text) <= 4 * 16  # the longest piece has 16 letters
  # Eight devices, weights in parts, say the same.
  argv[argv.index(str(out))] = str(tmp_path / "sharded")
  assert cli.main([*argv, "--mesh=data=2,fsdp=2,tensor=2"]) == 0
  again = json.loads((tmp_path / "sharded/summary--test.json").read_text())
  _assert_same(again, summary)


def _assert_same(found, wanted):
  """Equal but for the last digits of numbers."""
  if isinstance(wanted, dict):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
      _assert_same(found[name], value)
  elif isinstance(wanted, list):
    for one, other in zip(found, wanted, strict=True):
      _assert_same(one, other)
  elif isinstance(wanted, float):
    assert found == pytest.approx(wanted, abs=1e-6)
  else:
    assert found == wanted


def test_a_tokenizer_of_another_size_is_refused(tokenizer, tmp_path, capsys):
  source = tmp_path / "source"
  torch_files.write_release(source, toy.model_config())
  (source / "tokenizer.model").write_bytes(tokenizer[1].read_bytes())
  assert _rcmed("import", "--from", "syre", source, tmp_path / "ours") == 2
  assert "the checkpoint has 48; give the tok" in capsys.readouterr().err
  assert not (tmp_path / "ours.partial").exists()


def test_part_of_a_model_does_not_answer(tmp_path):
  tensors = torch_files.tensors(toy.model_config(), "sam")
  path = torch_files.save(tmp_path / "sam.pth", tensors)
  assert _rcmed("import", "--from", "sam", path, tmp_path / "ours") == 0
  with pytest.raises(ValueError, match="holds the sam part of a model only"):
    answering.load_assistant(tmp_path / "ours")


def _train(workdir, model_config, average=0.0):
  """What a run leaves, without its training: arrays of noise.

  Args:
    average: by how much averaged weights are more; 0: none are kept.
  """
  told = settings.Settings(
    DataConfig(),
    model_config,
    OptimizerConfig(),
    TrainConfig(),
    MeshConfig(),
    EvalConfig(),
  )
  workdir.mkdir()
  settings.save(told, workdir)
  model = parts.at_random(lambda: RCMed(model_config, rngs=nnx.Rngs(0)))
  arrays = nnx.to_pure_dict(nnx.state(model))
  language = arrays["language"]
  frozen = {"language": {"layers": language["layers"]}}
  trainable = {**arrays, "language": {**language}}
  del trainable["language"]["layers"]
  moments = {"count": jnp.int32(0)}
  if average:
    more = jax.tree.map(lambda array: (array + average) / 2, trainable)
    moments["average"] = averages.Average(more, jnp.float32(0.5))
  with checkpoints.Checkpoints(workdir, keep=1) as saved:
    saved.save(
      steps.TrainState(jnp.int32(STEP), trainable, frozen, moments), {}, {}
    )
  return jax.tree.map(np.asarray, language)


def test_a_run_is_exported_with_its_updates_merged(tmp_path, capsys):
  config = toy.model_config(lora_rank=2)
  language = _train(tmp_path / "run", config)
  layers = language["layers"]
  assert _rcmed("export", tmp_path / "run", tmp_path / "out") == 0
  assert "channel_order=rgb is not what" in capsys.readouterr().out
  found = torch_io.read(tmp_path / "out")
  name = "model.layers.1.{}_proj.weight"
  np.testing.assert_array_equal(
    np.asarray(found[name.format("mlp.up")]),
    layers["up"]["kernel"][1].T,
  )
  q = {key: np.float64(value[1]) for key, value in layers["q"].items()}
  scale = config.lora.alpha / config.lora.rank
  np.testing.assert_allclose(
    np.asarray(found[name.format("self_attn.q")]),
    (q["kernel"] + scale * q["down"] @ q["up"]).T,
    rtol=1e-5,
    atol=1e-5,
  )
  np.testing.assert_array_equal(
    np.asarray(found["model.embed_tokens.weight"]),
    language["embedding"],
  )
  assert _rcmed("import", "--from=syre", tmp_path / "out", tmp_path / "in") == 0
  held = store.read(tmp_path / "in").model
  assert (held.image, held.language) == (config.image, config.language)
  assert held.channel_order == "rgb" and held.lora.rank == 0


def test_a_run_is_exported_one_array_at_a_time(tmp_path, monkeypatch):
  _train(tmp_path / "run", toy.model_config(lora_rank=2))
  order, placed = [], reading.Stored.placed

  def noted(stored, sharding):
    order.append(stored.name)
    return placed(stored, sharding)

  monkeypatch.setattr(reading.Stored, "placed", noted)
  assert _rcmed("export", tmp_path / "run", tmp_path / "out") == 0
  assert len(order) == len(set(order))
  assert "language.layers.q.kernel" in order


def test_a_run_keeps_its_updates_apart_where_asked(tmp_path):
  config = toy.model_config(lora_rank=2)
  layers = _train(tmp_path / "run", config)["layers"]
  told = ("export", "--lora", "separate", tmp_path / "run", tmp_path / "out")
  assert _rcmed(*told) == 0
  assert _rcmed("import", "--from=syre", tmp_path / "out", tmp_path / "in") == 0
  held = store.read(tmp_path / "in")
  assert held.model.lora == config.lora
  for name in ("kernel", "down", "up"):
    np.testing.assert_array_equal(
      np.asarray(held.tensors[f"language.layers.o.{name}"]),
      layers["o"][name],
    )


def test_the_average_of_a_run_is_exported_where_asked(tmp_path, capsys, source):
  language = _train(tmp_path / "run", toy.model_config(), average=0.25)
  told = ("export", "--averaged")
  assert _rcmed(*told, tmp_path / "run", tmp_path / "out") == 0
  found = torch_io.read(tmp_path / "out")
  np.testing.assert_allclose(
    np.asarray(found["model.embed_tokens.weight"]),
    language["embedding"] + 0.25,
    rtol=1e-5,
  )
  # What did not train has no average, and is itself.
  np.testing.assert_array_equal(
    np.asarray(found["model.layers.1.mlp.up_proj.weight"]),
    language["layers"]["up"]["kernel"][1].T,
  )
  _train(tmp_path / "other", toy.model_config())
  assert _rcmed(*told, tmp_path / "other", tmp_path / "none") == 2
  assert "holds no averaged weights" in capsys.readouterr().err
  assert _rcmed("import", "--from=syre", source, tmp_path / "ours") == 0
  assert _rcmed(*told, tmp_path / "ours", tmp_path / "none") == 2
  assert "it has neither averaged nor best weights" in capsys.readouterr().err
  assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
  ("argv", "said"),
  [
    (("export", "gone", "out"), "gone is not the folder of a run"),
    (("import", "--from", "syre", "gone", "out"), "gone: expected tensors"),
  ],
)
def test_a_place_without_a_checkpoint_is_named(argv, said, capsys):
  assert _rcmed(*argv) == 2
  assert said in capsys.readouterr().err
