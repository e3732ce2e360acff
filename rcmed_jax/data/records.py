"""One sample: what is known of it before it is read, and what it then holds."""

import collections
from collections.abc import Callable, Mapping
import dataclasses
from typing import Protocol

import numpy as np

from rcmed_jax.data import images
from rcmed_jax.data.checks import DataError

__all__ = ["DataError", "Record", "Sample", "Triplet"]


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
  # Of a volume, what its grey values were shown in; see `ingest/volumes`.
  window: str | None = None
  # What must not lie on both sides of a split: a patient, a volume. A
  # pseudonym; None: the image stands for itself.
  group: str | None = None
  # Class -> int32[I, J], of classes with several masks: 1, 2... in their order,
  # 0 outside. Where two lie on one another the first has the pixel.
  instances: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


class Sample(Protocol):
  """What is known of a triplet before anything is decoded."""

  @property
  def id(self) -> str:
    """Its name in every output."""
    ...

  @property
  def classes(self) -> tuple[str, ...]:
    """Names with spaces, each once, in the order of their masks."""
    ...

  @property
  def modality(self) -> str:
    """In words, "computed tomography"."""
    ...

  @property
  def dataset(self) -> str:
    """Where it comes from."""
    ...

  @property
  def description(self) -> str | None:
    """What a describer wrote of it."""
    ...

  @property
  def files(self) -> tuple[str, ...]:
    """Paths of all files that it is read from."""
    ...

  def load(
    self, on_fault: Callable[[DataError], None] | None = None
  ) -> Triplet:
    """Reads and decodes it.

    Args:
      on_fault: takes the error of a mask that cannot be used; the triplet then
        lacks its class, also where other masks of that class are sound, since
        part of a reference is a wrong one. None: the error is raised.

    Raises:
      DataError: the image cannot be used; or a mask, where `on_fault` is None.
    """
    ...


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
  """A sample in loose files, as an index names them."""

  image: str  # absolute path of the image file
  id: str  # path as the index writes it
  masks: tuple[tuple[str, str], ...]  # (absolute path, class name with spaces)
  modality: str  # in words, "computed tomography"
  dataset: str  # second part of <modality>--<dataset>--<rest>.png
  description: str | None = None

  @property
  def classes(self) -> tuple[str, ...]:
    """Class names in the order of their first appearance."""
    return tuple(dict.fromkeys(name for _, name in self.masks))

  @property
  def files(self) -> tuple[str, ...]:
    """The image's and the masks'."""
    return self.image, *(path for path, _ in self.masks)

  def load(
    self, on_fault: Callable[[DataError], None] | None = None
  ) -> Triplet:
    """Reads the image and masks; see `Sample`."""
    image_IJC = images.read(self.image)
    merged: dict[str, np.ndarray] = {}
    instances: dict[str, np.ndarray] = {}
    counted: collections.Counter[str] = collections.Counter()
    faulty: set[str] = set()
    for path, name in self.masks:
      try:
        mask_IJ = images.read_mask(path, image_IJC.shape[:2])
      except DataError as error:
        if on_fault is None:
          raise
        on_fault(error)
        faulty.add(name)
        continue
      if name not in merged:
        merged[name] = mask_IJ
        continue
      if name not in instances:
        instances[name] = merged[name].astype(np.int32)
      counted[name] += 1
      instances[name][mask_IJ & ~merged[name]] = counted[name] + 1
      merged[name] = merged[name] | mask_IJ
    classes = tuple(name for name in merged if name not in faulty)
    masks_GIJ = np.array([merged[name] for name in classes], bool)
    return Triplet(
      id=self.id,
      image_IJC=image_IJC,
      masks_GIJ=masks_GIJ.reshape(len(classes), *image_IJC.shape[:2]),
      classes=classes,
      modality=self.modality,
      description=self.description,
      spacing_mm=None,  # PNG and JPEG carry none
      source=self.dataset,
      license=None,
      instances={
        name: instances[name] for name in classes if name in instances
      },
    )
