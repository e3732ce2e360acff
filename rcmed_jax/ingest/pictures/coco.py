"""COCO's JSON: images, annotations with polygons or runs, categories.

All annotations of one category in one image, those of crowds too, become one
mask. Annotations lie in the file in any order and may be gigabytes: they are
read as a stream, set aside in a temporary file and taken up image by image. A
file that breaks off is refused whole: any image might lack a region.
Source: cocodataset.org, "Data format".
"""

import array
from collections.abc import Iterator, Mapping
import dataclasses
import json
import pathlib
import tempfile
from typing import IO, Any

import numpy as np

from rcmed_jax.data import images, json_stream
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Record, Triplet
from rcmed_jax.ingest.pictures import coco_masks, folder
from rcmed_jax.ingest.sources import Faults, Options
from rcmed_jax.ingest.volumes import volumes

KEYS = ("info", "licenses", "images", "annotations", "categories", "type")

FORM = '{"images": [...], "annotations": [...], "categories": [...]}'


def matches(path: pathlib.Path) -> bool:
  """Whether it is a JSON file that starts as they do."""
  if path.suffix.lower() != ".json" or not path.is_file():
    return False
  key, sign = json_stream.first_key(path)
  return key in KEYS and sign in '{["'


def open_source(path: pathlib.Path, options: Options) -> "CocoSource":
  """The source; nothing is read yet."""
  return CocoSource(path, options)


@dataclasses.dataclass(frozen=True)
class CocoSource:
  """The images of a file, in its order."""

  path: pathlib.Path
  options: Options

  def units(self, faults: Faults) -> Iterator["CocoUnit"]:
    """One unit an image."""
    categories = self._categories(faults)
    licenses = self._names("licenses")
    known = self._images(faults)
    with tempfile.TemporaryFile() as file:
      aside = _Aside(file, self.path, known, faults)
      root = _root(self.path, known)
      for number, image in enumerate(known.values()):
        try:
          unit = self._unit(root, image, licenses)
        except DataError as error:
          faults(error)
          continue
        yield dataclasses.replace(
          unit,
          annotations=tuple(
            aside.of(number, categories, self.path, unit.id, faults)
          ),
        )
    if not known:
      raise DataError(
        self.path, "source", "it names no image", f"Expected {FORM}"
      )

  def _unit(
    self, root: pathlib.Path, image: Mapping[str, Any], licenses: dict[Any, str]
  ) -> "CocoUnit":
    path = root / image["file_name"]
    options = self.options
    return CocoUnit(
      id=image["file_name"],
      image=str(path),
      shape=(image["height"], image["width"]),
      modality=folder.modality_of(path, options),
      dataset=options.dataset or self.path.stem,
      license=options.license or licenses.get(image.get("license")),
    )

  def _categories(self, faults: Faults) -> dict[Any, str]:
    """Number -> class."""
    names = {}
    for key, name in self._names("categories").items():
      try:
        names[key] = volumes.class_name(self.path, name)
      except DataError as error:
        faults(error)
    return names

  def _names(self, key: str) -> dict[Any, str]:
    return {
      entry["id"]: entry["name"]
      for entry in self._elements(key)
      if _has(entry, id=(int, str), name=(str,))
    }

  def _images(self, faults: Faults) -> dict[Any, dict[str, Any]]:
    """Number -> what is said of the image."""
    known: dict[Any, dict[str, Any]] = {}
    for place, entry in enumerate(self._elements("images")):
      sound = _has(
        entry, id=(int, str), file_name=(str,), height=(int,), width=(int,)
      )
      if sound and entry["id"] not in known and "\0" not in entry["file_name"]:
        keys = ("file_name", "height", "width", "license")
        known[entry["id"]] = {key: entry.get(key) for key in keys}
        continue
      faults(
        DataError(
          self.path,
          f"image {place}",
          f"another has its number {entry['id']!r}"
          if sound
          else f"expected id, file_name, height and width, received {entry!r}",
          "Correct the entry",
        )
      )
    return known

  def _elements(self, key: str) -> Iterator[Any]:
    return json_stream.elements(self.path, "index", FORM, key)


