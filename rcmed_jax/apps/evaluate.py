"""`rcmed evaluate`: score a trained model and write its report."""

import argparse
from collections.abc import Mapping, Sequence
import dataclasses
import functools
import os
import pathlib
from typing import Any

from etils import epath
import jax
import tqdm

from rcmed_jax.apps import answering, processes, provenance, runs, settings
from rcmed_jax.data import checks, files, records
from rcmed_jax.eval import evaluate as evaluation
from rcmed_jax.eval import external, presence, report, temperature
from rcmed_jax.eval.rows import Quarantined
from rcmed_jax.parallel import hosts
from rcmed_jax.serve.assistant import Assistant


def main(argv: Sequence[str]) -> int:
  """Runs the command; see `rcmed evaluate --help`."""
  args, rest = _parser().parse_known_args(argv)
  workdir = args.workdir or runs.newest()
  for flag, path in (("--out", args.out), ("--temperature", args.temperature)):
    if files.is_remote(path or workdir):
      raise ValueError(
        f"{path or workdir} lies in a bucket, where nothing of an evaluation "
        f"can be kept; give {flag}, a path on a disk."
      )
  told = settings.parse(rest, default=runs.recorded(workdir))
  if args.classes:  # a new class is asked for alone
    asked = dataclasses.replace(told.eval, classes_per_question=1)
    told = dataclasses.replace(told, eval=asked)
  out = pathlib.Path(args.out or pathlib.Path(workdir) / "report")
  fitted = pathlib.Path(
    args.temperature or pathlib.Path(workdir) / answering.TEMPERATURE
  )
  with hosts.started(processes.place(args, "evaluate")):
    runs.require_shared(out, "--out")
    quarantine = _Listed(out / runs.quarantine_name(jax.process_index()))
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
      model=provenance.identity(
        workdir,
        fitted=None if args.calibrate else fitted,
        **answering.weights(args),
      ),
      chosen=None if args.calibrate else kept_threshold(fitted, args.split),
      trained_on=provenance.trained_on(workdir),
      rejected=quarantine.rows(args.index),
      calibrate=fitted if args.calibrate else None,
      made=provenance.made(
        workdir,
        args.index,
        fitted=None if args.calibrate else fitted,
        descriptions=args.descriptions,
        **answering.weights(args),
      ),
    )
    if summary:
      print(f"evaluate: {headline(summary)} report={out / 'index.html'}")
  return 0


def kept_threshold(path: epath.PathLike, split: str) -> presence.Chosen | None:
  """The threshold of presence that a file keeps from another split, if any."""
  if not epath.Path(path).exists():
    return None
  found = temperature.load(path)
  if found.threshold is None or found.split == split:
    return None
  return presence.Chosen(found.threshold, found.split)


class _Listed(checks.Quarantine):
  """One that knows what was found now; the file holds that of before as well.

  All of it is of the index: what a record lacks is found as it is scored.
  """

  def __init__(self, path: pathlib.Path):
    super().__init__(path)
    self._found: list[checks.DataError] = []

  def add(self, error: checks.DataError) -> None:
    """Writes the error down, unless it is there already."""
    super().add(error)
    self._found.append(error)

  def rows(self, index: str) -> list[Quarantined]:
    """What was found, by the image where the error tells it."""
    path = os.path.abspath(index)
    folder = os.path.join(os.path.dirname(path), "")
    rows = []
    for error in self._found:
      in_index = error.path == path
      record = error.field if in_index else error.path.removeprefix(folder)
      field = "index" if in_index else error.field
      reason = f"{error.message}. {error.remedy}."
      rows.append(Quarantined(record, error.path, field, reason))
    return rows


def _calibrate(summary: evaluation.Summary, path: pathlib.Path) -> None:
  """Fits the temperature of confidences to a split and keeps it."""
  if not summary.claims:
    raise ValueError(
      f"temperature of split {summary.split!r}: no mask was claimed, nothing "
      "can be fitted; train longer, or evaluate a larger split."
    )
  confidences, outcomes = zip(*summary.claims, strict=True)
  found = temperature.fit(confidences, outcomes, split=summary.split)
  at_recall = summary.tables["presence"]["at_recall"]
  if at_recall:
    found = found.with_threshold(at_recall["threshold"], at_recall["target"])
  temperature.save(path, found)
  print(
    f"evaluate: temperature {found.value:.3f} of {found.rows} masks, NLL "
    f"{found.nll_before:.4f} before and {found.nll_after:.4f} after; kept in "
    f"{path}"
  )
  if found.threshold is not None:
    print(
      f"evaluate: confidence {found.threshold:.3f} finds {found.recall:.0%} of "
      "the classes that are there; kept as the threshold of other splits"
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
    "--out",
    help="folder on a disk, which all hosts share; default: <workdir>/report",
  )
  parser.add_argument(
    "--calibrate",
    action="store_true",
    help="fit the temperature of confidences to this split, a validation "
    "split, and keep it, and the threshold that finds 90%% of what is there, "
    "for later evaluations and answers",
  )
  parser.add_argument(
    "--temperature",
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
  chosen: presence.Chosen | None = None,
  trained_on: external.Training | None = None,
  rejected: Sequence[Quarantined] = (),
  calibrate: pathlib.Path | None = None,
  made: Mapping[str, Any] | None = None,
) -> evaluation.Summary | None:
  """Scores an assistant; the first process writes the files and the page.

  Where the page or the temperature fails, all scores are kept: the same call
  goes on from there.

  Args:
    training: the run whose curves the page shows; None: it was elsewhere.
    model: what answers, so that scores of two models are never mixed.
    chosen: the threshold of presence, chosen on another split.
    trained_on: what the weights met; None: it is not known.
    rejected: what the index holds besides the items.
    calibrate: where the temperature goes that is fitted to the scores; None:
      none is.
    made: how, as the summary and the page tell it; see `provenance.made`.
  """

  def finish(summary: evaluation.Summary) -> None:
    _report(summary, told, out, training)
    if calibrate:
      _calibrate(summary, calibrate)

  return evaluation.evaluate(
    items,
    functools.partial(
      answering.answers, assistant, under_way=told.eval.batch_size
    ),
    told.eval,
    out,
    split=split,
    model=model,
    made=made,
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
    most_targets=told.data.max_targets,
    chosen=chosen,
    training=trained_on,
    rejected=rejected,
    finish=finish,
  )


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
  }
  if training:
    facts["Training"] = {
      "steps": told.train.steps,
      "images a step": told.train.batch_size,
      "data": told.data,
      "optimizer": told.optimizer,
    }
  report.write_pages(
    out,
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
  lost = len(summary.quarantine)
  return (
    f"{scores} tasks={summary.tasks} images={summary.images}"
    + f" quarantined={lost}" * bool(lost)
  )
