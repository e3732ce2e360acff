"""`rcmed evaluate`: score a trained model and write its report."""

import argparse
from collections.abc import Sequence
import dataclasses
import functools
import os
import pathlib
import platform

from etils import epath
import flax
import jax
import tqdm

import rcmed_jax
from rcmed_jax.apps import processes, runs, settings
from rcmed_jax.data import checks, files, records
from rcmed_jax.eval import evaluate as evaluation
from rcmed_jax.eval import report
from rcmed_jax.parallel import hosts
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.serve.assistant import Assistant


def main(argv: Sequence[str]) -> int:
  """Runs the command; see `rcmed evaluate --help`."""
  parser = argparse.ArgumentParser(
    "rcmed evaluate",
    allow_abbrev=False,
    description="Asks a trained model about a split and writes the scores.",
    epilog="Settings: --config.eval.key=value, --config.data.key=value ...",
  )
  parser.add_argument(
    "--workdir",
    type=epath.Path,
    help="a run or a converted checkpoint; default: the newest in runs/",
  )
  parser.add_argument(
    "--index",
    required=True,
    help="image2label_<split>.json, or FOLDER:SPLIT of a built data set",
  )
  parser.add_argument("--split", default="test", help="names the output files")
  parser.add_argument(
    "--out", type=pathlib.Path, help="default: <workdir>/report"
  )
  parser.add_argument(
    "--mesh",
    metavar="data=8",
    help="lay weights and batches over several devices; default: one device",
  )
  runs.add_flags(parser)
  processes.add_flags(parser)
  args, rest = parser.parse_known_args(argv)
  workdir = args.workdir or runs.newest()
  if files.is_remote(workdir) and not args.out:
    raise ValueError(
      f"{workdir} lies in a bucket; give --out, a folder on a disk, for the "
      "report."
    )
  told = settings.parse(rest, default=runs.recorded(workdir))
  if args.classes:  # a new class is asked for alone
    asked = dataclasses.replace(told.eval, classes_per_question=1)
    told = dataclasses.replace(told, eval=asked)
  out = args.out or pathlib.Path(workdir) / "report"
  with hosts.started(processes.place(args, "evaluate")):
    name = runs.quarantine_name(jax.process_index())
    quarantine = checks.Quarantine(out / name)
    items = runs.read_items(told, args.index, quarantine, descriptions="")
    runs.gather(quarantine, epath.Path(out))
    assistant = runs.load_assistant(
      workdir,
      rows=told.eval.rows,
      asked=told.eval,
      classes=args.classes,
      in_int8=args.int8,
      mesh=meshes.parse(args.mesh) if args.mesh else None,
    )
    summary = evaluate(
      assistant,
      items,
      told,
      out,
      split=args.split,
      training=None if runs.converted(workdir) else workdir,
      model=runs.identity(workdir, args.classes, in_int8=args.int8),
    )
    if summary:
      print(f"evaluate: {headline(summary)} report={out / 'index.html'}")
  return 0


def evaluate(
  assistant: Assistant,
  items: Sequence[records.Sample],
  told: settings.Settings,
  out: pathlib.Path,
  *,
  split: str,
  training: str | os.PathLike[str] | None,
  model: str = "",
) -> evaluation.Summary | None:
  """Scores an assistant; the first process writes the files and the page.

  Args:
    training: the run whose curves the page shows; None: it was elsewhere.
    model: what answers, so that scores of two models are never mixed.
  """
  summary = evaluation.evaluate(
    items,
    functools.partial(runs.answers, assistant, under_way=told.eval.batch_size),
    told.eval,
    out,
    split=split,
    model=model,
    progress=functools.partial(
      tqdm.tqdm,
      desc="evaluate",
      unit="image",
      mininterval=5,
      disable=not hosts.is_first(),
    ),
    part=jax.process_index(),
    parts=jax.process_count(),
    barrier=functools.partial(hosts.barrier, "evaluated"),
  )
  if summary:
    _report(summary, told, out, training)
  return summary


def _report(
  summary: evaluation.Summary,
  told: settings.Settings,
  out: pathlib.Path,
  training: str | os.PathLike[str] | None,
) -> None:
  facts: dict[str, dict[str, object]] = {
    "Model": {
      "image": told.model.image,
      "language": told.model.language,
      "correlation": told.model.correlation,
      "mask decoder": told.model.decoder,
    },
    "Versions": {
      "rcmed-jax": rcmed_jax.__version__,
      "jax": jax.__version__,
      "flax": flax.__version__,
      "python": platform.python_version(),
      "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    },
  }
  if training:
    facts["Training"] = {
      "steps": told.train.steps,
      "images a step": told.train.batch_size,
      "data": told.data,
      "optimizer": told.optimizer,
    }
  report.write_report(
    out / "index.html",
    summary,
    training=training and epath.Path(training) / "metrics.jsonl",
    facts=facts,
  )


def headline(summary: evaluation.Summary) -> str:
  """The scores in one line."""
  values = {
    "dice": summary.dice,
    "iou": summary.iou,
    "recognition": summary.recognition,
    "absent": summary.absent,
  }
  scores = " ".join(
    f"{name}={value:.4f}" for name, value in values.items() if value is not None
  )
  return f"{scores} tasks={summary.tasks} images={summary.images}"
