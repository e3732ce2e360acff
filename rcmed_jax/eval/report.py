"""The report of an evaluation: one HTML file that needs nothing else.

Styles, scripts, charts and pictures are inside, so that the file can be mailed
or archived. `report.css` and `report.js` are its own beside those of all pages,
`sections.py` writes what goes between.
"""

import collections
from collections.abc import Mapping
import html
import json
import os
from pathlib import Path
from typing import Any
import urllib.parse

from rcmed_jax.data import files, web_page
from rcmed_jax.eval import charts, sections, sections_images, sections_trust
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
  splits: Mapping[str, str] | None = None,
) -> Path:
  """Returns the path of the written page.

  Args:
    path: of the page, `report/index--test.html`; folders are made.
    training: the training's metrics.jsonl, one JSON object with `step` a
      line; None leaves the curves out.
    facts: what the run was, by heading: settings, versions, counts.
    splits: split -> page, of all that there are; to be linked.
  """
  curves = read_curves(training) if training else {}
  parts = {
    "Examples": sections_images.examples(summary),
    "Best, median, worst": sections_images.by_score(summary),
    "Failures": sections_images.failures(summary),
    "Modalities and tasks": sections.averages(summary),
    "Training": curve_charts(curves),
    "Recognition": sections.recognition(summary),
    "Presence": sections.presence(summary),
    "Confidence": sections_trust.calibration(summary),
    "Other words": sections_trust.phrases(summary),
    "Instances": sections_trust.instances(summary),
    "Boxes": sections_trust.boxes(summary),
    "Descriptions": sections_trust.descriptions(summary),
    "Controls": sections.controls(summary),
    "Quarantine": sections.quarantine(summary),
    "How this was made": sections.made(summary) + sections.facts(facts or {}),
  }
  return web_page.write(
    path,
    web_page.page(
      title,
      sections.subtitle(summary),
      parts,
      top=_links(splits or {}, summary.split) + sections.tiles(summary),
      footer="Scores are exact: every readable image is counted once. The "
      "intervals are 95% bootstrap intervals over images.",
      style=style(),
      script=web_page.text_of("rcmed_jax.eval", "report.js"),
    ),
  )


def write_pages(out: Path, summary: Summary, **told: Any) -> Path:
  """Returns the path of `index.html`, which shows the newest evaluation.

  Each split also has a page of its own, which no other split replaces; where
  there are several, `index.html` links to all.

  Args:
    out: folder of the pages.
    told: as of `write_report`.
  """
  write_report(out / _page(summary.split), summary, **told)
  first, last = _page("*").split("*")
  splits = {
    path.name.removeprefix(first).removesuffix(last): path.name
    for path in sorted(out.glob(_page("*")))
  }
  return write_report(out / "index.html", summary, splits=splits, **told)


def style() -> str:
  """Returns the styles of charts and pictures, for a page."""
  return web_page.text_of("rcmed_jax.eval", "report.css")


def _page(split: str) -> str:
  """Returns the name of a split's page."""
  return f"index--{split}.html"


def _links(splits: Mapping[str, str], shown: str) -> str:
  """Returns links to the pages of several splits."""
  if len(splits) < 2:
    return ""
  links = ", ".join(
    f'<a href="{urllib.parse.quote(page)}">{html.escape(split)}</a>'
    + (" (this one, the newest)" if split == shown else "")
    for split, page in splits.items()
  )
  return f'<p class="lead splits">Evaluated splits: {links}</p>'


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
  figures = [charts.line_chart("Loss by term", terms, over="steps", log=True)]
  figures += [
    charts.line_chart(
      CURVE_TITLES.get(name, name.replace("_", " ")),
      {name: curve},
      over="steps",
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
