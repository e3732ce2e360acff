"""A running average of the weights that train.

After step n, of weights w_1 .. w_n and with decay d,

  average = (1 - d) sum_i d**(n - i) w_i / (1 - d**n)

so that it starts with the first step's weights, whatever a run began from. It
rides in the optimizer's state, and is saved and restored with it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Average(NamedTuple):
  """State of the transformation."""

  weights: Any  # float32, like the parameters; the formula's numerator
  total: jax.Array  # float32[], its denominator


def averaging(decay: float) -> optax.GradientTransformation:
  """Passes updates on and averages what they lead to; last in a chain."""

  def init(params: Any) -> Average:
    zeros = jax.tree.map(jnp.zeros_like, params)
    return Average(zeros, jnp.zeros((), jnp.float32))

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    assert params is not None  # a step always gives them
    weights = jax.tree.map(
      lambda average, param, change: (
        decay * average + (1 - decay) * (param + change)
      ),
      state.weights,
      params,
      updates,
    )
    return updates, Average(weights, decay * state.total + (1 - decay))

  return optax.GradientTransformation(init, update)


def of(moments: Any) -> Any | None:
  """The averaged weights in an optimizer's state; None: it keeps none."""
  nodes = jax.tree.leaves(moments, is_leaf=_is_average)
  found = [node for node in nodes if _is_average(node)]
  return _divided(found[0]) if found else None


def _is_average(node: Any) -> bool:
  return isinstance(node, Average)


@jax.jit
def _divided(state: Average) -> Any:
  # Where every step so far was skipped, there is nothing to divide.
  total = jnp.maximum(state.total, jnp.finfo(jnp.float32).tiny)
  return jax.tree.map(lambda weights: weights / total, state.weights)
