"""Image and label volumes that belong together, as people lay them out.

  ROOT/images*/NAME.EXT    ROOT/labels*/NAME.EXT    the same ending of both;
                                                    also masks*
  ROOT/images*/NAME_0000.EXT                        nnU-Net's: 0000 the channel
  ROOT/image.EXT           ROOT/label.EXT           one case a folder, also
                                                    img, volume; mask, seg, ...
  ROOT/dataset.json                                 names of labels, modality

Any of it may lie anywhere below the folder that is opened. Every volume there
is part of a unit or a fault. What a file holds, NIfTI and NRRD say themselves.
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
    if self.labels is None and options.empty_slices == "drop":
      raise no_labels(self.image)
    image = self.read(self.image, "image")
    view = geometry.View.of(image.grid, options.axis)
    targets = None
    if self.labels is not None:
      labels = self.read(self.labels, "labels")
      if len(labels.voxels.shape) != 3:
        raise DataError(
          self.labels, "labels", "they are colours", "Give a label map"
        )
      view, other = geometry.fit(
        image.grid,
        labels.grid,
        options.axis,
        self.labels,
        assume_same=options.assume_same_grid,
      )
      classes = (
        volumes.classes_of(self.labels, options.label_names)
        or self.told.classes
        or labels.classes
      )
      targets = label_map.LabelMap(
        labels.voxels, other, classes, self.labels, faults
      )
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
        yield self._unit(folder / file, labels, number, told)
    else:
      told = dataset_json.find(folder, faults)
      yield from self._of_case(folder, files, told, faults)

  def _of_case(
    self,
    folder: pathlib.Path,
    files: Mapping[str, str],
    told: dataset_json.Told,
    faults: sources.Faults,
  ) -> Iterator[Unit]:
    """A folder that is one case, or one of images without labels."""
    images = [n for n, stem in files.items() if stem.lower() in IMAGE_STEMS]
    labels = [n for n, stem in files.items() if stem.lower() in LABEL_STEMS]
    if len(images) == len(labels) == 1:
      yield self._unit(folder / images[0], folder / labels[0], None, told)
      files = {
        n: stem for n, stem in files.items() if n not in (*images, *labels)
      }
    for name, stem in files.items():
      if stem.lower() in LABEL_STEMS:
        faults(_orphan(folder / name, folder))
      else:
        yield self._unit(folder / name, None, None, told)

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
    "Put them into labels*/ beside images*/, or label beside image; or take "
    'it without by empty_slices="keep"',
  )


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
