"""`rcmed train`: train or fine-tune from a config, on one host or many."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from rcmed_jax.apps import manifest, processes, runs, settings, starting
from rcmed_jax.model import rcmed
from rcmed_jax.parallel import faults, hosts
from rcmed_jax.train import checkpoints, loop, profiles, replay

# Weights of a language model above which a frozen one of random weights is a
# mistake, not a rehearsal. The 7B has 6.5 billion.
LARGE = 100_000_000


def main(argv: Sequence[str]) -> int:
  """Runs the command; see `rcmed train --help`."""
  args, rest = _parser().parse_known_args(argv)
  told = settings.parse(rest)
  if not (args.source or args.from_random or args.replay is not None):
    _require_weights(told, args.workdir)
  with hosts.started(processes.place(args, "train")):
    weights = None
    if args.source:
      start = starting.open_weights(args.source)
      told, weights = starting.with_sizes(told, start), start.arrays
    if args.replay is not None:
      runs.require(args.workdir)
    run = runs.start(told, args.workdir, resume=args.resume, allowed=args.allow)
    if args.replay is not None:
      _replay(run, args.replay, weights)
      return 0
    hosts.first_does(
      lambda: manifest.add_start(
        run.workdir,
        run.settings,
        ["train", *argv],
        source=args.source and str(args.source),
        allowed=args.allow,
        items=run.items,
      )
    )
    train(run, weights, profile=args.profile)
    with checkpoints.Checkpoints(run.workdir) as saved:
      done = saved.latest()  # fewer than told, where patience ended it
    if hosts.is_first():
      print(f"train: {done} steps, saved in {args.workdir}")
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    "rcmed train",
    allow_abbrev=False,
    description="Trains a model. Where the workdir holds a run, goes on.",
    epilog="Settings: --config=FILE[:VARIANT] --config.section.key=value ... "
    "Exit codes: 0 trained; 2 bad input, a full disk, or numbers that are not "
    f"finite; {hosts.STOPPED} stopped by SIGTERM and saved, {faults.HUNG} "
    f"ended by train.watchdog_s, {hosts.LOST} another process of the run is "
    f"gone, and {faults.UNREACHED} a bucket does not answer: the same command "
    "goes on; 130 stopped by Ctrl-C and saved.",
  )
  parser.add_argument(
    "--workdir",
    type=epath.Path,
    required=True,
    help="takes the run: settings, tokenizer, checkpoints, logs; a folder that "
    "all hosts see, or gs://BUCKET/RUN",
  )
  _add_start_flags(parser)
  parser.add_argument(
    "--resume",
    choices=runs.RESUME,
    default="auto",
    help="go on where the workdir holds a run (auto), refuse to (never; but "
    f"for one that began with the same ${runs.LAUNCHED_AS}), or insist on it "
    "(required)",
  )
  parser.add_argument(
    "--allow",
    action="append",
    default=[],
    metavar="KEY",
    help="a setting, as train.steps, or a section that may differ from what "
    "the run began with; may be given several times",
  )
  parser.add_argument(
    "--profile",
    type=_window,
    metavar="FIRST:LAST",
    help=f"trace these steps into WORKDIR/{profiles.FOLDER}",
  )
  parser.add_argument(
    "--replay",
    type=int,
    metavar="STEP",
    help="do not train: run the bad batch of that step again, with the weights "
    "that it met, and say which of its records is not finite",
  )
  processes.add_flags(parser)
  return parser


def _add_start_flags(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--from",
    dest="source",
    type=epath.Path,
    metavar="CKPT",
    help="weights that a new run starts from, at step 0: converted ones, or "
    "the workdir of a run; their sizes, order of channels and tokenizer are "
    "the run's",
  )
  parser.add_argument(
    "--from-random",
    action="store_true",
    help="begin a large frozen language model without --from, with random "
    "weights that nothing will train: for timing",
  )


def _require_weights(told: settings.Settings, workdir: epath.Path) -> None:
  """Refuses a new run that would learn to speak through noise."""
  language = told.model.language
  size = (
    language.depth * language.width * (4 * language.width + 3 * language.hidden)
  )
  if (
    size > LARGE
    and told.optimizer.trainable not in ("all", "all_but_encoder")
    and not (workdir / settings.RECORD).exists()
  ):
    raise ValueError(
      f"optimizer.trainable={told.optimizer.trainable} leaves the language "
      f"model of {size / 1e9:.1f} billion weights as it is, and it would be "
      "random; give --from, converted weights or the workdir of a run "
      "(`rcmed convert import --help`), optimizer.trainable=all, or "
      "--from-random if that is meant."
    )


def _window(text: str) -> tuple[int, int]:
  try:
    return profiles.parse(text)
  except ValueError as error:
    raise argparse.ArgumentTypeError(str(error)) from error


def _replay(
  run: runs.Run, step: int, weights: Mapping[str, Any] | None
) -> None:
  told = run.settings
  found = replay.replay(
    told.model,
    told.train,
    told.optimizer,
    told.mesh,
    run.batches,
    run.workdir,
    step,
    weights,
  )
  met = "which it met" if found.exact else "later than those it met"
  print(
    f"train: the batch of step {step}, weights after step {found.weights_step}"
    f", {met}"
  )
  for one in (found.whole, *found.alone):
    word = "NOT FINITE" if one.metrics["non_finite"] else "finite"
    numbers = " ".join(
      f"{key}={value:.4g}"
      for key, value in one.metrics.items()
      if key != "non_finite"
    )
    print(f"  {word:<10}  {_named(run, one.record)}: {numbers}")


def _named(run: runs.Run, record: int | None) -> str:
  if record is None:
    return "all records"
  if record < 0:
    return "a row left empty"  # its record could not be used
  return f"record {record}, {run.items[record].id}"


def train(
  run: runs.Run,
  weights: Mapping[str, Any] | None = None,
  *,
  profile: tuple[int, int] | None = None,
) -> rcmed.RCMed:
  """The trained model of a run; says what was left out of the data.

  Args:
    run: opened, new or begun.
    weights: by dotted path, for a new run to start from.
    profile: first and last step of a profiler's trace.
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
      held_out=run.held_out(),
      weights=weights,
      profile=profile,
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
