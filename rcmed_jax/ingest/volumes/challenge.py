"""Volumes of the CVPR 2025 challenge on text-guided segmentation in 3-D.

  3D_train_npz_all/MODALITY/DATASET/NAME.npz
    imgs     uint8[Z, rows, columns], 0..255, axial slices
    gts      whole numbers of the same shape, 0 is background
    spacing  float[3], mm along columns, rows and slices
  CVPR25_TextSegFMData_with_class.json
    {DATASET: {"1": [class, sentence, ...], ..., "instance_label": 0 or 1}}

With instance_label 1 every value but 0 is one more of the class "1". Files of
the validation set, whose `gts` lie in 3D_val_gt/NAME.npz, are found likewise.
The files hold no affine: their slices are taken to be axial, from feet to head,
as the picture should look.

Source: the dataset card of junma/CVPR-BiomedSegFM. That `spacing` runs from
columns to slices is read off public entries to the challenge.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import json
import os
import pathlib
import random
from typing import Any
import zipfile

import numpy as np

from rcmed_jax.data import npz
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Triplet
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.volumes import (
  geometry,
  label_map,
  npz_file,
  volumes,
  windows,
)

SUFFIX = ".npz"
INSTANCE = "instance_label"

# Folder of images -> folder beside it with their labels.
_LABEL_FOLDERS = {"3D_val_npz": "3D_val_gt"}

# Bytes of a JSON that may be the one with the texts; the challenge's has 1 MB.
_MOST_TEXT = 64_000_000

# Words of a text that may be a class's name: "inferior vena cava of the liver".
_NAME_WORDS = 6

# Spacing beyond these is no distance but a fault, and counts as unknown: from a
# nanometre to a metre.
_LEAST_MM, _MOST_MM = 1e-6, 1e3


def matches(path: pathlib.Path) -> bool:
  """Whether it is an npz with `imgs`, or a folder with one near its top."""
  if path.is_file():
    return path.suffix == SUFFIX and _has_images(path)
  first = next(iter(_walk(path)), None)
  return first is not None and _has_images(first)


def open_source(path: pathlib.Path, options: sources.Options) -> sources.Source:
  """The volumes of a file or folder."""
  return Source(pathlib.Path(path), options)


@dataclasses.dataclass(frozen=True)
class Source:
  """Files of the challenge.

  Raises:
    ValueError: an option is not one of its choices.
  """

  root: pathlib.Path
  options: sources.Options

  def __post_init__(self) -> None:
    geometry.check_axis(self.options.axis)
    windows.check(self.options.window)

  def units(self, faults: sources.Faults) -> Iterator["Unit"]:
    """See `sources.Source`."""
    texts = {} if self.options.label_names else self._texts(faults)
    root = pathlib.Path(os.path.abspath(self.root))
    anything = False
    for path in [root] if root.is_file() else _walk(root):
      anything = True
      inside = path.name if path == root else path.relative_to(root).as_posix()
      base = root.parent.name if path == root else root.name
      name = _dataset(path, texts)
      yield Unit(
        id=f"{base}/{inside.removesuffix(SUFFIX)}",
        path=path,
        dataset=self.options.dataset or name,
        texts=_freeze(texts.get(name, {})),
        options=self.options,
      )
    if not anything:
      raise DataError(
        root, "source", "it holds no npz file", "Give the folder of the files"
      )

  def _texts(self, faults: sources.Faults) -> dict[str, dict[str, Any]]:
    """The texts of all datasets, from JSON files in or above the root."""
    root = pathlib.Path(os.path.abspath(self.root))
    for folder in (root, *root.parents[:3]):
      for path in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        if path.stat().st_size > _MOST_TEXT:
          continue
        try:
          content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
          faults(
            DataError(
              path, "texts", f"this is not JSON ({error})", "Correct it"
            )
          )
          continue
        if _are_texts(content):
          return content
    return {}


@dataclasses.dataclass(frozen=True)
class Unit:
  """One file."""

  id: str
  path: pathlib.Path
  dataset: str
  texts: tuple[tuple[str, tuple[str, ...]], ...]  # key of the JSON -> its texts
  options: sources.Options

  def triplets(self, faults: sources.Faults) -> Iterator[Triplet]:
    """See `sources.Unit`."""
    try:
      yield from volumes.triplets(self._open(faults), self.options, faults)
    except DataError as error:
      faults(error)

  def _open(self, faults: sources.Faults) -> volumes.Volume:
    stem = self.path.name.removesuffix(SUFFIX)
    modality = volumes.modality(
      self.path, (stem.split("_")[0], stem, self.dataset), self.options
    )
    image, labels, spacing = _arrays(self.path)
    view = _view(image.shape, spacing, self.options.axis)
    classes, sentences = self._classes()
    targets = None
    if labels is not None:
      targets = label_map.LabelMap(labels, view, classes, self.path, faults)

    def describe(z: int, present: Sequence[str]) -> str | None:
      # One of each class's sentences, the same whenever it is asked for.
      draw = random.Random(f"{self.id}#{z}")
      said = [draw.choice(sentences[n]) for n in present if sentences.get(n)]
      return " ".join(f"{text.rstrip('. ')}." for text in said) or None

    return volumes.Volume(
      id=self.id,
      path=self.path,
      voxels=image,
      view=view,
      targets=targets,
      modality=modality,
      dataset=self.dataset,
      license=self.options.license or None,
      group=f"{self.dataset}/{stem}",
      classes=tuple(name for name, _ in classes),
      describe=describe,
    )

  def _classes(self) -> tuple[volumes.Classes, Mapping[str, list[str]]]:
    """Classes, and the sentences of each."""
    if self.options.label_names:
      return volumes.classes_of(self.path, self.options.label_names), {}
    told = dict(self.texts)
    instances = told.pop(INSTANCE, ("0",))[0] == "1"
    names, sentences = [], {}
    for key, said in told.items():
      if not key.isdecimal() or not said:
        continue
      if len(said[0].split()) > _NAME_WORDS:
        raise DataError(
          self.path,
          "class",
          f"the first text of value {key} is a sentence, no name",
          f'Say --label "{key}=NAME"',
        )
      names.append((int(key), said[0]))
      sentences[volumes.class_name(self.path, said[0])] = list(said[1:])
    classes = volumes.classes_of(self.path, names)
    if instances:
      return tuple((name, None) for name, _ in classes[:1]), sentences
    return classes, sentences


def _arrays(
  path: pathlib.Path,
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
  """Image, labels and spacing of a file, its labels' file looked into too."""
  try:
    image = npz_file.member(path, "imgs")
    labels = npz_file.member(path, "gts")
    spacing = npz_file.member(path, "spacing")
    beside = _LABEL_FOLDERS.get(path.parent.name)
    other = path.parent.parent / beside / path.name if beside else path
    if labels is None and other != path and other.is_file():
      labels = npz_file.member(other, "gts")
  except DataError:
    raise
  except npz.DAMAGED as error:
    raise DataError(
      path,
      "image",
      f"this is no sound npz file ({type(error).__name__}: {error})",
      "Get the file again, or leave it out",
    ) from error
  if image is None:
    raise DataError(path, "image", "it has no imgs", "Leave it out")
  colours = image.ndim == 4 and image.shape[3] == 3
  if image.ndim - colours != 3 or image.dtype.kind not in "iufb":
    raise DataError(
      path,
      "image",
      f"imgs is {image.dtype}{list(image.shape)}",
      "Expected numbers[slices, rows, columns], or 3 colours behind them",
    )
  if labels is not None and labels.shape != image.shape[:3]:
    raise DataError(
      path,
      "labels",
      f"gts is {list(labels.shape)}, imgs {list(image.shape)}",
      "Save the labels on the image's own grid",
    )
  return image, labels, spacing


