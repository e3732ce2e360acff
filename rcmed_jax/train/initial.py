"""A fresh training state with given weights in the place of its own."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import nnx
import jax
import numpy as np

from rcmed_jax.parallel import rules
from rcmed_jax.train import step as steps


def with_weights(
  state: steps.TrainState, arrays: Mapping[str, Any]
) -> steps.TrainState:
  """The state, its weights replaced by those that are given.

  What the arrays lack (new low-rank updates, correlation steps) keeps its own
  start. One array at a time is read; each takes the dtype and the place of the
  one before it.

  Args:
    state: fresh, from `steps.init_state`.
    arrays: by dotted path; read when converted by `np.asarray`.

  Raises:
    ValueError: an array has no place in the model, or another shape.
  """
  left = dict(arrays)

  def replaced(weights: steps.Arrays) -> steps.Arrays:
    flat = nnx.traversals.flatten_mapping(weights)
    for path, leaf in flat.items():
      name = ".".join(map(str, path))
      if name not in left:
        continue
      array = left.pop(name)
      if not _fits(array.shape, leaf.shape):
        raise ValueError(
          f"{name}: the weights have shape {array.shape}, the model "
          f"{leaf.shape}; give the model the sizes of its weights."
        )
      more = [(0, m - n) for n, m in zip(array.shape, leaf.shape, strict=True)]
      values = np.pad(np.asarray(array), more).astype(leaf.dtype)
      flat[path] = jax.device_put(values, leaf.sharding)
    return nnx.traversals.unflatten_mapping(flat)

  found = dataclasses.replace(
    state,
    trainable=replaced(state.trainable),
    frozen=replaced(state.frozen),
  )
  if left:
    raise ValueError(
      f"the model has no place for {', '.join(sorted(left)[:3])} and "
      f"{max(len(left) - 3, 0)} more arrays; give it the sections that its "
      "weights were made with."
    )
  return found


def _fits(shape: tuple[int, ...], held: tuple[int, ...]) -> bool:
  """Whether `held` is the shape itself, or filled up as `rules.padded` does."""
  multiple = max(rules.MULTIPLES.values())
  return len(shape) == len(held) and all(
    m in (n, n + -n % multiple) for n, m in zip(shape, held, strict=True)
  )
