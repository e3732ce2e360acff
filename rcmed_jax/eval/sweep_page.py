"""The page of a sweep: drawings and tables, in the frame of the report."""

from collections.abc import Mapping
import html

from rcmed_jax.data import web_page
from rcmed_jax.eval import report, sweep_plot, sweep_text, tables
from rcmed_jax.eval.sweep_scores import SCORES, Estimate
from rcmed_jax.eval.sweep_text import TITLES, Results

_KEY = (
  "Large dot: mean over seeds. Small dots: single runs. Thin line: 95% over "
  "seeds. Thick bar: 95% over images."
)
_INTERVALS = ("95% over seeds", "95% over images")


def page(results: Results) -> str:
  """The text of one HTML file that needs nothing else."""
  told, undone = results.told, results.undone
  sections = {
    "Scores": _scores(results),
    "Differences": _differences(results),
    "Failed and missing": tables.plain(
      ["Run", "State", "Last line"],
      [(run.name, run.state, run.error) for run in undone],
    )
    if undone
    else "",
    "How to read this": "".join(
      f'<p class="lead">{html.escape(text)}</p>'
      for text in sweep_text.how_to_read(results)
    ),
    "Cells": tables.plain(
      ["Cell", "Sets"],
      [
        (cell, sweep_text.overrides(one))
        for cell, one in told.overrides.items()
      ],
    ),
    "Sweep": tables.pairs(
      ["Setting", "Value"], [(k, str(v)) for k, v in told.facts.items()]
    )
    if told.facts
    else "",
  }
  return web_page.page(
    told.title,
    sweep_text.subtitle(results),
    sections,
    footer="Every run is an ordinary run with a report of its own, in "
    "CELL/seedN/report.",
    style=report.style(),
  )


def _scores(results: Results) -> str:
  found = results.found
  if not found.cells:
    return '<p class="lead">No run is finished.</p>'
  known = [
    name for name in SCORES if any(name in c for c in found.cells.values())
  ]
  means = [
    (
      cell,
      *(one[name].mean if name in one else None for name in known),
      results.finished(cell),
      results.seconds.get(cell),
    )
    for cell, one in found.cells.items()
  ]
  heads = ["Cell", *(TITLES[name] for name in known), "Seeds", "s/step"]
  return (
    f'<p class="lead">{_KEY}</p><div class="charts">'
    + "".join(
      sweep_plot.rows(sweep_text.title(name), _of(name, found.cells))
      for name in known
    )
    + f"</div><h3>Means</h3>{tables.plain(heads, means)}<h3>Intervals</h3>"
    + "".join(
      tables.fold(
        TITLES[name],
        tables.plain(
          ["Cell", "Mean", *_INTERVALS, "Seeds"],
          [row for row, _ in _rows(_of(name, found.cells))],
        ),
      )
      for name in known
    )
  )


def _differences(results: Results) -> str:
  found, told = results.found, results.told
  if not found.differences:
    return ""
  known = [name for name in SCORES if _of(name, found.differences)]
  return (
    f'<p class="lead">To {html.escape(told.baseline)}, paired by seed and '
    'image; the line marks 0.</p><div class="charts">'
    + "".join(
      sweep_plot.rows(
        f"{TITLES[name]}: difference", _of(name, found.differences), zero=True
      )
      for name in known
    )
    + "</div><h3>Intervals</h3>"
    + "".join(
      tables.fold(
        TITLES[name],
        tables.plain(
          ["Cell", "Difference", *_INTERVALS, "Seeds", "0 excluded"],
          [
            (*row, _verdict(one))
            for row, one in _rows(_of(name, found.differences))
          ],
        ),
      )
      for name in known
    )
  )


def _of(
  name: str, cells: Mapping[str, Mapping[str, Estimate]]
) -> dict[str, Estimate]:
  """The cells that have a score."""
  return {cell: one[name] for cell, one in cells.items() if name in one}


def _rows(
  estimates: Mapping[str, Estimate],
) -> list[tuple[tuple[tables.Cell, ...], Estimate]]:
  return [
    (
      (
        cell,
        one.mean,
        (one.seeds_low, one.seeds_high),
        (one.images_low, one.images_high),
        len(one.by_seed),
      ),
      one,
    )
    for cell, one in estimates.items()
  ]


def _verdict(one: Estimate) -> str:
  """Which of the intervals exclude 0."""
  seeds = (
    one.seeds_low is not None
    and one.seeds_high is not None
    and (one.seeds_low > 0 or one.seeds_high < 0)
  )
  images = (
    one.images_low is not None
    and one.images_high is not None
    and (one.images_low > 0 or one.images_high < 0)
  )
  if seeds and images:
    return "by both"
  return "by seeds alone" if seeds else "by images alone" if images else "no"
