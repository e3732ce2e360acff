"""Damaged files by the hundred: a fault or a sound result, and nothing else."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

_TESTS = pathlib.Path(__file__).parents[2]


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["nifti", "nrrd", "npz", "dicom"])
def test_500_mutated_files_are_read_or_refused(kind, tmp_path):
  run = subprocess.run(
    [
      sys.executable,
      str(_TESTS / "fuzz_volumes.py"),
      kind,
      "500",
      os.environ.get("RCMED_FUZZ_SEED", "0"),
      str(tmp_path),
    ],
    env={**os.environ, "PYTHONPATH": f"{_TESTS.parent}:{_TESTS}"},
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
  last = (tmp_path / "last").read_text()
  assert run.returncode == 0, f"input {last}: {run.stderr[-2000:]}"
  counts = json.loads(run.stdout.splitlines()[-1])
  assert counts["read"] + counts["refused"] == 500
  # Both ways are taken often, or the test shows nothing.
  assert min(counts["read"], counts["refused"]) > 30
  assert counts["peak_mb"] < 2000