@dataclasses.dataclass(frozen=True, slots=True)
class CocoUnit:
  """An image and its annotations."""

  id: str
  image: str
  shape: tuple[int, int]  # rows and columns, as the file says
  modality: str
  dataset: str
  license: str | None
  annotations: tuple[tuple[str, str], ...] = ()  # (class, JSON of the region)

  @property
  def record(self) -> Record:
    """What is known before anything is decoded; its masks have no files."""
    masks = tuple(("", name) for name, _ in self.annotations)
    return Record(self.image, self.id, masks, self.modality, self.dataset)

  def triplets(self, faults: Faults) -> Iterator[Triplet]:
    """One, or none where the image cannot be read."""
    try:
      image_IJC = images.read(self.image)
      if image_IJC.shape[:2] != self.shape:
        raise DataError(
          self.image,
          "image",
          f"it has {image_IJC.shape[0]} x {image_IJC.shape[1]} pixels, its "
          f"entry says {self.shape[0]} x {self.shape[1]}",
          "Correct the entry, or give the image that was annotated",
        )
    except DataError as error:
      faults(error)
      return
    masks = self._masks(faults)
    shape = (len(masks), *self.shape)
    yield Triplet(
      id=self.id,
      image_IJC=image_IJC,
      masks_GIJ=np.array(list(masks.values()), bool).reshape(shape),
      classes=tuple(masks),
      modality=self.modality,
      description=None,
      spacing_mm=None,
      source=self.dataset,
      license=self.license,
    )

  def _masks(self, faults: Faults) -> dict[str, np.ndarray]:
    """Class -> mask; without the classes of which a region is at fault."""
    masks: dict[str, np.ndarray] = {}
    faulty = set()
    for name, region in self.annotations:
      try:
        mask_IJ = coco_masks.decode(json.loads(region), self.shape)
      except ValueError as error:
        faulty.add(name)
        faults(
          DataError(
            self.image,
            f"region of {name}",
            f"it cannot be drawn: {error}",
            "Correct its segmentation",
          )
        )
        continue
      masks[name] = masks[name] | mask_IJ if name in masks else mask_IJ
    return {name: masks[name] for name in masks if name not in faulty}


class _Aside:
  """Annotations in a temporary file, found by the number of their image."""

  def __init__(
    self,
    file: IO[bytes],
    path: pathlib.Path,
    known: Mapping[Any, Any],
    faults: Faults,
  ):
    self._file = file
    numbers = {key: number for number, key in enumerate(known)}
    images_, places = array.array("q"), array.array("q")
    for place, entry in enumerate(
      json_stream.elements(path, "index", FORM, "annotations")
    ):
      image = entry.get("image_id") if isinstance(entry, dict) else None
      if not isinstance(image, int | str) or image not in numbers:
        faults(
          DataError(
            path,
            f"annotation {place}",
            f"no image of the file has its number {image!r}",
            "Correct its image_id, or remove it",
          )
        )
        continue
      images_.append(numbers[image])
      places.append(self._file.tell())
      line = [entry.get("category_id"), entry.get("segmentation"), place]
      self._file.write(json.dumps(line).encode() + b"\n")
    self._images = np.array(images_, np.int64)
    self._places = np.array(places, np.int64)
    # Stable, so that an image's annotations stay in the file's order.
    self._order = np.argsort(self._images, kind="stable")
    self._sorted = self._images[self._order]

  def of(
    self,
    image: int,
    categories: Mapping[Any, str],
    path: pathlib.Path,
    name: str,
    faults: Faults,
  ) -> Iterator[tuple[str, str]]:
    """(class, JSON of the region) of an image, by its place in the file."""
    low, high = np.searchsorted(self._sorted, [image, image + 1])
    for index in self._order[low:high]:
      self._file.seek(int(self._places[index]))
      category, region, place = json.loads(self._file.readline())
      if isinstance(category, int | str) and category in categories:
        yield categories[category], json.dumps(region)
        continue
      faults(
        DataError(
          path,
          f"annotation {place}",
          f"no category has its number {category!r}, of image {name}",
          "Correct its category_id, or name the category",
        )
      )


def _root(path: pathlib.Path, known: Mapping[Any, Any]) -> pathlib.Path:
  """Where the images lie: beside the file, or in the usual places.

  The first of them that holds the first image; beside the file if none does.
  """
  here = path.parent
  split = path.stem.removeprefix("instances_")
  places = [here, here / "images", here / split]
  places += [here.parent, here.parent / "images", here.parent / split]
  first = next(iter(known.values()), {"file_name": ""})["file_name"]
  return next((one for one in places if (one / first).is_file()), here)


def _has(entry: Any, **kinds: tuple[type, ...]) -> bool:
  """Whether it is an object with these, each of one of the kinds."""
  return isinstance(entry, dict) and all(
    type(entry.get(key)) in kind for key, kind in kinds.items()
  )
