"""Index files: what is on disk, as records.

The format is that of the release's public `Datasets2D`:
`{image path: [{mask path: class}, ...]}`, paths relative to the index's
folder, image files named `<modality>--<dataset>--<rest>.png`.
"""

from collections.abc import Mapping, Sequence
import json
import os
import pathlib
import re
from typing import Any

from rcmed_jax.data import tokens
from rcmed_jax.data.checks import DataError, Quarantine
from rcmed_jax.data.records import Record

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
      used, where `quarantine` is None.
  """
  path = pathlib.Path(os.path.abspath(path))
  words = MODALITIES | {
    word.lower(): name for word, name in (modality_words or {}).items()
  }
  index = _read_json(path, "index", _FORM)
  texts = (
    _read_json(pathlib.Path(descriptions), "descriptions", _TEXT_FORM)
    if descriptions
    else {}
  )
  records = []
  for image, masks in index.items():
    try:
      records.append(_record(path, image, masks, texts, words))
    except DataError as error:
      if quarantine is None:
        raise
      quarantine.add(error)
  if not records:
    raise DataError(
      path,
      "index",
      f"none of its {len(index)} entries can be used",
      f"Expected {_FORM} with at least one image",
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


def class_table(
  records: Sequence[Record],
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
  first, dashes, _ = pathlib.PurePath(path).name.lower().partition("--")
  parts = [first] if first in words else re.split(r"[\W_]+", first)
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


def _record(
  index: pathlib.Path,
  image: str,
  masks: Any,
  texts: Mapping[str, Any],
  words: Mapping[str, str],
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
  root = index.parent
  path = str(root / image)
  told = texts.get(image) or texts.get(path) or []
  parts = told if isinstance(told, list) else [told]
  return Record(
    image=path,
    id=image,
    masks=tuple(
      (str(root / mask), _class_name(_text(index, image, "class", name)))
      for entry in masks
      for mask, name in entry.items()
    ),
    modality=modality_name(path, words),
    dataset=_dataset(image),
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


def _class_name(name: str) -> str:
  words = re.sub(r"[\s_]+", " ", name).strip()
  return _SAME_CLASS.get(words, words)


def _dataset(image: str) -> str:
  parts = pathlib.PurePath(image).name.split("--")
  return parts[1] if len(parts) > 2 else ""


def _read_json(path: pathlib.Path, field: str, form: str) -> dict[str, Any]:
  if not path.is_file():
    raise DataError(
      path,
      field,
      "there is no such file",
      f"Give a JSON file of the form {form}; `rcmed data phantom` makes one",
    )
  try:
    value = json.loads(path.read_text(encoding="utf-8"))
  except ValueError as error:
    raise DataError(
      path, field, f"this is not JSON ({error})", f"Expected {form}"
    ) from error
  if not isinstance(value, dict):
    raise DataError(
      path, field, f"received a {type(value).__name__}", f"Expected {form}"
    )
  return value
