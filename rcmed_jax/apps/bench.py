"""`rcmed bench`: what runs on this machine, and how fast."""

import argparse
from collections.abc import Sequence
import dataclasses
import json

import jax

from rcmed_jax.apps import bench_kernels
from rcmed_jax.kernels import choice


def main(argv: Sequence[str]) -> int:
  """Runs the command; see `rcmed bench --help`."""
  args = _parser().parse_args(argv)
  if args.rounds < 1:
    raise ValueError(f"--rounds={args.rounds} must be at least 1.")
  platform, kind = choice.device()
  dtype = args.dtype or ("float32" if platform == "cpu" else "bfloat16")
  # A CPU takes minutes over a full-size attention and its gradient.
  usual = ("toy",) if args.time and platform == "cpu" else bench_kernels.SIZES
  rows: list[bench_kernels.Row] = []
  for op in args.op or bench_kernels.OPS:
    for size in args.size or usual:
      found = bench_kernels.rows(op, size, dtype)
      rows += bench_kernels.timed(found, args.rounds) if args.time else found
  if args.json:
    found = {
      "platform": platform,
      "device": kind,
      "jax": jax.__version__,
      "rounds": args.rounds if args.time else None,
      "rows": [dataclasses.asdict(row) for row in rows],
    }
    print(json.dumps(found, indent=2))
  else:
    print(f"bench: {kind} ({platform}), JAX {jax.__version__}, {dtype}")
    print("\n".join(_table(rows)))
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser("rcmed bench", allow_abbrev=False)
  commands = parser.add_subparsers(dest="command", required=True)
  kernels = commands.add_parser(
    "kernels",
    allow_abbrev=False,
    help="every implementation of every op",
    description="Lists every implementation of every op at typical sizes: "
    "whether it can run here, or why not; * marks what runs where nobody "
    "insists.",
  )
  kernels.add_argument(
    "--op", nargs="+", choices=tuple(bench_kernels.OPS), help="default: all"
  )
  kernels.add_argument(
    "--size",
    nargs="+",
    choices=bench_kernels.SIZES,
    help="default: all, but to time on a CPU toy; full is the released 7B",
  )
  kernels.add_argument(
    "--dtype",
    choices=("float32", "bfloat16"),
    help="of the operands; default: float32 on a CPU, else bfloat16",
  )
  kernels.add_argument(
    "--time",
    action="store_true",
    help="run what can run; the median, and the difference to the reference",
  )
  kernels.add_argument(
    "--rounds", type=int, default=10, help="to take the median of; default: 10"
  )
  kernels.add_argument("--json", action="store_true", help="print JSON")
  return parser


def _table(rows: Sequence[bench_kernels.Row]) -> list[str]:
  cells = [
    (
      f"{row.op} {row.size}",
      row.shape,
      ("* " if row.chosen else "  ") + row.implementation,
      _told(row),
    )
    for row in rows
  ]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return [
    "  ".join(
      f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)
    ).rstrip()
    for line in cells
  ]


def _told(row: bench_kernels.Row) -> str:
  if row.refusal is not None:
    return f"no: {row.refusal}"
  if row.forward_ms is None:
    return "yes"
  both = "" if row.both_ms is None else f", with backward {row.both_ms:.3f} ms"
  return (
    f"forward {row.forward_ms:.3f} ms{both}, difference {row.difference:.1e}"
  )
