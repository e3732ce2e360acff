"""`rcmed COMMAND`: picks the app, runs it, turns bad input into one line.

The list of commands stands here and not in the apps, so that `rcmed --help`
imports neither JAX nor anything else that takes time.
"""

from collections.abc import Sequence
import difflib
import importlib
import os
import sys

import rcmed_jax
from rcmed_jax.parallel import faults

# Command -> what it does. Each is the module of that name in rcmed_jax/apps.
COMMANDS = {
  "demo": "draw data, train a toy model, evaluate it, write the report",
  "data": "make and check data; `rcmed data phantom` draws a data set",
  "train": "train or fine-tune from a config",
  "evaluate": "score a trained model and write its report",
  "sweep": "train and score the cells of an ablation, seed by seed",
  "compare": "whether one evaluated run is better than another",
  "predict": "ask a trained model about images and volumes",
  "serve": "answer over HTTP, with a web page; or as MCP tools",
  "adapt": "teach a new class from examples, without training",
  "convert": "take in a PyTorch checkpoint, or give one out",
  "plan": "memory, traffic and speed of a step on chips not rented yet",
  "bench": "which kernels run on this machine, and how fast",
}

# Those that take settings, as `apps/settings.py` reads them.
CONFIGURED = ("demo", "train", "evaluate", "plan")

# Exit code of a run that the input stopped, as argparse uses it.
BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one command and returns its exit code.

  Bad input (ValueError, OSError such as a missing file or a full disk,
  FloatingPointError of training) and what this machine cannot do (ImportError
  of an extra that is not installed, NotImplementedError) become one line on
  stderr and exit code 2; RCMED_TRACEBACK=1 lets the exception through instead.
  A bucket or a service that does not answer is no bad input: code 69, the same
  command may do next time. Anything else is a fault of ours and is not caught.

  Args:
    argv: the command and its arguments; None means those of the process.
  """
  command, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
  if command in ("-h", "--help", "help"):
    print(_usage())
    return 0
  if command == "--version":
    print(f"rcmed {rcmed_jax.__version__}")
    return 0
  if command not in COMMANDS:
    print(_unknown(command), file=sys.stderr)
    return BAD_INPUT
  try:
    return importlib.import_module(f"rcmed_jax.apps.{command}").main(rest)
  except (
    ValueError,
    OSError,
    FloatingPointError,
    ImportError,
    NotImplementedError,
  ) as error:
    if os.environ.get("RCMED_TRACEBACK") == "1":
      raise
    print(f"rcmed {command}: {error}", file=sys.stderr)
    return faults.UNREACHED if faults.is_passing(error) else BAD_INPUT


def _usage() -> str:
  width = max(map(len, COMMANDS))
  lines = [f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()]
  return "\n".join(
    [
      "usage: rcmed COMMAND [--FLAG=VALUE] ...",
      "",
      *lines,
      "",
      f"{', '.join(CONFIGURED)} also take --config=FILE[:VARIANT] and",
      "--config.KEY=VALUE.",
      "",
      "`rcmed COMMAND --help` tells more. RCMED_TRACEBACK=1 shows where an",
      "error came from.",
    ]
  )


def _unknown(command: str) -> str:
  (nearest,) = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0)
  return (
    f"rcmed: there is no command {command!r}; the nearest is `rcmed {nearest}`."
    f" Commands: {', '.join(COMMANDS)}."
  )
