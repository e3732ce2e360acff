"""Tensors that lie in files: read one at a time, written one at a time.

A checkpoint is larger than memory. `Stored` knows where a tensor lies and reads
it when NumPy asks; `Array` knows how to make each piece of an array that is to
be written. Neither holds any numbers.
"""

from collections.abc import Callable
import dataclasses
import math
import pathlib
from typing import Any, Protocol

import numpy as np

from rcmed_jax.convert.entry import Index


class Tensor(Protocol):
  """An array, or what stands for one; `np.asarray(tensor)` gives the numbers.

  `tensor[index]` is one layer of a stacked one, and `tensor[()]` the whole.
  """

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def dtype(self) -> Any: ...

  def __getitem__(self, index: Any, /) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Stored:
  """A tensor in a file. `np.asarray(stored)` reads it, each time anew."""

  file: pathlib.Path
  offset: int  # of its first element, in bytes
  dtype: np.dtype
  shape: tuple[int, ...]
  strides: tuple[int, ...]  # from element to element along each axis, in bytes

  @property
  def span(self) -> int:
    """Bytes from its first element to the end of its last."""
    if 0 in self.shape:
      return 0
    steps = zip(self.shape, self.strides, strict=True)
    return self.dtype.itemsize + sum((size - 1) * step for size, step in steps)

  def __getitem__(self, index: Index) -> "Stored":
    """The part at an index of the leading axes, still unread."""
    skipped = zip(index, self.strides, strict=False)
    return dataclasses.replace(
      self,
      offset=self.offset + sum(place * step for place, step in skipped),
      shape=self.shape[len(index) :],
      strides=self.strides[len(index) :],
    )

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
    data = np.fromfile(self.file, np.uint8, self.span, offset=self.offset)
    if data.size < self.span:
      raise ValueError(f"{self.file} has been cut short; copy it again.")
    array = np.lib.stride_tricks.as_strided(
      data.view(self.dtype), self.shape, self.strides, writeable=False
    )
    return array if dtype is None else array.astype(dtype)


def stored(
  file: pathlib.Path, offset: int, dtype: np.dtype, shape: tuple[int, ...]
) -> Stored:
  """A tensor whose elements follow each other, the last axis first."""
  steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
  strides = tuple(step * dtype.itemsize for step in steps)
  return Stored(file, offset, dtype, shape, strides)


@dataclasses.dataclass(frozen=True)
class Array:
  """An array to be written: what gives each piece, by its leading index.

  A whole array is one piece, {(): read}; a stacked one has a piece a layer.
  """

  name: str
  dtype: np.dtype
  shape: tuple[int, ...]
  pieces: dict[Index, Callable[[], np.ndarray]]

  @property
  def nbytes(self) -> int:
    return math.prod(self.shape) * self.dtype.itemsize

  def __getitem__(self, index: Index) -> np.ndarray:
    """The piece at its leading index, made anew."""
    return self.pieces[index]()

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
    array = np.empty(self.shape, self.dtype)
    for index, read in self.pieces.items():
      array[index] = read()
    return array if dtype is None else array.astype(dtype)
