"""How much of an evaluation's time the model takes, on CPU.

  rcmed demo --workdir=runs/demo
  PYTHONPATH=. .venv/bin/python benchmarks/evaluation.py --workdir=runs/demo \
    --index=runs/demo/data/image2label_test.json

Evaluates a run twice, with all files and the page: once to compile, once under
JAX's profiler. The model's time is when at least one XLA operation runs on any
thread; the metrics' when a mask is scored, and of that, what passes while the
model runs.
"""

import argparse
from collections.abc import Iterable, Iterator, Mapping, Sequence
import dataclasses
import datetime
import os
import pathlib
import tempfile
import time

import jax

from rcmed_jax.apps import answering, evaluate, runs
from rcmed_jax.data import checks
from rcmed_jax.eval import report, scoring, summary

Span = tuple[float, float]  # from, to; nanoseconds

# Of the host, by what they are called in the trace.
SCORES, SUMMARIZES, WRITES = "scores", "summarizes", "writes the page"


def main() -> None:
  """Evaluates and prints the table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--workdir", required=True, help="a trained run")
  parser.add_argument("--index", required=True, help="what it is evaluated on")
  parser.add_argument("--images", type=int, default=0, help="default: all")
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  scoring.score = jax.profiler.annotate_function(scoring.score, SCORES)
  summary.summarize = jax.profiler.annotate_function(
    summary.summarize, SUMMARIZES
  )
  report.write_report = jax.profiler.annotate_function(
    report.write_report, WRITES
  )
  with tempfile.TemporaryDirectory() as folder:
    print(measure(args, pathlib.Path(folder)))


def measure(args: argparse.Namespace, folder: pathlib.Path) -> str:
  """The table."""
  told = runs.recorded(args.workdir)
  told = dataclasses.replace(
    told, eval=dataclasses.replace(told.eval, limit=args.images)
  )
  quarantine = checks.Quarantine(folder / "quarantine.jsonl")
  items = runs.read_items(told, args.index, quarantine, descriptions="")
  assistant = answering.load_assistant(
    args.workdir, rows=told.eval.rows, asked=told.eval
  )

  def run(out: str) -> float:
    start = time.perf_counter()
    evaluate.evaluate(
      assistant, items, told, folder / out, split="test", training=None
    )
    return time.perf_counter() - start

  first = run("first")
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = 0
  with jax.profiler.trace(str(folder / "trace"), profiler_options=options):
    wall = run("again")
  (traced,) = (folder / "trace").rglob("*.xplane.pb")
  spans = spans_of(jax.profiler.ProfileData.from_file(str(traced)))
  model = spans.pop("model")
  lines = [
    f"jax {jax.__version__}, {os.cpu_count()} CPU cores; "
    f"{datetime.date.today()}. {args.images or len(items)} images in "
    f"{wall:.2f} s, {first:.2f} s with compiling; files and page included.",
    "",
    "| | s | of all | of it while the model runs |",
    "| --- | --- | --- | --- |",
    f"| the model runs | {length(model):.2f} | {length(model) / wall:.1%} | |",
  ]
  for name, parts in spans.items():
    took, beside = length(parts), length(overlap(parts, model))
    lines.append(
      f"| the host {name} | {took:.2f} | {took / wall:.1%} | "
      f"{beside / took:.0%} |"
    )
  return "\n".join(lines)


def spans_of(trace: jax.profiler.ProfileData) -> Mapping[str, Sequence[Span]]:
  """When the model ran, and when the host did what: disjoint, in order."""
  found: dict[str, list[Span]] = {"model": []}
  found |= {name: [] for name in (SCORES, SUMMARIZES, WRITES)}
  for plane in trace.planes:
    for line in plane.lines:
      for event in line.events:
        span = (event.start_ns, event.start_ns + event.duration_ns)
        if event.name in found:
          found[event.name].append(span)
        elif any(key == "hlo_op" for key, _ in event.stats):
          found["model"].append(span)
  return {name: list(joined(spans)) for name, spans in found.items()}


def joined(spans: Iterable[Span]) -> Iterator[Span]:
  """The same time in disjoint spans, in order."""
  start, end = -1.0, -1.0
  for first, last in sorted(spans):
    if first <= end:
      end = max(end, last)
      continue
    if end > start:
      yield start, end
    start, end = first, last
  if end > start:
    yield start, end


def overlap(some: Sequence[Span], others: Sequence[Span]) -> Iterator[Span]:
  """When both are; each disjoint and in order."""
  at = 0
  for start, end in some:
    while at < len(others) and others[at][1] <= start:
      at += 1
    for other in others[at:]:
      if other[0] >= end:
        break
      yield max(start, other[0]), min(end, other[1])


def length(spans: Iterable[Span]) -> float:
  """Seconds."""
  return sum(end - start for start, end in spans) / 1e9


if __name__ == "__main__":
  main()
