"""Attention with decomposed relative positions, a block of queries at a time.

Plain XLA, for CPUs. The scores of one block stay in the cache of a core, where
those of a whole grid would pass through memory several times: a 64 x 64 grid
with 12 heads has 800 MB of them. Neither pass keeps them; the backward pass
makes each block's scores again.
"""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp

# Queries at a time. On two cores with AVX2, 12 heads of a 64 x 64 grid take
# 0.8 s (at once: 2.5 s) and 300 windows of 14 x 14 0.07 s (at once: 0.12 s);
# from 128 to 1,024 makes little difference.
QUERIES = 512
# Fewer bytes of scores than this stay in the caches anyway.
WORTHWHILE = 8 * 2**20


def worthwhile(heads: int, patches: int) -> bool:
  """Whether blocks are faster than all float32 scores at once."""
  return 4 * heads * patches**2 > WORTHWHILE


def attend(
  q_MPH: jax.Array,
  k_MPH: jax.Array,
  v_MPH: jax.Array,
  rel_h_MPY: jax.Array,
  rel_w_MPX: jax.Array,
  scale: float,
) -> jax.Array:
  """`relpos_attention.relpos_attention`, of the same arguments."""
  patches = q_MPH.shape[1]

  def one_head(arguments: tuple[jax.Array, ...]) -> jax.Array:
    q_PH, k_SH, v_SH, rel_h_PY, rel_w_PX = arguments
    one_query = functools.partial(_attend_query, k_SH, v_SH, scale)
    return _by_blocks(one_query, (q_PH, rel_h_PY, rel_w_PX), QUERIES)

  return _by_blocks(
    one_head,
    (q_MPH, k_MPH, v_MPH, rel_h_MPY, rel_w_MPX),
    max(1, QUERIES // patches),
  )


def _by_blocks(
  f: Callable[[tuple[jax.Array, ...]], jax.Array],
  arguments: tuple[jax.Array, ...],
  block: int,
) -> jax.Array:
  """f of every leading index, `block` of them at a time."""
  if len(arguments[0]) <= block:
    return jax.vmap(lambda *one: f(one))(*arguments)
  return jax.lax.map(jax.checkpoint(f), arguments, batch_size=block)


def _attend_query(
  k_SH: jax.Array,
  v_SH: jax.Array,
  scale: float,
  query: tuple[jax.Array, ...],
) -> jax.Array:
  """[H]: what one query (q_H, rel_h_Y, rel_w_X) finds among the keys."""
  q_H, rel_h_Y, rel_w_X = query
  scores_S = jnp.einsum(
    "H,SH->S", q_H, k_SH, preferred_element_type=jnp.float32
  )
  bias_YX = rel_h_Y[:, None] + rel_w_X[None]
  scores_S = scores_S * scale + bias_YX.reshape(-1)
  # The largest score cancels out. It has no gradient, which would look for the
  # score that equals it: one made again may be rounded otherwise.
  most = jax.lax.stop_gradient(scores_S.max())
  weights_S = jnp.exp(scores_S - most)
  out_H = jnp.einsum(
    "S,SH->H",
    weights_S.astype(v_SH.dtype),
    v_SH,
    preferred_element_type=jnp.float32,
  )
  return (out_H / weights_S.sum()).astype(v_SH.dtype)
