"""A launch file, run with programs that stand in for those it calls."""

import os
import pathlib
import subprocess

import imports
import pytest


@pytest.fixture
def launch(tmp_path: pathlib.Path):
  """Runs a launch file; what came of it, and the calls of the stand-ins.

  These append each argument as a line, and an empty one, to the file $CALLS.
  """

  def start(script, environ, *arguments, limit_s=120, **fakes):
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    for name, text in fakes.items():
      (tools / name).write_text(text)
      (tools / name).chmod(0o755)
    calls = tmp_path / "calls"
    calls.write_text("")
    result = subprocess.run(
      ["bash", str(imports.ROOT / "launch" / script), *arguments],
      env=environ
      | {
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "CALLS": str(calls),
        "FAKE": str(tmp_path),
      },
      capture_output=True,
      text=True,
      check=False,
      timeout=limit_s,
    )
    made = calls.read_text().strip("\n").split("\n\n")
    return result, [call.split("\n") for call in made if call]

  return start
