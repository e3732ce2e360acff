"""HTML pages that need nothing else, so that they can be mailed or archived.

`web_page.html` is their frame: common styles, and the script that sorts tables.
"""

from collections.abc import Mapping
import html
import importlib.resources
import os
import pathlib
import string

from rcmed_jax.data import files


def page(
  title: str,
  subtitle: str,
  sections: Mapping[str, str],
  *,
  top: str = "",
  footer: str = "",
  style: str = "",
  script: str = "",
) -> str:
  """The text of one HTML file.

  Args:
    title: of the page, as text; so are `subtitle` and `footer`.
    sections: heading -> HTML; empty ones are left out.
    top: HTML before the sections.
    style: CSS of the page's own, after the common one.
    script: JavaScript of its own, likewise.
  """
  shown = {heading: body for heading, body in sections.items() if body}
  return string.Template(text_of("rcmed_jax.data", "web_page.html")).substitute(
    title=html.escape(title),
    subtitle=html.escape(subtitle),
    style=style,
    script=script,
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


def write(path: str | os.PathLike[str], content: str) -> pathlib.Path:
  """Returns the path of the page, which is there whole or not at all.

  Args:
    path: of the page; folders are made.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  # Names of files may hold what is no text.
  files.write_whole(path, content.encode(errors="replace"))
  return path


def text_of(package: str, name: str) -> str:
  """The text of a file that lies beside a package's code."""
  found = importlib.resources.files(package).joinpath(name)
  return found.read_text(encoding="utf-8")


def _anchor(heading: str) -> str:
  return heading.lower().replace(",", "").replace(" ", "-")
