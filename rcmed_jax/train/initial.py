"""A fresh training state with given weights in the place of its own."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import nnx
import jax
import numpy as np

from rcmed_jax.train import reading
from rcmed_jax.train import step as steps


def with_weights(
  state: steps.TrainState, arrays: Mapping[str, Any], shapes: steps.Arrays
) -> steps.TrainState:
  """The state, its weights replaced by those that are given.

  What the arrays lack (new low-rank updates, correlation steps) keeps its own
  start. One array at a time is read; each takes the dtype and the place of the
  one before it. Of another run's arrays each process reads its own parts.

  Args:
    state: fresh, from `steps.init_state`.
    arrays: by dotted path; read when converted by `np.asarray`, or `placed`.
    shapes: the model's own, as `steps.Layout.weights`; an array has these, or
      those of the state, which are filled up.

  Raises:
    ValueError: an array has no place in the model, or another shape, or is not
      what was saved.
  """
  left = dict(arrays)
  own = nnx.traversals.flatten_mapping(shapes)

  def replaced(weights: steps.Arrays) -> steps.Arrays:
    flat = nnx.traversals.flatten_mapping(weights)
    for path, leaf in flat.items():
      name = ".".join(map(str, path))
      if name not in left:
        continue
      array = left.pop(name)
      if array.shape not in (own[path].shape, leaf.shape):
        raise ValueError(
          f"{name}: the weights have shape {array.shape}, the model "
          f"{own[path].shape}; give the model the sizes of its weights."
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
