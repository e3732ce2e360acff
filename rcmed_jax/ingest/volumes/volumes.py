"""Slices of a labelled volume as triplets, whatever file it comes from.

Every slice is a triplet, or is counted: a volume of 36 slices that gives 12
triplets has handed an `EmptySlicesError` of 24 to `faults`. That is the only
entry there that is no fault.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import re
from typing import Any, Protocol

import numpy as np

from rcmed_jax.data import images, modalities, tokens
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Triplet
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.volumes import geometry, windows

# Of an array in memory, as stored: two of them, image and labels, stay under
# 2 GB with what is made of a slice. 1,000 slices of 512 x 512 in 16 bits are
# half of it. Files that are not compressed are mapped and have no limit.
MAX_BYTES = 900_000_000

# Most that deflate can shrink anything: 1 bit for 258 bytes (RFC 1951).
MAX_RATIO = 1032

# Label value -> class; a class may have several, and classes may share one.
Classes = tuple[tuple[str, tuple[int, ...] | None], ...]  # None: all but 0


class EmptySlicesError(DataError):
  """Slices without a target that were left out as asked; no fault.

  Args:
    count: how many of `total`.
  """

  def __init__(self, path: object, count: int, total: int):
    super().__init__(
      path,
      "empty slices",
      f"{count} of {total} slices show no target and were left out",
      "Keep them with --empty-slices keep",
    )
    self.count = count
    self.total = total

  def __reduce__(self):
    return type(self), (self.path, self.count, self.total)


class Targets(Protocol):
  """Masks of a volume."""

  def on(self, z: int) -> dict[str, np.ndarray]:
    """Class -> bool[I, J], not empty, on slice z of the image's view."""
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class Look:
  """How the slices of a volume become pictures."""

  shown: windows.Shown
  paint: windows.Paint


@dataclasses.dataclass(frozen=True, eq=False)
class Volume:
  """An image that is open for reading, its targets, and what is known of it."""

  id: str
  path: object  # for faults
  voxels: Any  # an array, or what reads its slices; colours on a fourth axis
  view: geometry.View
  targets: Targets | None
  modality: str
  dataset: str
  license: str | None
  group: str
  # All that its labels may hold, whatever they do: they decide the window.
  classes: tuple[str, ...] = ()
  # Slice and classes -> what is said of them.
  describe: Callable[[int, Sequence[str]], str | None] | None = None
  # None: colours as they are, grey values as `windows.decide` has it.
  look: Look | None = None
  letter: str = ""  # of slices in ids; "": the axis's


class Scaled:
  """Stored values times a slope plus an intercept, slice by slice.

  Args:
    stored: an array.
    slope: a number, or an array that broadcasts against it.
    intercept: likewise.
  """

  def __init__(self, stored: np.ndarray, slope: Any = 1, intercept: Any = 0):
    self._stored = stored
    self._slope = np.broadcast_to(np.float32(slope), stored.shape)
    self._intercept = np.broadcast_to(np.float32(intercept), stored.shape)
    self.shape = stored.shape

  def __getitem__(self, index: Any) -> np.ndarray:
    values = self._stored[index].astype(np.float32)
    with np.errstate(all="ignore"):  # what overflows is shown as white
      return values * self._slope[index] + self._intercept[index]


def triplets(
  volume: Volume, options: sources.Options, faults: sources.Faults
) -> Iterator[Triplet]:
  """The slices of a volume; see the top of this file for their count.

  Raises:
    DataError: it has no targets and slices without any are not wanted, or its
      slices are too small or too large for pictures.
  """
  _check_pictures(volume, options)
  depth = volume.view.shape[0]
  spacing = volume.view.spacing_mm
  look = volume.look or look_at(volume, options)
  letter = volume.letter or options.axis[0]
  empty = 0
  for z in range(depth):
    masks = volume.targets.on(z) if volume.targets else {}
    if volume.targets and not masks and options.empty_slices == "drop":
      empty += 1
      continue
    classes = tuple(masks)
    values_IJ = volume.view.picture(volume.voxels, z)
    shape = (len(classes), *values_IJ.shape[:2])
    yield Triplet(
      id=f"{volume.id}#{letter}{z:04d}" if depth > 1 else volume.id,
      image_IJC=np.ascontiguousarray(look.paint(values_IJ)),
      masks_GIJ=np.array(list(masks.values()), bool).reshape(shape),
      classes=classes,
      modality=look.shown.modality,
      description=volume.describe(z, classes) if volume.describe else None,
      spacing_mm=(spacing[1], spacing[2]) if spacing else None,
      source=volume.dataset,
      license=volume.license,
      group=volume.group,
      window=look.shown.window,
    )
  if empty:
    faults(EmptySlicesError(volume.path, empty, depth))


