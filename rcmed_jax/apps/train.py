"""`rcmed train`: train or fine-tune from a config."""

import argparse
from collections.abc import Sequence
import pathlib

from rcmed_jax.apps import runs, settings
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
  args, rest = parser.parse_known_args(argv)
  run = runs.start(settings.parse(rest), args.workdir)
  train(run)
  print(f"train: {run.settings.train.steps} steps, saved in {args.workdir}")
  return 0


def train(run: runs.Run) -> rcmed.RCMed:
  """The trained model of a run; says what was left out of the data."""
  told = run.settings
  model = loop.train(
    told.model,
    told.train,
    told.optimizer,
    told.mesh,
    run.batches,
    run.workdir,
  )
  if len(run.quarantine):
    print(
      f"train: {len(run.quarantine)} items could not be used; see "
      f"{run.quarantine.path}"
    )
  return model
