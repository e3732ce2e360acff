import dataclasses

import pytest

from rcmed_jax.apps import settings
from rcmed_jax.apps.settings import Settings

CONFIG = """
import ml_collections

def get_config(arg=None):
  config = ml_collections.ConfigDict()
  for section in ("data", "model", "optimizer", "train", "mesh", "eval"):
    config[section] = ml_collections.ConfigDict()
  config.model.lora = dict(rank=2)
  config.model.image = dict(global_blocks=(1, 3))
  config.train.steps = 7 if arg == "tiny" else 700
  return config
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """A working directory with the config configs/toy.py."""
  (tmp_path / "configs").mkdir()
  (tmp_path / "configs/toy.py").write_text(CONFIG)
  monkeypatch.chdir(tmp_path)
  return tmp_path


@pytest.mark.parametrize(
  ("flag", "steps"),
  [("--config=configs/toy.py", 700), ("--config=configs/toy.py:tiny", 7)],
)
def test_config_and_its_variant(folder, flag, steps):
  found = settings.parse([flag])
  assert isinstance(found, Settings)
  assert found.train.steps == steps
  assert found.model.lora.rank == 2
  assert found.model.image.global_blocks == (1, 3)


def test_overrides_win_in_either_form_and_order(folder):
  found = settings.parse(
    [
      "--config.train.steps=9",
      "--config",
      "configs/toy.py",
      "--config.model.image.global_blocks",
      "(0, 1)",
      "--config.optimizer.learning_rate=1",
    ]
  )
  assert found.train.steps == 9
  assert found.model.image.global_blocks == (0, 1)
  assert found.optimizer.learning_rate == 1.0


def test_default_config(folder):
  assert settings.parse([], default="configs/toy.py:tiny").train.steps == 7
  with pytest.raises(ValueError, match="--config is missing"):
    settings.parse([])


def test_absolute_path(folder, tmp_path_factory, monkeypatch):
  monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
  assert (
    settings.parse([f"--config={folder}/configs/toy.py"]).train.steps == 700
  )


def test_record_of_a_run_is_a_config(folder):
  first = settings.parse(
    ["--config=configs/toy.py", "--config.model.correlation.steps=3"]
  )
  record = settings.save(first, folder / "runs/a")
  assert settings.load("runs/a") == first
  assert settings.from_json(settings.to_json(first)) == first
  for name in ("runs/a", "runs/a/settings.json", record):
    again = settings.parse([f"--config={name}", "--config.train.steps=1"])
    assert again == dataclasses.replace(
      first, train=dataclasses.replace(first.train, steps=1)
    )


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    (
      ["--config.train.stpes=1"],
      r"the nearest is config\.train\.steps \(int\)",
    ),
    (["--config.train.steps=x"], r"config\.train\.steps must be int"),
    (["--config.model.width=1"], r"config\.model\.width is not a setting"),
    (["--confg.train.steps=1"], r"unknown argument '--confg\.train\.steps'"),
    (["--steps=1"], "unknown argument '--steps'"),
    (["steps=1"], "unknown argument 'steps'"),
    (["--config.train.steps"], "lacks its value"),
    (["--config.train.steps=0"], r"configs/toy\.py: train\.steps=0"),
  ],
)
def test_bad_arguments(folder, arguments, message):
  with pytest.raises(ValueError, match=message):
    settings.parse(arguments, default="configs/toy.py")


def test_missing_config_lists_those_there_are(folder):
  with pytest.raises(FileNotFoundError, match=r"configs/toy\.py"):
    settings.parse(["--config=configs/toi.py"])


@pytest.mark.parametrize(
  ("name", "text", "message"),
  [
    ("a.py", "get = 1", "has no function get_config"),
    ("a.yaml", "", "expected a .py config"),
    ("a.json", "{", "is not JSON"),
    ("a.json", "[]", "config is a section"),
    ("a.json", '{"trian": {}}', r"a\.json: config\.trian is not a setting"),
  ],
)
def test_files_that_are_no_config(folder, name, text, message):
  (folder / name).write_text(text)
  with pytest.raises(ValueError, match=message):
    settings.parse([f"--config={name}"])


def test_packaged_configs_are_found_from_anywhere(folder):
  for name in settings.available():
    assert settings.parse([f"--config={name}:tiny"])
