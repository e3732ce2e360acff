"""A fresh training state with given weights in the place of its own."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import nnx
import jax
import numpy as np

from rcmed_jax import axes
from rcmed_jax.parallel import rules
from rcmed_jax.train import reading
from rcmed_jax.train import step as steps

# Which axis of which weights is the vocabulary, as the model names them.
_VOCABULARY = {"language.embedding": 0, "language.head.kernel": 1}


def with_weights(
  state: steps.TrainState, arrays: Mapping[str, Any]
) -> steps.TrainState:
  """The state, its weights replaced by those that are given.

  What the arrays lack (new low-rank updates, correlation steps) keeps its own
  start. One array at a time is read; each takes the dtype and the place of the
  one before it. Of another run's arrays each process reads its own parts.

  Args:
    state: fresh, from `steps.init_state`.
    arrays: by dotted path; read when converted by `np.asarray`, or `placed`.

  Raises:
    ValueError: an array has no place in the model, or another shape, or is not
      what was saved.
  """
  left = dict(arrays)

  def replaced(weights: steps.Arrays) -> steps.Arrays:
    flat = nnx.traversals.flatten_mapping(weights)
    for path, leaf in flat.items():
      name = ".".join(map(str, path))
      if name not in left:
        continue
      array = left.pop(name)
      if not _fits(name, array.shape, leaf.shape):
        raise ValueError(
          f"{name}: the weights have shape {array.shape}, the model "
          f"{leaf.shape}; give the model the sizes of its weights."
        )
      if isinstance(array, reading.Stored) and array.shape == leaf.shape:
        flat[path] = array.placed(leaf.sharding).astype(leaf.dtype)
        continue
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


def _fits(name: str, shape: tuple[int, ...], held: tuple[int, ...]) -> bool:
  """Whether `held` is the shape itself, or filled up as `rules.padded` does.

  That fills up the vocabulary alone: another axis is as long as it is.
  """
  if shape == held:
    return True
  axis = _VOCABULARY.get(name)
  if axis is None or len(shape) != len(held):
    return False
  filled = list(shape)
  filled[axis] += -shape[axis] % rules.MULTIPLES[axes.VOCAB]
  return tuple(filled) == held
