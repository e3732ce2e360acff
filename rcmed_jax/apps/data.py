"""`rcmed data COMMAND`: make, check, build and look at data sets."""

import argparse
from collections.abc import Sequence

from rcmed_jax.apps import (
  data_build,
  data_check,
  data_describe,
  data_phantom,
  data_show,
)

# Each module adds its own commands.
PARTS = (data_phantom, data_check, data_show, data_describe, data_build)


def main(argv: Sequence[str]) -> int:
  """Runs the command; see `rcmed data --help`."""
  parser = argparse.ArgumentParser("rcmed data", allow_abbrev=False)
  commands = parser.add_subparsers(required=True, metavar="COMMAND")
  for part in PARTS:
    part.add_to(commands)
  args = parser.parse_args(argv)
  return args.run(args)
