"""`rcmed data check`: look a data set through before it is used."""

import argparse
import pathlib
import sys

from rcmed_jax.apps import data_sources
from rcmed_jax.ingest.checking import check, check_report, findings

CLEAN, DECIDE, STOPPED = 0, 1, 130


def add_to(commands: argparse._SubParsersAction) -> None:
  """Adds the command."""
  parser = commands.add_parser(
    "check",
    allow_abbrev=False,
    help="count, and find faults, duplicates and leakage",
    description="Reads every image and mask of the sources and reports what "
    "there is and what is wrong: DIR/index.html, DIR/report.json and "
    f"DIR/{check.QUARANTINE}, a line a fault.",
    epilog=f"Exit code {CLEAN}: clean. {DECIDE}: something asks for a decision "
    "(faults; a patient, volume or picture in two splits; an id that comes "
    f"twice). {STOPPED}: stopped by Ctrl-C; what was seen is reported.",
  )
  data_sources.add_arguments(parser)
  parser.add_argument(
    "--out",
    type=pathlib.Path,
    required=True,
    metavar="DIR",
    help="folder of the report, made where it is missing",
  )
  parser.add_argument(
    "--no-decode",
    action="store_true",
    help="quick: names, and whether files are there; no pixels, no duplicates",
  )
  parser.add_argument(
    "--processes",
    type=int,
    default=1,
    metavar="N",
    help="that read at once (default: %(default)s)",
  )
  parser.add_argument(
    "--group",
    default="",
    metavar="PATTERN",
    help="regular expression that finds the patient or volume in an id, such "
    r'as "patient(\d+)", where files do not say it',
  )
  parser.add_argument(
    "--near-bits",
    type=int,
    choices=range(9),
    default=check.NEAR_BITS,
    metavar="N",
    help="bits of 64 in which hashes of near pictures differ at most, 0 to 8 "
    "(default: %(default)s)",
  )
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
  """Checks, and says where to look."""
  report = check.check(
    data_sources.open_all(args),
    args.out,
    check.Settings(
      decode=not args.no_decode,
      processes=args.processes,
      near_bits=args.near_bits,
      group=args.group,
    ),
    lambda line: print(line, file=sys.stderr, flush=True),
  )
  page = check_report.write(args.out, report)
  for finding in report["findings"]:
    mark = "!" if finding["decide"] else " "
    print(f"{mark} {finding['count']:>9,} {finding['what']}")
  counts = report["counts"]
  print(
    f"data: {counts['triplets']:,} images, {counts['faults']:,} faults; look "
    f"at {page}"
  )
  if not report["finished"]:
    return STOPPED
  return DECIDE if findings.needs_decision(report) else CLEAN
