"""Fingerprints of arrays: what tells a checkpoint from one that lies.

A flipped bit in a file may read as a number like any other, and a chunk that is
missing as zeros. The number that an array gave when it was saved does not match
then. It is made on the devices, of the parts that lie there, and no mesh
changes it: integers modulo 2**32 add up in any order.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# An odd number a dimension, so that equal values in other places count apart.
# Source: the fractions of the golden ratio and of the roots of 2, 3, 5, 7, 11,
# made odd.
_PLACES = (
  0x9E3779B1,
  0x6A09E667,
  0xBB67AE85,
  0x3C6EF373,
  0xA54FF53B,
  0x510E527F,
)
# Odd as well: multiplying by it loses nothing.
_SPREAD = 0x85EBCA6B


def of(arrays: Any) -> dict[str, int]:
  """The fingerprint of each array, 0 .. 2**32 - 1, by dotted path."""
  found = {
    jax.tree_util.keystr(path, simple=True, separator="."): _fingerprint(leaf)
    for path, leaf in jax.tree.leaves_with_path(arrays)
  }
  return {name: int(number) for name, number in jax.device_get(found).items()}


def require(arrays: Any, saved: Mapping[str, int]) -> None:
  """Nothing, where the arrays are those that gave the fingerprints.

  Raises:
    ValueError: names the first that is not.
  """
  found = of(arrays)
  for name in sorted(found.keys() | saved.keys()):
    if found.get(name) != saved.get(name):
      raise ValueError(f"{name} does not hold the numbers that were saved.")


@jax.jit
def _fingerprint(array: jax.Array) -> jax.Array:
  """uint32[]; any change of one element changes it."""
  size = array.dtype.itemsize
  bits = jax.lax.bitcast_convert_type(array, np.dtype(f"uint{8 * size}"))
  mixed = bits.astype(jnp.uint32)
  for axis in range(array.ndim):
    place = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
    mixed += place * jnp.uint32(_PLACES[axis % len(_PLACES)])
  mixed *= jnp.uint32(_SPREAD)
  mixed ^= mixed >> 15
  return jnp.sum(mixed, dtype=jnp.uint32)
