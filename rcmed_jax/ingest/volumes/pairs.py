"""Image and label volumes that belong together, as people lay them out.

  ROOT/images*/NAME.EXT    ROOT/labels*/NAME.EXT    the same ending of both;
                                                    also masks*
  ROOT/images*/NAME_0000.EXT                        nnU-Net's: 0000 the channel
  ROOT/image.EXT           ROOT/label.EXT           one case a folder, also
                                                    img, volume; mask, seg, ...
  ROOT/image.EXT           ROOT/CLASS.EXT           a mask a class
  ROOT/ct.EXT              ROOT/segmentations/CLASS.EXT   TotalSegmentator's
  ROOT/NAME_t1.EXT         ROOT/NAME_seg.EXT        BraTS's, of several images
  ROOT/dataset.json                                 names of labels, modality

Any of it may lie anywhere below the folder that is opened. Every volume there
is part of a unit or a fault: one without labels, too, unless the options keep
those, and never where others beside it have some. What looks like labels and
lies on the grid of a volume beside it is no image. What a file holds, NIfTI and
NRRD say themselves.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import os
import pathlib
import re
from typing import Any

from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Triplet
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.volumes import (
  dataset_json,
  geometry,
  label_map,
  volumes,
  windows,
)

IMAGE_STEMS = ("image", "img", "volume")
LABEL_FOLDERS = ("labels", "masks")  # beginnings of names, beside images*
LABEL_STEMS = ("label", "labels", "mask", "seg", "segmentation")

# Beside one image, a folder of masks named after their classes.
MASK_FOLDER = "segmentations"

# NAME_seg beside NAME_t1, NAME_t2 or NAME.
_LABELS_OF = re.compile(rf"(.+)[_-](?:{'|'.join(LABEL_STEMS)})", re.IGNORECASE)
_CHANNEL = re.compile(r"_(\d{4})$")


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
  """What a file of one volume holds."""

  grid: geometry.Grid
  voxels: Any  # an array, or what reads its slices; colours on a fourth axis
  classes: volumes.Classes = ()  # of labels, where the file itself names them


# Path, and "image" or "labels", the field of its faults -> what it holds.
Read = Callable[[pathlib.Path, str], Stored]


@dataclasses.dataclass(frozen=True)
class Unit:
  """An image volume and its labels."""

  id: str
  group: str
  image: pathlib.Path
  labels: pathlib.Path | None
  told: dataset_json.Told
  channel: int | None
  dataset: str
  options: sources.Options
  read: Read
  masks: tuple[tuple[str, pathlib.Path], ...] = ()  # class, its file
  # Volumes in its folder; of one without labels, to tell that it is none.
  others: tuple[pathlib.Path, ...] = ()
  labelled: bool = False  # whether others beside it have labels

  def triplets(self, faults: sources.Faults) -> Iterator[Triplet]:
    """See `sources.Unit`."""
    try:
      yield from volumes.triplets(self._open(faults), self.options, faults)
    except DataError as error:
      faults(error)

  def _open(self, faults: sources.Faults) -> volumes.Volume:
    options = self.options
    channel = dict(self.told.channels).get(self.channel or 0, "")
    modality = volumes.modality(
      self.image, (channel, self.image.name, self.id), options
    )
    bare = self.labels is None and not self.masks
    if bare and (self.labelled or options.unlabelled == "drop"):
      raise no_labels(self.image)
    image = self.read(self.image, "image")
    view = geometry.View.of(image.grid, options.axis)
    targets, classes = None, ()
    if self.labels is not None:
      view, targets, classes = self._labelled(image, self.labels, faults)
    elif self.masks:
      view, targets = self._masked(image)
      classes = tuple((name, None) for name, _ in self.masks)
    else:
      self._refuse_labels(image, view)
    return volumes.Volume(
      id=self.id,
      path=self.image,
      voxels=image.voxels,
      view=view,
      targets=targets,
      modality=modality,
      dataset=self.dataset,
      license=options.license or self.told.license,
      group=self.group,
      classes=tuple(name for name, _ in classes),
    )

  def _labelled(
    self, image: Stored, path: pathlib.Path, faults: sources.Faults
  ) -> tuple[geometry.View, label_map.LabelMap, volumes.Classes]:
    """The image's view, what a label map has on it, and all its classes."""
    labels = self.read(path, "labels")
    if len(labels.voxels.shape) != 3:
      raise DataError(path, "labels", "they are colours", "Give a label map")
    view, other = self._fit(image, labels, path)
    classes = (
      volumes.classes_of(path, self.options.label_names)
      or self.told.classes
      or labels.classes
    )
    targets = label_map.LabelMap(labels.voxels, other, classes, path, faults)
    return view, targets, classes

  def _masked(self, image: Stored) -> tuple[geometry.View, label_map.Files]:
    """The image's view, and what files of one class each have on it."""
    view = geometry.View.of(image.grid, self.options.axis)
    targets = label_map.Files()
    for name, path in self.masks:
      mask = self.read(path, "labels")
      if len(mask.voxels.shape) != 3 or not label_map.few_values(
        mask.voxels, view=geometry.View.of(mask.grid, self.options.axis), most=2
      ):
        raise DataError(
          path,
          "labels",
          f"it is no mask of {name!r} for {self.image.name}: it has more than "
          "two values",
          "Name a volume of several labels label.EXT, or put images into "
          "images/ and their labels into labels/",
        )
      view, other = self._fit(image, mask, path)
      targets.add(name, mask.voxels, other)
    return view, targets

  def _fit(
    self, image: Stored, labels: Stored, path: pathlib.Path
  ) -> tuple[geometry.View, geometry.View]:
    return geometry.fit(
      image.grid,
      labels.grid,
      self.options.axis,
      path,
      assume_same=self.options.assume_same_grid,
    )

  def _refuse_labels(self, image: Stored, view: geometry.View) -> None:
    """Raises DataError where this is no image but the labels of one."""
    if len(image.voxels.shape) != 3 or not label_map.few_values(
      image.voxels, view
    ):
      return
    for path in self.others:
      if path == self.image:
        continue
      try:
        other = self.read(path, "image").grid
      except DataError:
        continue  # a fault of its own
      if geometry.same(view.grid(image.grid), view.grid(other)):
        raise DataError(
          self.image,
          "image",
          f"it holds labels, on the grid of {path.name}",
          f"Name it label.EXT, or {path.name} image.EXT and it after its class",
        )


