"""Tables, tiles and bars of the pages that `rcmed data` writes."""

from collections.abc import Iterable, Sequence
import html

from rcmed_jax.data import web_page

# Rows beyond which a table scrolls in itself.
TALL = 16

# A cell: text, a number, or HTML that is ready, with what it is sorted by.
Cell = str | int | float | tuple[str, float]


def style() -> str:
  """The styles of tables and cards, for a page."""
  return web_page.text_of("rcmed_jax.ingest.checking", "page.css")


def table(heads: Sequence[str], rows: Iterable[Sequence[Cell]]) -> str:
  """A table that is sorted by a click; "" without rows.

  Args:
    heads: of columns; columns of text start with "<", as in "<class".
    rows: cells.
  """
  body = ["".join(map(_cell, heads, row)) for row in rows]
  if not body:
    return ""
  head = "".join(
    f'<th class="text"><button>{html.escape(name[1:])}</button></th>'
    if name.startswith("<")
    else f"<th><button>{html.escape(name)}</button></th>"
    for name in heads
  )
  tall = " tall" if len(body) > TALL else ""
  return (
    f'<div class="table{tall}"><table><thead><tr>{head}</tr></thead><tbody>'
    + "".join(f"<tr>{row}</tr>" for row in body)
    + "</tbody></table></div>"
  )


def bar(value: float, most: float) -> tuple[str, float]:
  """A cell with a number and how much of the largest it is."""
  width = 100 * value / most if most else 0
  return (
    f'<span class="bar"><b style="width:{width:.1f}%"></b></span>'
    f'<span class="number">{value:,}</span>',
    value,
  )


def lines(first: object, others: Iterable[object] = ()) -> tuple[str, float]:
  """A cell with a line of text and smaller ones below."""
  small = "".join(
    f"<small>{html.escape(str(other))}</small>" for other in others
  )
  return html.escape(str(first)) + small, 0


def tile(name: str, value: str, note: str = "") -> str:
  """A number that is read first."""
  return (
    f'<div class="tile"><h2>{html.escape(name)}</h2>'
    f"<strong>{html.escape(value)}</strong><small>{html.escape(note)}</small>"
    "</div>"
  )


def lead(text: str) -> str:
  """The sentence below a heading."""
  return f'<p class="lead">{html.escape(text)}</p>'


def _cell(head: str, cell: Cell) -> str:
  kind = ' class="text"' if head.startswith("<") else ""
  if isinstance(cell, tuple):
    content, value = cell
    known = "" if kind else f' data-v="{value}"'
    return f"<td{kind}{known}>{content}</td>"
  if isinstance(cell, int | float):
    return f'<td{kind} data-v="{cell}">{cell:,}</td>'
  return f"<td{kind}>{html.escape(cell)}</td>"
