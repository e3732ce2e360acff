"""The files of a comparison: numbers as JSON, and one HTML page.

The page has the frame of the evaluation's report and needs nothing else. The
same scores give the same bytes.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import html
import json
import pathlib
from typing import Any

from rcmed_jax.data import files, web_page
from rcmed_jax.eval import report, sections, tables, verdict
from rcmed_jax.eval.compare import (
  ALPHA,
  EXACT,
  EXACT_TIED,
  Change,
  Comparison,
  TaskResult,
)
from rcmed_jax.eval.conditions import Difference
from rcmed_jax.eval.pairing import Key, Pairing

PAGE, NUMBERS = "index.html", "comparison.json"

# Ends of the bars' scale, in Dice: the smallest that holds all intervals.
SCALES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

METHOD = {
  "Difference": "B minus A in Dice, of the same masks",
  "Macro, micro": "mean over tasks of the mean over masks; mean over masks",
  "Interval": "95%, paired bootstrap over images, expanded percentiles",
  "Test": "Wilcoxon's signed ranks over images, two-sided; images without a "
  "difference left out, ties share their rank",
  "Its distribution": f"exact up to {EXACT} images without ties and "
  f"{EXACT_TIED} with; beyond, normal",
  "Many tasks": f"Holm's correction; better or worse at {ALPHA:g}, where mean "
  "and ranks point the same way",
  "r": "rank-biserial correlation of matched pairs, -1 to 1",
  "d": "Cohen's d for pairs: mean / standard deviation of the differences",
}

HEADS = (
  # name, class of the column
  ("Modality", "text"),
  ("Class", "text"),
  ("B − A", ""),
  ("95%", "wide"),
  ("B is", ""),
  ("p (Holm)", "wide"),
  ("r", "wide"),
  ("Dice of B", "wide"),
  ("Images", "wide"),
)
OUTCOMES = {"win": "better", "loss": "worse", "tie": "unclear"}


def write(
  result: Comparison,
  out_dir: pathlib.Path,
  *,
  names: tuple[str, str] = ("A", "B"),
  pairing: Pairing,
  facts: Mapping[str, object] | None = None,
  apart: Sequence[Difference] = (),
) -> pathlib.Path:
  """Returns the path of the page, after writing it and the numbers.

  Args:
    result: of the pairing's masks.
    names: of run A and run B.
    facts: what was compared: paths, the split.
    apart: what the two evaluations did not have in common.
  """
  out_dir.mkdir(parents=True, exist_ok=True)
  numbers = _numbers(result, names, pairing, facts or {})
  numbers["asked_differently"] = [dataclasses.asdict(one) for one in apart]
  text = json.dumps(numbers, indent=2, sort_keys=True, allow_nan=False)
  files.write_whole(out_dir / NUMBERS, text + "\n")
  page = _page(result, names, pairing, facts or {}, apart)
  return web_page.write(out_dir / PAGE, page)


def _numbers(
  result: Comparison,
  names: tuple[str, str],
  pairing: Pairing,
  facts: Mapping[str, object],
) -> dict[str, Any]:
  """Returns what the JSON holds."""
  table = dataclasses.asdict(result)
  for row in table["tasks"]:
    task = row.pop("task")
    row |= {"modality": task["modality"], "class": task["name"]}
  return {
    **table,
    "names": {"a": names[0], "b": names[1]},
    "verdict": verdict.sentences(result, names),
    "outcomes": {word: result.count(word) for word in OUTCOMES},
    "only_in_a": [{"record": k[0], "class": k[1]} for k in pairing.only_a],
    "only_in_b": [{"record": k[0], "class": k[1]} for k in pairing.only_b],
    "method": METHOD,
    "facts": dict(facts),
  }


def _page(
  result: Comparison,
  names: tuple[str, str],
  pairing: Pairing,
  facts: Mapping[str, object],
  apart: Sequence[Difference],
) -> str:
  parts = {
    "Asked differently": _apart(apart),
    "Verdict": "".join(
      f"<p>{html.escape(text)}</p>" for text in verdict.sentences(result, names)
    ),
    "Tasks": tables.lead(
      "Difference in mean Dice over masks with its 95% interval, that of each "
      "task alone; p and what B is are corrected for the number of tasks. "
      "Unclear is not equal. Images: on how many B is higher, equal and lower. "
      "Select a heading to sort."
    )
    + _tasks(result.tasks),
    "Left out": _left_out(pairing, names),
    "Method": sections.facts(
      {
        "Method": METHOD,
        "Runs": {
          "A": names[0],
          "B": names[1],
          **facts,
          "resamplings": result.draws,
          "seed": result.seed,
        },
      }
    ),
  }
  return web_page.page(
    "RCMed comparison",
    f"B, {names[1]}, against A, {names[0]}: {result.images} images, "
    f"{result.masks} masks, {len(result.tasks)} tasks (modality × class).",
    parts,
    top=_tiles(result),
    footer="Every mask that both runs scored is counted once. Intervals are "
    "95% intervals over images.",
    style=report.style(),
  )


def _apart(rows: Sequence[Difference]) -> str:
  """Returns what the evaluations did not have in common, as a warning."""
  if not rows:
    return ""
  return (
    '<p class="warning">The two evaluations were not made alike. What differs '
    "in Dice may come from that, and not from the models.</p>"
  ) + tables.plain(["What", "A", "B"], [(r.what, r.a, r.b) for r in rows])


def _tiles(result: Comparison) -> str:
  """Returns the headline numbers, each with what it means."""
  win, tie, loss = (result.count(word) for word in ("win", "tie", "loss"))
  found = result.signs
  rows = (
    (
      "Macro Dice, B − A",
      verdict.signed(result.macro.difference),
      _span(result.macro),
      f"Mean over tasks: {result.macro.b:.3f} against {result.macro.a:.3f}. "
      "Shown only where the interval leaves 0 out.",
    ),
    (
      "Micro Dice, B − A",
      verdict.signed(result.micro.difference),
      _span(result.micro),
      f"Mean over masks: {result.micro.b:.3f} against {result.micro.a:.3f}. "
      "Tasks with many masks weigh more.",
    ),
    (
      "Tasks better, worse",
      f"{win}, {loss}",
      f"{tie} unclear",
      "After correction for the number of tasks.",
    ),
    (
      "Images better, worse",
      f"{found.better}, {found.worse}",
      f"{found.equal} equal; p {_p(found.p)}",
      "By the mean Dice of an image's masks.",
    ),
    (
      "Rank-biserial r",
      verdict.signed(found.rank_biserial),
      f"Cohen's d {_effect(found.cohens_d)}",
      "From −1, A is higher on all images, to 1, B is.",
    ),
  )
  body = "".join(
    f'<div class="tile"><h2>{name}</h2><strong>{value}</strong>'
    f"<small>{detail}</small><p>{meaning}</p></div>"
    for name, value, detail, meaning in rows
  )
  return f'<div class="tiles">{body}</div>'


def _tasks(rows: Sequence[TaskResult]) -> str:
  """Returns a sortable table, one row a task."""
  ends = [
    abs(value)
    for row in rows
    for value in (row.dice.difference, row.dice.low, row.dice.high)
    if value is not None
  ]
  scale = next((end for end in SCALES if end >= max(ends)), SCALES[-1])
  head = "".join(
    f'<th class="{kind}" scope="col"><button>{name}</button></th>'
    for name, kind in HEADS
  )
  body = "".join(f"<tr>{_row(row, scale)}</tr>" for row in rows)
  return (
    tables.lead(f"Bars end at ±{scale:g}.")
    + f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}'
    "</tbody></table></div>"
  )


def _row(row: TaskResult, scale: float) -> str:
  found, dice = row.signs, row.dice
  cells = (
    (tables.cell(row.task.modality), ""),
    (tables.cell(row.task.name), ""),
    (_bar(dice, scale) + verdict.signed(dice.difference), dice.difference),
    (_span(dice), "" if dice.low is None else dice.low),
    (OUTCOMES[row.outcome], ""),
    (_p(row.holm), row.holm),
    (verdict.signed(found.rank_biserial), found.rank_biserial),
    (tables.cell(dice.b), dice.b),
    (f"{found.better} · {found.equal} · {found.worse}", found.images),
  )
  return "".join(
    f'<td class="{kind}"'
    + ("" if value == "" else f' data-v="{value}"')
    + f">{text}</td>"
    for (_, kind), (text, value) in zip(HEADS, cells, strict=True)
  )


def _bar(dice: Change, scale: float) -> str:
  """Returns a bar from the middle, to the right where B is higher."""

  def across(value: float) -> float:
    return 50 + 50 * max(-1.0, min(1.0, value / scale))

  at = across(dice.difference)
  color = "var(--bad)" if dice.difference < 0 else "var(--accent)"
  whisker = ""
  if dice.low is not None and dice.high is not None:
    low, high = across(dice.low), across(dice.high)
    whisker = f'<i style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
  return (
    f'<span class="bar"><b style="left:{min(at, 50):.1f}%;'
    f'width:{abs(at - 50):.1f}%;background:{color}"></b>'
    f'<i style="left:50%;width:0"></i>{whisker}</span>'
  )


def _left_out(pairing: Pairing, names: tuple[str, str]) -> str:
  """Returns the masks that one run alone has."""
  body = ""
  for name, keys in zip(names, (pairing.only_a, pairing.only_b), strict=True):
    body += _only(name, keys)
  if not body:
    return ""
  return (
    tables.lead(
      "Masks that one run alone has. They are in no number above, and what "
      "kept them out of the other run may be what makes them hard."
    )
    + body
  )


def _only(name: str, keys: Sequence[Key]) -> str:
  if not keys:
    return ""
  return tables.fold(
    f"{len(keys)} masks of {name} only",
    tables.plain(["Record", "Class"], keys[: tables.LISTED])
    + tables.more(len(keys), NUMBERS),
  )


def _span(row: Change) -> str:
  if row.low is None or row.high is None:
    return "no interval"
  return f"{verdict.signed(row.low)} to {verdict.signed(row.high)}"


def _effect(value: float | None) -> str:
  return "–" if value is None else verdict.signed(value)


def _p(value: float) -> str:
  return "&lt; 0.001" if value < 0.001 else f"{value:.3f}"
