"""One thing to ask about: a picture, a volume or a DICOM series.

Whatever it is, it comes as slices that a model can see, in the order of a view,
which knows the way back to the grid of the file.
"""

from collections.abc import Callable, Iterator
import dataclasses
import pathlib
import re
from typing import Any

import numpy as np

from rcmed_jax.data import images, readers
from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.dicom import dicom, dicom_file, dicom_stack
from rcmed_jax.ingest.volumes import (
  geometry,
  nifti,
  nrrd_file,
  pairs,
  volumes,
  windows,
)

# Where neither file, name nor request says what was measured. Such a volume
# goes by its percentiles.
UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Looking:
  """How volumes are looked at."""

  axis: str = "axial"  # slices along it: axial, coronal or sagittal
  window: str = ""  # one of windows.CT; "": by what is asked for
  modality: str = ""  # in words; "": as the file or the request says

  def __post_init__(self) -> None:
    geometry.check_axis(self.axis)
    windows.check(self.window)


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
  # Files beside the series that are none of it, or cannot be read.
  faults: tuple[DataError, ...] = dataclasses.field(default=(), repr=False)
  # Of a series, what was measured, in the order of the file's axes.
  values: Callable[[], Any] | None = dataclasses.field(default=None, repr=False)

  @property
  def voxel_mm3(self) -> float | None:
    """Volume of a voxel, also of a sheared grid; None where nothing tells."""
    if self.grid is None:
      return None
    return float(abs(np.linalg.det(self.grid.affine[:3, :3])))

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
    text: the request, which may name the modality and decides the window.
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
  options = _options(looking, text)
  if not options.modality:
    try:
      modality = volumes.modality(path, (path.name, text), options)
    except DataError:
      modality = UNKNOWN
    options = dataclasses.replace(options, modality=modality)
  view = geometry.View.of(stored.grid, looking.axis)
  volume = volumes.Volume(
    id="volume",
    path=path,
    voxels=stored.voxels,
    view=view,
    targets=None,
    modality=options.modality,
    dataset="",
    license=None,
    group="",
  )
  return Scan(
    path,
    kind,
    view,
    lambda: _shown(
      lambda faults: volumes.triplets(volume, options, faults),
      view.shape[0],
      path,
    ),
    stored.grid,
  )


def _dicom(path: pathlib.Path, text: str, looking: Looking) -> Scan:
  options = _options(looking, text)
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
    units[0], masks=(), modality=units[0].modality or UNKNOWN
  )
  headers = [dicom_file.read_header(file) for file in unit.files]
  stack = dicom_stack.stack(headers, unit.where, looking.axis)
  return Scan(
    path,
    "dicom",
    stack.view,
    lambda: _shown(unit.triplets, stack.view.shape[0], unit.where),
    stack.grid,
    tuple(file.path for file in unit.files),
    stack.order,
    tuple(faults),
    lambda: unit.values(stack),
  )


def _options(looking: Looking, text: str) -> sources.Options:
  """A window that is asked for says that it is of Hounsfield units."""
  modality = looking.modality
  if looking.window and not modality:
    modality = readers.MODALITIES["ct"]
  # What is asked for stands between commas and "and": each has its window.
  parts = re.split(r"[,;]|\band\b", text)
  return sources.Options(
    modality=modality,
    axis=looking.axis,
    empty_slices="keep",
    window=looking.window or windows.choose(parts),
  )


def _shown(
  triplets: Callable[[sources.Faults], Iterator],
  depth: int,
  where: object,
) -> Iterator[np.ndarray]:
  """The pictures of all slices.

  Raises:
    DataError: they are not all there.
  """
  faults: list[DataError] = []
  count = 0
  for triplet in triplets(faults.append):
    count += 1
    yield triplet.image_IJC
  if count != depth:
    raise (
      faults[0]
      if faults
      else DataError(
        where, "image", f"{count} of {depth} slices came", "Get it again"
      )
    )
