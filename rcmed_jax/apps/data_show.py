"""`rcmed data show`: a contact sheet of any sources, or of a built data set."""

import argparse
import pathlib

from rcmed_jax.apps import data_sources
from rcmed_jax.ingest.checking import sheet


def add_to(commands: argparse._SubParsersAction) -> None:
  """Adds the command."""
  parser = commands.add_parser(
    "show",
    allow_abbrev=False,
    help="draw pictures with their masks on one page",
    description="Writes one HTML page of pictures with the outlines of their "
    "masks, drawn evenly over modalities and classes.",
  )
  data_sources.add_arguments(parser)
  parser.add_argument(
    "--out",
    type=pathlib.Path,
    required=True,
    metavar="FILE.html",
    help="the page, one file that holds its pictures",
  )
  parser.add_argument("--count", type=int, default=60, help="of pictures")
  parser.add_argument("--seed", type=int, default=0)
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
  """Draws, and says where to look."""
  drawn = sheet.draw(data_sources.open_all(args), args.count, args.seed)
  path = sheet.write(args.out, drawn)
  print(
    f"data: {len(drawn.triplets)} pictures of {drawn.units:,} units, "
    f"{len(drawn.faults)} faults met; look at {path}"
  )
  return 0
