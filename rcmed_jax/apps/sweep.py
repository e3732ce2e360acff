"""`rcmed sweep`: train and score the cells of an ablation, seed by seed."""

import argparse
from collections.abc import Sequence
import pathlib

from rcmed_jax.apps import sweep_cells, sweep_emit, sweep_file, sweep_run
from rcmed_jax.apps.sweep_cells import Task
from rcmed_jax.apps.sweep_file import Sweep
from rcmed_jax.data import files
from rcmed_jax.eval import sweep_report, sweep_text
from rcmed_jax.parallel import faults


def main(argv: Sequence[str]) -> int:
  """Runs the command; see `rcmed sweep --help`."""
  args, flags = _parser().parse_known_args(argv)
  if files.is_remote(args.workdir):
    raise ValueError(
      f"--workdir={args.workdir}: a sweep wants a folder on a disk; mount the "
      "bucket."
    )
  sweep = sweep_file.load(args.sweep)
  workdir = pathlib.Path(args.workdir).absolute()
  drawn = _is_drawn(sweep, args.index, flags)
  train_index = (
    str(workdir / sweep_file.DRAWN / "image2label_train.json") if drawn else ""
  )
  index = args.index or str(
    workdir / sweep_file.DRAWN / "image2label_test.json"
  )
  every = sweep_cells.tasks(
    sweep, workdir, seeds=args.seeds, flags=flags, index=train_index
  )
  chosen = sweep_cells.choose(every, args.only)
  train_flags = [f"--from={args.source}"] if args.source else []
  evaluate_flags = [f"--mesh={args.mesh}"] if args.mesh else []
  if args.emit:
    return _emit(args, flags, workdir, chosen)
  if args.list:
    _list(sweep, chosen, index, train_flags, evaluate_flags)
    return 0
  if args.report:
    return _report(sweep, every, workdir, drawn=drawn, index=index)
  if drawn and sweep.phantoms:
    sweep_cells.draw(sweep.phantoms, workdir / sweep_file.DRAWN)
  with sweep_run.Children(workdir / sweep_file.COMPILED) as children:
    code = sweep_run.run(
      chosen,
      children,
      index=index,
      train_flags=train_flags,
      evaluate_flags=evaluate_flags,
      retry_failed=args.retry_failed,
    )
  _report(sweep, every, workdir, drawn=drawn, index=index)
  return code


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    "rcmed sweep",
    allow_abbrev=False,
    description="Trains and scores each cell of a sweep file with several "
    "seeds, in turn, and writes one table. What is finished stays, what was "
    "begun goes on.",
    epilog="Settings of all cells: --config.section.key=value ... Sweeps: "
    f"{', '.join(sweep_file.available())}. Exit codes: 0 all finished; 1 some "
    f"failed; 2 bad input; {faults.STOPPED} stopped by SIGTERM, 130 by Ctrl-C, "
    f"{faults.UNREACHED} a bucket did not answer: the same command goes on.",
  )
  parser.add_argument("--sweep", required=True, metavar="FILE[:VARIANT]")
  parser.add_argument(
    "--workdir",
    required=True,
    help="takes the runs, CELL/seedN, and sweep.json, sweep.md, index.html",
  )
  parser.add_argument("--seeds", type=int, default=3, help="runs a cell")
  parser.add_argument(
    "--only",
    nargs="+",
    action="extend",
    default=[],
    metavar="CELL[/seedN]",
    help="run these alone; the table holds all",
  )
  parser.add_argument(
    "--index",
    default="",
    help="image2label_<split>.json to score on, with --config.data.index to "
    "train on; without both, images are drawn where the sweep says how",
  )
  parser.add_argument(
    "--from",
    dest="source",
    metavar="CKPT",
    help="converted weights that all cells start from",
  )
  parser.add_argument(
    "--mesh", metavar="data=8", help="devices to score on; default: one"
  )
  parser.add_argument(
    "--retry-failed", action="store_true", help="try those that failed again"
  )
  does = parser.add_mutually_exclusive_group()
  does.add_argument(
    "--list", action="store_true", help="show states and commands; run nothing"
  )
  does.add_argument(
    "--report", action="store_true", help="write the table; run nothing"
  )
  does.add_argument(
    "--emit", choices=sweep_emit.FORMS, help="write a file for a scheduler"
  )
  _add_emit(parser)
  return parser