@dataclasses.dataclass(frozen=True)
class Source:
  """A volume, or a folder of them, in one kind of file.

  Args:
    root: the file or folder.
    options: see `sources.Options`.
    suffixes: of the files, the longest first: (".nii.gz", ".nii").
    read: what reads one.

  Raises:
    ValueError: an option is not one of its choices.
  """

  root: pathlib.Path
  options: sources.Options
  suffixes: tuple[str, ...]
  read: Read

  def __post_init__(self) -> None:
    geometry.check_axis(self.options.axis)
    windows.check(self.options.window)

  def units(self, faults: sources.Faults) -> Iterator[Unit]:
    """See `sources.Source`."""
    if self.root.is_file():
      told = dataset_json.find(self.root.parent, faults)
      yield self._unit(self.root, None, None, told)
      return
    anything = False
    for folder, names in _walk(self.root):
      files = {
        name: stem for name in names if (stem := stem_of(name, self.suffixes))
      }
      anything |= bool(files)
      if files:
        yield from self._of_folder(folder, files, faults)
    if not anything:
      raise DataError(
        self.root,
        "source",
        f"it holds no file named *{' or *'.join(self.suffixes)}",
        "Give the folder that they are in",
      )

  def _of_folder(
    self,
    folder: pathlib.Path,
    files: Mapping[str, str],
    faults: sources.Faults,
  ) -> Iterator[Unit]:
    """The units of one folder; `files` are its volumes and their stems."""
    name = folder.name
    kind = next((k for k in LABEL_FOLDERS if name.lower().startswith(k)), "")
    if kind:
      images = folder.parent / f"images{name[len(kind) :]}"
      known = set(self._stems(images))
      known |= {_CHANNEL.sub("", stem) for stem in known}
      for file, stem in files.items():
        if stem not in known:
          faults(_orphan(folder / file, images))
    elif name.lower().startswith("images"):
      told = dataset_json.find(folder.parent, faults)
      there: dict[str, pathlib.Path] = {}
      for other in LABEL_FOLDERS:
        there = there or self._stems(folder.parent / f"{other}{name[6:]}")
      for file, stem in files.items():
        channel = _CHANNEL.search(stem)
        case = stem[: channel.start()] if channel else stem
        labels = there.get(stem) or there.get(case)
        number = int(channel[1]) if channel and stem not in there else None
        unit = self._unit(folder / file, labels, number, told)
        yield dataclasses.replace(unit, labelled=bool(there))
    elif name != MASK_FOLDER or not self._lone(folder.parent):
      told = dataset_json.find(folder, faults)
      yield from self._of_case(folder, files, told, faults)

  def _of_case(
    self,
    folder: pathlib.Path,
    files: Mapping[str, str],
    told: dataset_json.Told,
    faults: sources.Faults,
  ) -> Iterator[Unit]:
    """A folder that is one case, or one of images and their labels by name."""
    images = [n for n, stem in files.items() if stem.lower() in IMAGE_STEMS]
    labels = [n for n, stem in files.items() if stem.lower() in LABEL_STEMS]
    rest = files
    if len(images) == len(labels) == 1:
      yield self._unit(folder / images[0], folder / labels[0], None, told)
      used = {*images, *labels}
      rest = {n: stem for n, stem in files.items() if n not in used}
    elif (lone := self._lone(folder)) is not None:
      masks = self._stems(folder / MASK_FOLDER)
      yield self._masked(lone, masks, told)
      return
    elif len(images) == 1 and not labels and len(files) > 1:
      masks = {s: folder / n for n, s in files.items() if n != images[0]}
      yield self._masked(folder / images[0], masks, told)
      return
    for unit in self._by_name(folder, rest, told, faults):
      paths = tuple(folder / name for name in files)
      labelled = unit.labelled or len(rest) < len(files)
      yield dataclasses.replace(unit, others=paths, labelled=labelled)

  def _by_name(
    self,
    folder: pathlib.Path,
    files: Mapping[str, str],
    told: dataset_json.Told,
    faults: sources.Faults,
  ) -> Iterator[Unit]:
    """Images, and of those named NAME or NAME_t1 the labels in NAME_seg."""
    labels = {
      found[1]: name
      for name, stem in files.items()
      if (found := _LABELS_OF.fullmatch(stem))
    }
    used: set[str] = set()
    for name, stem in files.items():
      if stem.lower() in LABEL_STEMS or name in labels.values():
        continue
      cases = [case for case in labels if _is_of(stem, case)]
      case = max(cases, key=len, default="")
      used.add(case)
      own = folder / labels[case] if case else None
      unit = self._unit(folder / name, own, None, told)
      yield dataclasses.replace(unit, labelled=bool(labels))
    for name, stem in files.items():
      found = _LABELS_OF.fullmatch(stem)
      if stem.lower() in LABEL_STEMS or (found and found[1] not in used):
        faults(_orphan(folder / name, folder))

  def _lone(self, folder: pathlib.Path) -> pathlib.Path | None:
    """The one volume of a folder with a folder of masks beside it."""
    inside = self._stems(folder)
    if len(inside) != 1 or not self._stems(folder / MASK_FOLDER):
      return None
    return next(iter(inside.values()))

  def _masked(
    self,
    image: pathlib.Path,
    masks: Mapping[str, pathlib.Path],
    told: dataset_json.Told,
  ) -> Unit:
    unit = self._unit(image, None, None, told)
    named = tuple(
      (volumes.class_name(path, stem), path) for stem, path in masks.items()
    )
    return dataclasses.replace(unit, masks=named)

  def _unit(
    self,
    image: pathlib.Path,
    labels: pathlib.Path | None,
    channel: int | None,
    told: dataset_json.Told,
  ) -> Unit:
    inside = image.name
    if image != self.root:
      inside = image.relative_to(self.root).as_posix()
    stem = stem_of(inside, self.suffixes)
    case = stem if channel is None else _CHANNEL.sub("", stem)
    dataset = self.options.dataset or self._name()
    return Unit(
      id=f"{self._name()}/{stem}",
      group=f"{dataset}/{case}",
      image=image,
      labels=labels,
      told=told,
      channel=channel,
      dataset=dataset,
      options=self.options,
      read=self.read,
    )

  def _name(self) -> str:
    root = pathlib.Path(os.path.abspath(self.root))
    return root.parent.name if root.is_file() else root.name

  def _stems(self, folder: pathlib.Path) -> dict[str, pathlib.Path]:
    if not folder.is_dir():
      return {}
    names = sorted(entry.name for entry in folder.iterdir())
    return {
      stem: folder / name
      for name in names
      if (stem := stem_of(name, self.suffixes))
    }


