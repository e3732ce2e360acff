"""`rcmed sweep`, from its arguments to its table."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import yaml

from rcmed_jax.apps import settings, sweep, sweep_cells, sweep_file
from rcmed_jax.parallel import hosts

# Enough that a signal finds the first run at it.
STEPS = 60
FILE = """
def get_sweep(arg=None):
  return dict(
    config="configs/demo.py:tiny",
    phantoms=dict(images=18, held_out=18, size=64, modalities=("ct", "x")),
    every={
      "train.steps": STEPS,
      "train.batch_size": 2,
      "train.log_every": 1,
      "train.checkpoint_every": 1000,
      "optimizer.warmup_steps": 0,
      "eval.controls": (),
      "eval.max_new": 16,
      "data.lengths": (128,),
      "data.describe": False,
    },
    cells={
      # The same program for both: it is compiled once.
      "none": {"data.negative_share": 0.0},
      "half": {"data.negative_share": 0.5},
    },
  )
""".replace("STEPS", str(STEPS))


@pytest.fixture
def told(tmp_path, monkeypatch):
  """The arguments of a small sweep."""
  file = tmp_path / "small.py"
  file.write_text(FILE)
  # One device a run: a batch of two does not divide by eight.
  monkeypatch.setenv("XLA_FLAGS", "")
  return [f"--sweep={file}", f"--workdir={tmp_path / 'out'}", "--seeds=2"]


@pytest.mark.parametrize("name", sweep_file.available())
def test_shipped_sweeps_hold_in_both_sizes(name, tmp_path):
  for variant, flags in (
    (":tiny", ()),
    ("", ("--config.data.index=/data/index.json",)),
  ):
    found = sweep_file.load(name + variant)
    tasks = sweep_cells.tasks(found, tmp_path, seeds=3, flags=flags)
    assert len(tasks) == 3 * len(found.cells) >= 6
    assert (found.phantoms is None) == (variant == "")
  with pytest.raises(ValueError, match=r":big is unknown; use :tiny"):
    sweep_file.load(f"{name}:big")
  text = pathlib.Path(name).read_text(encoding="utf-8")
  assert f"--sweep={name}:tiny" in text and "Hardware:" in text


def test_list_shows_states_and_runs_nothing(told, tmp_path, capsys):
  assert sweep.main([*told, "--list", "--only", "half"]) == 0
  out = capsys.readouterr().out
  assert "half/seed0" in out and "half/seed1" in out and "none" not in out
  assert "missing" in out and "data.negative_share=0.5" in out
  assert f"rcmed train --config={tmp_path}/out/half/seed0/told.json" in out
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
  ("more", "message"),
  [
    (["--index=/a.json"], "give both --config.data.index"),
    (["--config.data.index=/a.json"], "give both --config.data.index"),
    (["--config.train.stpes=3"], r"the nearest is config\.train\.steps"),
    (["--config.data.negative_share=0.3"], "set by cell none itself"),
    (["--only=noone"], "the nearest is none"),
    (["--emit=slurm"], "wants --out"),
    (["--emit=jobset", "--out=/tmp/none"], "wants --image"),
    (["--workdir=gs://bucket/x"], "mount the bucket"),
  ],
)
def test_bad_arguments_are_refused_before_anything_is_made(
  told, more, message, tmp_path
):
  with pytest.raises(ValueError, match=message):
    sweep.main([*told, *more])
  assert not (tmp_path / "out").exists()


def test_sweep_without_images_asks_for_them(tmp_path):
  told = ["--sweep=configs/sweeps/lora.py", f"--workdir={tmp_path}"]
  with pytest.raises(ValueError, match="draws no images; give"):
    sweep.main(told)


def test_emitted_files_hold_every_run(told, tmp_path):
  more = ["--config.train.steps=9", "--from=w", "--only", "none/seed1", "half"]
  for form, extra in (
    ("slurm", []),
    ("jobset", ["--image=i", "--accelerator=a", "--topology=2x2"]),
  ):
    out = tmp_path / form
    told_all = [*told, *more, f"--emit={form}", f"--out={out}", *extra]
    assert sweep.main(told_all) == 0
    text = out.read_text()
    for name in ("none/seed1", "half/seed0", "half/seed1"):
      assert name in text
    assert "none/seed0" not in text
    assert f"--workdir={tmp_path}/out" in text
    for flag in ("--config.train.steps=9", "--seeds=2", "--from=w"):
      assert flag in text
  assert yaml.safe_load(text)["metadata"]["name"] == "sweep-small"
  assert not (tmp_path / "out").exists()


def run(told, *more):
  code = (
    "import sys; from rcmed_jax.apps import sweep; "
    "sys.exit(sweep.main(sys.argv[1:]))"
  )
  return subprocess.Popen(
    [sys.executable, "-c", code, *told, *more],
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


@pytest.mark.heavy
def test_two_cells_two_seeds_stopped_and_gone_on_with(told, tmp_path):
  out = tmp_path / "out"
  metrics = out / "none/seed0/metrics.jsonl"
  first = run(told)
  wait_for(lambda: metrics.exists() and metrics.read_text())
  first.send_signal(signal.SIGTERM)
  text, _ = first.communicate(timeout=300)
  assert first.returncode == hosts.STOPPED, text
  state = json.loads((out / "none/seed0/state.json").read_text())
  assert (state["state"], state["stage"]) == ("begun", "train")
  table = json.loads((out / "sweep.json").read_text())
  assert table["runs"]["none/seed0"]["state"] == "begun"
  done = json.loads(metrics.read_text().splitlines()[-1])["step"]
  assert 0 < done < STEPS

  other = run(told, "--config.train.batch_size=1")
  assert "was begun with other settings" in other.communicate(timeout=300)[0]

  second = run(told)
  text, _ = second.communicate(timeout=600)
  assert second.returncode == 0, text
  assert text.count(" finished; ") == 4
  log = (out / "none/seed0/train.log").read_text()
  assert f"going on after step {done}" in log
  assert len(metrics.read_text().splitlines()) == STEPS
  table = json.loads((out / "sweep.json").read_text())
  assert {one["state"] for one in table["runs"].values()} == {"finished"}
  assert table["images"] == 4
  for cell, values in table["cells"].items():
    for seed in (0, 1):
      folder = out / cell / f"seed{seed}"
      summary = json.loads((folder / "report/summary--test.json").read_text())
      dice = values["scores"]["dice"]["by_seed"][str(seed)]
      assert dice == pytest.approx(summary["macro"]["dice"], abs=1e-6)
      recorded = settings.load(folder)
      assert recorded.train.seed == recorded.data.seed == seed
    assert values["seconds_a_step"] > 0

  names = ("sweep.json", "sweep.md", "index.html")
  before = [(out / name).read_bytes() for name in names]
  third = run(told)
  text, _ = third.communicate(timeout=300)
  assert "4 runs (4 finished); 0 to run" in text
  assert [(out / name).read_bytes() for name in names] == before


def wait_for(true, seconds=300.0):
  deadline = time.monotonic() + seconds
  while not true():
    assert time.monotonic() < deadline, "waited in vain"
    time.sleep(0.05)
