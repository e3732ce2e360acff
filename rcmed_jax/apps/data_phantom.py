"""`rcmed data phantom`: draw a data set."""

import argparse
import pathlib

from rcmed_jax.data import phantoms


def add_to(commands: argparse._SubParsersAction) -> None:
  """Adds the command."""
  parser = commands.add_parser(
    "phantom",
    allow_abbrev=False,
    help="draw images of nine modalities with masks and descriptions",
    description="Draws images of nine modalities with masks, descriptions and "
    "a contact sheet, in the index format that real data comes in.",
  )
  parser.add_argument("--out", type=pathlib.Path, required=True)
  parser.add_argument("--images", type=int, required=True)
  parser.add_argument("--held-out", type=int, default=0, help="test images")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--size", type=int, default=192, help="pixels a side")
  parser.add_argument("--processes", type=int, default=1)
  parser.add_argument(
    "--detail", action="store_true", help="describe at length"
  )
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
  """Draws, and says where to look."""
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
