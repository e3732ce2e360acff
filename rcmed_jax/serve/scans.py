"""One thing to ask about: a picture, a volume or a DICOM series.

Whatever it is, it comes as slices that a model can see, in the order of a view,
which knows the way back to the grid of the file.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import pathlib
import re
from typing import Any

import numpy as np

from rcmed_jax.data import images, modalities
from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.dicom import dicom, dicom_file, dicom_stack, privacy
from rcmed_jax.ingest.volumes import (
  geometry,
  nifti,
  nrrd_file,
  pairs,
  volumes,
  windows,
)

UNKNOWN = modalities.UNKNOWN

# Files that are no slice by their name, in small letters.
_NO_SLICE = re.compile(
  r"\..*|dicomdir|thumbs\.db|desktop\.ini|license|readme"
  r"|.*\.(?:txt|md|csv|json|xml|html?|pdf|png|jpe?g)"
)


@dataclasses.dataclass(frozen=True)
class Looking:
  """How volumes are looked at."""

  axis: str = "axial"  # slices along it: axial, coronal or sagittal
  window: str = ""  # one of windows.CHOICES; "": by what is asked for
  # As anybody writes it, kept as `modalities.normal` does; "": as the request,
  # the file or its name says.
  modality: str = ""
  # Windows of CT in which the model learnt; (): nobody knows.
  trained: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    geometry.check_axis(self.axis)
    windows.check(self.window)
    name = modalities.normal(self.modality)
    object.__setattr__(self, "modality", name)


@dataclasses.dataclass(frozen=True, eq=False)
class Scan:
  """What was opened."""

  path: pathlib.Path = dataclasses.field(repr=False)
  kind: str  # picture, nifti, nrrd or dicom
  view: geometry.View
  # uint8[I, J, 3], RGB, slice by slice; it may be called again.
  pictures: Callable[[], Iterator[np.ndarray]] = dataclasses.field(repr=False)
  # Of the voxels as the file has them; of DICOM, slices, rows and columns.
  grid: geometry.Grid | None = None  # None: nothing tells
  # Of a series, its files, and the frames of all of them from the first slice
  # to the last.
  files: tuple[pathlib.Path, ...] = dataclasses.field(default=(), repr=False)
  order: tuple[int, ...] = ()
  # Files of the folder that cannot be read: slices that the series may lack.
  faults: tuple[DataError, ...] = dataclasses.field(default=(), repr=False)
  # Of a series, what was measured, in the order of the file's axes.
  values: Callable[[], Any] | None = dataclasses.field(default=None, repr=False)
  modality: str = UNKNOWN  # as the request, file or its name says
  # Of what is no picture file, how it is shown; that takes as long as reading
  # it, unless its pictures came before.
  shown: Callable[[], windows.Shown] | None = dataclasses.field(
    default=None, repr=False
  )

  @property
  def voxel_mm3(self) -> float | None:
    """Volume of a voxel, also of a sheared grid; None where nothing tells."""
    if self.grid is None:
      return None
    return float(abs(np.linalg.det(self.grid.affine[:3, :3])))

  def doubt(self) -> str:
    """Why it may be CT that nobody called so; "" where its values are clear."""
    if self.modality != UNKNOWN or self.shown is None:
      return ""
    shown = self.shown()
    return shown.why if shown.doubtful else ""

  def some(self, wanted: set[int]) -> dict[int, np.ndarray]:
    """Slice number -> picture, of those that are wanted."""
    found = {}
    if wanted:
      for z, image_IJC in enumerate(self.pictures()):
        if z in wanted:
          found[z] = image_IJC
        if len(found) == len(wanted):
          break
    return found


def open_scan(
  path: str | pathlib.Path, text: str, looking: Looking | None = None
) -> Scan:
  """The scan of a file, or of a folder with one DICOM series.

  Args:
    text: the request, which may name the modality and asks for the window.
    looking: None: axial slices, and what the file says.

  Raises:
    DataError: there is no such file, it cannot be used, or the folder holds no
      series or several.
  """
  path = pathlib.Path(path)
  looking = looking or Looking()
  if path.is_file() and nifti.matches(path):
    return _volume("nifti", nifti.read, path, text, looking)
  if path.is_file() and nrrd_file.matches(path):
    return _volume("nrrd", nrrd_file.read, path, text, looking)
  if path.exists() and dicom.matches(path):
    return _dicom(path, text, looking)
  if path.is_dir():
    raise DataError(
      path,
      "image",
      "the folder holds no DICOM series",
      "Give a file, or the folder with --pattern to ask about all that match",
    )
  image_IJC = images.read(path)
  return Scan(
    path,
    "picture",
    geometry.View((1, *image_IJC.shape[:2]), None),
    lambda: iter([image_IJC]),
  )


def _volume(
  kind: str, read: pairs.Read, path: pathlib.Path, text: str, looking: Looking
) -> Scan:
  stored = read(path, "image")
  options = _options(looking)
  view = geometry.View.of(stored.grid, looking.axis)
  volume = volumes.Volume(
    id="volume",
    path=path,
    voxels=stored.voxels,
    view=view,
    targets=None,
    modality=looking.modality or _said(text, path.name),
    dataset="",
    license=None,
    group="",
    classes=tuple(windows.named(text)),
  )
  look = functools.cache(
    lambda: volumes.look_at(volume, options, looking.trained)
  )
  return Scan(
    path,
    kind,
    view,
    lambda: volumes.pictures(dataclasses.replace(volume, look=look()), options),
    stored.grid,
    modality=volume.modality,
    shown=lambda: look().shown,
  )


def _dicom(path: pathlib.Path, text: str, looking: Looking) -> Scan:
  options = _options(looking)
  faults: list[DataError] = []
  units = [
    unit
    for unit in dicom.open_source(path, options).units(faults.append)
    if isinstance(unit, dicom.Unit)
  ]
  if len(units) != 1:
    if not units and faults:
      raise faults[0]
    raise DataError(
      path,
      "series",
      f"expected one series, found {len(units)}",
      "Give the folder or file of one, or --pattern for files one by one",
    )
  # Masks that lie beside the series are another's answer.
  unit = dataclasses.replace(
    units[0], masks=(), modality=units[0].modality or _said(text)
  )
  headers = [dicom_file.read_header(file) for file in unit.files]
  stack = dicom_stack.stack(headers, unit.where, looking.axis)

  found: list[windows.Shown] = []

  def opened() -> volumes.Volume:
    volume = unit.open(faults.append, windows.named(text), looking.trained)
    assert volume.look is not None
    found[:] = [volume.look.shown]
    return volume

  def shown() -> windows.Shown:
    if not found:
      opened()
    return found[0]

  return Scan(
    path,
    "dicom",
    stack.view,
    lambda: volumes.pictures(opened(), options),
    stack.grid,
    tuple(file.path for file in unit.files),
    stack.order,
    _slices_lost(path, faults),
    lambda: unit.values(stack),
    unit.modality,
    shown,
  )


def _slices_lost(
  path: pathlib.Path, faults: Sequence[DataError]
) -> tuple[DataError, ...]:
  """The faults that may be of slices.

  Not those of masks, nor of what systems and people leave beside DICOM files.
  """
  named = {
    str(path) if one == path else f"{path}#{number}": one.name.lower()
    for number, one in enumerate(privacy.files(path), 1)
  }
  return tuple(
    fault
    for fault in faults
    if fault.field != "mask"
    and not _NO_SLICE.fullmatch(named.get(fault.path, ""))
  )


def _said(text: str, name: str = "") -> str:
  """What a request, or else a file's name, says was measured."""
  for found in (modalities.in_sentence(text), modalities.in_name(name)):
    if len(found) == 1:
      return found.pop()
  return UNKNOWN


def _options(looking: Looking) -> sources.Options:
  return sources.Options(
    modality=looking.modality,
    axis=looking.axis,
    unlabelled="keep",
    window=looking.window,
  )
