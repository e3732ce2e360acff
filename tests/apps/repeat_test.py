"""The same seed gives the same numbers, from a fresh process each time."""

import subprocess
import sys

import pytest


@pytest.mark.heavy
def test_two_demos_agree_to_the_last_digit(tmp_path):
  written = []
  for name in ("first", "second"):
    workdir = tmp_path / name
    command = (
      *(sys.executable, "-m", "rcmed_jax", "demo"),
      *("--config=configs/demo.py:tiny", "--config.mesh.data=8"),
      *("--config.train.batch_size=8", "--config.train.steps=20"),
      *("--images", "36", "--held-out", "9", "--workdir", str(workdir)),
    )
    subprocess.run(command, check=True)
    losses = (workdir / "metrics.jsonl").read_text(encoding="utf-8")
    lines = [line.split('"images_per_s"')[0] for line in losses.splitlines()]
    scores = [
      (workdir / "report" / f"{file}--test.{kind}").read_bytes()
      for file, kind in (("summary", "json"), ("metrics", "jsonl"))
    ]
    written.append((lines, scores))
  assert written[0] == written[1]