def pictures(volume: Volume, options: sources.Options) -> Iterator[np.ndarray]:
  """uint8[I, J, 3], RGB, of all slices, whatever is on them.

  Raises:
    DataError: they are too small or too large for pictures.
  """
  _check_pictures(volume, options)
  look = volume.look or look_at(volume, options)
  for z in range(volume.view.shape[0]):
    yield np.ascontiguousarray(
      look.paint(volume.view.picture(volume.voxels, z))
    )


def look_at(
  volume: Volume, options: sources.Options, trained: Sequence[str] = ()
) -> Look:
  """How a volume is shown.

  Args:
    trained: see `windows.decide`.

  Raises:
    DataError: its colours are not of eight bits.
  """
  if len(volume.voxels.shape) == 3:
    return Look(
      *windows.scale(
        volume.voxels,
        volume.view,
        modality=volume.modality,
        window=options.window,
        classes=volume.classes,
        trained=trained,
      )
    )
  kind = volume.view.picture(volume.voxels, 0).dtype
  if kind != np.uint8:
    raise DataError(
      volume.path, "image", f"its colours are {kind}", "Save them as uint8"
    )
  return as_stored(volume.modality, "it is in colour", lambda values: values)


def as_stored(modality: str, why: str, paint: windows.Paint) -> Look:
  """What is made to be looked at, and needs no window."""
  return Look(windows.Shown(modality, windows.AS_STORED, why), paint)


def class_name(path: object, name: object) -> str:
  """A class as it is written in questions: `gall_bladder` is gall bladder.

  Raises:
    DataError: it is no text, or holds a marker of prompts.
  """
  words = re.sub(r"[\s_]+", " ", name).strip() if isinstance(name, str) else ""
  if not words or any(marker in words for marker in tokens.MARKERS):
    raise DataError(
      path,
      "class",
      f"expected a name without any of {' '.join(tokens.MARKERS)}",
      "Correct the name",
    )
  return "gallbladder" if words.lower() == "gall bladder" else words


def classes_of(path: object, names: Sequence[tuple[int, str]]) -> Classes:
  """Classes of values and their names; values of one name are one class."""
  merged: dict[str, tuple[int, ...]] = {}
  for value, name in names:
    words = class_name(path, name)
    merged[words] = (*merged.get(words, ()), int(value))
  return tuple(merged.items())


def modality(
  path: object, texts: Sequence[str], options: sources.Options
) -> str:
  """What was measured, in words, as options or else the first telling text say.

  Raises:
    DataError: no text holds a known word, or one holds several that differ.
  """
  if options.modality:
    return options.modality
  for text in texts:
    found = modalities.in_name(text, options.modality_words)
    if len(found) == 1:
      return found.pop()
  raise DataError(
    path,
    "modality",
    "the file does not say which it is, nor does its name",
    'Say it, for example --modality "computed tomography"',
  )


def check_bytes(path: object, field: str, needed: int, packed: int) -> None:
  """Refuses what is larger than it may be, before anything is unpacked.

  Args:
    needed: bytes that its header announces.
    packed: bytes on disk that hold them, compressed.

  Raises:
    DataError: more than `MAX_BYTES`, or more than they can ever hold.
  """
  if needed > MAX_BYTES:
    raise DataError(
      path,
      field,
      f"its header announces {needed / 1e6:,.0f} MB, and at most "
      f"{MAX_BYTES / 1e6:,.0f} are unpacked into memory",
      "Cut it into parts, or save it uncompressed if it is NIfTI",
    )
  if needed > packed * MAX_RATIO:
    raise DataError(
      path,
      field,
      f"its header announces {needed} bytes, which {packed} cannot hold",
      "The file breaks off or is damaged: get it again",
    )


def _check_pictures(volume: Volume, options: sources.Options) -> None:
  if volume.targets is None and options.unlabelled == "drop":
    raise DataError(
      volume.path,
      "labels",
      "it has none",
      "Give labels, or say --unlabelled keep if none of the classes is in it",
    )
  rows, columns = volume.view.shape[1:]
  if min(rows, columns) < images.MIN_SIDE or rows * columns > images.MAX_PIXELS:
    raise DataError(
      volume.path,
      "image",
      f"its {options.axis} slices have {rows} x {columns} pixels; expected "
      f"sides of at least {images.MIN_SIDE} and at most "
      f"{images.MAX_PIXELS // 10**6} million pixels",
      "Take slices along another axis, or leave it out",
    )