def _add_emit(parser: argparse.ArgumentParser) -> None:
  emit = parser.add_argument_group("with --emit")
  emit.add_argument("--out", type=pathlib.Path, help="the file to write")
  emit.add_argument("--name", help="of the job; default: after the sweep")
  jobset = parser.add_argument_group("with --emit jobset")
  jobset.add_argument("--image", help="container with rcmed-jax[tpu]")
  jobset.add_argument("--accelerator", help="label, tpu-v5-lite-podslice")
  jobset.add_argument("--topology", help="label, of one machine: 2x2")
  jobset.add_argument("--chips", type=int, default=4, help="of a machine")
  jobset.add_argument(
    "--parallel", type=int, default=0, help="pods at a time; 0: all"
  )
  jobset.add_argument(
    "--spot", action="store_true", help="machines that may be taken away"
  )
  jobset.add_argument(
    "--grace-s", type=int, default=300, help="from SIGTERM to SIGKILL"
  )


def _is_drawn(sweep: Sweep, index: str, flags: Sequence[str]) -> bool:
  """Whether the data is drawn; else both indexes are given."""
  trained = any(flag.split("=")[0] == "--config.data.index" for flag in flags)
  if trained and index:
    return False
  if trained or index:
    raise ValueError(
      "give both --config.data.index, to train on, and --index, to score on."
    )
  if sweep.phantoms is None:
    raise ValueError(
      f"{sweep.name} draws no images; give --config.data.index, to train on, "
      "and --index, to score on."
    )
  return True


def _list(
  sweep: Sweep,
  tasks: Sequence[Task],
  index: str,
  train_flags: Sequence[str],
  evaluate_flags: Sequence[str],
) -> None:
  """Prints every run, its state, what it sets and how to run it by hand."""
  for task in tasks:
    now = sweep_run.state(task)
    sets = sweep_text.overrides(sweep.cells[task.cell])
    print(f"{task.name:<32} {now.state:<9} {sets} {now.error}".rstrip())
  told = sweep_run.commands(tasks[0], index, train_flags, evaluate_flags)
  print(f"\n{tasks[0].name} by hand, once its folder was made:")
  for words in told.values():
    print(f"  rcmed {' '.join(words)}")


def _emit(
  args: argparse.Namespace,
  flags: Sequence[str],
  workdir: pathlib.Path,
  tasks: Sequence[Task],
) -> int:
  if args.out is None:
    raise ValueError(f"--emit {args.emit} wants --out, the file to write.")
  told = ["sweep", f"--sweep={args.sweep}", f"--workdir={workdir}"]
  told += [f"--seeds={args.seeds}"]
  told += [
    f"--{name}={value}"
    for name, value in (
      ("index", args.index),
      ("from", args.source),
      ("mesh", args.mesh),
    )
    if value
  ]
  told += flags
  name = args.name or sweep_emit.job_name(args.sweep)
  names = [task.name for task in tasks]
  if args.emit == "slurm":
    text = sweep_emit.slurm(name, names, told)
  else:
    for needed in ("image", "accelerator", "topology"):
      if not getattr(args, needed):
        raise ValueError(f"--emit jobset wants --{needed}; see --help.")
    machines = sweep_emit.Machines(
      image=args.image,
      accelerator=args.accelerator,
      topology=args.topology,
      chips=args.chips,
      parallel=args.parallel,
      spot=args.spot,
      grace_s=args.grace_s,
    )
    text = sweep_emit.jobset(name, names, told, machines)
  args.out.write_text(text, encoding="utf-8")
  print(f"sweep: {len(names)} runs in {args.out}")
  return 0


def _report(
  sweep: Sweep,
  tasks: Sequence[Task],
  workdir: pathlib.Path,
  *,
  drawn: bool,
  index: str,
) -> int:
  """Writes the table of all runs, and says where it is."""
  states = {task.name: sweep_run.state(task) for task in tasks}
  runs = [
    sweep_text.Run(
      cell=task.cell,
      seed=task.seed,
      folder=task.folder,
      state=states[task.name].state,
      error=states[task.name].error,
      batch_size=task.told.train.batch_size,
    )
    for task in tasks
  ]
  first = tasks[0].told
  told = sweep_text.Told(
    title=f"Sweep {pathlib.Path(sweep.name.partition(':')[0]).stem}",
    baseline=sweep.baseline,
    overrides=sweep.cells,
    facts={
      "sweep": sweep.name,
      "config": sweep.config,
      **sweep.every,
      "train.steps": first.train.steps,
      "train.batch_size": first.train.batch_size,
      "images": sweep.phantoms if drawn else index,
    },
  )
  sweep_report.write(workdir, runs, told, split=sweep_run.SPLIT)
  print(f"sweep: table in {workdir / 'sweep.md'} and {workdir / 'index.html'}")
  return 1 if any(run.state == "failed" for run in runs) else 0
