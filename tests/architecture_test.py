"""The walls of the house: who may import whom, and how large a room may be."""

import ast
from importlib import metadata
import pathlib

import imports
import pytest

# Room -> layer. Imports point to a lower layer only.
LAYERS = {
  "axes": 0,
  "kernels": 1,
  "parallel": 1,
  "data": 1,
  "ingest": 2,
  "model": 2,
  "train": 3,
  "eval": 3,
  "serve": 3,
  "convert": 3,
  "apps": 4,
  "cli": 5,
  "__main__": 6,
}
# The package's own file: everything imports it, it imports nothing.
ENTRANCE = "__init__"

# Input runs in processes of its own, which must start fast and take no device.
FOREIGN_TO_DATA = {"jax", "jaxlib", "flax", "optax", "orbax", "clu"}

MAX_FILE = 500
MAX_FUNCTION = 60
# The one function that reads from top to bottom on purpose.
MAX_LOOP = 120

FILES = [
  pytest.param(path, id=path.relative_to(imports.ROOT).as_posix())
  for path in imports.modules()
]


def _lines(path: pathlib.Path) -> int:
  return len(path.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("path", FILES)
def test_imports_point_to_lower_layers(path):
  room = imports.room(path)
  found = imports.rooms_imported(path)
  if room == ENTRANCE:
    assert not found
    return
  assert room in LAYERS, f"{room} is no room of the house; give it a layer"
  wrong = sorted(
    other for other in found - {room, ENTRANCE} if LAYERS[other] >= LAYERS[room]
  )
  assert not wrong, (
    f"{room} (layer {LAYERS[room]}) imports {wrong}; move what it needs to a "
    "lower layer or pass it in as an argument"
  )


@pytest.mark.parametrize(
  "path",
  [f for f in FILES if imports.room(f.values[0]) in ("data", "ingest")],
)
def test_data_knows_no_jax(path):
  roots = {name.split(".")[0] for name in imports.names_imported(path)}
  assert not roots & FOREIGN_TO_DATA


@pytest.mark.parametrize("path", FILES)
def test_files_and_functions_stay_small(path):
  assert _lines(path) <= MAX_FILE
  most = MAX_LOOP if path.name == "loop.py" else MAX_FUNCTION
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
      body = node.body[1:] if ast.get_docstring(node) else node.body
      length = node.end_lineno - body[0].lineno + 1 if body else 0
      assert length <= most, f"{node.name} has {length} lines"


def test_no_room_fills_a_fifth_of_the_house():
  size = dict.fromkeys(LAYERS | {ENTRANCE: 0}, 0)
  for path in imports.modules():
    size[imports.room(path)] += _lines(path)
  house = sum(size.values())
  for room, lines in size.items():
    assert lines <= house / 5, f"{room}: {lines} of {house} lines"


def test_helpers_of_tests_hide_no_package():
  helpers = {path.stem for path in (imports.ROOT / "tests").glob("*.py")}
  hidden = helpers & set(metadata.packages_distributions())
  assert not hidden, f"tests/{hidden} come before packages of that name"
