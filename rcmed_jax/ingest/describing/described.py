"""A source whose images have the descriptions of a file, {image: text}.

So descriptions get into a built data set: describe a source, then build it with
what came out. Each process that reads units has the file in memory, about half
a kilobyte an image.
"""

from collections.abc import Iterator
import dataclasses
import functools
import json
import pathlib

from rcmed_jax.data import tokens
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Triplet
from rcmed_jax.ingest.sources import Faults, Source, Unit

# Files that a process keeps in memory.
MOST_OPEN = 4


@dataclasses.dataclass(frozen=True)
class DescribedSource:
  """The source, with the file's texts in place of its own.

  Images that the file does not name keep the description they had.
  """

  source: Source
  path: pathlib.Path  # JSON {id of the triplet: text or list of texts}

  def units(self, faults: Faults) -> Iterator["DescribedUnit"]:
    """Those of the source.

    Raises:
      DataError: the file is missing, or no JSON of this form.
    """
    _texts(self.path)
    for unit in self.source.units(faults):
      yield DescribedUnit(unit, self.path)


@dataclasses.dataclass(frozen=True, slots=True)
class DescribedUnit:
  """A unit and where its descriptions are."""

  unit: Unit
  path: pathlib.Path

  @property
  def id(self) -> str:
    """The unit's own."""
    return self.unit.id

  def triplets(self, faults: Faults) -> Iterator[Triplet]:
    """The unit's, described; a text that cannot be used is a fault."""
    texts = _texts(self.path)
    for triplet in self.unit.triplets(faults):
      told = texts.get(triplet.id)
      if told is not None:
        try:
          text = _text(self.path, triplet.id, told)
          triplet = dataclasses.replace(triplet, description=text)
        except DataError as error:
          faults(error)
      yield triplet


@functools.lru_cache(MOST_OPEN)
def _texts(path: pathlib.Path) -> dict[str, object]:
  form = "Expected {image: text}, as rcmed data describe writes it"
  if not path.is_file():
    raise DataError(path, "descriptions", "there is no such file", form)
  try:
    texts = json.loads(path.read_text(encoding="utf-8"))
  except (ValueError, RecursionError) as error:
    raise DataError(
      path, "descriptions", f"this is not JSON ({error})", form
    ) from error
  if not isinstance(texts, dict):
    raise DataError(
      path, "descriptions", f"received a {type(texts).__name__}", form
    )
  return texts


def _text(path: pathlib.Path, id: str, told: object) -> str:
  parts = told if isinstance(told, list) else [told]
  text = " ".join(part.strip() for part in parts if isinstance(part, str))
  wrong = not all(isinstance(part, str) for part in parts) or not text
  if wrong or any(marker in text for marker in tokens.MARKERS):
    raise DataError(
      path,
      id,
      f"description: expected text without any of {' '.join(tokens.MARKERS)}, "
      f"received {told!r}",
      "Correct the text; the image goes without it",
    )
  return text
