"""A volume, answered slice by slice, as masks on the grid of its file."""

import collections
from collections.abc import Callable, Iterator
import dataclasses
import math
import time
from typing import Protocol

import numpy as np

from rcmed_jax.data import prompts
from rcmed_jax.serve import assistant as assistants
from rcmed_jax.serve import cleanup as cleaning
from rcmed_jax.serve import mask_memory
from rcmed_jax.serve.scans import UNKNOWN, Scan

# Masks in memory at once, where it is not one: a DICOM segmentation stacks all
# of them once more.
_COPIES = {"dicom": 2}


class Answering(Protocol):
  """What of an `Assistant` is used here."""

  def stream(
    self, questions: Iterator[assistants.Question], *, ahead: int = 1
  ) -> Iterator[tuple[int, assistants.Answer]]:
    """(number, answer) of every question."""
    ...


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
  """One class in a volume. Voxels are counted on the grid of the file."""

  name: str
  present: bool
  mask: np.ndarray | None  # bool, in the order of the file's axes
  # First voxel on each axis, then the one behind the last.
  box: tuple[tuple[int, ...], tuple[int, ...]] | None
  confidence: float  # 0..1, mean over slices, each as often as it has voxels
  ml: float | None  # None: absent, or nothing tells the size of a voxel
  shown: int | None  # slice of the view that shows most of it


@dataclasses.dataclass(frozen=True, eq=False)
class VolumeAnswer:
  """What comes back for a volume."""

  text: str  # an answer as of one image, with all that any slice shows
  modality: str | None  # what most slices say
  targets: tuple[Target, ...]
  said: tuple[tuple[str, int], ...]  # texts and how many slices said so
  slices: int
  seconds: float  # for all of them, pictures included
  # Of these, until the first was answered. A process that answers for the first
  # time compiles first.
  first_seconds: float = 0.0


class _Gathered:
  """What slices have said so far."""

  def __init__(self, scan: Scan, take: mask_memory.Take):
    self._shape = scan.view.shape
    self._bytes = math.prod(self._shape) * _COPIES.get(scan.kind, 1)
    self._take = take
    self.masks: dict[str, np.ndarray] = {}
    self.confidence: collections.Counter[str] = collections.Counter()
    self.voxels: collections.Counter[str] = collections.Counter()
    self.names: dict[str, None] = {}  # a set that keeps its order
    self.texts: collections.Counter[str] = collections.Counter()
    self.modalities: collections.Counter[str] = collections.Counter()

  def add(self, z: int, answer: assistants.Answer) -> None:
    self.texts[answer.text] += 1
    if answer.modality:
      self.modalities[answer.modality] += 1
    for found in answer.targets:
      name = found.name
      self.names.setdefault(name)
      if not found.present or found.mask_IJ is None:
        continue
      if name not in self.masks:
        self._take(self._bytes)
        self.masks[name] = np.zeros(self._shape, bool)
      self.masks[name][z] |= found.mask_IJ
      size = int(found.mask_IJ.sum())
      self.confidence[name] += size * found.confidence  # pyright: ignore
      self.voxels[name] += size


def answer(
  assistant: Answering,
  scan: Scan,
  text: str,
  *,
  describe: bool = False,
  cleanup: cleaning.Cleanup | None = None,
  on_slice: Callable[[], None] = lambda: None,
  take: mask_memory.Take = mask_memory.unbounded,
) -> VolumeAnswer:
  """The answer to one request about all slices of a scan.

  Classes may overlap: each has a mask of its own. Nothing is resampled: masks
  are turned back as the view turned the slices.

  Args:
    cleanup: None: masks stay as the slices gave them.
    on_slice: called after each.
    take: sets memory aside for the mask of each class that is seen.

  Raises:
    DataError: the scan cannot be read to its end.
    ValueError: as `Assistant.stream`, `cleanup.clean` and `take`.
    FullError: as `take`.
  """
  start = time.monotonic()
  gathered = _Gathered(scan, take)
  questions = (
    assistants.Question(image_IJC, text, describe)
    for image_IJC in scan.pictures()
  )
  first_seconds = 0.0
  for z, one in assistant.stream(questions):
    first_seconds = first_seconds or time.monotonic() - start
    gathered.add(z, one)
    on_slice()
  seconds = time.monotonic() - start
  targets = tuple(
    _target(name, gathered, scan, cleanup or cleaning.Cleanup())
    for name in gathered.names
  )
  modality = next(
    (name for name, _ in gathered.modalities.most_common(1)), None
  )
  return VolumeAnswer(
    text=prompts.answer(
      modality or UNKNOWN,
      [target.name for target in targets if target.present],
      [target.name for target in targets if not target.present],
    ).removesuffix("</s>"),
    modality=modality,
    targets=targets,
    said=tuple(gathered.texts.most_common()),
    slices=scan.view.shape[0],
    seconds=seconds,
    first_seconds=first_seconds,
  )


def label_map(targets: tuple[Target, ...]) -> np.ndarray | None:
  """Voxels as numbers of targets, from 1 on; None where targets overlap.

  uint8, or uint16 of more than 255 targets. None also where none is present.
  """
  labels = None
  for number, target in enumerate(targets, 1):
    if target.mask is None:
      continue
    if labels is None:
      kind = np.uint8 if len(targets) <= 255 else np.uint16
      labels = np.zeros(target.mask.shape, kind)
    if labels[target.mask].any():
      return None
    labels[target.mask] = number
  return labels


def _target(
  name: str, gathered: _Gathered, scan: Scan, cleanup: cleaning.Cleanup
) -> Target:
  absent = Target(name, False, None, None, 0.0, None, None)
  if name not in gathered.masks:
    return absent
  mask_ZIJ = cleaning.clean(gathered.masks[name], scan.voxel_mm3, cleanup)
  gathered.masks[name] = mask_ZIJ  # frees what it was before
  if not mask_ZIJ.any():
    return absent
  mask = scan.view.restore(mask_ZIJ)
  ml = None
  if scan.voxel_mm3 is not None:
    ml = int(mask.sum()) * scan.voxel_mm3 / 1000
  return Target(
    name=name,
    present=True,
    mask=mask,
    box=_box(mask),
    confidence=gathered.confidence[name] / gathered.voxels[name],
    ml=ml,
    shown=int(mask_ZIJ.sum((1, 2)).argmax()),
  )


def _box(mask: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
  first, last = [], []
  for axis in range(3):
    others = tuple(other for other in range(3) if other != axis)
    there = np.flatnonzero(mask.any(others))
    first.append(int(there[0]))
    last.append(int(there[-1]) + 1)
  return tuple(first), tuple(last)
