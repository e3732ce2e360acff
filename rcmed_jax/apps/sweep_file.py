"""A sweep file: cells that differ in a few settings of one config.

Its `get_sweep(arg=None)` returns a dict:

  config    the config that all cells begin with, "configs/demo.py"
  every     overrides of all cells, {"train.steps": 300}
  cells     name -> overrides of one cell, {"K=2": {...}, ...}
  grid      key -> values; each combination is a cell named after its values
  baseline  the cell that others are compared with; the first, if left out
  phantoms  images to draw where no data is given: see `Phantoms`
"""

from collections.abc import Mapping, Sequence
import dataclasses
import difflib
import importlib.util
import itertools
import pathlib
import re
from typing import Any

import rcmed_jax
from rcmed_jax.data.phantoms import MODALITIES

# Names that are folders everywhere and need no quotes in a shell.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=+-]*")

# Beside the cells in a sweep's folder: drawn images, compiled programs.
DRAWN, COMPILED = "data", "compiled"

# Each run gets its own of both: the order of the images follows the one, the
# weights at the start and dropout the other.
SEEDS = ("train.seed", "data.seed")

# Where the data lies is told by the command line, the same for all.
DATA = ("data.index", "data.descriptions")

_KEYS = ("config", "every", "cells", "grid", "baseline", "phantoms")
_PACKAGE = pathlib.Path(rcmed_jax.__file__).parent


@dataclasses.dataclass(frozen=True)
class Phantoms:
  """Images to draw, of all modalities in turn; see `phantoms.write`."""

  images: int
  held_out: int
  size: int = 192  # pixels a side
  seed: int = 0
  detail: bool = False
  # Those that are used, as `phantoms.MODALITIES` names them; (): all.
  modalities: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Sweep:
  """What a sweep file says."""

  name: str  # as --sweep gave it
  config: str
  every: Mapping[str, Any]
  cells: Mapping[str, Mapping[str, Any]]
  baseline: str
  phantoms: Phantoms | None


def load(name: str) -> Sweep:
  """The sweep of a file, `configs/sweeps/correlation.py[:VARIANT]`.

  Raises:
    FileNotFoundError: no such file; the message lists those there are.
    ValueError: it is no sweep, or a part of it is not what it should be.
  """
  file, _, variant = name.rpartition(":")
  if not file.endswith(".py"):
    file, variant = name, None
  path = _find(file)
  spec = importlib.util.spec_from_file_location(f"sweep_{path.stem}", path)
  if spec is None or spec.loader is None:
    raise ValueError(f"--sweep={name}: expected a .py file.")
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  if not hasattr(module, "get_sweep"):
    raise ValueError(f"{path} has no function get_sweep(arg=None).")
  try:
    return read(name, module.get_sweep(variant))
  except ValueError as error:
    raise ValueError(f"--sweep={name}: {error}") from error


def available() -> list[str]:
  """The sweeps that come with the package, as --sweep names them."""
  return sorted(
    {
      path.relative_to(root).as_posix()
      for root in _roots()
      for path in (root / "configs/sweeps").glob("*.py")
    }
  )


def read(name: str, values: Mapping[str, Any]) -> Sweep:
  """The sweep that `get_sweep` returned.

  Raises:
    ValueError: an unknown key, a name that is no folder, no cell at all, or a
      cell that sets what belongs to all.
  """
  _require_keys(values, _KEYS)
  if "config" not in values:
    raise ValueError('"config" is missing; name the config to begin with.')
  cells = dict(values.get("cells", {}))
  for cell, overrides in expand(values.get("grid", {})).items():
    if cell in cells:
      raise ValueError(f"cell {cell!r} is in both cells and grid.")
    cells[cell] = overrides
  if not cells:
    raise ValueError("there is no cell; fill cells or grid.")
  every = values.get("every", {})
  for cell, overrides in {"every": every, **cells}.items():
    if not NAME.fullmatch(cell) or cell in (DRAWN, COMPILED):
      raise ValueError(
        f"cell {cell!r} cannot name a folder; use letters, digits and ._=+-, "
        f"and neither {DRAWN} nor {COMPILED}."
      )
    for key in (*SEEDS, *DATA):
      if key in overrides:
        raise ValueError(
          f"{cell}: {key} is not for a sweep file; seeds are --seeds, and data "
          "is given on the command line."
        )
  baseline = values.get("baseline", next(iter(cells)))
  if baseline not in cells:
    raise ValueError(f"baseline {baseline!r} is none of {', '.join(cells)}.")
  drawn = values.get("phantoms")
  if drawn is not None:
    _require_keys(drawn, [one.name for one in dataclasses.fields(Phantoms)])
    drawn = Phantoms(**drawn)
    for modality in drawn.modalities:
      if modality not in MODALITIES:
        raise ValueError(
          f"phantoms: there is no modality {modality!r}; use some of "
          f"{', '.join(MODALITIES)}."
        )
  return Sweep(name, values["config"], every, cells, baseline, drawn)


def expand(grid: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
  """The cells of a grid, the last key fastest.

    {"lora.rank": (0, 4), "data.describe": (False, True)} ->
    rank=0+describe=False, rank=0+describe=True, rank=4+describe=False, ...

  A key is named by its last word, and in full where two share it. A value that
  makes no name is numbered: prompt_weights=0.
  """
  if not grid:
    return {}
  words = [key.split(".")[-1] for key in grid]
  heads = [
    word if words.count(word) == 1 else key
    for word, key in zip(words, grid, strict=True)
  ]
  choices = [
    [
      (f"{head}={value if NAME.fullmatch(str(value)) else place}", value)
      for place, value in enumerate(values)
    ]
    for head, values in zip(heads, grid.values(), strict=True)
  ]
  return {
    "+".join(name for name, _ in chosen): dict(
      zip(grid, (value for _, value in chosen), strict=True)
    )
    for chosen in itertools.product(*choices)
  }


def _require_keys(values: Mapping[str, Any], known: Sequence[str]) -> None:
  for key in values:
    if key not in known:
      (near,) = difflib.get_close_matches(key, known, n=1, cutoff=0)
      raise ValueError(f"{key!r} is no part of a sweep; the nearest is {near}.")


def _roots() -> tuple[pathlib.Path, ...]:
  # A wheel holds the sweeps inside the package, a checkout beside it.
  return pathlib.Path.cwd(), _PACKAGE, _PACKAGE.parent


def _find(file: str) -> pathlib.Path:
  for root in _roots():
    if (root / file).is_file():
      return root / file
  raise FileNotFoundError(
    f"there is no sweep {file}; available: {', '.join(available())}."
  )
