import pathlib
import re

import imports
import pytest

from rcmed_jax.apps import sweep_cells, sweep_file

BASE = {"config": "configs/demo.py:tiny"}
FILE = """
def get_sweep(arg=None):
  return dict(config="configs/demo.py:tiny", cells={"a": {}, str(arg): {}})
"""


def test_file_and_its_variant(tmp_path, monkeypatch):
  (tmp_path / "mine.py").write_text(FILE)
  monkeypatch.chdir(tmp_path)
  found = sweep_file.load("mine.py:tiny")
  assert (found.name, list(found.cells)) == ("mine.py:tiny", ["a", "tiny"])
  assert found.baseline == "a"
  assert list(sweep_file.load(f"{tmp_path}/mine.py").cells) == ["a", "None"]


def test_missing_file_lists_those_there_are(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  with pytest.raises(
    FileNotFoundError, match=r"configs/sweeps/correlation\.py"
  ):
    sweep_file.load("configs/sweeps/corelation.py")
  (tmp_path / "a.py").write_text("get = 1")
  with pytest.raises(ValueError, match="has no function get_sweep"):
    sweep_file.load("a.py")


def test_grid_is_expanded_the_last_key_fastest():
  grid = {"lora.rank": (0, 4), "data.describe": (False, True)}
  cells = sweep_file.expand(grid)
  assert list(cells) == [
    "rank=0+describe=False",
    "rank=0+describe=True",
    "rank=4+describe=False",
    "rank=4+describe=True",
  ]
  assert cells["rank=4+describe=False"] == {
    "lora.rank": 4,
    "data.describe": False,
  }


def test_grid_names_are_told_apart_and_are_folders():
  cells = sweep_file.expand(
    {"a.depth": (1,), "b.depth": (2,), "c.mix": ((1,),)}
  )
  assert list(cells) == ["a.depth=1+b.depth=2+mix=0"]


def test_cells_and_grid_go_together():
  found = sweep_file.read(
    "x",
    BASE | {"cells": {"one": {}}, "grid": {"a.b": (1, 2)}, "baseline": "b=2"},
  )
  assert list(found.cells) == ["one", "b=1", "b=2"]
  assert found.baseline == "b=2"


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"cels": {}}, "'cels' is no part of a sweep; the nearest is cells"),
    ({}, "there is no cell"),
    ({"cells": {"a b": {}}}, "cell 'a b' cannot name a folder"),
    ({"cells": {"../a": {}}}, "cannot name a folder"),
    ({"cells": {"data": {}}}, "'data' cannot name a folder"),
    ({"cells": {"a": {}}, "baseline": "b"}, "baseline 'b' is none of a"),
    ({"cells": {"a": {"train.seed": 3}}}, r"a: train\.seed is not for"),
    ({"cells": {"a": {}}, "every": {"data.index": "x"}}, r"data\.index is not"),
    ({"cells": {"b=1": {}}, "grid": {"a.b": (1,)}}, "both cells and grid"),
    (
      {"cells": {"a": {}}, "phantoms": {"imags": 3}},
      "'imags' is no part of a sweep; the nearest is images",
    ),
    (
      {
        "cells": {"a": {}},
        "phantoms": {"images": 9, "held_out": 9, "modalities": ("cat",)},
      },
      "there is no modality 'cat'",
    ),
  ],
)
def test_what_is_wrong_is_named(values, message):
  with pytest.raises(ValueError, match=message):
    sweep_file.read("x", BASE | values)


def test_config_must_be_named():
  with pytest.raises(ValueError, match='"config" is missing'):
    sweep_file.read("x", {"cells": {"a": {}}})


def test_shipped_sweeps_are_found_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  names = {pathlib.Path(name).stem for name in sweep_file.available()}
  assert names == {
    *("attention", "correlation", "descriptions", "encoder", "lora"),
    "prompts",
  }


def test_the_page_of_sweeps_lists_all_and_its_example_is_one(tmp_path):
  text = (imports.ROOT / "docs/sweeps.md").read_text()
  listed = re.findall(r"^\| `(\w+\.py)` \|", text, re.MULTILINE)
  there = [pathlib.Path(name).name for name in sweep_file.available()]
  assert sorted(listed) == there
  (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
  (tmp_path / "mine.py").write_text(example)
  found = sweep_file.load(str(tmp_path / "mine.py"))
  tasks = sweep_cells.tasks(found, tmp_path, seeds=1, index="/train.json")
  assert [task.cell for task in tasks] == [
    *("rank=4+learning_rate=0.0001", "rank=4+learning_rate=0.0003"),
    *("rank=16+learning_rate=0.0001", "rank=16+learning_rate=0.0003"),
  ]
