"""Index files: what is on disk, as records.

The format is that of the release's public `Datasets2D`:
`{image path: [{mask path: class}, ...]}`, paths relative to the index's
folder, image files named `<modality>--<dataset>--<rest>.png`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import functools
import os
import pathlib
import re
import sys
from typing import Any

from rcmed_jax.data import json_stream, tokens
from rcmed_jax.data.checks import DataError, Quarantine
from rcmed_jax.data.records import Record, Sample

# The word of a file name -> what it is called in questions and answers. The
# release asks whether the word *contains* "ct" or "mr", which turns "oct" into
# tomography; whole words are compared here, those of "mr_flair" one by one.
MODALITIES = {
  "mr": "magnetic resonance",
  "mri": "magnetic resonance",
  "ct": "computed tomography",
  "x": "X-Ray",
  "xray": "X-Ray",
  "ultrasound": "ultrasound",
  "us": "ultrasound",
  "pet": "pet",
  "pathology": "pathology",
  "dermoscopy": "dermoscopy",
  "endoscopy": "endoscopy",
  "fundus": "fundus",
  "oct": "oct",
  "microscopy": "microscopy",
}

# Two spellings of one class in the public data.
_SAME_CLASS = {"gall bladder": "gallbladder"}

_FORM = "{image path: [{mask path: class}]}"
_TEXT_FORM = "{image path: text or list of texts}"


def read_index(
  path: str | pathlib.Path,
  descriptions: str | pathlib.Path | None = None,
  *,
  modality_words: Mapping[str, str] | None = None,
  quarantine: Quarantine | None = None,
) -> list[Record]:
  """The records of an index, in its order.

  Args:
    path: the index file.
    descriptions: JSON {image path: text or list of texts}, image paths as in
      the index or absolute; None or "" for none.
    modality_words: more words of file names, or other names for known ones.
    quarantine: takes entries that cannot be used; None: they are raised.

  Raises:
    DataError: a file is missing, or is no JSON of this form; no entry can be
      used; no description is of an image in the index; an entry cannot be
      used, where `quarantine` is None. Of a file that breaks off, the entries
      before that are used where `quarantine` takes the fault.
  """
  texts = _read_texts(pathlib.Path(descriptions)) if descriptions else {}
  faults = _raise if quarantine is None else quarantine.add
  records = list(
    iter_index(path, faults, texts=texts, modality_words=modality_words)
  )
  if texts and not any(record.description for record in records):
    raise DataError(
      descriptions,
      "descriptions",
      f"none of its {len(texts)} texts is of an image in {path}",
      f"Write image paths as the index does, like {records[0].id}, or "
      f"absolute, like {records[0].image}",
    )
  return records


def iter_index(
  path: str | pathlib.Path,
  faults: Callable[[DataError], None],
  *,
  texts: Mapping[str, Any] | None = None,
  modality_words: Mapping[str, str] | None = None,
  modality: str = "",
) -> Iterator[Record]:
  """The records of an index one by one; neither file nor records are kept.

  What stays in memory is 8 bytes and their place in a set for each image path,
  to know those that come twice: a quarter of a gigabyte for three million.

  Args:
    path: the index file.
    faults: takes the error of what cannot be used: an entry, an image that was
      there before, the rest of a file that breaks off.
    texts: image path, as in the index or absolute, -> text or list of texts.
    modality_words: more words of file names, or other names for known ones.
    modality: of all images, in words; "": as their file names say.

  Raises:
    DataError: the file is missing or holds no object, or no entry can be used.
  """
  path = pathlib.Path(os.path.abspath(path))
  words = MODALITIES | {
    word.lower(): name for word, name in (modality_words or {}).items()
  }
  seen: set[int] = set()
  count = used = 0
  twice: list[str] = []
  try:
    for image, masks in json_stream.entries(path, "index", _FORM, twice.append):
      count += 1
      try:
        _check_once(path, image, seen, twice)
        record = _record(path, image, masks, texts or {}, words, modality)
      except DataError as error:
        faults(error)
        continue
      used += 1
      yield record
  except DataError as error:
    if not count:
      raise
    faults(error)
  if not used:
    raise DataError(
      path,
      "index",
      f"none of its {count} entries can be used",
      f"Expected {_FORM} with at least one image",
    )


def class_table(
  records: Sequence[Sample],
) -> dict[tuple[str, str], tuple[str, ...]]:
  """(dataset, modality) -> its classes, sorted.

  Only these may be asked as absent of an image: whether classes of another
  dataset are in it, nobody has looked.
  """
  table: dict[tuple[str, str], set[str]] = {}
  for record in records:
    table.setdefault((record.dataset, record.modality), set()).update(
      record.classes
    )
  return {key: tuple(sorted(names)) for key, names in table.items()}


def modality_name(path: str, words: Mapping[str, str]) -> str:
  """The modality of an image file in words.

  Raises:
    DataError: the first part of the file name is no known word, nor does it
      hold exactly one.
  """
  first, dashes, _ = path.rpartition("/")[2].lower().partition("--")
  if dashes and first in words:
    return words[first]
  parts = re.split(r"[\W_]+", first)
  found = {words[part] for part in parts if part in words}
  if not dashes or len(found) != 1:
    raise DataError(
      path,
      "modality",
      "expected a file name <modality>--<dataset>--<rest> whose first part is "
      f"one of {sorted(words)}, received {first!r}",
      "Rename the file, or name the word in data.modality_words, for example "
      f'(("{first}", "what it is called"),)',
    )
  return found.pop()


def _raise(error: DataError) -> None:
  raise error


def _check_once(
  index: pathlib.Path, image: str, seen: set[int], twice: list[str]
) -> None:
  """Notes the image, unless it or one of its masks is there twice."""
  repeated = [f"mask {mask!r}" for mask in twice]
  twice.clear()
  # The hash stands for the path: that two of three million share one of 64
  # bits happens in one index of four million.
  if hash(image) in seen:
    repeated.append("the image")
  seen.add(hash(image))
  if repeated:
    raise DataError(
      index,
      image,
      f"{', '.join(repeated)} is named twice",
      "Merge the entries: what is named twice may mean either",
    )


def _record(
  index: pathlib.Path,
  image: str,
  masks: Any,
  texts: Mapping[str, Any],
  words: Mapping[str, str],
  modality: str,
) -> Record:
  if not isinstance(masks, list) or not all(
    isinstance(entry, dict) for entry in masks
  ):
    raise DataError(
      index,
      image,
      f"expected a list of {{mask path: class}}, received {masks!r}",
      "Correct the entry",
    )
  root = str(index.parent)
  path = _joined(root, image)
  told = texts.get(image) or texts.get(path) or []
  parts = told if isinstance(told, list) else [told]
  return Record(
    image=path,
    id=image,
    masks=tuple(
      (_joined(root, mask), class_name(_text(index, image, "class", name)))
      for entry in masks
      for mask, name in entry.items()
    ),
    modality=modality or modality_name(path, words),
    dataset=sys.intern(_dataset(image)),
    description=" ".join(
      _text(index, image, "description", part).strip() for part in parts
    )
    or None,
  )


def _text(index: pathlib.Path, image: str, what: str, value: Any) -> str:
  """The value, if it is text that is read as nothing else."""
  if (
    not isinstance(value, str)
    or not value.strip(" _")
    or any(marker in value for marker in tokens.MARKERS)
  ):
    raise DataError(
      index,
      image,
      f"{what}: expected text without any of {' '.join(tokens.MARKERS)}, "
      f"received {value!r}",
      "Correct the text",
    )
  return value


@functools.lru_cache(4096)
def class_name(name: str) -> str:
  """A class as it is asked for: with spaces, and spelt in one way."""
  words = re.sub(r"[\s_]+", " ", name).strip()
  return _SAME_CLASS.get(words, words)


def _joined(root: str, name: str) -> str:
  """As pathlib joins and writes them, which takes ten times as long."""
  plain = name and not (name[0] == "/" or "//" in name or "./" in name)
  return f"{root}/{name}" if plain else str(pathlib.Path(root, name))


def _dataset(image: str) -> str:
  parts = image.rpartition("/")[2].split("--")
  return parts[1] if len(parts) > 2 else ""


def _read_texts(path: pathlib.Path) -> dict[str, Any]:
  return dict(json_stream.entries(path, "descriptions", _TEXT_FORM))
