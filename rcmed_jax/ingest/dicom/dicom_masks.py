"""Masks of DICOM files, put together on the slices of their series.

A segmentation or a structure set gives pieces: a class, a slice, a mask. Where
one piece of a class cannot be placed, the class is left out of the series, as
part of a reference is a wrong one.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import math
from typing import Protocol

import numpy as np

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.dicom import dicom_stack
from rcmed_jax.ingest.volumes import label_map, volumes

_MOST_CLASSES = 64  # bits of the largest integer


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Piece:
  """A class on a slice; or why there is none."""

  name: str
  z: int  # slice of the stack, as stored
  mask_IJ: np.ndarray | None
  error: DataError | None = None


class Reader(Protocol):
  """A file with masks that is open."""

  @property
  def names(self) -> tuple[str, ...]:
    """Classes that it may hold."""
    ...

  def pieces(self, stack: dicom_stack.Stack) -> Iterator[Piece]:
    """Its masks on the slices of a series."""
    ...


def combine(
  readers: Sequence[Reader],
  stack: dicom_stack.Stack,
  where: str,
  faults: sources.Faults,
) -> label_map.Planes:
  """The targets of a series. Pieces of one class are added.

  Raises:
    DataError: there are too many classes for its size.
  """
  names = tuple(dict.fromkeys(n for reader in readers for n in reader.names))
  shape = _shape(stack)
  bits = next((b for b in (8, 16, 32, 64) if b >= len(names)), 0)
  if not bits or math.prod(shape) * bits // 8 > volumes.MAX_BYTES:
    raise DataError(
      where,
      "mask",
      f"it has {len(names)} classes on {shape[0]} slices of {shape[1]} x "
      f"{shape[2]}; at most {_MOST_CLASSES}, in "
      f"{volumes.MAX_BYTES / 1e6:,.0f} MB of bits, are held",
      "Cut the series into parts, or leave masks out",
    )
  bits_ZIJ = np.zeros(shape, f"u{bits // 8}")
  faulty: set[str] = set()
  for reader in readers:
    try:
      for piece in reader.pieces(stack):
        if piece.error is not None and piece.name not in faulty:
          faulty.add(piece.name)
          faults(piece.error)
        elif piece.mask_IJ is not None:
          bit = bits_ZIJ.dtype.type(1 << names.index(piece.name))
          bits_ZIJ[piece.z][piece.mask_IJ] |= bit
    except DataError as error:
      faulty |= set(reader.names)
      faults(error)
  for name in faulty:
    bits_ZIJ &= ~bits_ZIJ.dtype.type(1 << names.index(name))
  return label_map.Planes(bits_ZIJ, stack.view, names)


def _shape(stack: dicom_stack.Stack) -> tuple[int, int, int]:
  """Slices, rows and columns as stored."""
  if stack.grid is not None:
    return stack.grid.shape
  return stack.view.shape
