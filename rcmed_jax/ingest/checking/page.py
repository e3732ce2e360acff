"""HTML pages that need nothing else, and the tables in them.

`page.html` is their frame: styles and the script that sorts tables.
"""

from collections.abc import Iterable, Mapping, Sequence
import html
import importlib.resources
import os
import pathlib
import string

FRAME = "page.html"

# Rows beyond which a table scrolls in itself.
TALL = 16

# A cell: text, a number, or HTML that is ready, with what it is sorted by.
Cell = str | int | float | tuple[str, float]


def write(
  path: pathlib.Path,
  title: str,
  subtitle: str,
  sections: Mapping[str, str],
  *,
  top: str = "",
  footer: str = "",
) -> pathlib.Path:
  """Returns the path of the written page, which is there whole or not at all.

  Args:
    path: of the page; folders are made.
    title: of the page, as text; so are `subtitle` and `footer`.
    sections: heading -> HTML; empty ones are left out.
    top: HTML before the sections.
  """
  frame = importlib.resources.files("rcmed_jax.ingest.checking").joinpath(FRAME)
  shown = {heading: body for heading, body in sections.items() if body}
  content = string.Template(frame.read_text(encoding="utf-8")).substitute(
    title=html.escape(title),
    subtitle=html.escape(subtitle),
    links="".join(
      f'<a href="#{_anchor(heading)}">{html.escape(heading)}</a>'
      for heading in shown
    ),
    sections=top
    + "".join(
      f'<section id="{_anchor(heading)}"><h2>{html.escape(heading)}</h2>'
      f"{body}</section>"
      for heading, body in shown.items()
    ),
    footer=html.escape(footer),
  )
  path.parent.mkdir(parents=True, exist_ok=True)
  new = path.with_name(path.name + ".new")
  # Names of files may hold what is no text.
  new.write_text(content, encoding="utf-8", errors="replace")
  os.replace(new, path)
  return path


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


def _anchor(heading: str) -> str:
  return heading.lower().replace(" ", "-")
