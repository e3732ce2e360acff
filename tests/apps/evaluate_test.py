"""`rcmed evaluate` around an assistant that looks at brightness alone."""

import json
import shutil

import fake_assistant
import jax.numpy as jnp
import optax
import pytest

from rcmed_jax import cli
from rcmed_jax.apps import answering, evaluate, provenance, runs, settings
from rcmed_jax.data import phantoms
from rcmed_jax.train import checkpoints
from rcmed_jax.train import step as steps


@pytest.fixture
def run(tmp_path):
  """The folder of a run, with images beside it."""
  phantoms.write(tmp_path / "data", 9, seed=0)
  told = settings.parse(["--config=configs/demo.py:tiny"])
  folder = tmp_path / "run"
  settings.save(told, folder)
  log = '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n'
  (folder / "metrics.jsonl").write_text(log)
  return folder


@pytest.fixture(autouse=True)
def asked(monkeypatch):
  """The questions that reach the assistant."""
  assistant = fake_assistant.Fake()
  monkeypatch.setattr(answering, "load_assistant", lambda *_, **__: assistant)
  return assistant.asked


@pytest.fixture
def same(monkeypatch):
  """Runs without a checkpoint are one model."""
  monkeypatch.setattr(provenance, "identity", lambda *_, **__: "fake")


def _evaluate(run, out, *more):
  index = run.parent / "data/image2label_train.json"
  told = (f"--workdir={run}", f"--index={index}", f"--out={out}")
  quick = ("--config.eval.bootstrap=0", "--config.eval.limit=3")
  return cli.main(["evaluate", *told, *quick, *more])


@pytest.mark.usefixtures("same")
def test_a_run_without_curves_or_with_torn_ones_has_a_page(
  run, tmp_path, capsys
):
  log = run / "metrics.jsonl"
  with log.open("a") as file:
    file.write('{"step": 3, "lo')
  assert _evaluate(run, tmp_path / "torn") == 0
  assert "Loss by term" in (tmp_path / "torn/index.html").read_text()
  log.unlink()
  assert _evaluate(run, tmp_path / "none") == 0
  assert "Loss by term" not in (tmp_path / "none/index.html").read_text()
  assert "quarantined" not in capsys.readouterr().out


@pytest.mark.usefixtures("same")
def test_scores_outlast_a_page_or_a_temperature_that_fails(
  run, tmp_path, asked, capsys, monkeypatch
):
  out, fitted = tmp_path / "report", tmp_path / "temperature.json"
  # It claims nothing that is asked: no temperature fits.
  flags = ("--calibrate", f"--temperature={fitted}")
  assert _evaluate(run, out, *flags) == 2
  assert "temperature of split 'test'" in capsys.readouterr().err
  assert (out / "index.html").is_file()
  assert (out / "partial--test").is_dir()
  assert asked
  asked.clear()
  with monkeypatch.context() as patched:
    patched.setattr(evaluate.report, "write_report", _no_room)
    assert _evaluate(run, out) == 2
  assert _evaluate(run, out) == 0
  assert not asked
  assert not (out / "partial--test").exists()


def _no_room(*_, **__):
  raise OSError("no room for a page")


@pytest.mark.usefixtures("same")
def test_what_the_index_rejects_is_on_the_page_and_in_the_headline(
  run, tmp_path, capsys
):
  data = run.parent / "data"
  index = json.loads((data / "image2label_train.json").read_text())
  first = next(iter(index.values()))
  path = data / "image2label_faulty.json"
  faulty = {"images/unknown--x--1.png": first, "images/ct--x--2.png": "mask"}
  path.write_text(json.dumps(faulty | index))
  out = tmp_path / "report"
  for _ in range(2):  # a quarantine that is there already hides none
    assert _evaluate(run, out, f"--index={path}") == 0
    assert " quarantined=2 report=" in capsys.readouterr().out
  summary = json.loads((out / "summary--test.json").read_text())
  assert (summary["images"], summary["quarantined"]) == (3, 2)
  rows = [
    json.loads(line)
    for line in (out / "quarantine--test.jsonl").read_text().splitlines()
  ]
  assert [row["record"] for row in rows] == list(faulty)
  page = (out / "index.html").read_text()
  assert "Every record could be read" not in page
  assert "images/unknown--x--1.png" in page


@pytest.mark.parametrize("flag", ["--out", "--temperature"])
def test_what_lies_in_a_bucket_is_refused(run, tmp_path, capsys, flag):
  told = f"{flag}=gs://bucket/report"
  assert _evaluate(run, tmp_path / "report", told) == 2
  said = capsys.readouterr().err
  assert "gs://bucket/report lies in a bucket" in said
  assert f"give {flag}, a path on a disk" in said
  assert not (tmp_path / "report").exists()


def _checkpoint(folder, value=1.0):
  """Step 2 of a run of one weight."""
  weights = {"a": jnp.float32([value])}
  moments = optax.adamw(0.1).init(weights)
  with checkpoints.Checkpoints(folder, keep=2) as saved:
    saved.save(steps.TrainState(jnp.int32(2), weights, {}, moments), {}, {})


def _with(told, *flags):
  return settings.parse(flags, default=told)


def test_two_runs_of_a_sweep_are_two_models(run, tmp_path):
  """Of one seed and step, with other settings, weights or words."""
  _checkpoint(run)
  (run / runs.TOKENIZER).write_bytes(b"words")
  identity = provenance.identity(run)
  assert "seed 0 step 2" in identity
  assert identity == provenance.identity(run)
  assert identity != provenance.identity(run, averaged=True)
  other = tmp_path / "other"
  shutil.copytree(run, other)
  assert provenance.identity(other) == identity  # wherever it lies
  told = settings.load(run)
  for flag, same in (
    ("--config.eval.max_new=9", True),
    ("--config.mesh.fsdp=2", True),
    ("--config.model.correlation.steps=0", False),
    ("--config.data.negative_share=0.9", False),
  ):
    settings.save(_with(told, flag), other)
    assert (provenance.identity(other) == identity) == same
  settings.save(told, other)
  (other / runs.TOKENIZER).write_bytes(b"others")
  assert provenance.identity(other) != identity
  (other / runs.TOKENIZER).write_bytes(b"words")
  shutil.rmtree(other / "checkpoints")
  _checkpoint(other, 1.5)
  assert provenance.identity(other) != identity
