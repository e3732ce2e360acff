"""Run-length masks of COCO: lengths of runs, down the columns, zeros first."""

from collections.abc import Sequence

import numpy as np

# One sign of the text holds five bits of a number and whether more follow.
FIRST_SIGN = 48
BITS, MORE, NEGATIVE = 5, 0x20, 0x10
# Enough for any length; a longer number is an accident.
MOST_SIGNS = 7


def decode(runs: Sequence[int], shape: tuple[int, int]) -> np.ndarray:
  """bool[I, J] of the lengths of its runs.

  Raises:
    ValueError: they are no lengths, or their sum is not the number of pixels.
  """
  pixels = shape[0] * shape[1]
  # Added up as Python's numbers, which do not overflow.
  if not all(type(run) is int and 0 <= run <= pixels for run in runs):
    raise ValueError("its runs are no lengths within the image")
  if sum(runs) != pixels:
    raise ValueError(f"its runs are {sum(runs)} pixels, the image has {pixels}")
  values = np.arange(len(runs)) % 2 == 1
  return np.repeat(values, runs).reshape(shape[1], shape[0]).T


def runs_of(text: str) -> list[int]:
  """The lengths that a compressed text stands for.

  Five bits a sign, the least first; from the fourth number on, each is the
  difference to the one two before.
  Source: the comments of rleToString in COCO's maskApi.c.

  Raises:
    ValueError: it is no such text.
  """
  runs: list[int] = []
  number = shift = 0
  for sign in text:
    code = ord(sign) - FIRST_SIGN
    if not 0 <= code < 2 * MORE or shift >= BITS * MOST_SIGNS:
      raise ValueError(f"{sign!r} stands for nothing there")
    number |= (code & (MORE - 1)) << shift
    shift += BITS
    if code & MORE:
      continue
    if code & NEGATIVE:
      number -= 1 << shift
    runs.append(number + (runs[-2] if len(runs) > 2 else 0))
    number = shift = 0
  if shift:
    raise ValueError("it breaks off within a number")
  return runs
