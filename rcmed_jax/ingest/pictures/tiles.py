"""Slides and other pictures too large for one frame, cut into tiles.

  ROOT/slides/NAME.tif
  ROOT/masks/CLASS/NAME.tif    one mask a class, all above 0
  ROOT/masks/NAME.tif          or one label map; names as in `folder`

Tiles have one size, and cover all of the picture: the last of a row or column
moves back to end with it. A tile of nothing but glass is left out and counted,
unless empty ones are wanted; where a mask is, nothing is left out.
"""

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import pathlib

import cv2
import numpy as np

from rcmed_jax.data import images
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Triplet
from rcmed_jax.ingest.pictures import folder, regions
from rcmed_jax.ingest.sources import Faults, Options
from rcmed_jax.ingest.volumes import volumes

SLIDES = "slides"

# A tile shows something where a pixel differs from its most usual colour by so
# much, and so many do: dust and the scanner's noise are less. Ours: on glass
# with noise of 4 levels and specks, and on pale tissue, it tells the two apart.
DIFFERS = 20
SHARE = 0.002
# It is looked at in a quarter of its pixels a side.
COARSER = 4


class EmptyTilesError(volumes.EmptySlicesError):
  """Tiles of nothing but glass that were left out as asked; no fault."""

  def __init__(self, path: object, count: int, total: int):
    DataError.__init__(
      self,
      path,
      "empty tiles",
      f"{count} of {total} tiles show nothing and were left out",
      "Keep them with --empty-slices keep",
    )
    self.count = count
    self.total = total


def matches(path: pathlib.Path) -> bool:
  """Whether it has slides/."""
  return (path / SLIDES).is_dir()


def open_source(path: pathlib.Path, options: Options) -> "TilesSource":
  """Raises DataError where a folder is missing, or labels.json is wrong."""
  for name in (SLIDES, folder.MASKS):
    if not (path / name).is_dir():
      raise DataError(
        path,
        "source",
        f"it has no folder {name}",
        f"Expected {SLIDES}/NAME.tif with {folder.MASKS}/CLASS/NAME.tif",
      )
  return TilesSource(path, options, folder.label_names(path, options))


@dataclasses.dataclass(frozen=True)
class TilesSource:
  """Slides and their masks, by name."""

  path: pathlib.Path
  options: Options
  labels: tuple[tuple[int, str], ...] = ()

  def units(self, faults: Faults) -> Iterator["TilesUnit"]:
    """One unit a row of tiles; a slide that is decoded whole is one unit."""
    found = folder.listed(self.path / SLIDES, faults, suffixes=regions.SUFFIXES)
    masks = folder.masks_of(
      self.path / folder.MASKS, found, faults, suffixes=regions.SUFFIXES
    )
    dataset = self.options.dataset or folder.name_of(self.path)
    for name, slide in found.items():
      try:
        classes, label_map = masks.get(name, ([], ""))
        whole = TilesUnit(
          slide=str(slide),
          name=f"{dataset}/{name}",
          tops=(),
          masks=tuple(classes),
          label_map=label_map,
          labels=self.labels,
          modality=folder.modality_of(slide, self.options),
          dataset=dataset,
          options=self.options,
        )
        yield from _rows(_without_faulty(whole, faults))
      except DataError as error:
        faults(error)
    if not found:
      raise DataError(
        self.path / SLIDES,
        "source",
        "it holds no slide",
        f"Put pictures there, of {', '.join(regions.SUFFIXES)}",
      )


