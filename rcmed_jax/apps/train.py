"""`rcmed train`: train or fine-tune from a config, on one host or many."""

import argparse
from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

from etils import epath

from rcmed_jax.apps import processes, runs, settings
from rcmed_jax.convert import store
from rcmed_jax.model import rcmed
from rcmed_jax.parallel import hosts
from rcmed_jax.train import loop


def main(argv: Sequence[str]) -> int:
  """Runs the command; see `rcmed train --help`."""
  parser = argparse.ArgumentParser(
    "rcmed train",
    allow_abbrev=False,
    description="Trains a model. Where the workdir holds a run, goes on.",
    epilog="Settings: --config=FILE[:VARIANT] --config.section.key=value ... "
    f"Exit codes: 0 trained; 2 bad input; {hosts.STOPPED} stopped by SIGTERM "
    "and saved, the same command goes on; 130 stopped by Ctrl-C and saved.",
  )
  parser.add_argument(
    "--workdir",
    type=epath.Path,
    required=True,
    help="takes the run: settings, tokenizer, checkpoints, logs; a folder that "
    "all hosts see, or gs://BUCKET/RUN",
  )
  parser.add_argument(
    "--init",
    type=pathlib.Path,
    metavar="CKPT",
    help="converted weights to start from; their sizes, order of channels and "
    "tokenizer are the run's",
  )
  parser.add_argument(
    "--resume",
    choices=runs.RESUME,
    default="auto",
    help="go on where the workdir holds a run (auto), refuse to (never), or "
    "insist on it (required)",
  )
  processes.add_flags(parser)
  args, rest = parser.parse_known_args(argv)
  told = settings.parse(rest)
  with hosts.started(processes.place(args, "train")):
    weights = None
    if args.init:
      held = store.read_whole(args.init)
      told, weights = runs.with_sizes(told, held), held.tensors
    train(runs.start(told, args.workdir, resume=args.resume), weights)
    if hosts.is_first():
      print(f"train: {told.train.steps} steps, saved in {args.workdir}")
  return 0


def train(
  run: runs.Run, weights: Mapping[str, Any] | None = None
) -> rcmed.RCMed:
  """The trained model of a run; says what was left out of the data.

  Args:
    run: opened, new or begun.
    weights: by dotted path, for a new run to start from.
  """
  told = run.settings
  try:
    model = loop.train(
      told.model,
      told.train,
      told.optimizer,
      told.mesh,
      run.batches,
      run.workdir,
      weights=weights,
    )
  except SystemExit:  # stopped, together with all others
    run.gather_quarantine()
    raise
  run.gather_quarantine()
  if len(run.quarantine) and hosts.is_first():
    print(
      f"train: {len(run.quarantine)} items could not be used; see "
      f"{run.quarantine.path}"
    )
  return model
