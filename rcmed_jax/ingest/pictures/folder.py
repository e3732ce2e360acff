"""A plain folder of images and masks.

  ROOT/images/NAME.EXT
  ROOT/masks/CLASS/NAME.EXT    one mask a class, all above 0
  ROOT/masks/NAME.EXT          or one label map: the number says the class
  ROOT/labels.json             names of its numbers, {"1": "liver"}

NAME may hold folders. Images are named `<modality>--<rest>`, or the modality is
told. Every file is part of a unit, or a fault; an image without any mask shows
none of the classes.
"""

from collections.abc import Iterator
import dataclasses
import json
import os
import pathlib

import numpy as np

from rcmed_jax.data import images, readers
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Record, Triplet
from rcmed_jax.ingest.pictures import index_file
from rcmed_jax.ingest.pictures.picture import PictureUnit
from rcmed_jax.ingest.sources import Faults, Options
from rcmed_jax.ingest.volumes import volumes

IMAGES, MASKS, LABELS_FILE = "images", "masks", "labels.json"

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif")


def matches(path: pathlib.Path) -> bool:
  """Whether it has images/ and masks/, and no index that says more."""
  return (
    (path / IMAGES).is_dir()
    and (path / MASKS).is_dir()
    and not any(path.glob(index_file.PATTERN))
  )


def open_source(path: pathlib.Path, options: Options) -> "FolderSource":
  """Raises DataError where a folder is missing, or labels.json is wrong."""
  for name in (IMAGES, MASKS):
    if not (path / name).is_dir():
      raise DataError(
        path,
        "source",
        f"it has no folder {name}",
        f"Expected {IMAGES}/NAME.png with {MASKS}/CLASS/NAME.png",
      )
  return FolderSource(path, options, label_names(path, options))


@dataclasses.dataclass(frozen=True)
class FolderSource:
  """Images and their masks, by name."""

  path: pathlib.Path
  options: Options
  labels: tuple[tuple[int, str], ...] = ()

  def units(self, faults: Faults) -> Iterator["FolderUnit"]:
    """One unit an image, sorted by name."""
    found = listed(self.path / IMAGES, faults)
    masks = masks_of(self.path / MASKS, found, faults)
    dataset = self.options.dataset or name_of(self.path)
    for name, image in found.items():
      try:
        modality = modality_of(image, self.options)
      except DataError as error:
        faults(error)
        continue
      classes, label_map = masks.get(name, ([], ""))
      yield FolderUnit(
        Record(
          image=str(image),
          id=image.relative_to(self.path).as_posix(),
          masks=tuple(classes),
          modality=modality,
          dataset=dataset,
        ),
        self.options.license,
        label_map,
        self.labels,
      )
    if not found:
      raise DataError(
        self.path / IMAGES,
        "source",
        "it holds no image",
        f"Put images there, of {', '.join(SUFFIXES)}",
      )


@dataclasses.dataclass(frozen=True, slots=True)
class FolderUnit(PictureUnit):
  """An image with masks, or with a label map."""

  label_map: str = ""  # path; "": none
  labels: tuple[tuple[int, str], ...] = ()

  def _made(self, triplet: Triplet, faults: Faults) -> Triplet:
    return self._with_labels(triplet, faults) if self.label_map else triplet

  def _with_labels(self, triplet: Triplet, faults: Faults) -> Triplet:
    """Adds the classes of the label map."""
    shape = triplet.image_IJC.shape[:2]
    labels_IJ = images.read_labels(self.label_map, shape)
    present = [int(value) for value in np.unique(labels_IJ) if value]
    classes = volumes.classes_of(self.label_map, self.labels)
    named = {value for _, values in classes for value in values or ()}
    unnamed = [value for value in present if value not in named]
    if unnamed:
      error = DataError(
        self.label_map,
        "labels",
        f"nothing names the values {', '.join(map(str, unnamed[:10]))}"
        + (f" and {len(unnamed) - 10} more" * (len(unnamed) > 10)),
        f'Say --label "{unnamed[0]}=NAME" for each, or write {LABELS_FILE}',
      )
      if len(unnamed) == len(present):
        raise error
      faults(error)
    masks = dict(zip(triplet.classes, triplet.masks_GIJ, strict=True))
    for name, values in classes:
      mask_IJ = np.isin(labels_IJ, values or ())
      if mask_IJ.any():
        masks[name] = masks[name] | mask_IJ if name in masks else mask_IJ
    return dataclasses.replace(
      triplet,
      classes=tuple(masks),
      masks_GIJ=np.array(list(masks.values()), bool).reshape(-1, *shape),
    )


