"""`rcmed compare`: whether one evaluated run is better than another."""

import argparse
from collections.abc import Sequence
import pathlib
import sys

from rcmed_jax.eval import compare as comparing
from rcmed_jax.eval import compare_report, conditions, pairing, verdict


def main(argv: Sequence[str]) -> int:
  """Runs the command; see `rcmed compare --help`."""
  args = _parser().parse_args(argv)
  paths = [pairing.find(run, args.split) for run in (args.run_a, args.run_b)]
  names = tuple(args.names) if args.names else _names(args.run_a, args.run_b)
  pairs = pairing.match(
    *(pairing.read(path) for path in paths), names=names, common=args.common
  )
  apart = conditions.differences(*paths)
  for one in apart:
    print(f"compare: warning: asked differently: {one}", file=sys.stderr)
  result = comparing.compare(pairs.pairs, draws=args.draws, seed=args.seed)
  page = compare_report.write(
    result,
    args.out,
    names=names,
    pairing=pairs,
    facts={
      "scores of A": str(paths[0]),
      "scores of B": str(paths[1]),
      "split": args.split,
    },
    apart=apart,
  )
  for sentence in verdict.sentences(result, names):
    print(sentence)
  print(f"compare: report={page}")
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    "rcmed compare",
    allow_abbrev=False,
    description="Compares the scores of two evaluated runs, mask by mask.",
    epilog="Differences are RUN_B minus RUN_A. A run is its folder, its report "
    "folder, or the file metrics--<split>.jsonl itself.",
  )
  parser.add_argument("run_a", metavar="RUN_A", help="the baseline")
  parser.add_argument("run_b", metavar="RUN_B", help="what may be better")
  parser.add_argument(
    "--out",
    type=pathlib.Path,
    required=True,
    help="folder for index.html and comparison.json",
  )
  parser.add_argument("--split", default="test", help="default: test")
  parser.add_argument(
    "--names",
    nargs=2,
    metavar=("A", "B"),
    help="what to call the runs; default: their folders",
  )
  parser.add_argument(
    "--common",
    action="store_true",
    help="compare the masks that both have and list the others; by default "
    "runs over different masks are refused",
  )
  parser.add_argument(
    "--draws",
    type=int,
    default=comparing.DRAWS,
    help=f"resamplings behind each interval; default: {comparing.DRAWS}",
  )
  parser.add_argument("--seed", type=int, default=0, help="of the resampling")
  return parser


def _names(run_a: str, run_b: str) -> tuple[str, str]:
  """Returns the runs' folder names, or their paths where those are alike."""
  names = tuple(pathlib.Path(run).resolve().name for run in (run_a, run_b))
  if names[0] == names[1]:
    names = (run_a, run_b)
  if names[0] == names[1]:
    names = (f"{run_a} (A)", f"{run_b} (B)")
  return names[0], names[1]
