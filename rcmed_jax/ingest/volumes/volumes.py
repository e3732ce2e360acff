"""Slices of a labelled volume as triplets, whatever file it comes from.

Every slice is a triplet, or is counted: a volume of 36 slices that gives 12
triplets has handed an `EmptySlicesError` of 24 to `faults`. That is the only
entry there that is no fault.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import re
from typing import Any, Protocol

import numpy as np

from rcmed_jax.data import images, readers, tokens
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

# Values of a slice and its classes -> uint8[I, J, 3].
Paint = Callable[[np.ndarray, Sequence[str]], np.ndarray]

_MR = readers.MODALITIES["mr"]

# Words for what is measured, beyond those of an index: MR sequences, as the
# Medical Segmentation Decathlon and nnU-Net name channels.
_SEQUENCES = {
  **dict.fromkeys(
    ("t1", "t1w", "t1c", "t1ce", "t1gd", "t1n", "t2", "t2w"), _MR
  ),
  **dict.fromkeys(("t2f", "flair", "dwi", "adc", "dce", "cine", "lge"), _MR),
}
# Words of file names that mean a modality nowhere but in an index.
_AMBIGUOUS = {"x"}


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
      'Keep them with empty_slices="keep"',
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
  # Slice and classes -> what is said of them.
  describe: Callable[[int, Sequence[str]], str | None] | None = None
  # None: colours as they are, grey values by their modality.
  paint: Paint | None = None
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
  paint = volume.paint or _paint(volume, options)
  letter = volume.letter or options.axis[0]
  empty = 0
  for z in range(depth):
    masks = volume.targets.on(z) if volume.targets else {}
    if not masks and options.empty_slices == "drop":
      empty += 1
      continue
    classes = tuple(masks)
    values_IJ = volume.view.picture(volume.voxels, z)
    shape = (len(classes), *values_IJ.shape[:2])
    yield Triplet(
      id=f"{volume.id}#{letter}{z:04d}" if depth > 1 else volume.id,
      image_IJC=np.ascontiguousarray(paint(values_IJ, classes)),
      masks_GIJ=np.array(list(masks.values()), bool).reshape(shape),
      classes=classes,
      modality=volume.modality,
      description=volume.describe(z, classes) if volume.describe else None,
      spacing_mm=(spacing[1], spacing[2]) if spacing else None,
      source=volume.dataset,
      license=volume.license,
      group=volume.group,
    )
  if empty:
    faults(EmptySlicesError(volume.path, empty, depth))


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
  words = _modality_words(options.modality_words)
  for text in texts:
    parts = re.split(r"[\W_]+", text.lower())
    found = {words[part] for part in parts if part in words}
    if len(found) == 1:
      return found.pop()
    if found:
      break
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


def _paint(volume: Volume, options: sources.Options) -> Paint:
  if len(volume.voxels.shape) == 3:
    return windows.scale(
      volume.voxels,
      volume.view,
      hounsfield=volume.modality == readers.MODALITIES["ct"],
      window=options.window,
    )
  kind = volume.view.picture(volume.voxels, 0).dtype
  if kind != np.uint8:
    raise DataError(
      volume.path, "image", f"its colours are {kind}", "Save them as uint8"
    )
  return lambda values_IJC, classes: values_IJC


def _check_pictures(volume: Volume, options: sources.Options) -> None:
  if volume.targets is None and options.empty_slices == "drop":
    raise DataError(
      volume.path,
      "labels",
      "it has none",
      'Give labels, or take it without by empty_slices="keep"',
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


def _modality_words(more: Sequence[tuple[str, str]]) -> Mapping[str, str]:
  known = {
    word: name
    for word, name in readers.MODALITIES.items()
    if word not in _AMBIGUOUS
  }
  return known | _SEQUENCES | {word.lower(): name for word, name in more}
