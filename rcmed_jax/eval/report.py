"""The report of an evaluation: one HTML file that needs nothing else.

Styles, scripts, charts and pictures are inside, so that the file can be mailed
or archived. `report.css` and `report.js` are its own beside those of all pages,
`sections.py` writes what goes between.
"""

import collections
from collections.abc import Mapping
import json
import os
from pathlib import Path

from rcmed_jax.data import files, web_page
from rcmed_jax.eval import charts, sections, sections_trust
from rcmed_jax.eval.summary import Summary

# The terms of the loss share one chart; every other number has its own.
LOSS_TERMS = ("loss", "text", "dice", "bce", "boundary")

# What metrics.jsonl says besides curves.
NOT_CURVES = (
  "step",
  "non_finite",
  "time",
  "epoch",
  # Where a step's time goes: for who tunes a run, not for who reads its scores.
  "step_s",
  "data_s",
  "wait_s",
  "checkpoint_s",
  "evaluate_s",
  "memory_gib",
)

# Shorter or plainer names for what the training loop logs.
CURVE_TITLES = {
  "learning_rate": "Learning rate",
  "images_per_s": "Images per second",
  "grad_norm": "Gradient norm before clipping",
  "mfu": "Share of the chips' arithmetic",
}


def write_report(
  path: str | Path,
  summary: Summary,
  *,
  title: str = "RCMed evaluation",
  training: str | os.PathLike[str] | None = None,
  facts: Mapping[str, Mapping[str, object]] | None = None,
) -> Path:
  """Returns the path of the written page.

  Args:
    path: of the page, `report/index.html`; folders are made.
    training: the training's metrics.jsonl, one JSON object with `step` a
      line; None leaves the curves out.
    facts: what the run was, by heading: settings, versions, counts.
  """
  curves = read_curves(training) if training else {}
  parts = {
    "Examples": sections.examples(summary),
    "Lowest scores": sections.lowest(summary),
    "Modalities and tasks": sections.averages(summary),
    "Training": curve_charts(curves),
    "Recognition": sections.recognition(summary),
    "Presence": sections.presence(summary),
    "Confidence": sections_trust.calibration(summary),
    "Other words": sections_trust.phrases(summary),
    "Instances": sections_trust.instances(summary),
    "Controls": sections.controls(summary),
    "Quarantine": sections.quarantine(summary),
    "Run": sections.facts(facts or {}),
  }
  return web_page.write(
    path,
    web_page.page(
      title,
      sections.subtitle(summary),
      parts,
      top=sections.tiles(summary),
      footer="Scores are exact: every readable image is counted once. The "
      "intervals are 95% bootstrap intervals over images.",
      style=style(),
      script=web_page.text_of("rcmed_jax.eval", "report.js"),
    ),
  )


def style() -> str:
  """Returns the styles of charts and pictures, for a page."""
  return web_page.text_of("rcmed_jax.eval", "report.css")


def read_curves(
  path: str | os.PathLike[str],
) -> dict[str, tuple[list[float], list[float]]]:
  """Returns name -> (steps, values) for every number in a metrics.jsonl.

  None where the file is missing. A last line that a kill cut short is no line.

  Raises:
    ValueError: a line is not a JSON object with a `step`.
  """
  curves = collections.defaultdict(lambda: ([], []))
  for number, line in enumerate(files.LineFile(path).lines(), start=1):
    try:
      row = json.loads(line)
      step = row["step"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
      raise ValueError(
        f"{path}, line {number}: expected a JSON object with 'step', received "
        f"{line[:60]!r}; repair or delete the line."
      ) from error
    for name, value in row.items():
      if name not in NOT_CURVES and isinstance(value, int | float):
        curves[name][0].append(step)
        curves[name][1].append(value)
  return dict(curves)


def curve_charts(
  curves: Mapping[str, tuple[list[float], list[float]]],
) -> str:
  """Returns one chart of the loss by term, and one for each other number."""
  terms = {name: curves[name] for name in LOSS_TERMS if name in curves}
  figures = [charts.line_chart("Loss by term", terms, log=True)]
  figures += [
    charts.line_chart(
      CURVE_TITLES.get(name, name.replace("_", " ")), {name: curve}
    )
    for name, curve in curves.items()
    if name not in LOSS_TERMS
  ]
  if not any(figures):
    return ""
  return (
    '<p class="lead">Over optimizer steps, as logged while training. Terms '
    "are shown before their weights.</p>"
    f'<div class="charts">{"".join(figures)}</div>'
  )
