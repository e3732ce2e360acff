"""Softmax whose gradient is made of its result alone.

  y = softmax(x)        dx = y (dy - sum(y dy))

Differentiated as it is written, a softmax keeps its exponentials and their sums
and passes through the scores several times more: on a CPU a whole layer of the
language model and its gradient then take twice as long.
"""

import functools

import jax
import jax.numpy as jnp


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax(scores: jax.Array, axis: int = -1) -> jax.Array:
  """`jax.nn.softmax`, of the dtype of the scores."""
  return jax.nn.softmax(scores, axis)


@softmax.defjvp
def _softmax_jvp(
  axis: int, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
  weights, change = softmax(*primals, axis), tangents[0]
  mean = jnp.sum(weights * change, axis, keepdims=True)
  return weights, weights * (change - mean)
