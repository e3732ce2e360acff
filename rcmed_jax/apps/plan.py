"""`rcmed plan`: what a step takes on accelerators that nobody has rented."""

import argparse
from collections.abc import Sequence
import dataclasses
import json
import pathlib
import sys

import jax

from rcmed_jax.apps import plan_report, plan_search, plan_steps, settings
from rcmed_jax.parallel import mesh as meshes

# Exit code where the step does not fit.
TOO_LARGE = 1


def main(argv: Sequence[str]) -> int:
  """Runs the command; see `rcmed plan --help`."""
  args, rest = _parser().parse_known_args(argv)
  if not 0 < args.utilisation <= 1:
    raise ValueError(
      f"--utilisation={args.utilisation} must be above 0 and at most 1."
    )
  # No accelerator is needed, nor kept from others; libtpu would look for one.
  jax.config.update("jax_platforms", "cpu")
  told = settings.parse(rest)
  if args.mesh:
    told = dataclasses.replace(told, mesh=meshes.parse(args.mesh))
  asked = plan_report.Question(
    told,
    plan_steps.place(args.topology, args.slices),
    args.step,
    args.utilisation,
    args.price,
  )
  if args.search:
    choices = plan_search.search(asked, compiles=args.compile, say=_say)
    if args.json:
      print(json.dumps([one.as_json() for one in choices], indent=2))
    else:
      print(plan_search.table(choices))
    return 0 if choices[0].fits else TOO_LARGE
  if asked.where.compiles:
    _say("compiling; the 7B takes a quarter of an hour and more")
  found, text = plan_report.report(asked)
  if args.program and text:
    args.program.write_text(text, encoding="utf-8")
  if args.json:
    # The table has it where people look; here nobody does.
    if sentence := plan_report.warning(found):
      _say(sentence)
    print(json.dumps(found.as_json(), indent=2))
  else:
    print(plan_report.table(found))
  return 0 if found.fits else TOO_LARGE


def _say(sentence: str) -> None:
  print(f"plan: {sentence}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    "rcmed plan",
    allow_abbrev=False,
    description="Compiles a step for a TPU slice that need not exist, or "
    "counts it for GPUs, and prints memory by kind, the largest arrays, what "
    "is sent, and the speed to expect. Exit code 1 where it does not fit.",
  )
  parser.add_argument(
    "--topology",
    required=True,
    help="v5e:16x16, v5p:4x4x8, v6e:16x16, ... compiled; h100:64, ... counted",
  )
  parser.add_argument(
    "--slices", type=int, default=1, help="of this topology; default: 1"
  )
  parser.add_argument(
    "--step",
    choices=plan_steps.STEPS,
    default="train",
    help="default: train; evaluate answers whole, decode adds a token",
  )
  parser.add_argument(
    "--mesh",
    metavar="data=4,fsdp=64",
    help="instead of the config's; axes that are not named are 1",
  )
  parser.add_argument(
    "--utilisation",
    type=float,
    default=0.4,
    help="of the peak that arithmetic reaches, for the speed; default: 0.4",
  )
  parser.add_argument(
    "--price", type=float, metavar="USD", help="of one device for an hour"
  )
  parser.add_argument("--json", action="store_true", help="print JSON")
  parser.add_argument(
    "--program",
    type=pathlib.Path,
    metavar="FILE",
    help="takes the compiled program's text",
  )
  parser.add_argument(
    "--search",
    action="store_true",
    help="try meshes, batch sizes, micro-batches, remat policies, placements",
  )
  parser.add_argument(
    "--compile",
    type=int,
    default=2,
    metavar="N",
    help="with --search: compile the best until N fit; default: 2",
  )
  return parser
