"""Attention of the language model: one face over the libraries' kernels.

Text is padded on the right, so a causal mask already keeps padding out of
every real position: no padding mask is needed here. What padded positions
themselves read is finite and unused.
"""

from typing import Literal

import jax
import jax.numpy as jnp

Implementation = Literal["xla", "cudnn"] | None
IMPLEMENTATIONS = (None, "xla", "cudnn")


def causal_attention(
  query_BSNH: jax.Array,
  key_BSNH: jax.Array,
  value_BSNH: jax.Array,
  *,
  prefix_B: jax.Array | None = None,
  implementation: Implementation = None,
) -> jax.Array:
  """[B, S, N, H]: each position reads itself, those before, and the prefix.

  With prefix_B = 3 and S = 5 the rows read (x = yes):

    x x x . .
    x x x . .
    x x x . .
    x x x x .
    x x x x x

  Args:
    query_BSNH: [B, S, N, H], rotated.
    key_BSNH: [B, S, N, H], rotated.
    value_BSNH: [B, S, N, H].
    prefix_B: int32[B], the first positions that all see each other; None for
      purely causal attention.
    implementation: None chooses, "xla" or "cudnn" insist.

  Raises:
    NotImplementedError: no such implementation.
  """
  _check(implementation)
  mask_B1SS = None
  if prefix_B is not None:
    slots_S = jnp.arange(query_BSNH.shape[1])
    before_SS = slots_S[None, :] <= slots_S[:, None]
    prefix_BS = slots_S[None, :] < prefix_B[:, None]
    mask_B1SS = before_SS[None, None] | prefix_BS[:, None, None, :]
  return jax.nn.dot_product_attention(
    query_BSNH,
    key_BSNH,
    value_BSNH,
    mask=mask_B1SS,
    is_causal=prefix_B is None,
    implementation=implementation,
  )


def cached_attention(
  query_BNH: jax.Array,
  key_BSNH: jax.Array,
  value_BSNH: jax.Array,
  length_B: jax.Array,
  *,
  implementation: Implementation = None,
) -> jax.Array:
  """[B, N, H]: one new position of each row reads its filled cache slots.

  Args:
    query_BNH: [B, N, H], rotated.
    key_BSNH: [B, S, N, H], the cache; slots from length_B on are ignored.
    value_BSNH: [B, S, N, H].
    length_B: int32[B], filled slots, the new position's own included.
    implementation: None chooses, "xla" or "cudnn" insist.

  Raises:
    NotImplementedError: no such implementation.
  """
  _check(implementation)
  slots_S = jnp.arange(key_BSNH.shape[1])
  filled_BS = slots_S[None, :] < length_B[:, None]
  mixed_B1NH = jax.nn.dot_product_attention(
    query_BNH[:, None],
    key_BSNH,
    value_BSNH,
    mask=filled_BS[:, None, None, :],
    implementation=implementation,
  )
  return mixed_B1NH[:, 0]


def _check(implementation: Implementation) -> None:
  if implementation not in IMPLEMENTATIONS:
    raise NotImplementedError(
      f"language attention has no implementation {implementation!r}; choose "
      f"one of {IMPLEMENTATIONS}."
    )
