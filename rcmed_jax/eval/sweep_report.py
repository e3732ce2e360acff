"""The report of a sweep: sweep.json, sweep.md and a page, index.html.

The same folders give the same bytes: nothing here depends on the clock.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
import pathlib
import statistics
from typing import Any

from rcmed_jax.data import files
from rcmed_jax.eval import report, sweep_page, sweep_scores, sweep_text
from rcmed_jax.eval.sweep_scores import Estimate, SweepScores
from rcmed_jax.eval.sweep_text import Results, Run, Told

# Digits of numbers in sweep.json: more than any interval deserves, and fewer
# than the order of a sum can change.
DIGITS = 6


def write(
  out: pathlib.Path, runs: Sequence[Run], told: Told, *, split: str
) -> SweepScores:
  """Writes the three files and returns what they say.

  Args:
    out: takes them; what is there is replaced.
    runs: all of the sweep, in its order; the finished ones are read.
    split: of the evaluations' files.

  Raises:
    ValueError: a finished run lacks a file, or one of them is damaged.
  """
  done = [run for run in runs if run.state == "finished"]
  found = sweep_scores.compare(
    {
      (run.cell, run.seed): sweep_scores.read(run.folder / "report", split)
      for run in done
    },
    told.baseline,
  )
  speeds = {
    cell: _seconds(cell, done) for cell in dict.fromkeys(r.cell for r in runs)
  }
  # A table is written whole: other jobs of the same sweep may read it.
  results = Results(found, speeds, runs, told)
  for name, text in (
    ("sweep.json", _json(results)),
    ("sweep.md", sweep_text.markdown(results)),
    ("index.html", sweep_page.page(results)),
  ):
    out.mkdir(parents=True, exist_ok=True)
    files.write_whole(out / name, text)
  return found


def seconds_a_step(path: pathlib.Path, batch_size: int) -> float | None:
  """Median seconds of a training step as metrics.jsonl logs it; None if not.

  The first step of a run, which compiles, is no part of what is logged.
  """
  if not path.is_file():
    return None
  curves = report.read_curves(path)
  _, rates = curves.get("images_per_s", ([], []))
  return batch_size / statistics.median(rates) if rates else None


def _seconds(cell: str, done: Sequence[Run]) -> float | None:
  found = [
    seconds_a_step(run.folder / "metrics.jsonl", run.batch_size)
    for run in done
    if run.cell == cell
  ]
  known = [seconds for seconds in found if seconds is not None]
  return statistics.mean(known) if known else None


def _json(results: Results) -> str:
  found, told = results.found, results.told
  cells = {
    cell: {
      "overrides": {k: repr(v) for k, v in overrides.items()},
      "seconds_a_step": results.seconds.get(cell),
      "scores": _plain(found.cells.get(cell, {})),
      "difference_to_baseline": _plain(found.differences.get(cell, {})),
    }
    for cell, overrides in told.overrides.items()
  }
  value = {
    "title": told.title,
    "baseline": told.baseline,
    "images": found.images,
    "images_left_out": found.left_out,
    "bootstrap": sweep_scores.DRAWS,
    "facts": {name: str(fact) for name, fact in told.facts.items()},
    "cells": cells,
    "runs": {
      run.name: {"state": run.state, "error": run.error} for run in results.runs
    },
  }
  return json.dumps(_rounded(value), indent=2, allow_nan=False) + "\n"


def _plain(scores: Mapping[str, Estimate]) -> dict[str, dict[str, Any]]:
  return {name: dataclasses.asdict(one) for name, one in scores.items()}


def _rounded(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {str(key): _rounded(item) for key, item in value.items()}
  return round(value, DIGITS) if isinstance(value, float) else value
