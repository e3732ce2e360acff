import dataclasses
import json
import pathlib

import pytest

from rcmed_jax.apps import settings, sweep_cells, sweep_file
from rcmed_jax.data import readers

DEMO = "configs/demo.py:tiny"


def sweep(cells, **values):
  return sweep_file.read("x.py", {"config": DEMO, "cells": cells, **values})


LOOP = sweep(
  {
    "K=0": {"model.correlation.steps": 0},
    "K=2": {"model.correlation.steps": 2},
  },
  every={"train.steps": 5, "data.lengths": (128, 208)},
)
DRAWN = sweep_file.Phantoms(9, 9, size=48, modalities=("ct", "x"))


def test_each_cell_with_each_seed_is_a_run(tmp_path):
  found = sweep_cells.tasks(
    LOOP, tmp_path, seeds=2, flags=["--config.train.batch_size=2"]
  )
  assert [task.name for task in found] == [
    *("K=0/seed0", "K=2/seed0", "K=0/seed1", "K=2/seed1")
  ]
  last = found[-1]
  assert last.folder == tmp_path / "K=2/seed1"
  assert (last.told.train.seed, last.told.data.seed) == (1, 1)
  assert (last.told.train.steps, last.told.train.batch_size) == (5, 2)
  # Nothing else differs.
  first, third = found[0].told, found[2].told
  assert dataclasses.replace(third, train=first.train, data=first.data) == first
  assert last.told.model.correlation.steps == 2


def test_index_of_drawn_images_brings_its_descriptions(tmp_path):
  index = str(tmp_path / "image2label_train.json")
  (first, *_) = sweep_cells.tasks(LOOP, tmp_path, seeds=1, index=index)
  assert first.told.data.index == index
  assert first.told.data.descriptions == str(
    tmp_path / "descriptions_train.json"
  )


@pytest.mark.parametrize(
  ("cells", "message"),
  [
    (
      {"a": {"model.corelation.steps": 1}},
      r"x\.py, cell a: config\.model\.corelation\.steps is not a setting; the "
      r"nearest is config\.model\.correlation\.steps",
    ),
    ({"a": {"train.steps": "many"}}, r"cell a: config\.train\.steps must be"),
    ({"a": {"train.steps": 0}}, r"cell a: .*train\.steps=0"),
    ({"a": {"optimizer.warmup_steps": 99}}, "cell a: optimizer.warmup_steps"),
    ({"a": {}, "b": {"train.steps": 6}}, "cells a and b have the same"),
  ],
)
def test_wrong_cells_are_refused(cells, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    sweep_cells.tasks(sweep(cells), tmp_path, seeds=1)


def test_flag_that_would_undo_a_cell_is_refused(tmp_path):
  flags = ["--config.model.correlation.steps=1"]
  with pytest.raises(ValueError, match="is set by cell K=0 itself"):
    sweep_cells.tasks(LOOP, tmp_path, seeds=1, flags=flags)
  with pytest.raises(ValueError, match="--seeds=0"):
    sweep_cells.tasks(LOOP, tmp_path, seeds=0)


def test_cells_and_runs_are_chosen_by_name(tmp_path):
  found = sweep_cells.tasks(LOOP, tmp_path, seeds=2)

  def names(*only):
    return [task.name for task in sweep_cells.choose(found, only)]

  assert len(names()) == 4
  assert names("K=2") == ["K=2/seed0", "K=2/seed1"]
  assert names("K=2/seed1", "K=0/seed0") == ["K=0/seed0", "K=2/seed1"]
  with pytest.raises(ValueError, match="the nearest is K=2/seed1"):
    names("K=2/sed1")


def test_folder_keeps_the_settings_it_was_begun_with(tmp_path):
  (task, _) = sweep_cells.tasks(LOOP, tmp_path, seeds=1)
  for _ in range(2):
    sweep_cells.prepare(task)
  told = settings.parse([f"--config={task.folder / sweep_cells.TOLD}"])
  assert told == task.told
  other = sweep_cells.tasks(
    LOOP, tmp_path, seeds=1, flags=["--config.train.batch_size=2"]
  )[0]
  with pytest.raises(ValueError, match=r'(?s)-.*"batch_size": 4.*\+.*: 2'):
    sweep_cells.prepare(other)


def test_images_are_drawn_once_of_the_modalities_asked_for(tmp_path):
  folder = tmp_path / "sweep/data"
  sweep_cells.draw(DRAWN, folder)
  before = (folder / "image2label_train.json").stat().st_mtime_ns
  sweep_cells.draw(DRAWN, folder)
  assert (folder / "image2label_train.json").stat().st_mtime_ns == before
  for split in ("train", "test"):
    index = folder / f"image2label_{split}.json"
    texts = json.loads((folder / f"descriptions_{split}.json").read_text())
    assert texts.keys() == json.loads(index.read_text()).keys()
    items = readers.read_index(index, "")
    assert len(items) == 2
    assert {pathlib.Path(image).name[:2] for image in texts} == {"ct", "x-"}
    for item in items:
      assert item.load().masks_GIJ.any()
  assert [path.name for path in folder.parent.iterdir()] == ["data"]
  with pytest.raises(ValueError, match="holds other images"):
    sweep_cells.draw(dataclasses.replace(DRAWN, seed=1), folder)
