import errno
import pathlib
import subprocess
import sys
import types

import pytest

import rcmed_jax
from rcmed_jax import cli
from rcmed_jax.parallel import faults, hosts


@pytest.fixture
def app(monkeypatch):
  """`rcmed predict`, replaced by what a test sets as its `main`."""
  module = types.SimpleNamespace(main=lambda argv: 0)
  monkeypatch.setattr(cli.importlib, "import_module", lambda name: module)
  return module


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command(argv, capsys):
  assert cli.main(argv) == 0
  printed = capsys.readouterr().out
  for name, what in cli.COMMANDS.items():
    assert name in printed and what in printed


def test_version(capsys):
  assert cli.main(["--version"]) == 0
  assert rcmed_jax.__version__ in capsys.readouterr().out


def test_package_and_help_import_nothing_slow():
  code = (
    "import sys; import rcmed_jax; dir(rcmed_jax);"
    "from rcmed_jax import cli; cli.main(['--help']);"
    "sys.exit(str({'jax', 'numpy', 'ml_collections'} & set(sys.modules)"
    " or '') or None)"
  )
  result = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, result.stderr


def test_runs_as_a_module():
  result = subprocess.run(
    [sys.executable, "-m", "rcmed_jax", "trian"],
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == cli.BAD_INPUT
  assert "rcmed train" in result.stderr


def test_unknown_command_names_the_nearest(capsys):
  assert cli.main(["evalute"]) == cli.BAD_INPUT
  assert "`rcmed evaluate`" in capsys.readouterr().err


def test_command_gets_its_arguments_and_gives_the_exit_code(app):
  seen = []
  app.main = lambda argv: seen.extend(argv) or 3
  assert cli.main(["predict", "--image", "a.png"]) == 3
  assert seen == ["--image", "a.png"]


@pytest.mark.parametrize(
  "error", [ValueError("prompt has no text"), FileNotFoundError("prompt.txt")]
)
def test_bad_input_is_one_line(app, capsys, error):
  def main(argv):
    raise error

  app.main = main
  assert cli.main(["predict"]) == cli.BAD_INPUT
  assert capsys.readouterr().err == f"rcmed predict: {error}\n"


@pytest.mark.parametrize(
  "error, code",
  [
    (ConnectionResetError("the bucket hung up"), faults.UNREACHED),
    (TimeoutError("no answer"), faults.UNREACHED),
    (OSError(errno.ESTALE, "stale file handle"), faults.UNREACHED),
    (ValueError("UNAVAILABLE: Error reading gs://a"), faults.UNREACHED),
    (BrokenPipeError("of head"), cli.BAD_INPUT),
    (OSError(errno.ENOSPC, "no space"), cli.BAD_INPUT),
    (FloatingPointError("nan"), cli.BAD_INPUT),
  ],
)
def test_what_may_pass_is_no_bad_input(app, error, code):
  def main(argv):
    raise error

  app.main = main
  assert cli.main(["predict"]) == code
  assert hosts._exit_code(error) == code


def test_traceback_on_request(app, monkeypatch):
  def main(argv):
    raise ValueError("prompt has no text")

  app.main = main
  monkeypatch.setenv("RCMED_TRACEBACK", "1")
  with pytest.raises(ValueError, match="prompt has no text"):
    cli.main(["predict"])


def test_a_fault_of_ours_keeps_its_traceback(app):
  def main(argv):
    raise TypeError("fault")

  app.main = main
  with pytest.raises(TypeError):
    cli.main(["predict"])


def test_help_tells_which_commands_take_a_config(capsys):
  assert cli.main(["--help"]) == 0
  usage, *lines = capsys.readouterr().out.splitlines()
  assert "--config" not in usage
  assert any(", ".join(cli.CONFIGURED) in line for line in lines)
  apps = pathlib.Path(cli.__file__).parent / "apps"
  reads = lambda name: "settings.parse(" in (apps / name).read_text()  # noqa: E731
  assert {name for name in cli.COMMANDS if reads(f"{name}.py")} == set(
    cli.CONFIGURED
  )
