"""`rcmed demo`: from nothing to a trained, evaluated model with a report."""

import argparse
from collections.abc import Sequence
import dataclasses
import pathlib
import time

from rcmed_jax.apps import (
  answering,
  evaluate,
  manifest,
  provenance,
  runs,
  settings,
  train,
)
from rcmed_jax.data import checks, phantoms


def main(argv: Sequence[str]) -> int:
  """Runs the command; see `rcmed demo --help`."""
  args, rest = _parser().parse_known_args(argv)
  since = time.monotonic()
  told = settings.parse(rest, default="configs/demo.py")
  stamp = time.strftime("%Y%m%d-%H%M%S")
  workdir = args.workdir or runs.RUNS / f"demo-{stamp}"

  data = workdir / "data"
  print(f"demo: drawing {args.images} + {args.held_out} images in {data}")
  phantoms.write(
    data, args.images, seed=args.seed, held_out=args.held_out, processes=2
  )
  told = dataclasses.replace(
    told,
    data=dataclasses.replace(
      told.data,
      index=str(data / "image2label_train.json"),
      descriptions=str(data / "descriptions_train.json"),
    ),
  )
  run = runs.start(told, workdir)
  manifest.add_start(
    run.workdir, run.settings, ["demo", *argv], items=run.items
  )
  print(f"demo: training in {workdir}")
  model = train.train(run)

  out = workdir / "report"
  index = data / "image2label_test.json"
  items = runs.read_items(
    run.settings,
    index,
    checks.Quarantine(out / runs.QUARANTINE),
    descriptions="",  # derived from reference masks: not for evaluation
  )
  assistant = answering.make_assistant(
    model, run.tokenizer, run.settings, rows=told.eval.rows
  )
  summary = evaluate.evaluate(
    assistant,
    items,
    run.settings,
    out,
    split="test",
    training=workdir,
    trained_on=provenance.trained_on(workdir),
    made=provenance.made(workdir, index),
  )
  assert summary  # of the only process
  print(f"demo: report in {out / 'index.html'}")
  seconds = time.monotonic() - since
  print(f"demo: {evaluate.headline(summary)} seconds={seconds:.0f}")
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    "rcmed demo",
    allow_abbrev=False,
    description="Draws images, trains a toy model, evaluates it, reports.",
    epilog="Settings: --config=FILE[:VARIANT] --config.section.key=value ...",
  )
  parser.add_argument(
    "--workdir",
    type=pathlib.Path,
    help="takes data, run and report; default: runs/demo-<time>",
  )
  parser.add_argument("--images", type=int, default=1800, help="to train on")
  parser.add_argument("--held-out", type=int, default=270, help="to test on")
  parser.add_argument("--seed", type=int, default=0, help="of the images")
  return parser
