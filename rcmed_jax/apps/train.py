"""`rcmed train`: train or fine-tune from a config."""

import argparse
from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

from rcmed_jax.apps import runs, settings
from rcmed_jax.convert import store
from rcmed_jax.model import rcmed
from rcmed_jax.train import loop


def main(argv: Sequence[str]) -> int:
  """Runs the command; see `rcmed train --help`."""
  parser = argparse.ArgumentParser(
    "rcmed train",
    allow_abbrev=False,
    description="Trains a model. Where the workdir holds a run, goes on.",
    epilog="Settings: --config=FILE[:VARIANT] --config.section.key=value ...",
  )
  parser.add_argument(
    "--workdir",
    type=pathlib.Path,
    required=True,
    help="takes the run: settings, tokenizer, checkpoints, logs",
  )
  parser.add_argument(
    "--init",
    type=pathlib.Path,
    metavar="CKPT",
    help="converted weights to start from; their sizes, order of channels and "
    "tokenizer are the run's",
  )
  args, rest = parser.parse_known_args(argv)
  told, weights = settings.parse(rest), None
  if args.init:
    held = store.read_whole(args.init)
    told, weights = runs.with_sizes(told, held), held.tensors
  run = runs.start(told, args.workdir)
  train(run, weights)
  print(f"train: {run.settings.train.steps} steps, saved in {args.workdir}")
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
  model = loop.train(
    told.model,
    told.train,
    told.optimizer,
    told.mesh,
    run.batches,
    run.workdir,
    weights=weights,
  )
  if len(run.quarantine):
    print(
      f"train: {len(run.quarantine)} items could not be used; see "
      f"{run.quarantine.path}"
    )
  return model
