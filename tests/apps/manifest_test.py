import hashlib
import json
import types

import jax
import pytest

import rcmed_jax
from rcmed_jax.apps import manifest, predict_tasks, provenance, settings
from rcmed_jax.data import mixture, shards
from rcmed_jax.eval import external


@pytest.fixture
def told(tmp_path):
  index = tmp_path / "image2label_train.json"
  index.write_text("{}")
  flags = [f"--config.data.index={index}", "--config.train.seed=3"]
  return settings.parse(["--config=configs/demo.py:tiny", *flags])


def test_a_start_says_what_a_run_was_made_with(told, tmp_path):
  run = tmp_path / "run"
  run.mkdir()
  entry = manifest.add_start(
    run, told, ["train", "--workdir=run"], source="weights"
  )
  assert entry["command"] == ["rcmed", "train", "--workdir=run"]
  assert entry["from"] == "weights"
  assert entry["versions"]["rcmed-jax"] == rcmed_jax.__version__
  assert entry["versions"]["jax"] == jax.__version__
  assert entry["data"] == {
    told.data.index: hashlib.sha256(b"{}").hexdigest(),
  }
  assert entry["seeds"] == {"train": 3, "data": told.data.seed}
  assert entry["devices"].startswith(f"{jax.device_count()} x ")
  digest = hashlib.sha256(settings.to_json(told).encode()).hexdigest()
  assert entry["settings"] == digest
  assert entry["time"].endswith("+00:00")
  assert json.loads((run / manifest.RUN).read_text())["starts"] == [entry]


def test_every_start_is_kept(told, tmp_path):
  first = manifest.add_start(tmp_path, told, [])
  second = manifest.add_start(tmp_path, told, [], allowed=["train.steps"])
  assert manifest.read(tmp_path) == [first, second]
  assert second["allowed"] == ["train.steps"]


def test_tasks_are_there_where_the_data_is_gone(told, tmp_path):
  triplets = [
    types.SimpleNamespace(dataset=name, modality=modality, classes=classes)
    for name, modality, classes in (
      ("a", "X-Ray", ("lung", "heart")),
      ("b", "X-Ray", ("lung", "rib")),
      ("b", "pet", ()),
    )
  ]
  entry = manifest.add_start(tmp_path, told, [], items=triplets)
  wanted = {"X-Ray": ["heart", "lung", "rib"], "pet": []}
  assert entry["tasks"] == wanted
  assert predict_tasks.trained(tmp_path) == {
    "X-Ray": ("heart", "lung", "rib"),
    "pet": (),
  }


def test_what_weights_met_goes_back_to_the_first_run(told, tmp_path):
  first, second, old = (tmp_path / name for name in ("first", "second", "old"))
  for folder in (first, second, old):
    folder.mkdir()
  assert provenance.trained_on(first) is None

  def items(dataset):
    return [
      types.SimpleNamespace(dataset=dataset, modality="pet", classes=("heart",))
    ]

  manifest.add_start(first, told, [], items=items("a"))
  manifest.add_start(first, told, [], items=items("b"))  # it went on with it
  manifest.add_start(second, told, [], items=items("c"), source=str(first))
  found = provenance.trained_on(second)
  assert found == external.Training(frozenset("abc"))
  manifest.add_start(first, told, [], items=items("a"), source="converted")
  found = provenance.trained_on(second)
  assert found == external.Training(frozenset("abc"), ("converted",))

  # Of a run from before data sets were written, none is known.
  entry = manifest.add_start(old, told, [])
  del entry["datasets"]
  (old / manifest.RUN).write_text(json.dumps({"starts": [entry]}))
  assert provenance.trained_on(old) is None


def test_the_windows_of_built_sets_are_kept(told, tmp_path):
  class Built(shards.Shards):
    def __init__(self, names):
      self._shards = [types.SimpleNamespace(windows=names, classes=())]

    def __len__(self):
      return 1

  parts = [Built(("liver", "percentiles")), Built(("bone",)), [_sample()]]
  items = mixture.Mixture(parts, (1, 1, 1))
  entry = manifest.add_start(tmp_path, told, [], items=items)
  assert entry["windows"] == ["bone", "liver"]
  assert predict_tasks.windows_of(tmp_path) == ("bone", "liver")
  assert manifest.add_start(tmp_path, told, [])["windows"] == []


def _sample():
  return types.SimpleNamespace(dataset="", modality="pet", classes=())


def test_a_built_set_counts_by_its_manifest(told, tmp_path):
  folder = tmp_path / "built"
  folder.mkdir()
  (folder / "manifest.json").write_text("[]")
  flags = ["--config.data.index=", f"--config.data.mixture=(('{folder}:a',1),)"]
  mixed = settings.parse(flags, default=told)
  entry = manifest.add_start(tmp_path, mixed, [])
  wanted = hashlib.sha256(b"[]").hexdigest()
  assert entry["data"] == {f"{folder}:a": wanted}


def test_code_is_told_of_a_checkout_only(told, tmp_path, monkeypatch):
  monkeypatch.setattr(manifest, "_git", lambda *_: None)
  assert manifest.add_start(tmp_path, told, [])["code"] is None

  def answer(_, command, *rest):
    return {"rev-parse": "abc", "status": " M file"}.get(command, "")

  monkeypatch.setattr(manifest, "_git", answer)
  entry = manifest.add_start(tmp_path, told, [])
  assert entry["code"] == {"commit": "abc", "changed": True}


def test_something_else_is_refused(told, tmp_path):
  (tmp_path / manifest.RUN).write_text("[1]")
  with pytest.raises(ValueError, match="does not list the starts"):
    manifest.add_start(tmp_path, told, [])
