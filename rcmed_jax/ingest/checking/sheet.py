"""A contact sheet: pictures of a data set with their masks, on one page.

They are drawn evenly over tasks (modality and class), so that the rare ones are
seen too: a few candidates of each task are kept while units go by, then each
task gives one in turn. Only what is shown is decoded.
"""

import base64
import collections
from collections.abc import Iterator, Sequence
import dataclasses
import html
import itertools
import pathlib
import random
from typing import Any

import cv2
import numpy as np

from rcmed_jax.data import web_page
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Record, Triplet
from rcmed_jax.ingest.checking import page
from rcmed_jax.ingest.sources import Faults, Source, Unit
from rcmed_jax.ingest.volumes import volumes

THUMBNAIL = 256  # pixels of the longest side
QUALITY = 82  # of JPEG: 15 kB a picture

# Candidates kept of each task; some of them may turn out faulty.
CANDIDATES = 6
# Pictures of one volume, or of another unit that says nothing before it is
# read: its slices are spread over what there is.
OF_ONE_UNIT = 12

# Colours of outlines, RGB: far apart; the first are seen best on what is grey,
# pink or red.
COLOURS = (
  (60, 200, 255),
  (255, 215, 50),
  (110, 230, 110),
  (235, 110, 255),
  (255, 85, 60),
  (140, 150, 255),
  (255, 155, 205),
  (40, 220, 190),
)

# A task, or for units that do not say theirs, where they come from.
Stratum = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Drawn:
  """What the page shows."""

  triplets: list[tuple[str, Triplet]]  # split and picture
  units: int  # that were to choose from
  faults: list[DataError]


