"""Splash attention, JAX's flash attention for TPUs, for the language model.

The library's kernel takes one row, [N, S, H], whose length is a multiple of
its blocks, and no scale; a batch, any length and the scale are added here.
Source: jax.experimental.pallas.ops.tpu.splash_attention.
"""

import math
from typing import Any

import jax
from jax.experimental.pallas.ops.tpu import splash_attention
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel,
)
import jax.numpy as jnp

Kernel = splash_attention_kernel.SplashAttentionKernel

# Blocks are tiles of queries x keys. From the static schedule of the compiled
# kernels (causal, S = 1536, H = 128, bfloat16), thousands of bundles a head,
# forward + backward:
#
#   block     256        384        512        512, fused    768
#   v5e    24.9 + 40  18.7 + 31  13.3 + 26  13.3 + 17.7  12.8 + 26
#   v6e    23.2 + 36  13.1 + 23   9.7 + 18   9.7 + 11.9   9.2 + 17
#
# 512 is as good as 768 and compiles in half the time. One fused backward
# kernel computes the scores once, not once for dK, dV and once for dQ; it
# pays with one partial dQ for each block of keys, which are then summed.
_BLOCK = 512
_LANES = 128  # every block is a multiple of it


def splash(
  query_BSNH: jax.Array,
  key_BSNH: jax.Array,
  value_BSNH: jax.Array,
  prefix_B: jax.Array | None,
  *,
  interpret: bool,
) -> jax.Array:
  """[B, S, N, H]: `language_attention.causal_attention`, any S.

  The sequence is padded at its end to whole blocks. Causality keeps the
  padding out of every real position; what the padding reads is cut off.
  Causal attention skips the blocks above the diagonal. A prefix differs from
  row to row while the blocks to skip are fixed, so that with one all blocks
  are computed, about twice the work; no mask of S x S is held for either.
  """
  length, heads, width = query_BSNH.shape[1:]
  block, padded = _blocks(length)

  def lay_out(values_BSNH: jax.Array) -> jax.Array:
    room = ((0, 0), (0, 0), (0, padded - length), (0, 0))
    return jnp.pad(values_BSNH.swapaxes(1, 2), room)

  query_BSNH = query_BSNH * jnp.asarray(width**-0.5, query_BSNH.dtype)
  rows = [lay_out(values) for values in (query_BSNH, key_BSNH, value_BSNH)]
  mixed_BNSH: Any  # typed as a tuple too, which holds the residuals
  if prefix_B is None:
    kernel = _kernel(heads, padded, block, visible=0, interpret=interpret)
    mixed_BNSH = jax.vmap(kernel)(*rows)
  else:
    kernel = _kernel(heads, padded, block, visible=padded, interpret=interpret)
    reach_BS = jnp.maximum(jnp.arange(padded)[None], prefix_B[:, None] - 1)
    mixed_BNSH = jax.vmap(
      lambda reach_S, *row: _reaching(kernel, reach_S - padded)(*row)
    )(reach_BS.astype(jnp.int32), *rows)
  return mixed_BNSH[:, :, :length].swapaxes(1, 2)


def _blocks(length: int) -> tuple[int, int]:
  """(block, padded length): the fewest blocks, each as short as may be."""
  number = math.ceil(length / _BLOCK)
  block = _LANES * math.ceil(length / number / _LANES)
  return block, number * block


def _kernel(
  heads: int, length: int, block: int, *, visible: int, interpret: bool
) -> Kernel:
  """The kernel of one row; position i reads up to i + visible."""
  mask = splash_attention.CausalMask((length, length), offset=visible)
  return splash_attention.make_splash_mha_single_device(
    splash_attention.MultiHeadMask([mask] * heads),
    block_sizes=splash_attention.BlockSizes(
      block_q=block,
      block_kv=block,
      block_q_dkv=block,
      block_kv_dkv=block,
      use_fused_bwd_kernel=True,
    ),
    interpret=interpret,
  )


def _reaching(kernel: Kernel, reach_S: jax.Array) -> Kernel:
  """The same kernel whose position i reads up to reach_S[i] + visible.

  The kernel compares keys with positions that it reads from an array, one
  copy for each direction.
  """
  infos: tuple[Any, Any] = kernel.fwd_mask_info, kernel.dkv_mask_info
  forward, backward = (info._replace(q_sequence=reach_S) for info in infos)
  return Kernel(forward, None, backward, **kernel.kwargs)
