"""The `dataset.json` beside volumes: names of labels and of channels."""

import dataclasses
import json
import pathlib
from typing import Any

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.volumes import volumes

NAME = "dataset.json"


@dataclasses.dataclass(frozen=True)
class Told:
  """What a `dataset.json` says."""

  classes: volumes.Classes = ()
  channels: tuple[tuple[int, str], ...] = ()
  license: str | None = None


def find(folder: pathlib.Path, faults: sources.Faults) -> Told:
  """What the folder's own says, or the one above it; nothing if it is broken.

  Args:
    folder: of volumes, or of their folders.
    faults: takes the one of a file that cannot be read.
  """
  for place in (folder, folder.parent):
    path = place / NAME
    if not path.is_file():
      continue
    try:
      return read(path)
    except DataError as error:
      faults(error)
  return Told()


def read(path: pathlib.Path) -> Told:
  """A `dataset.json`: of nnU-Net, or of the Medical Segmentation Decathlon.

  nnU-Net has {"labels": {"liver": 1}}, its regions {"tumour": [1, 2]}, the
  decathlon {"labels": {"1": "liver"}}; channels are "channel_names" or
  "modality", {"0": "CT"}. Background is no class.

  Raises:
    DataError: it is no JSON of this form.
  """
  try:
    content = json.loads(path.read_text(encoding="utf-8"))
    classes: dict[str, tuple[int, ...]] = {}
    for key, value in content.get("labels", {}).items():
      values, name = _label(key, value)
      words = volumes.class_name(path, name)
      wanted = tuple(number for number in values if number != 0)
      if wanted and words.lower() != "background":
        classes[words] = (*classes.get(words, ()), *wanted)
    channels = content.get("channel_names", content.get("modality", {}))
    license = content.get("licence", content.get("license"))
    return Told(
      tuple(classes.items()),
      tuple((int(key), str(name)) for key, name in channels.items()),
      str(license) if license else None,
    )
  except (OSError, ValueError, TypeError, AttributeError) as error:
    if isinstance(error, DataError):
      raise
    raise DataError(
      path,
      "dataset.json",
      f"it cannot be read ({error})",
      'Expected {"labels": {"liver": 1}, "channel_names": {"0": "CT"}}',
    ) from error


def _label(key: str, value: Any) -> tuple[tuple[int, ...], str]:
  if isinstance(value, str):
    return (int(key),), value
  values = value if isinstance(value, list) else [value]
  return tuple(int(number) for number in values), key
