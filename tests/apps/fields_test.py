import dataclasses
from typing import Literal

import pytest

from rcmed_jax.apps import fields


@dataclasses.dataclass(frozen=True)
class Loop:
  steps: int = 4
  shared: bool = True


@dataclasses.dataclass(frozen=True)
class Model:
  width: int = 8
  blocks: tuple[int, ...] = (1, 3)
  dtype: Literal["float32", "bfloat16"] = "float32"
  loop: Loop = Loop()

  def __post_init__(self):
    if self.width % 2:
      raise ValueError(f"model.width={self.width} is odd; choose an even one.")


@dataclasses.dataclass(frozen=True)
class Train:
  steps: int
  rate: float = 1e-3
  betas: tuple[float, float] = (0.9, 0.95)
  resume: str | None = None
  limit: int | None = None


@dataclasses.dataclass(frozen=True)
class Settings:
  model: Model
  train: Train


def _settings(**overrides: str) -> Settings:
  values = {"model": {}, "train": {"steps": 10}}
  for path, text in overrides.items():
    fields.override(Settings, values, f"config.{path}", text)
  return fields.build(Settings, values)


def test_left_out_values_keep_their_defaults():
  built = fields.build(Settings, {"model": {}, "train": {"steps": 10}})
  assert built == Settings(model=Model(), train=Train(steps=10))


def test_values_arrive_nested_and_with_their_types():
  built = fields.build(
    Settings,
    {
      "model": {"blocks": [2, 5, 8], "loop": {"steps": 0}},
      "train": {"steps": 3, "rate": 1, "betas": [0, 0.5], "resume": None},
    },
  )
  assert built.model.blocks == (2, 5, 8)
  assert built.model.loop == Loop(steps=0)
  assert built.train.betas == (0.0, 0.5)
  assert isinstance(built.train.rate, float)


def test_asdict_and_build_are_inverse():
  settings = _settings(**{"model.loop.steps": "2", "train.limit": "5"})
  again = fields.build(Settings, dataclasses.asdict(settings))
  assert again == settings


@pytest.mark.parametrize(
  ("path", "text", "value"),
  [
    ("train.steps", "25", 25),
    ("train.rate", "1e-4", 1e-4),
    ("train.rate", "2", 2.0),
    ("train.betas", "(0.8, 1)", (0.8, 1.0)),
    ("train.resume", "runs/a", "runs/a"),
    ("train.resume", "12", "12"),
    ("train.resume", "None", None),
    ("train.limit", "None", None),
    ("train.limit", "7", 7),
    ("model.blocks", "(1, 2)", (1, 2)),
    ("model.blocks", "()", ()),
    ("model.dtype", "bfloat16", "bfloat16"),
    ("model.loop.shared", "false", False),
    ("model.loop.shared", "True", True),
  ],
)
def test_override_reads_text_as_its_type(path, text, value):
  found = _settings(**{path: text})
  for name in path.split("."):
    found = getattr(found, name)
  assert found == value and type(found) is type(value)


def test_overrides_are_checked_together():
  with pytest.raises(ValueError, match="odd"):
    _settings(**{"model.width": "7"})
  assert _settings(**{"model.width": "6", "train.steps": "1"}).model.width == 6


@pytest.mark.parametrize(
  ("path", "nearest"),
  [
    ("config.train.stpes", "config.train.steps (int)"),
    ("config.train.step", "config.train.steps (int)"),
    ("config.model.loop.step", "config.model.loop.steps (int)"),
    ("config.rate", "config.train.rate (float)"),
    ("config.trian.rate", "config.train.rate (float)"),
    ("config.train.beta", "config.train.betas (tuple[float, float])"),
    ("config.train.resum", "config.train.resume (str or None)"),
    ("config.model.lop", "config.model.loop (section with the keys steps"),
  ],
)
def test_unknown_override_names_the_nearest(path, nearest):
  with pytest.raises(ValueError) as error:
    fields.override(Settings, {}, path, "1")
  assert str(error.value).startswith(f"{path} is not a setting; ")
  assert nearest in str(error.value)


def test_unknown_key_in_values_names_the_nearest():
  with pytest.raises(ValueError, match=r"config\.model\.loop\.steps \(int\)"):
    fields.build(
      Settings, {"model": {"loop": {"stesp": 1}}, "train": {"steps": 1}}
    )


@pytest.mark.parametrize(
  ("path", "text", "message"),
  [
    ("train.steps", "ten", "config.train.steps must be int; received 'ten'"),
    ("train.steps", "1.5", "config.train.steps must be int; received '1.5'"),
    ("train.steps", "True", "must be int"),
    ("train.rate", "fast", "must be float, such as 0.001; received 'fast'"),
    ("train.betas", "(1, 2, 3)", "must be tuple[float, float], such as (0.9,"),
    ("train.limit", "few", "must be int or None, such as None"),
    ("model.blocks", "3", "must be tuple[int, ...], such as (1, 3)"),
    ("model.dtype", "float16", "must be 'float32' or 'bfloat16'"),
    ("model.loop", "3", "is a section, not a value; its keys: steps, shared"),
  ],
)
def test_wrong_type_names_key_and_type(path, text, message):
  with pytest.raises(ValueError) as error:
    _settings(**{path: text})
  assert message in str(error.value)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"model": {}}, "config.train is missing; expected section"),
    ({"model": {}, "train": {}}, "config.train.steps is missing; expected int"),
    ({"model": 3, "train": {"steps": 1}}, "config.model is a section"),
    ({"model": {}, "train": {"steps": 1.0}}, "must be int; received 1.0"),
  ],
)
def test_build_refuses(values, message):
  with pytest.raises(ValueError) as error:
    fields.build(Settings, values)
  assert message in str(error.value)
