"""Masks of a volume: from an array of label values, or from bits."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.volumes import geometry, volumes

# Values of labels in one volume, background among them; an image has more.
MOST_VALUES = 16

_COUNTABLE = 65536  # values that are counted instead of sorted


class LabelMap:
  """Targets of an array of label values.

  Args:
    voxels: an array, or what reads its slices.
    view: of the labels, whose slices are those of the image.
    classes: see `volumes.Classes`.
    path: for faults.
    faults: takes the one of values that have no name.

  Raises:
    DataError: values are no whole numbers, or none of them has a name.
  """

  def __init__(
    self,
    voxels: Any,
    view: geometry.View,
    classes: volumes.Classes,
    path: object,
    faults: sources.Faults,
  ):
    self._voxels = voxels
    self._view = view
    self._path = path
    self._classes = classes
    self._values_Z = [self._values(z) for z in range(view.shape[0])]
    self._check_names(faults)

  def on(self, z: int) -> dict[str, np.ndarray]:
    """See `volumes.Targets`."""
    present = self._values_Z[z]
    if not present:
      return {}
    values_IJ = self._view.picture(self._voxels, z)
    masks = {}
    for name, wanted in self._classes:
      here = present if wanted is None else present & set(wanted)
      if here:
        masks[name] = np.isin(values_IJ, list(here))
    return masks

  def _values(self, z: int) -> frozenset[int]:
    """Values other than 0 on a slice."""
    values = self._view.picture(self._voxels, z).ravel()
    if values.dtype.kind not in "iub":
      whole = values.dtype.kind == "f" and np.isfinite(values).all()
      if not whole or (np.rint(values) != values).any():
        raise DataError(
          self._path,
          "labels",
          "its values are no whole numbers",
          "Give a label map; binarise probabilities first",
        )
      values = values.astype(np.int64)
    if values.dtype.kind == "b" or (
      values.min() >= 0 and values.max() < _COUNTABLE
    ):
      found = np.flatnonzero(np.bincount(values.astype(np.int64)))
    else:
      found = np.unique(values)
    return frozenset(int(value) for value in found if value)

  def _check_names(self, faults: sources.Faults) -> None:
    present = frozenset().union(*self._values_Z)
    named = set()
    for _, values in self._classes:
      named |= present if values is None else set(values)
    unnamed = sorted(present - named)
    if not unnamed:
      return
    told = ", ".join(map(str, unnamed[:10])) + (
      f" and {len(unnamed) - 10} more" if len(unnamed) > 10 else ""
    )
    error = DataError(
      self._path,
      "labels",
      f"nothing names the value{'s' * (len(unnamed) > 1)} {told}",
      f'Say --label "{unnamed[0]}=NAME" for each, or name them in dataset.json',
    )
    if not present & named:
      raise error
    faults(error)


class Files:
  """Targets of files that hold one class each, packed slice by slice."""

  def __init__(self):
    self._packed: dict[str, dict[int, np.ndarray]] = {}
    self._columns = 0

  def add(self, name: str, voxels: Any, view: geometry.View) -> None:
    """The mask of one more class: all that is not 0."""
    slices = self._packed.setdefault(name, {})
    self._columns = view.shape[2]
    for z in range(view.shape[0]):
      mask_IJ = view.picture(voxels, z) != 0
      if mask_IJ.any():
        slices[z] = np.packbits(mask_IJ, axis=1)

  def on(self, z: int) -> dict[str, np.ndarray]:
    """See `volumes.Targets`."""
    return {
      name: np.unpackbits(slices[z], axis=1, count=self._columns).view(bool)
      for name, slices in self._packed.items()
      if z in slices
    }


def few_values(
  voxels: Any, view: geometry.View, most: int = MOST_VALUES
) -> bool:
  """Whether a volume holds so few small whole numbers that it is of labels."""
  seen: set[float] = set()
  for z in range(view.shape[0]):
    values = np.unique(view.picture(voxels, z))
    if len(values) > most:
      return False
    seen.update(values.ravel().tolist())
    if len(seen) > most:
      return False
  return all(0 <= value < 256 and value == int(value) for value in seen)


class Planes:
  """Targets that may overlap, as bits of one array: class g is bit g.

  Args:
    bits_ZIJ: unsigned integers on the image's own grid.
    view: of the image.
    names: of the bits.
  """

  def __init__(
    self, bits_ZIJ: np.ndarray, view: geometry.View, names: Sequence[str]
  ):
    self._bits_ZIJ = bits_ZIJ
    self._view = view
    self.names = tuple(names)

  def on(self, z: int) -> dict[str, np.ndarray]:
    """See `volumes.Targets`."""
    bits_IJ = self._view.picture(self._bits_ZIJ, z)
    masks = {}
    for g, name in enumerate(self.names):
      mask_IJ = (bits_IJ & bits_IJ.dtype.type(1 << g)) != 0
      if mask_IJ.any():
        masks[name] = mask_IJ
    return masks
