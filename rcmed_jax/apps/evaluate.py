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
from rcmed_jax.apps import answering, processes, runs, settings
from rcmed_jax.data import checks, files, records
from rcmed_jax.eval import evaluate as evaluation
from rcmed_jax.eval import report, temperature
from rcmed_jax.parallel import hosts
from rcmed_jax.serve.assistant import Assistant


def main(argv: Sequence[str]) -> int:
  """Runs the command; see `rcmed evaluate --help`."""
  args, rest = _parser().parse_known_args(argv)
  workdir = args.workdir or runs.newest()
  if files.is_remote(workdir) and not (args.out and args.temperature):
    raise ValueError(
      f"{workdir} lies in a bucket; give --out, a folder on a disk for the "
      "report, and --temperature, a file on one."
    )
  told = settings.parse(rest, default=runs.recorded(workdir))
  if args.classes:  # a new class is asked for alone
    asked = dataclasses.replace(told.eval, classes_per_question=1)
    told = dataclasses.replace(told, eval=asked)
  out = args.out or pathlib.Path(workdir) / "report"
  fitted = args.temperature or pathlib.Path(workdir) / answering.TEMPERATURE
  with hosts.started(processes.place(args, "evaluate")):
    quarantine = checks.Quarantine(
      out / runs.quarantine_name(jax.process_index())
    )
    items = runs.read_items(
      told, args.index, quarantine, descriptions=args.descriptions
    )
    runs.gather(quarantine, epath.Path(out))
    assistant = answering.load_assistant(
      workdir,
      rows=told.eval.rows,
      asked=told.eval,
      fitted=fitted,
      calibrated=not args.calibrate,
      **answering.loading(args),
    )
    summary = evaluate(
      assistant,
      items,
      told,
      out,
      split=args.split,
      training=None if runs.converted(workdir) else workdir,
      model=answering.identity(
        workdir,
        fitted=None if args.calibrate else fitted,
        **answering.weights(args),
      ),
    )
    if summary and args.calibrate:
      _calibrate(summary, fitted)
    if summary:
      print(f"evaluate: {headline(summary)} report={out / 'index.html'}")
  return 0


def _calibrate(summary: evaluation.Summary, path: pathlib.Path) -> None:
  """Fits the temperature of confidences to a split and keeps it."""
  confidences, outcomes = zip(*summary.claims, strict=True)
  found = temperature.fit(confidences, outcomes, split=summary.split)
  temperature.save(path, found)
  print(
    f"evaluate: temperature {found.value:.3f} of {found.rows} masks, NLL "
    f"{found.nll_before:.4f} before and {found.nll_after:.4f} after; kept in "
    f"{path}"
  )


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    "rcmed evaluate",
    allow_abbrev=False,
    description="Asks a trained model about a split and writes the scores. "
    "Where it was stopped, the same command goes on.",
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
    help="image2label_<split>.json to score on, or a built set DIR[:SPLIT]",
  )
  parser.add_argument(
    "--descriptions",
    default="",
    help="JSON {image: text} that descriptions are compared with; the model "
    "does not see it",
  )
  parser.add_argument("--split", default="test", help="names the output files")
  parser.add_argument(
    "--out", type=pathlib.Path, help="default: <workdir>/report"
  )
  parser.add_argument(
    "--calibrate",
    action="store_true",
    help="fit the temperature of confidences to this split, a validation "
    "split, and keep it for later evaluations and answers",
  )
  parser.add_argument(
    "--temperature",
    type=pathlib.Path,
    metavar="JSON",
    help=f"where it is kept; default: <workdir>/{answering.TEMPERATURE}",
  )
  answering.add_flags(parser)
  processes.add_flags(parser)
  return parser


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
    functools.partial(
      answering.answers, assistant, under_way=told.eval.batch_size
    ),
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
