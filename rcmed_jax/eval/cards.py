"""One card per image of the report: its pictures, question and answer."""

import base64
from collections.abc import Iterable
import html
import itertools
import re

from rcmed_jax.eval import overlays
from rcmed_jax.eval.failures import WRONG_NAME
from rcmed_jax.eval.overlays import Sample

PHRASE = re.compile(r"<p>\s*(.*?)\s*</p>(\s*\[SEG\])?")
MARKERS = ("</s>", "[SEG]", "<p>", "</p>")


def cards(samples: Iterable[Sample], titles: Iterable[str] = ()) -> str:
  """Returns the cards of several images as one HTML grid.

  Args:
    titles: over each, where it shows something; else its modality is.
  """
  named = itertools.chain(titles, itertools.repeat(""))
  body = "".join(_card(one, next(named)) for one in samples)
  return f'<div class="cards">{body}</div>'


def marked_answer(answer: str, classes: tuple[str, ...]) -> str:
  """Returns an answer as HTML: phrases bold, those with a mask coloured.

  Args:
    answer: as generated, `... <p> liver </p> [SEG] ...`.
    classes: the classes whose colours the pictures show.
  """
  places = {name.lower(): place for place, name in enumerate(classes)}
  parts, end = [], 0
  for match in PHRASE.finditer(answer):
    name, seg = match.groups()
    parts.append(_plain(answer[end : match.start()]))
    place = places.get(name.lower())
    dot = _dot(place) if seg and place is not None else ""
    parts.append(f"<mark>{dot}{html.escape(name)}</mark>")
    end = match.end()
  parts.append(_plain(answer[end:]))
  return "".join(parts)


def _card(sample: Sample, title: str) -> str:
  """Returns image, reference and prediction; the picture is held once."""
  rows, columns = sample.shape
  panes = "".join(
    f'<span class="pane"><span style="aspect-ratio:{columns}/{rows}">'
    f"{layer}</span><small>{name}</small></span>"
    for name, layer in (
      ("image", ""),
      ("reference", _layer(sample.reference)),
      ("prediction", _layer(sample.prediction)),
    )
  )
  is_open = WRONG_NAME in sample.reasons
  chips = "".join(
    f"<span>{_dot(place)}{html.escape(name)} "
    + _verdict(dice, present, "left out" if is_open else "rejected")
    + "</span>"
    for place, (name, dice, present) in enumerate(
      zip(sample.classes, sample.dice, sample.present, strict=True)
    )
  )
  record = html.escape(sample.record)
  return (
    f'<article class="card" style="--picture:url({_data(sample.image)})">'
    f"<header><b>{html.escape(title or sample.modality)}</b>"
    f"<span>{record}</span>"
    f'</header><button class="panes" aria-expanded="false" '
    f'aria-label="Enlarge {record}">{panes}</button>'
    f'<div class="chips">{chips}</div><dl>'
    f"<dt>Asked</dt><dd>{html.escape(sample.question)}</dd>"
    f'<dt>Answer</dt><dd class="answer">'
    f"{marked_answer(sample.answer, sample.classes)}</dd></dl></article>"
  )


def _verdict(dice: float | None, present: bool, missed: str) -> str:
  """What became of a class: its Dice, or why it has none.

  Args:
    missed: what is said of a class that the answer does not hold.
  """
  if dice is None:
    return '<b class="missed">not in the image</b>'
  return f"<b>{dice:.3f}</b>" if present else f'<b class="missed">{missed}</b>'


def _layer(png: bytes) -> str:
  return f'<img alt="" src="{_data(png)}">'


def _data(png: bytes) -> str:
  return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _dot(place: int) -> str:
  red, green, blue = overlays.color(place)
  return f'<i style="background:rgb({red},{green},{blue})"></i>'


def _plain(text: str) -> str:
  for marker in MARKERS:
    text = text.replace(marker, "")
  return html.escape(text)
