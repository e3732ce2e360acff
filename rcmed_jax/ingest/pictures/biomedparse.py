"""BiomedParse's layout: images and masks of a split, and sentences of them.

  DATASET/train/NAME_MODALITY_SITE.png
  DATASET/train_mask/NAME_MODALITY_SITE_TARGET.png   "+" for spaces in TARGET
  DATASET/train.json                                 COCO-like, with sentences

CT and MR images are stored lying on their side and are turned here, a quarter
clockwise with their masks, as the release does. A target's first sentence
becomes part of the image's description.
Source: the README of microsoft/BiomedParse, "File Name Convention".
"""

from collections.abc import Iterator, Mapping
import dataclasses
import pathlib
import re

import numpy as np

from rcmed_jax.data import json_stream, readers, tokens
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Record, Triplet
from rcmed_jax.ingest.pictures import folder
from rcmed_jax.ingest.pictures.picture import PictureUnit
from rcmed_jax.ingest.sources import Faults, Options
from rcmed_jax.ingest.volumes import volumes

MASKS = "_mask"

# Words of its file names beyond those of the index.
MODALITIES = readers.MODALITIES | {
  "endoscope": "endoscopy",
  "dermoscope": "dermoscopy",
}

# MR images are named by their sequence alone, "T1-Gd", "FLAIR". Source: the
# script of the dataset's makers, which asks for these parts of the word.
SEQUENCES = ("t1", "t2", "flair", "adc")

TURNED = (MODALITIES["ct"], MODALITIES["mr"])

_FORM = '{"annotations": [{"file_name": ..., "sentences": [{"raw": ...}]}]}'


def matches(path: pathlib.Path) -> bool:
  """Whether it is a dataset with splits, or one split's folder of images."""
  return bool(_splits(path)) or _mask_folder(path).is_dir()


def open_source(path: pathlib.Path, options: Options) -> "BiomedParseSource":
  """Raises DataError where the path holds not exactly one split."""
  if path.is_dir() and _mask_folder(path).is_dir():
    return BiomedParseSource(path, options)
  splits = _splits(path)
  if len(splits) != 1:
    raise DataError(
      path,
      "source",
      f"it holds the splits {', '.join(splits)}"
      if splits
      else f"no folder in it has another beside it named like it and {MASKS}",
      f"Give one split's folder, for example train={path}/train",
    )
  return BiomedParseSource(path / splits[0], options)


@dataclasses.dataclass(frozen=True)
class BiomedParseSource:
  """The images of one split's folder."""

  path: pathlib.Path
  options: Options

  def units(self, faults: Faults) -> Iterator["BiomedParseUnit"]:
    """One unit an image, sorted by name."""
    found = folder.listed(self.path, faults)
    masks = self._masks(found, faults)
    texts = self._texts(faults)
    dataset = self.options.dataset or folder.name_of(self.path.parent)
    for name, image in found.items():
      try:
        modality = _modality(image, self.options)
        record = Record(
          image=str(image),
          id=f"{dataset}/{self.path.name}/{image.name}",
          masks=tuple(masks.get(name, ())),
          modality=modality,
          dataset=dataset,
          description=texts.get(image.name),
        )
      except DataError as error:
        faults(error)
        continue
      yield BiomedParseUnit(record, self.options.license, modality in TURNED)
    if not found:
      raise DataError(
        self.path, "source", "it holds no image", "Give a split's folder"
      )

  def _masks(
    self, found: Mapping[str, pathlib.Path], faults: Faults
  ) -> dict[str, list[tuple[str, str]]]:
    """Image name -> (mask, class), ..."""
    masks: dict[str, list[tuple[str, str]]] = {}
    for name, mask in folder.listed(_mask_folder(self.path), faults).items():
      image, _, target = name.rpartition("_")
      try:
        words = volumes.class_name(mask, target.replace("+", " "))
        if image not in found:
          raise DataError(
            mask,
            "mask",
            f"no usable image is named {image}",
            "Put its image there, or remove the mask",
          )
      except DataError as error:
        faults(error)
        continue
      masks.setdefault(image, []).append((str(mask), words))
    return masks

  def _texts(self, faults: Faults) -> dict[str, str]:
    """File name of an image -> the first sentence of each of its targets."""
    path = self.path.with_name(f"{self.path.name}.json")
    if not path.is_file():
      return {}
    sentences: dict[str, list[str]] = {}
    try:
      for number, entry in enumerate(
        json_stream.elements(path, "descriptions", _FORM, "annotations")
      ):
        try:
          image, sentence = entry["file_name"], entry["sentences"][0]["raw"]
          sentences.setdefault(image, []).append(_sentence(sentence))
        except (KeyError, IndexError, TypeError, ValueError) as error:
          faults(
            DataError(
              path,
              f"annotation {number}",
              f"it names no image and plain sentence ({error!r})",
              f"Expected {_FORM}",
            )
          )
    except DataError as error:
      faults(error)
    return {
      image: " ".join(dict.fromkeys(texts))
      for image, texts in sentences.items()
    }


@dataclasses.dataclass(frozen=True, slots=True)
class BiomedParseUnit(PictureUnit):
  """An image and its masks, which may lie on their side."""

  turned: bool = False

  def _made(self, triplet: Triplet, faults: Faults) -> Triplet:
    if not self.turned:
      return triplet
    return dataclasses.replace(
      triplet,
      image_IJC=np.rot90(triplet.image_IJC, -1).copy(),
      masks_GIJ=np.rot90(triplet.masks_GIJ, -1, (1, 2)).copy(),
    )


def _mask_folder(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(path.name + MASKS) if path.name else path / MASKS


def _splits(path: pathlib.Path) -> list[str]:
  if not path.is_dir():
    return []
  return sorted(
    entry.name for entry in path.iterdir() if _mask_folder(entry).is_dir()
  )


def _modality(image: pathlib.Path, options: Options) -> str:
  if options.modality:
    return options.modality
  parts = image.stem.split("_")
  word = parts[-2].lower() if len(parts) > 2 else ""
  words = MODALITIES | {
    one.lower(): name for one, name in options.modality_words
  }
  pieces = [word] if word in words else re.split(r"\W+", word)
  found = {words[piece] for piece in pieces if piece in words}
  if not found and any(sequence in word for sequence in SEQUENCES):
    found = {MODALITIES["mr"]}
  if len(found) != 1:
    raise DataError(
      image,
      "modality",
      f"expected a name NAME_MODALITY_SITE.png, received the modality {word!r}",
      'Say it, for example --modality "computed tomography", or '
      f'--modality-word "{word}=..."',
    )
  return found.pop()


def _sentence(text: str) -> str:
  words = " ".join(text.split())
  if not words or any(marker in words for marker in tokens.MARKERS):
    raise ValueError(text)
  return words[0].upper() + words[1:].rstrip(".") + "."