@dataclasses.dataclass(frozen=True)
class TilesUnit:
  """Rows of tiles of a slide."""

  slide: str
  name: str
  tops: tuple[int, ...]  # first pixel row of each row of tiles
  masks: tuple[tuple[str, str], ...]  # (path, class)
  label_map: str  # path; "": none
  labels: tuple[tuple[int, str], ...]
  modality: str
  dataset: str
  options: Options

  @property
  def id(self) -> str:
    """The slide, and where its first tile starts."""
    return f"{self.name}#y{self.tops[0]:06d}"

  def triplets(self, faults: Faults) -> Iterator[Triplet]:
    """The tiles, but those of glass."""
    try:
      with _opened(self) as opened:
        yield from self._tiles(*opened, faults)
    except DataError as error:
      faults(error)

  def _tiles(
    self,
    slide: regions.Picture,
    masks: Sequence[tuple[str, regions.Picture]],
    label_map: regions.Picture | None,
    faults: Faults,
  ) -> Iterator[Triplet]:
    empty = total = 0
    for rows, columns in self._places(slide.shape):
      total += 1
      image_IJC = slide.read(rows, columns)
      found = _targets(masks, rows, columns, faults)
      if label_map:
        self._add_labels(found, label_map.read(rows, columns), faults)
      glass = not found and is_empty(image_IJC)
      if glass and self.options.empty_slices == "drop":
        empty += 1
        continue
      yield Triplet(
        id=f"{self.name}#y{rows.start:06d}x{columns.start:06d}",
        image_IJC=np.ascontiguousarray(image_IJC),
        masks_GIJ=np.array(list(found.values()), bool).reshape(
          len(found), *image_IJC.shape[:2]
        ),
        classes=tuple(found),
        modality=self.modality,
        description=None,
        spacing_mm=slide.spacing_mm,
        source=self.dataset,
        license=self.options.license or None,
        group=self.name,
      )
    if empty:
      faults(EmptyTilesError(self.id, empty, total))

  def _places(self, shape: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    size, overlap = self.options.tile, self.options.tile_overlap
    for top in self.tops:
      for left in starts(shape[1], size, overlap):
        yield (
          slice(top, min(top + size, shape[0])),
          slice(left, min(left + size, shape[1])),
        )

  def _add_labels(
    self, found: dict[str, np.ndarray], labels_IJ: np.ndarray, faults: Faults
  ) -> None:
    """Adds the classes of a part of the label map."""
    names = dict(self.labels)
    unnamed = []
    for value in np.unique(labels_IJ):
      if not value:
        continue
      if int(value) not in names:
        unnamed.append(str(value))
        continue
      name = volumes.class_name(self.label_map, names[int(value)])
      mask_IJ = labels_IJ == value
      found[name] = found[name] | mask_IJ if name in found else mask_IJ
    if unnamed:
      faults(
        DataError(
          self.label_map,
          "labels",
          f"nothing names the values {', '.join(unnamed[:10])}",
          f'Say --label "{unnamed[0]}=NAME" for each, or write '
          f"{folder.LABELS_FILE}",
        )
      )


def starts(side: int, size: int, overlap: int) -> list[int]:
  """Where tiles start along a side: even steps, the last ends with the side.

  (100, 40, 0) gives 0, 40, 60.
  """
  if side <= size:
    return [0]
  return [*range(0, side - size, size - overlap), side - size]


def is_empty(image_IJC: np.ndarray) -> bool:
  """Whether a picture shows nothing but one colour."""
  rows, columns = (max(n // COARSER, 1) for n in image_IJC.shape[:2])
  small_IJC = cv2.resize(
    image_IJC, (columns, rows), interpolation=cv2.INTER_AREA
  )
  usual_C = np.median(small_IJC.reshape(-1, 3), axis=0)
  differs_IJ = (np.abs(small_IJC - usual_C) > DIFFERS).any(2)
  return bool(differs_IJ.mean() < SHARE)


def _rows(whole: TilesUnit) -> Iterator[TilesUnit]:
  """The units of a slide."""
  options = whole.options
  with _opened(whole) as (slide, masks, label_map):
    rows, columns = slide.shape
    if min(rows, columns, options.tile) < images.MIN_SIDE:
      raise DataError(
        whole.slide,
        "image",
        f"it has {rows} x {columns} pixels, in tiles of {options.tile}; "
        f"expected at least {images.MIN_SIDE} a side",
        "Enlarge it or the tiles",
      )
    tops = starts(rows, options.tile, options.tile_overlap)
    others = [picture for _, picture in masks]
    pictures = [slide, *others, *([label_map] if label_map else [])]
    by_parts = all(picture.by_parts for picture in pictures)
  if not by_parts:
    yield dataclasses.replace(whole, tops=tuple(tops))
    return
  for top in tops:
    yield dataclasses.replace(whole, tops=(top,))


_Opened = tuple[
  regions.Picture,
  list[tuple[str, regions.Picture]],
  regions.Picture | None,
]


@contextlib.contextmanager
def _opened(unit: TilesUnit) -> Iterator[_Opened]:
  """The slide, its masks by class, and its label map, all on one grid.

  Raises:
    DataError: one cannot be opened, or is of another size.
  """
  with contextlib.ExitStack() as stack:

    def opened(path: str, shape: tuple[int, int] | None) -> regions.Picture:
      field = "mask" if shape else "image"
      picture = regions.open_picture(pathlib.Path(path), field)
      stack.callback(picture.close)
      if shape and picture.shape != shape:
        raise DataError(
          path,
          field,
          f"it has {picture.shape[0]} x {picture.shape[1]} pixels, its slide "
          f"{shape[0]} x {shape[1]}",
          "Save the mask on the slide's own grid",
        )
      return picture

    slide = opened(unit.slide, None)
    yield (
      slide,
      [(name, opened(path, slide.shape)) for path, name in unit.masks],
      opened(unit.label_map, slide.shape) if unit.label_map else None,
    )


def _without_faulty(whole: TilesUnit, faults: Faults) -> TilesUnit:
  """The slide without the classes of which a mask cannot be used."""
  faulty = set()
  for path, name in whole.masks:
    try:
      with _opened(
        dataclasses.replace(whole, masks=((path, name),), label_map="")
      ):
        pass
    except DataError as error:
      if error.path == whole.slide:
        raise
      faults(error)
      faulty.add(name)
  masks = tuple(pair for pair in whole.masks if pair[1] not in faulty)
  return dataclasses.replace(whole, masks=masks)


def _targets(
  masks: Sequence[tuple[str, regions.Picture]],
  rows: slice,
  columns: slice,
  faults: Faults,
) -> dict[str, np.ndarray]:
  """Class -> bool[I, J] of the part; without those that are not in it."""
  found: dict[str, np.ndarray] = {}
  faulty = set()
  for name, picture in masks:
    try:
      mask_IJ = picture.read(rows, columns) > 0
    except DataError as error:
      faults(error)
      faulty.add(name)
      continue
    if mask_IJ.any():
      found[name] = found[name] | mask_IJ if name in found else mask_IJ
  return {name: found[name] for name in found if name not in faulty}
