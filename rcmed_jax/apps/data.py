"""`rcmed data`: make data sets."""

import argparse
from collections.abc import Sequence
import pathlib

from rcmed_jax.data import phantoms


def main(argv: Sequence[str]) -> int:
  """Runs the command; see `rcmed data --help`."""
  parser = argparse.ArgumentParser("rcmed data", allow_abbrev=False)
  commands = parser.add_subparsers(required=True, metavar="COMMAND")
  phantom = commands.add_parser(
    "phantom",
    allow_abbrev=False,
    help="draw images of nine modalities with masks and descriptions",
    description="Draws images of nine modalities with masks, descriptions and "
    "a contact sheet, in the index format that real data comes in.",
  )
  phantom.add_argument("--out", type=pathlib.Path, required=True)
  phantom.add_argument("--images", type=int, required=True)
  phantom.add_argument("--held-out", type=int, default=0, help="test images")
  phantom.add_argument("--seed", type=int, default=0)
  phantom.add_argument("--size", type=int, default=192, help="pixels a side")
  phantom.add_argument("--processes", type=int, default=1)
  phantom.add_argument(
    "--detail", action="store_true", help="describe at length"
  )
  args = parser.parse_args(argv)
  phantoms.write(
    args.out,
    args.images,
    seed=args.seed,
    held_out=args.held_out,
    size=args.size,
    processes=args.processes,
    detail=args.detail,
  )
  print(
    f"data: {args.images} + {args.held_out} images in {args.out}; look at "
    f"{args.out / 'contact_sheet.png'}"
  )
  return 0
