"""Tables of the report. Cells are plain values, escaped and formatted here."""

from collections.abc import Mapping, Sequence
import html
from typing import Any

from rcmed_jax.eval import charts

# A tuple is the interval from its first to its second number.
Cell = str | int | float | tuple[float | None, float | None] | None

# Distances between surfaces, and their digits.
SURFACES = {"NSD": 3, "HD95": 1}
# Rows of tables that may be as long as the data; the rest is in a file.
LISTED = 50

# Left out on phones.
WIDE = {"95%", "HD95", "Pooled IoU", "Box IoU", "Images"}


def lead(text: str) -> str:
  """Returns the paragraph that a section begins with."""
  return f'<p class="lead">{cell(text)}</p>'


def plain(
  heads: Sequence[str],
  rows: Sequence[Sequence[Cell]],
  *,
  total: Sequence[Cell] | None = None,
) -> str:
  """Returns a sortable table: strings to the left, numbers to the right.

  A column is what its first row is; a missing number is None.

  Args:
    total: a row that stays below the others, however they are sorted.
  """
  kinds = _kinds([*rows, *([total] if total else [])][0])
  head = "".join(
    f'<th{kind} scope="col"><button>{html.escape(name)}</button></th>'
    for kind, name in zip(kinds, heads, strict=True)
  )
  foot = f"<tfoot>{_plain_row(kinds, total)}</tfoot>" if total else ""
  return _frame(head, "".join(_plain_row(kinds, row) for row in rows), foot)


def pairs(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
  """Returns a table of single things, in an order that says something."""
  kinds = _kinds(rows[0])
  head = "".join(
    f'<th{kind} scope="col">{html.escape(name)}</th>'
    for kind, name in zip(kinds, heads, strict=True)
  )
  return _frame(head, "".join(_plain_row(kinds, row) for row in rows))


def scores(
  heads: Sequence[str], groups: Mapping[tuple[str, ...], Mapping[str, Any]]
) -> str:
  """Returns a sortable table of averages, one row per group.

  Surfaces have a column for each unit that occurs in the table.

  Args:
    heads: what the parts of a group's key are called.
    groups: key -> the fields of a `metrics.Aggregate`.
  """
  surfaces = [
    (name, unit)
    for name in SURFACES
    for unit in ("mm", "px")
    if any(row[f"masks_{unit}"] for row in groups.values())
  ]
  head = "".join(
    f'<th class="{kind}" scope="col"><button>{name}</button></th>'
    for name, kind in [
      *((name, "text") for name in heads),
      *((name, _kind(name)) for name in ("Dice", "95%", "IoU")),
      *((f"{name}, {unit}", _kind(name)) for name, unit in surfaces),
      *((name, _kind(name)) for name in ("Pooled IoU", "Box IoU")),
      *((name, _kind(name)) for name in ("Masks", "Images")),
    ]
  )
  keys = sorted(groups, key=lambda key: [part.lower() for part in key])
  body = "".join(_score_row(key, groups[key], surfaces) for key in keys)
  return _frame(head, body)


def more(rows: int, file: str) -> str:
  """Returns how many of a table's rows are in a file alone; or nothing."""
  rest = rows - LISTED
  return lead(f"And {rest} more, in {file}.") if rest > 0 else ""


def fold(title: str, body: str) -> str:
  """Returns HTML that opens when its title is selected."""
  return f"<details><summary>{html.escape(title)}</summary>{body}</details>"


def cell(value: object) -> str:
  """Returns a value as HTML; floats have three digits, None is a dash."""
  if value is None:
    return "–"
  if isinstance(value, tuple):
    return interval(*value) or "–"
  if isinstance(value, float):
    return f"{value:.3f}"
  return html.escape(str(value))


def interval(low: float | None, high: float | None) -> str:
  """Returns an interval as text; a dash where there is none."""
  return "–" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _kind(name: str) -> str:
  return "wide" if name in WIDE else ""


def _score_row(
  key: tuple[str, ...],
  row: Mapping[str, Any],
  surfaces: Sequence[tuple[str, str]],
) -> str:
  low, high = row["dice_low"], row["dice_high"]
  return (
    "<tr>"
    + "".join(f'<td class="text">{cell(part)}</td>' for part in key)
    + f'<td data-v="{row["dice"]}">{charts.bar(row["dice"], low, high)}'
    + f'{cell(row["dice"])}</td><td class="wide range" '
    + f'data-v="{"" if low is None else low}">'
    + f"{interval(low, high)}</td><td>{cell(row['iou'])}</td>"
    + "".join(_surface(row, name, unit) for name, unit in surfaces)
    + f'<td class="wide">{cell(row["ciou"])}</td>'
    + f'<td class="wide">{cell(row["box_iou"])}</td>'
    + f'<td>{row["masks"]}</td><td class="wide">{row["images"]}</td></tr>'
  )


def _surface(row: Mapping[str, Any], name: str, unit: str) -> str:
  """Returns the cell of NSD or HD95, with the masks if some are of another."""
  value, count = row[f"{name.lower()}_{unit}"], row[f"masks_{unit}"]
  if value is None:
    return f'<td class="{_kind(name)}" data-v="">–</td>'
  some = f" <small>of {count}</small>" if count < row["masks"] else ""
  text = f"{value:.{SURFACES[name]}f}{some}"
  return f'<td class="{_kind(name)}" data-v="{value}">{text}</td>'


def _kinds(row: Sequence[Cell]) -> list[str]:
  return [' class="text"' if isinstance(value, str) else "" for value in row]


def _plain_row(kinds: Sequence[str], row: Sequence[Cell]) -> str:
  cells = "".join(
    f"<td{kind}{_value(value)}>{cell(value)}</td>"
    for kind, value in zip(kinds, row, strict=True)
  )
  return f"<tr>{cells}</tr>"


def _value(value: Cell) -> str:
  """What a cell is sorted by, where that is not its text."""
  if isinstance(value, tuple):
    value = value[0]
  elif not isinstance(value, float):
    return ""
  return f' data-v="{"" if value is None else value}"'


def _frame(head: str, body: str, foot: str = "") -> str:
  return (
    f'<div class="table"><table><thead><tr>{head}</tr></thead>'
    f"<tbody>{body}</tbody>{foot}</table></div>"
  )
