"""The place of a process among several, from the command line or looked up."""

import argparse
import sys

from rcmed_jax.parallel import places


def add_flags(parser: argparse.ArgumentParser) -> None:
  """Adds --coordinator, --processes and --process."""
  several = parser.add_argument_group(
    "several processes", "All three, or none: then the place is looked up."
  )
  several.add_argument(
    "--coordinator", metavar="HOST:PORT", help="where process 0 listens"
  )
  several.add_argument("--processes", type=int, metavar="N", help="how many")
  several.add_argument("--process", type=int, metavar="I", help="which, from 0")


def place(args: argparse.Namespace, command: str) -> places.Place:
  """The place; says which, where there are several.

  Raises:
    ValueError: the flags contradict each other, or what was looked up does.
  """
  found = places.find(args.coordinator, args.processes, args.process)
  if found.coordinator:
    print(f"{command}: {found}", file=sys.stderr)
  return found