def stem_of(name: str, suffixes: tuple[str, ...]) -> str:
  """The name without its ending; "" if it has none of these."""
  for suffix in suffixes:
    if name.lower().endswith(suffix):
      return name[: -len(suffix)]
  return ""


def matches(path: pathlib.Path, suffixes: tuple[str, ...]) -> bool:
  """Whether it is such a file, or a folder with one near its top."""
  if path.is_file():
    return bool(stem_of(path.name, suffixes))
  for folder, names in _walk(path, deepest=2):
    del folder
    if any(stem_of(name, suffixes) for name in names):
      return True
  return False


def no_labels(path: object) -> DataError:
  """The fault of an image that has no labels, where they are wanted."""
  return DataError(
    path,
    "labels",
    "no labels lie where its layout has them",
    "Put them into labels*/ beside images*/ under the image's name, or label "
    "beside image; where nothing there has labels, --unlabelled keep takes "
    "images without",
  )


def _is_of(stem: str, case: str) -> bool:
  """Whether a file is of a case: its name, or one that goes on from it."""
  return stem == case or stem.startswith((f"{case}_", f"{case}-"))


def _orphan(path: pathlib.Path, images: pathlib.Path) -> DataError:
  return DataError(
    path,
    "image",
    f"these labels have no image of their name in {images}",
    "Put it there, or remove the labels",
  )


def _walk(
  root: pathlib.Path, deepest: int | None = None
) -> Iterator[tuple[pathlib.Path, list[str]]]:
  """Folders from `root` down with the names of their files, all sorted."""
  for folder, folders, names in os.walk(root):
    folders[:] = sorted(name for name in folders if not name.startswith("."))
    here = pathlib.Path(folder)
    if deepest is not None and len(here.relative_to(root).parts) >= deepest:
      folders.clear()
    # A dot at the front is macOS's way to write what no volume is.
    yield here, sorted(name for name in names if not name.startswith("."))
