import json
import types

import pytest

from rcmed_jax.apps import provenance
from rcmed_jax.eval import temperature


class _Saved:
  """Checkpoints of a run: the newest at 360, the best at 200."""

  def __init__(self, workdir):
    del workdir

  def __enter__(self):
    return self

  def __exit__(self, *_):
    pass

  def chosen(self, *, best):
    return 200 if best else 360


@pytest.fixture(autouse=True)
def _run(monkeypatch):
  monkeypatch.setattr(provenance.checkpoints, "Checkpoints", _Saved)
  told = types.SimpleNamespace(train=types.SimpleNamespace(seed=3))
  monkeypatch.setattr(provenance.settings, "load", lambda workdir: told)
  monkeypatch.setattr(provenance.runs, "converted", lambda workdir: None)


def test_tells_step_choice_and_index():
  made = provenance.made("runs/a", "set:test")
  assert made["weights"]["step"] == 360
  assert made["weights"]["training seed"] == 3
  assert made["data"]["index"] == "set:test"
  assert made["temperature"] is None
  best = provenance.made(
    "runs/a", "x", best=True, averaged=True, in_int8=True, classes=["k.npz"]
  )["weights"]
  assert best["step"] == 200
  assert best["averaged"] and best["8 bits"] and best["best on held-out"]
  assert best["new classes"] == ["k.npz"]
  json.dumps(made)


def test_tells_the_temperature_that_was_used(tmp_path):
  path = tmp_path / "temperature.json"
  assert provenance.made("a", "b", fitted=path)["temperature"] is None
  temperature.save(path, temperature.Temperature(1.5, "validation", 40, 2, 1))
  found = provenance.made("a", "b", fitted=path)["temperature"]
  assert (found["value"], found["fitted on split"]) == (1.5, "validation")


def test_names_converted_weights_by_their_content(tmp_path, monkeypatch):
  monkeypatch.setattr(provenance.runs, "converted", lambda workdir: tmp_path)
  digests = set()
  for text in ("{}", '{"a": 1}'):
    (tmp_path / provenance.store.MANIFEST).write_text(text)
    digests.add(provenance.made(tmp_path, "b")["weights"]["converted"])
  assert len(digests) == 2
