"""What one run is: a config file and its overrides, as frozen dataclasses.

`--config=configs/demo.py:tiny --config.train.steps=10` loads the file, calls
its `get_config("tiny")` and sets one value. A folder or .json file that an
earlier run recorded serves as a config as well: `--config=runs/demo`. Past this
file nobody sees a ConfigDict.
"""

from collections.abc import Sequence
import dataclasses
import importlib.util
import json
import os
import pathlib
from typing import Any

from etils import epath

import rcmed_jax
from rcmed_jax.apps import fields
from rcmed_jax.data import files
from rcmed_jax.data.pipeline import DataConfig
from rcmed_jax.eval.protocols import EvalConfig
from rcmed_jax.model.config import ModelConfig
from rcmed_jax.parallel.mesh import MeshConfig
from rcmed_jax.train.config import TrainConfig
from rcmed_jax.train.optimizer import OptimizerConfig

# The record of a run's settings in its working directory.
RECORD = "settings.json"

_PACKAGE = pathlib.Path(rcmed_jax.__file__).parent


@dataclasses.dataclass(frozen=True)
class Settings:
  """Everything that a run was told, one section a part of the house."""

  data: DataConfig
  model: ModelConfig
  optimizer: OptimizerConfig
  train: TrainConfig
  mesh: MeshConfig
  eval: EvalConfig


def parse(
  argv: Sequence[str], default: str | Settings | None = None
) -> Settings:
  """The settings that command line flags ask for.

  An app takes its own flags first and gives the rest to this function:

    parser = argparse.ArgumentParser("rcmed train", allow_abbrev=False)
    args, rest = parser.parse_known_args(argv)
    settings = parse(rest, default="configs/demo.py")

  Args:
    argv: `--config=NAME` and `--config.section.key=value` flags only; the
      value may also follow as the next argument.
    default: the config, or the settings, where no --config flag is given.

  Raises:
    ValueError: an unknown flag or setting (names the nearest one), a value of
      the wrong type, no config, or a config that is none.
    FileNotFoundError: no such config; the message lists those there are.
  """
  name = default if isinstance(default, str) else None
  overrides = []
  for flag, value in _flags(argv):
    if flag == "config":
      name = value
    else:
      overrides.append((flag, value))
  if name is not None:
    values = _load(name)
  elif isinstance(default, Settings):
    name, values = "settings", json.loads(to_json(default))
  else:
    raise ValueError(
      f"--config is missing; give a config file: {', '.join(available())}."
    )
  for path, text in overrides:
    fields.override(Settings, values, path, text)
  return _build(values, name)


def to_json(settings: Settings) -> str:
  """All settings as JSON text; `from_json` gives equal settings back."""
  return json.dumps(dataclasses.asdict(settings), indent=2) + "\n"


def from_json(text: str, source: str = RECORD) -> Settings:
  """The settings that `to_json` wrote; `source` names them in errors."""
  return _build(_decode(text, source), source)


def save(settings: Settings, workdir: str | os.PathLike[str]) -> epath.Path:
  """Records the settings in the run's directory and returns the file."""
  path = epath.Path(workdir) / RECORD
  path.parent.mkdir(parents=True, exist_ok=True)
  files.write_whole(path, to_json(settings))
  return path


def load(workdir: str | os.PathLike[str]) -> Settings:
  """The settings that a run recorded in its directory."""
  return parse([], default=str(workdir))


def with_those_of(settings: Settings, other: Settings, key: str) -> Settings:
  """The settings, `key` (as "train.steps", or a section) taken from `other`.

  Raises:
    ValueError: there is no such setting.
  """
  values = json.loads(to_json(settings))
  into, taken = values, json.loads(to_json(other))
  *sections, name = key.removeprefix("config.").split(".")
  for section in sections:
    into, taken = _inside(into, section, key), _inside(taken, section, key)
  _inside(into, name, key)
  into[name] = taken[name]
  return _build(values, key)


def available() -> list[str]:
  """The configs that come with the package, as --config names them."""
  names = set()
  for root in _roots():
    folder = root / "configs"
    names |= {path.relative_to(root).as_posix() for path in folder.glob("*.py")}
  return sorted(names)


def _inside(values: Any, name: str, key: str) -> Any:
  if not isinstance(values, dict) or name not in values:
    held = ", ".join(values) if isinstance(values, dict) else "none"
    raise ValueError(f"there is no setting {key}; {name!r} is none of: {held}.")
  return values[name]


def _roots() -> tuple[pathlib.Path, ...]:
  # A wheel holds the configs inside the package, a checkout beside it.
  return pathlib.Path.cwd(), _PACKAGE, _PACKAGE.parent


def _flags(argv: Sequence[str]) -> list[tuple[str, str]]:
  found, rest = [], list(argv)
  while rest:
    flag, equals, value = rest.pop(0).partition("=")
    name = flag.removeprefix("--")
    if name == flag or name.split(".")[0] != "config":
      raise ValueError(
        f"unknown argument {flag!r}; settings are written --config=FILE and "
        "--config.section.key=value."
      )
    if not equals:
      if not rest:
        raise ValueError(f"{flag} lacks its value; write {flag}=VALUE.")
      value = rest.pop(0)
    found.append((name, value))
  return found


def _load(name: str) -> dict[str, Any]:
  """The nested values of a config file with its variant, or of a record."""
  file, _, variant = name.rpartition(":")
  if not file.endswith(".py"):
    file, variant = name, None
  path = _find(file)
  if path.suffix == ".json":
    return _decode(path.read_text(encoding="utf-8"), str(path))
  if path.suffix != ".py":
    raise ValueError(
      f"--config={name}: expected a .py config, a .json record, or a folder "
      f"that holds {RECORD}."
    )
  spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
  assert spec and spec.loader  # a .py file always has them
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_config"):
    raise ValueError(f"{path} has no function get_config(arg=None).")
  return module.get_config(variant).to_dict()


def _find(file: str) -> epath.Path:
  here = [epath.Path(root, file) for root in _roots()]
  for path in [epath.Path(file)] if files.is_remote(file) else here:
    if path.is_dir():
      path /= RECORD
    if path.is_file():
      return path
  raise FileNotFoundError(
    f"{file} is neither a config nor a folder with a {RECORD}; available "
    f"configs: {', '.join(available())}."
  )


def _decode(text: str, source: str) -> dict[str, Any]:
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(f"{source} is not JSON: {error}.") from error


def _build(values: dict[str, Any], source: str) -> Settings:
  try:
    return fields.build(Settings, values)
  except ValueError as error:
    raise ValueError(f"{source}: {error}") from error
