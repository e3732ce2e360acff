"""DICOM files: series and single pictures, with the masks that go with them.

A folder's files are sorted by what they say, not by their names: images into
series, segmentations (`dicom_seg`) and structure sets (`dicom_rtstruct`) to the
series that they refer to. Images that say where they lie in a patient make one
volume a series; others, such as radiographs and ultrasound, are pictures of
their own, every frame one. Every file is part of a unit or a fault.

What identifies a patient stays in the files: see `privacy`.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import math
import os
import pathlib
from typing import Any

import numpy as np

from rcmed_jax.data import modalities
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Triplet
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.dicom import (
  dicom_file,
  dicom_header,
  dicom_masks,
  dicom_pixels,
  dicom_stack,
  privacy,
)
from rcmed_jax.ingest.volumes import geometry, label_map, volumes, windows

Known = tuple[dicom_file.File, dicom_header.Header]

# Files of a folder that are looked into to tell whether it is one of DICOM.
_LOOKED_INTO = 20


def matches(path: pathlib.Path) -> bool:
  """Whether it is a DICOM file, or a folder with one among its first files."""
  if path.is_file():
    return dicom_file.is_dicom(path)
  seen = 0
  for folder, folders, names in os.walk(path):
    folders.sort()
    for name in sorted(names):
      if dicom_file.is_dicom(pathlib.Path(folder) / name):
        return True
      seen += 1
      if seen >= _LOOKED_INTO:
        return False
  return False


def open_source(path: pathlib.Path, options: sources.Options) -> sources.Source:
  """The series and pictures of a file or folder.

  Without a key in the options, pseudonyms are made with a new random one, and
  agree with those of no other source and no other run.
  """
  return Source(pathlib.Path(path), privacy.with_key(options))


@dataclasses.dataclass(frozen=True)
class Source:
  """Files below a folder, or one file.

  Raises:
    ValueError: an option is not one of its choices.
  """

  root: pathlib.Path
  options: sources.Options = dataclasses.field(repr=False)

  def __post_init__(self) -> None:
    geometry.check_axis(self.options.axis)
    windows.check(self.options.window)

  def units(self, faults: sources.Faults) -> Iterator["Unit"]:
    """See `sources.Source`. All headers are read before the first comes."""
    paths = privacy.files(self.root)
    if not paths:
      raise DataError(
        self.root, "source", "it is an empty folder", "Give one of DICOM files"
      )
    images: dict[tuple[str, ...], list[Known]] = {}
    masks: list[Known] = []
    for number, path in enumerate(paths, 1):
      file = dicom_file.File(
        path, privacy.place(self.options, self.root, path, number)
      )
      try:
        header = dicom_file.read_header(file)
      except DataError as error:
        faults(error)
        continue
      if header.kind != "image":
        masks.append((file, header))
        continue
      # Of a volume, the series; a picture stands alone.
      alone = not header.planes or header.frames > 1 or not header.series
      key = (header.series, str(number)) if alone else (header.series,)
      images.setdefault(key, []).append((file, header))
    given = _assign(list(images.values()), masks, faults)
    known: set[str] = set()
    for number, members in enumerate(images.values()):
      unit = self._unit(members, given[number])
      if unit.id in known:
        faults(
          DataError(
            unit.where,
            "image",
            "another file here says to be the same image",
            "Leave one of them out",
          )
        )
        continue
      known.add(unit.id)
      yield unit

  def _unit(
    self,
    members: Sequence[Known],
    masks: Sequence[dicom_file.File],
  ) -> "Unit":
    file, header = members[0]
    root = pathlib.Path(os.path.abspath(self.root))
    named = ("series", header.series)
    if not header.planes or header.frames > 1:
      named = ("image", header.sop)
    if not named[1]:
      named = ("file", file.where)
    person = ("patient", header.patient)
    if not header.patient:
      person = ("study", header.study) if header.study else named
    modality = modalities.DICOM.get(header.modality, "")
    return Unit(
      id=privacy.pseudonym(self.options, *named),
      group=privacy.pseudonym(self.options, *person),
      files=tuple(file for file, _ in members),
      masks=tuple(masks),
      modality=self.options.modality or modality,
      dataset=self.options.dataset
      or (root.parent if root.is_file() else root).name,
      options=self.options,
    )


@dataclasses.dataclass(frozen=True)
class Unit:
  """One series, or one file of pictures."""

  id: str
  group: str
  files: tuple[dicom_file.File, ...]
  masks: tuple[dicom_file.File, ...]
  modality: str
  dataset: str
  options: sources.Options = dataclasses.field(repr=False)

  def triplets(self, faults: sources.Faults) -> Iterator[Triplet]:
    """See `sources.Unit`."""
    try:
      volume = self.open(faults)
      yield from volumes.triplets(volume, self.options, faults)
    except DataError as error:
      faults(error)

  @property
  def where(self) -> str:
    """How faults name it: by its first file."""
    return self.files[0].where

  def values(self, stack: dicom_stack.Stack) -> Any:
    """Measured values, or uint8 colours, in the order of a stack of its frames.

    Raises:
      DataError: they cannot be read.
    """
    headers = [dicom_file.read_header(file) for file in self.files]
    return privacy.attempt(
      self.where,
      "image",
      "it cannot be read",
      "Get the files again, or leave them out",
      lambda: self._pixels(headers, stack)[0],
    )

  def open(
    self,
    faults: sources.Faults,
    asked: Sequence[str] = (),
    trained: Sequence[str] = (),
  ) -> volumes.Volume:
    """The volume, with how it is shown.

    Args:
      faults: takes those of masks.
      asked: classes by which it is shown where it has no masks.
      trained: see `windows.decide`.

    Raises:
      DataError: it cannot be read, or lacks what the options ask for.
    """
    return privacy.attempt(
      self.where,
      "image",
      "it cannot be read",
      "Get the files again, or leave them out",
      lambda: self._open(faults, asked, trained),
    )

  def _open(
    self,
    faults: sources.Faults,
    asked: Sequence[str],
    trained: Sequence[str],
  ) -> volumes.Volume:
    if not self.modality:
      raise DataError(
        self.where,
        "modality",
        "the file says of no known one that it is its own",
        'Say it, for example --modality "X-Ray"',
      )
    if not self.masks and self.options.unlabelled == "drop":
      raise DataError(
        self.where,
        "labels",
        "no segmentation or structure set here is of this series",
        "Add it, or say --unlabelled keep if none of the classes is in it",
      )
    headers = [dicom_file.read_header(file) for file in self.files]
    stack = dicom_stack.stack(headers, self.where, self.options.axis)
    voxels, frames = self._pixels(headers, stack)
    targets = self._targets(stack, faults) if self.masks else None
    volume = volumes.Volume(
      id=self.id,
      path=self.where,
      voxels=voxels,
      view=stack.view,
      targets=targets,
      modality=self.modality,
      dataset=self.dataset,
      license=self.options.license or None,
      group=self.group,
      classes=targets.names if targets else tuple(asked),
      letter="" if stack.grid else "f",
    )
    look = _look(frames, volume, self.options, trained)
    if headers[0].photometric == dicom_pixels.INVERTED:
      look = volumes.Look(look.shown, _inverted(look.paint))
    return dataclasses.replace(volume, look=look)

  def _pixels(
    self,
    headers: Sequence[dicom_header.Header],
    stack: dicom_stack.Stack,
  ) -> tuple[Any, np.ndarray]:
    """Values in the order of the stack, and the same as stored."""
    place = {frame: z for z, frame in enumerate(stack.order)}
    depth = len(stack.order)
    stored: np.ndarray | None = None
    slope_Z, intercept_Z = np.ones(depth), np.zeros(depth)
    done = 0
    for file, header in zip(self.files, headers, strict=True):
      frames = dicom_file.read_frames(file, header)
      if stored is None:
        shape = (depth, *frames.stored.shape[1:])
        _check_total(self.where, shape, frames.stored.dtype)
        stored = np.zeros(shape, frames.stored.dtype)
      if frames.stored.shape[1:] != stored.shape[1:]:
        raise DataError(
          self.where,
          "series",
          "some of its slices are grey and some are in colour",
          "Sort it into two series",
        )
      kind = np.promote_types(stored.dtype, frames.stored.dtype)
      stored = stored.astype(kind, copy=False)
      for number in range(header.frames):
        z = place[done + number]
        stored[z] = frames.stored[number]
        slope_Z[z] = frames.slope_Z[number]
        intercept_Z[z] = frames.intercept_Z[number]
      done += header.frames
    if stored is None:
      raise DataError(self.where, "image", "it is empty", "Leave it out")
    if (slope_Z == 1).all() and (intercept_Z == 0).all():
      return stored, stored
    scaled = volumes.Scaled(
      stored, slope_Z[:, None, None], intercept_Z[:, None, None]
    )
    return scaled, stored

  def _targets(
    self, stack: dicom_stack.Stack, faults: sources.Faults
  ) -> label_map.Planes:
    found: list[dicom_masks.Reader] = []
    for file in self.masks:
      try:
        found.append(
          dicom_file.read_masks(file, assume_same=self.options.assume_same_grid)
        )
      except DataError as error:
        faults(error)
    return dicom_masks.combine(found, stack, self.where, faults)


def _assign(
  images: Sequence[Sequence[Known]],
  masks: Sequence[Known],
  faults: sources.Faults,
) -> list[list[dicom_file.File]]:
  """The mask files of each unit.

  By the images that they refer to, or else the series, or else the frame of
  reference, if it is that of one series alone.
  """
  given: list[list[dicom_file.File]] = [[] for _ in images]
  # What a mask may refer to -> the units that are meant.
  by: list[dict[str, set[int]]] = [{}, {}, {}]
  for number, members in enumerate(images):
    for _, header in members:
      for table, uid in zip(
        by, (header.sop, header.series, header.frame_of_reference), strict=True
      ):
        if uid:
          table.setdefault(uid, set()).add(number)
  for file, header in masks:
    found: set[int] = set()
    for uids, table in ((header.images, by[0]), (header.of_series, by[1])):
      found = found or set().union(*(table.get(uid, ()) for uid in uids))
    same_frame = by[2].get(header.frame_of_reference, set())
    if not found and len(same_frame) == 1:
      found = same_frame
    for number in sorted(found):
      given[number].append(file)
    if not found:
      faults(
        DataError(
          file.where,
          "mask",
          "the images that it is of are not here",
          "Put them beside it",
        )
      )
  return given


def _look(
  stored: np.ndarray,
  volume: volumes.Volume,
  options: sources.Options,
  trained: Sequence[str],
) -> volumes.Look:
  """See `volumes.Volume`."""
  if stored.ndim == 4:
    return volumes.as_stored(
      volume.modality, "it is in colour", lambda values_IJC: values_IJC
    )
  if stored.dtype == np.uint8 and volume.voxels is stored:
    return volumes.as_stored(
      volume.modality,
      "eight bits without a scale are made to be looked at",
      windows.colours,
    )
  return volumes.look_at(volume, options, trained)


def _inverted(paint: windows.Paint) -> windows.Paint:
  return lambda values_IJ: 255 - paint(values_IJ)


def _check_total(where: str, shape: Sequence[int], dtype: np.dtype) -> None:
  needed = math.prod(shape) * dtype.itemsize
  if needed > volumes.MAX_BYTES:
    raise DataError(
      where,
      "series",
      f"its {shape[0]} slices take {needed / 1e6:,.0f} MB, and at most "
      f"{volumes.MAX_BYTES / 1e6:,.0f} are held",
      "Cut it into parts",
    )