def draw(
  sources: Sequence[tuple[str, pathlib.Path, Source]], count: int, seed: int
) -> Drawn:
  """Pictures, at most `count`, evenly over tasks; the same for the same seed.

  Raises:
    DataError: a source holds nothing of its format.
  """
  rng = random.Random(seed)
  faults: list[DataError] = []
  kept, units = _candidates(sources, rng, faults.append)
  read: set[tuple[str, str]] = set()
  shown: list[tuple[str, Triplet]] = []
  waiting = collections.deque(
    (stratum, collections.deque(found)) for stratum, found in kept.items()
  )
  # Fewer strata than pictures: volumes give several each.
  most = max(1, min(OF_ONE_UNIT, count // max(len(waiting), 1)))
  while waiting and len(shown) < count:
    stratum, found = waiting.popleft()
    while found:
      split, path, unit = found.popleft()
      if (path, unit.id) in read:
        continue
      read.add((path, unit.id))
      triplets = _spread(unit, most, faults.append)
      shown += [(split, triplet) for triplet in triplets]
      if triplets:
        waiting.append((stratum, found))
        break
  return Drawn(shown[:count], units, faults)


def write(
  path: pathlib.Path, drawn: Drawn, title: str = "Contact sheet"
) -> pathlib.Path:
  """Returns the path of the written page."""
  by_modality: dict[str, list[str]] = {}
  for split, triplet in drawn.triplets:
    card = _card(split, triplet)
    by_modality.setdefault(triplet.modality or "unknown", []).append(card)
  sections = {
    modality: f'<div class="cards">{"".join(cards)}</div>'
    for modality, cards in by_modality.items()
  }
  if drawn.faults:
    sections["Faults"] = page.lead(
      "Met while drawing; `rcmed data check` finds all of them."
    ) + page.table(
      ("<file", "<what", "<reason"),
      [(e.path, e.field, e.message) for e in drawn.faults[:100]],
    )
  made = web_page.page(
    title,
    f"{len(drawn.triplets):,} pictures of {drawn.units:,} units, drawn evenly "
    "over modalities and classes",
    sections,
    footer="Outlines are those of the masks; each class has a colour of its "
    "own within a picture.",
    style=page.style(),
  )
  return web_page.write(path, made)


def outlined(image_IJC: np.ndarray, masks_GIJ: np.ndarray) -> np.ndarray:
  """uint8[I, J, 3]: the picture, small, with the outlines of its masks.

  An outline lies within its mask. A mask that gets too small keeps a pixel.
  """
  rows, columns = image_IJC.shape[:2]
  scale = min(1.0, THUMBNAIL / max(rows, columns))
  size = max(round(columns * scale), 1), max(round(rows * scale), 1)
  small_IJC = cv2.resize(image_IJC, size, interpolation=cv2.INTER_AREA)
  for number, mask_IJ in enumerate(masks_GIJ):
    covered_IJ = cv2.resize(
      mask_IJ.astype(np.float32), size, interpolation=cv2.INTER_AREA
    )
    limit = min(0.5, float(covered_IJ.max()))
    inside_IJ = ((covered_IJ >= limit) & (covered_IJ > 0)).astype(np.uint8)
    # With a frame of nothing, so that masks at the edge are closed.
    framed_IJ = np.pad(inside_IJ, 1)
    eroded_IJ = cv2.erode(framed_IJ, np.ones((3, 3), np.uint8))[1:-1, 1:-1]
    small_IJC[(inside_IJ - eroded_IJ) > 0] = COLOURS[number % len(COLOURS)]
  return small_IJC


def _candidates(
  sources: Sequence[tuple[str, pathlib.Path, Source]],
  rng: random.Random,
  faults: Faults,
) -> tuple[dict[Stratum, list[tuple[str, str, Unit]]], int]:
  """A few units of each stratum, each as likely as another; and their number.

  One unit in k replaces a kept one when k have gone by (a reservoir).
  """
  kept: dict[Stratum, list[tuple[str, str, Unit]]] = {}
  passed: collections.Counter[Stratum] = collections.Counter()
  units = 0
  for split, path, source in sources:
    for unit in source.units(faults):
      units += 1
      for stratum in _strata(unit, str(path)):
        passed[stratum] += 1
        found = kept.setdefault(stratum, [])
        if len(found) < CANDIDATES:
          found.append((split, str(path), unit))
          continue
        place = rng.randrange(passed[stratum])
        if place < CANDIDATES:
          found[place] = split, str(path), unit
  for found in kept.values():
    rng.shuffle(found)
  order = sorted(kept)
  rng.shuffle(order)
  return {stratum: kept[stratum] for stratum in order}, units


def _strata(unit: Unit, path: str) -> Iterator[Stratum]:
  record: Any = getattr(unit, "record", None)
  if not isinstance(record, Record):
    # What volumes show is not known before they are read.
    yield ("", path)
    return
  for name in record.classes or ("",):
    yield record.modality, name


def _spread(unit: Unit, most: int, faults: Faults) -> list[Triplet]:
  """Triplets of a unit, at most so many, evenly over those it has."""

  def note(error: DataError) -> None:
    if not isinstance(error, volumes.EmptySlicesError):
      faults(error)

  found: list[Triplet] = []
  step = 1
  # Every step-th is kept; twice as many as asked for double the step.
  for number, triplet in enumerate(unit.triplets(note)):
    if number % step == 0:
      found.append(triplet)
    if len(found) > 2 * most:
      found, step = found[::2], 2 * step
  places = np.linspace(0, len(found) - 1, min(most, len(found)))
  return [found[round(place)] for place in places]


def _card(split: str, triplet: Triplet) -> str:
  small_IJC = outlined(triplet.image_IJC, triplet.masks_GIJ)
  ok, data = cv2.imencode(
    ".jpg", small_IJC[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY]
  )
  if not ok:
    raise RuntimeError(f"{triplet.id}: its thumbnail cannot be encoded")
  url = f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"
  colours = itertools.cycle(COLOURS)
  chips = "".join(
    f'<span><i style="background:rgb{colour}"></i>{html.escape(name)}</span>'
    for name, colour in zip(triplet.classes, colours, strict=False)
  )
  rows, columns = triplet.image_IJC.shape[:2]
  spacing = triplet.spacing_mm
  grid = f"{rows} x {columns}" + (
    f", {spacing[0]:.3g} x {spacing[1]:.3g} mm" if spacing else ""
  )
  text = triplet.description
  said = f"<small>{html.escape(text)}</small>" if text else ""
  return (
    '<figure class="card"><div class="picture">'
    f'<img src="{url}" alt="" loading="lazy"></div><figcaption>'
    f'<div class="chips">{chips or "no target"}</div>'
    f"<small>{html.escape(triplet.id)}</small>"
    f"<small>{grid}; {html.escape(split)}</small>{said}</figcaption></figure>"
  )