def label_names(
  path: pathlib.Path, options: Options
) -> tuple[tuple[int, str], ...]:
  """(value, class) of label maps, as options say, or labels.json.

  Raises:
    DataError: the file is no JSON of this form.
  """
  file = path / LABELS_FILE
  if options.label_names or not file.is_file():
    return options.label_names
  try:
    content = json.loads(file.read_text(encoding="utf-8"))
    names = tuple((int(key), str(name)) for key, name in content.items())
  except (ValueError, TypeError, AttributeError) as error:
    raise DataError(
      file, "labels", f"it cannot be read ({error})", 'Expected {"1": "liver"}'
    ) from error
  volumes.classes_of(file, names)
  return names


def listed(
  folder: pathlib.Path,
  faults: Faults,
  deep: bool = True,
  suffixes: tuple[str, ...] = SUFFIXES,
) -> dict[str, pathlib.Path]:
  """Name without ending -> the picture, sorted; others are faults.

  Hidden files are left out: they are the desktop's and no data. `deep` asks
  for folders in the folder, too.
  """
  found: dict[str, pathlib.Path] = {}
  twice: dict[str, list[pathlib.Path]] = {}
  for path in _files(folder, deep):
    name = path.relative_to(folder).with_suffix("").as_posix()
    if path.suffix.lower() not in suffixes:
      faults(
        DataError(
          path,
          "image",
          f"its ending is none of {', '.join(suffixes)}",
          "Save it as one of these, or move it elsewhere",
        )
      )
    elif name in found:
      twice.setdefault(name, []).append(path)
    else:
      found[name] = path
  for name, others in twice.items():
    for path in (found.pop(name), *others):
      faults(
        DataError(
          path,
          "image",
          "another file has the same name with another ending",
          "Rename or remove one of them: a mask could belong to either",
        )
      )
  return found


# By image name: its (mask, class), ..., and its label map or "".
Masks = dict[str, tuple[list[tuple[str, str]], str]]


def masks_of(
  folder: pathlib.Path,
  found: dict[str, pathlib.Path],
  faults: Faults,
  suffixes: tuple[str, ...] = SUFFIXES,
) -> Masks:
  """The masks of each image; those of no image are faults."""
  masks: Masks = {}
  for path in sorted(folder.iterdir()):
    if not path.is_dir():
      continue
    try:
      name = volumes.class_name(path, path.name)
    except DataError as error:
      faults(error)
      continue
    for image, mask in listed(path, faults, True, suffixes).items():
      if _known(image, mask, found, faults):
        masks.setdefault(image, ([], ""))[0].append((str(mask), name))
  for image, mask in listed(folder, faults, False, suffixes).items():
    if _known(image, mask, found, faults):
      masks[image] = (masks.get(image, ([], ""))[0], str(mask))
  return masks


def modality_of(path: pathlib.Path, options: Options) -> str:
  """What was measured, as options or else the file's name say.

  Raises:
    DataError: they do not.
  """
  if options.modality:
    return options.modality
  words = readers.MODALITIES | dict(options.modality_words)
  try:
    return readers.modality_name(path.as_posix(), words)
  except DataError as error:
    raise DataError(
      path,
      "modality",
      "neither its name nor an option says which it is",
      'Say it, for example --modality "computed tomography", or name files '
      "<modality>--<rest>",
    ) from error


def name_of(path: pathlib.Path) -> str:
  """The folder's name, wherever one stands."""
  return pathlib.Path(os.path.abspath(path)).name


def _known(
  name: str,
  mask: pathlib.Path,
  found: dict[str, pathlib.Path],
  faults: Faults,
) -> bool:
  if name not in found:
    faults(
      DataError(
        mask,
        "mask",
        f"no usable image is named {name}",
        f"Put its image into {IMAGES}, or remove the mask",
      )
    )
  return name in found


def _files(folder: pathlib.Path, deep: bool) -> Iterator[pathlib.Path]:
  for here, folders, names in os.walk(folder):
    visible = sorted(name for name in folders if not name.startswith("."))
    folders[:] = visible if deep else []
    for name in sorted(names):
      if not name.startswith("."):
        yield pathlib.Path(here, name)