def _view(
  shape: Sequence[int], spacing: np.ndarray | None, axis: str
) -> geometry.View:
  steps = [1.0, 1.0, 1.0]
  known = (
    spacing is not None
    and spacing.shape == (3,)
    and spacing.dtype.kind in "iuf"
    and bool(np.isfinite(spacing).all())
    and bool((spacing > _LEAST_MM).all())
    and bool((spacing < _MOST_MM).all())
  )
  if spacing is not None and known:
    steps = spacing.astype(float).tolist()
  x, y, z = steps
  affine = np.zeros((4, 4))
  # Slices grow to the head, rows to the back, columns to the left.
  affine[2, 0], affine[1, 1], affine[0, 2], affine[3, 3] = z, -y, -x, 1
  grid = geometry.Grid((shape[0], shape[1], shape[2]), affine)
  view = geometry.View.of(grid, axis)
  return view if known else dataclasses.replace(view, spacing_mm=None)


def _dataset(path: pathlib.Path, texts: Mapping[str, Any]) -> str:
  """The key of its texts: its folder, or the longest its name starts with."""
  if path.parent.name in texts:
    return path.parent.name
  starts = [name for name in texts if path.name.startswith(name)]
  return max(starts, key=len, default=path.parent.name)


def _are_texts(content: Any) -> bool:
  return (
    isinstance(content, dict)
    and bool(content)
    and all(
      isinstance(told, dict) and INSTANCE in told for told in content.values()
    )
  )


def _freeze(told: Mapping[str, Any]) -> tuple[tuple[str, tuple[str, ...]], ...]:
  return tuple(
    (key, tuple(map(str, said if isinstance(said, list) else [said])))
    for key, said in told.items()
  )


def _walk(root: pathlib.Path) -> Iterator[pathlib.Path]:
  """Files of images, in the order of their names."""
  labels = set(_LABEL_FOLDERS.values())
  for folder, folders, names in os.walk(root):
    folders[:] = sorted(name for name in folders if name not in labels)
    for name in sorted(names):
      if name.endswith(SUFFIX) and not name.startswith("."):
        yield pathlib.Path(folder) / name


def _has_images(path: pathlib.Path) -> bool:
  try:
    with zipfile.ZipFile(path) as archive:
      return "imgs.npy" in archive.namelist()
  except (OSError, zipfile.BadZipFile, ValueError):
    return False
