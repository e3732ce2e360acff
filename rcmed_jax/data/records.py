"""One sample: where it lies, and what it holds once read."""

from collections.abc import Callable
import dataclasses

import numpy as np

from rcmed_jax.data import images
from rcmed_jax.data.checks import DataError

__all__ = ["DataError", "Record", "Triplet", "load"]


@dataclasses.dataclass(frozen=True)
class Record:
  """Where a sample lies; nothing is decoded yet."""

  image: str  # absolute path of the image file
  id: str  # path as the index writes it: the record's name in every output
  masks: tuple[tuple[str, str], ...]  # (absolute path, class name with spaces)
  modality: str  # in words, "computed tomography"
  dataset: str  # second part of <modality>--<dataset>--<rest>.png
  description: str | None = None

  @property
  def classes(self) -> tuple[str, ...]:
    """Class names in the order of their first appearance."""
    return tuple(dict.fromkeys(name for _, name in self.masks))


@dataclasses.dataclass(frozen=True)
class Triplet:
  """Image, masks and description, decoded."""

  id: str
  image_IJC: np.ndarray  # uint8, RGB
  masks_GIJ: np.ndarray  # bool, one per class, masks of one class merged
  classes: tuple[str, ...]  # G names
  modality: str
  description: str | None
  spacing_mm: tuple[float, float] | None  # rows, columns; None: unknown
  source: str  # the dataset
  license: str | None


def load(
  record: Record, on_fault: Callable[[DataError], None] | None = None
) -> Triplet:
  """Reads a record's image and masks.

  Args:
    on_fault: takes the error of a mask that cannot be used; the triplet then
      lacks its class, also where other masks of that class are sound, since
      part of a reference is a wrong one. None: the error is raised.

  Raises:
    DataError: the image cannot be used; or a mask, where `on_fault` is None.
  """
  image_IJC = images.read(record.image)
  merged: dict[str, np.ndarray] = {}
  faulty: set[str] = set()
  for path, name in record.masks:
    try:
      mask_IJ = images.read_mask(path, image_IJC.shape[:2])
    except DataError as error:
      if on_fault is None:
        raise
      on_fault(error)
      faulty.add(name)
      continue
    merged[name] = merged[name] | mask_IJ if name in merged else mask_IJ
  classes = tuple(name for name in merged if name not in faulty)
  masks_GIJ = np.array([merged[name] for name in classes], bool)
  return Triplet(
    id=record.id,
    image_IJC=image_IJC,
    masks_GIJ=masks_GIJ.reshape(len(classes), *image_IJC.shape[:2]),
    classes=classes,
    modality=record.modality,
    description=record.description,
    spacing_mm=None,  # PNG and JPEG carry none
    source=record.dataset,
    license=None,
  )
