"""Tables of the report. Cells are plain values, escaped and formatted here."""

from collections.abc import Mapping, Sequence
import html
from typing import Any

from rcmed_jax.eval import charts

Cell = str | int | float | None

NUMBERS = (
  *("Dice", "95%", "IoU", "NSD, mm", "NSD, px", "HD95, mm", "HD95, px"),
  *("Pooled IoU", "Box IoU", "Masks", "Images"),
)
# Left out on phones.
WIDE = {"95%", "HD95, mm", "HD95, px", "Pooled IoU", "Box IoU", "Images"}


def lead(text: str) -> str:
  """Returns the paragraph that a section begins with."""
  return f'<p class="lead">{cell(text)}</p>'


def plain(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
  """Returns a table: strings to the left, numbers to the right.

  A column is what its first row is; a missing number is None.
  """
  kinds = [
    ' class="text"' if isinstance(value, str) else "" for value in rows[0]
  ]
  head = "".join(
    f'<th{kind} scope="col">{html.escape(name)}</th>'
    for kind, name in zip(kinds, heads, strict=True)
  )
  body = "".join(
    "<tr>"
    + "".join(
      f"<td{kind}>{cell(value)}</td>"
      for kind, value in zip(kinds, row, strict=True)
    )
    + "</tr>"
    for row in rows
  )
  return _frame(head, body)


def scores(
  heads: Sequence[str], groups: Mapping[tuple[str, ...], Mapping[str, Any]]
) -> str:
  """Returns a sortable table of averages, one row per group.

  Args:
    heads: what the parts of a group's key are called.
    groups: key -> the fields of a `metrics.Aggregate`.
  """
  head = "".join(
    f'<th class="{kind}" scope="col"><button>{name}</button></th>'
    for name, kind in [
      *((name, "text") for name in heads),
      *((name, "wide" if name in WIDE else "") for name in NUMBERS),
    ]
  )
  keys = sorted(groups, key=lambda key: [part.lower() for part in key])
  body = "".join(_score_row(key, groups[key]) for key in keys)
  return _frame(head, body)


def fold(title: str, body: str) -> str:
  """Returns HTML that opens when its title is selected."""
  return f"<details><summary>{html.escape(title)}</summary>{body}</details>"


def cell(value: object) -> str:
  """Returns a value as HTML; floats have three digits, None is a dash."""
  if value is None:
    return "–"
  if isinstance(value, float):
    return f"{value:.3f}"
  return html.escape(str(value))


def interval(low: float | None, high: float | None) -> str:
  """Returns an interval as text; a dash where there is none."""
  return "–" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _score_row(key: tuple[str, ...], row: Mapping[str, Any]) -> str:
  low, high = row["dice_low"], row["dice_high"]
  return (
    "<tr>"
    + "".join(f'<td class="text">{cell(part)}</td>' for part in key)
    + f'<td data-v="{row["dice"]}">{charts.bar(row["dice"], low, high)}'
    + f'{cell(row["dice"])}</td><td class="wide range" '
    + f'data-v="{-1 if low is None else low}">'
    + f"{interval(low, high)}</td><td>{cell(row['iou'])}</td>"
    + _surface(row, "nsd", "mm", 3)
    + _surface(row, "nsd", "px", 3)
    + _surface(row, "hd95", "mm", 1)
    + _surface(row, "hd95", "px", 1)
    + f'<td class="wide">{cell(row["ciou"])}</td>'
    + f'<td class="wide">{cell(row["box_iou"])}</td>'
    + f'<td>{row["masks"]}</td><td class="wide">{row["images"]}</td></tr>'
  )


def _surface(row: Mapping[str, Any], name: str, unit: str, digits: int) -> str:
  """Returns the cell of NSD or HD95, with the masks if some are of another."""
  value, count = row[f"{name}_{unit}"], row[f"masks_{unit}"]
  kind = "wide" if name == "hd95" else ""
  if value is None:
    return f'<td class="{kind}" data-v="-1">–</td>'
  some = f" <small>of {count}</small>" if count < row["masks"] else ""
  return f'<td class="{kind}" data-v="{value}">{value:.{digits}f}{some}</td>'


def _frame(head: str, body: str) -> str:
  return (
    f'<div class="table"><table><thead><tr>{head}</tr></thead>'
    f"<tbody>{body}</tbody></table></div>"
  )
