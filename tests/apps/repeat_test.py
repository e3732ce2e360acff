"""The same seed gives the same numbers, from a fresh process each time."""

import pathlib
import subprocess
import sys

import pytest

CONFIG = pathlib.Path(__file__).parents[2] / "configs/demo.py"


@pytest.mark.heavy
def test_two_demos_agree_to_the_last_digit(tmp_path):
  written = []
  for name in ("first", "second"):
    folder = tmp_path / name
    folder.mkdir()
    command = (
      *(sys.executable, "-m", "rcmed_jax", "demo"),
      *(f"--config={CONFIG}:tiny", "--config.mesh.data=8"),
      *("--config.train.batch_size=8", "--config.train.steps=20"),
      # One name for both: a summary tells whose scores it holds.
      *("--images", "36", "--held-out", "9", "--workdir", "run"),
    )
    subprocess.run(command, check=True, cwd=folder)
    workdir = folder / "run"
    losses = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [line.split('"images_per_s"')[0] for line in losses.splitlines()]
    scores = [
      (workdir / "report" / f"{file}--test.{kind}").read_bytes()
      for file, kind in (("summary", "json"), ("metrics", "jsonl"))
    ]
    written.append((lines, scores))
  assert written[0] == written[1]
