"""Correlation attention on Hopper: the face of its kernels.

What `correlation_kernels_gpu` takes and gives, padded and cut.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from rcmed_jax.kernels import correlation_kernels_gpu as kernels
from rcmed_jax.kernels import hopper
from rcmed_jax.kernels.correlation_kernels_gpu import GradientSide, Plan, Side
from rcmed_jax.kernels.hopper import LOG2E


def refusal(
  query_BPC: jax.Array | jax.ShapeDtypeStruct,
  value_BPC: jax.Array | jax.ShapeDtypeStruct,
  key_BTC: jax.Array | jax.ShapeDtypeStruct,
  value_BTC: jax.Array | jax.ShapeDtypeStruct,
  heads: int,
) -> str | None:
  """Why the kernels cannot run on such arrays here, or None."""
  width = query_BPC.shape[-1] // heads
  if width > hopper.MAX_WIDTH:
    return f"it needs heads of width {hopper.MAX_WIDTH} or less, not {width}"
  return hopper.refusal(query_BPC, value_BPC, key_BTC, value_BTC)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def attend(heads: int, *operands: Any) -> tuple[jax.Array, jax.Array]:
  """What pixels and words read, differentiable; operands as of `forward`."""
  return _attend_forward(heads, *operands)[0]


def forward(
  query_BPC: jax.Array,
  value_BPC: jax.Array,
  key_BTC: jax.Array,
  value_BTC: jax.Array,
  mask_BT: jax.Array,
  gate_BP: jax.Array | None,
  *,
  heads: int,
  interpret: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """What both sides read, and their logsumexps.

  Args:
    query_BPC: bfloat16, as are all matrices.
    value_BPC: what words read.
    key_BTC: one key a word.
    value_BTC: what pixels read.
    mask_BT: bool, True where there is a word.
    gate_BP: float32 or None, added to the affinity of each pixel.
    heads: number of heads; divides C.
    interpret: parameters of JAX's interpreter for Mosaic GPU.

  Returns:
    pixels [B, P, C], words [B, T, C], float32[B, N, P], float32[B, N, T].
  """
  pixels = _side(query_BPC, value_BPC, gate_BP, None, heads)
  words = _side(key_BTC, value_BTC, None, mask_BT, heads)
  results = []
  for near, far, like in (
    (pixels, words, query_BPC),
    (words, pixels, key_BTC),
  ):
    plan = _plan(near, far, query_BPC.shape[-1] // heads, heads, interpret)
    out_BPC, lse_BNP = kernels.forward(plan, near, far)
    out_BPC = _cut(out_BPC, like, heads)
    results.append((out_BPC, lse_BNP[..., : like.shape[1]] / LOG2E))
  (pixels_BPC, lse_BNP), (words_BTC, lse_BNT) = results
  some_B11 = mask_BT.any(-1)[:, None, None]
  pixels_BPC = jnp.where(some_B11, pixels_BPC, 0)
  words_BTC = jnp.where(mask_BT[..., None], words_BTC, 0)
  return pixels_BPC, words_BTC, lse_BNP, lse_BNT


def backward(
  query_BPC: jax.Array,
  value_BPC: jax.Array,
  key_BTC: jax.Array,
  value_BTC: jax.Array,
  mask_BT: jax.Array,
  gate_BP: jax.Array | None,
  results: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
  dpixels_BPC: jax.Array,
  dwords_BTC: jax.Array,
  *,
  heads: int,
  interpret: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
  """Gradients of query, value_BPC, key, value_BTC and float32[B, P] of a gate.

  Args:
    query_BPC, value_BPC, key_BTC, value_BTC, mask_BT, gate_BP, heads,
      interpret: of `forward`.
    results: of `forward`.
    dpixels_BPC: gradient of what pixels read, bfloat16.
    dwords_BTC: gradient of what words read, bfloat16.
  """
  pixels_BPC, words_BTC, lse_BNP, lse_BNT = results
  # Whoever reads nothing has no probabilities: exp(S - 1e30) is zero.
  some_B11 = mask_BT.any(-1)[:, None, None]
  lse_BNP = jnp.where(some_B11, lse_BNP, -hopper.HIDDEN)
  lse_BNT = jnp.where(mask_BT[:, None], lse_BNT, -hopper.HIDDEN)
  dpixels_BPC = jnp.where(some_B11, dpixels_BPC, 0)
  dwords_BTC = jnp.where(mask_BT[..., None], dwords_BTC, 0)
  pixels = _with_gradient(
    _side(query_BPC, value_BPC, gate_BP, None, heads),
    pixels_BPC,
    lse_BNP,
    dpixels_BPC,
  )
  words = _with_gradient(
    _side(key_BTC, value_BTC, None, mask_BT, heads),
    words_BTC,
    lse_BNT,
    dwords_BTC,
  )
  width = query_BPC.shape[-1] // heads
  dquery_BPC, dvalue_BPC, dbias_BNP = kernels.backward(
    _plan(pixels, words, width, heads, interpret), pixels, words
  )
  dkey_BTC, dvalue_BTC, _ = kernels.backward(
    _plan(words, pixels, width, heads, interpret), words, pixels
  )
  return (
    _cut(dquery_BPC, query_BPC, heads),
    _cut(dvalue_BPC, value_BPC, heads),
    _cut(dkey_BTC, key_BTC, heads),
    _cut(dvalue_BTC, value_BTC, heads),
    dbias_BNP[..., : query_BPC.shape[1]].sum(1),
  )


def _attend_forward(heads: int, *operands: Any) -> tuple[Any, Any]:
  results = forward(*operands, heads=heads)
  return results[:2], (operands, results)


def _attend_backward(
  heads: int, residuals: tuple[Any, Any], changes: Any
) -> tuple[Any, ...]:
  operands, results = residuals
  arguments: Any = (*operands, results, *changes)
  *floats, d_gate_BP = backward(*arguments, heads=heads)
  return *floats, None, d_gate_BP  # None: a mask has no gradient


attend.defvjp(_attend_forward, _attend_backward)


def _plan(
  near: Side, far: Side, width: int, heads: int, interpret: Any
) -> Plan:
  return Plan(
    heads=heads,
    width=hopper.padded(width, hopper.WIDTH_STEP),
    near=near.length,
    far=far.length,
    scale=width**-0.5,
    interpret=interpret,
  )


def _side(
  x_BSC: jax.Array,
  v_BSC: jax.Array,
  gate_BS: jax.Array | None,
  mask_BS: jax.Array | None,
  heads: int,
) -> Side:
  batch, length, _ = x_BSC.shape
  if gate_BS is None:
    gate_BS = jnp.zeros((batch, length), jnp.float32)
  bias_BS = gate_BS.astype(jnp.float32)
  if mask_BS is not None:
    bias_BS = jnp.where(mask_BS, bias_BS, hopper.HIDDEN)
  tail = hopper.padded(length, hopper.BLOCK) - length
  return Side(
    _pad(x_BSC, heads),
    _pad(v_BSC, heads),
    jnp.pad(bias_BS, ((0, 0), (0, tail)), constant_values=hopper.HIDDEN),
  )


def _with_gradient(
  side: Side, out_BSC: jax.Array, lse_BNS: jax.Array, d_BSC: jax.Array
) -> GradientSide:
  """A side with what backward needs."""
  batch, length, channels = out_BSC.shape
  heads = lse_BNS.shape[1]
  split = (batch, length, heads, channels // heads)
  delta_BSN = jnp.sum(
    out_BSC.astype(jnp.float32).reshape(split)
    * d_BSC.astype(jnp.float32).reshape(split),
    -1,
  )
  tail = ((0, 0), (0, 0), (0, side.length - length))
  stats_BN3S = jnp.stack(
    [
      jnp.broadcast_to(
        side.bias_BS[:, None] * LOG2E, (batch, heads, side.length)
      ),
      jnp.pad(lse_BNS * LOG2E, tail),
      jnp.pad(delta_BSN.transpose(0, 2, 1), tail),
    ],
    axis=2,
  )
  return GradientSide(
    x_BSC=side.x_BSC,
    v_BSC=side.v_BSC,
    bias_BS=side.bias_BS,
    d_BSC=_pad(d_BSC, heads),
    stats_BN3S=stats_BN3S,
  )


def _pad(array_BSC: jax.Array, heads: int) -> jax.Array:
  """Zeros after the rows and after each head's channels."""
  batch, length, channels = array_BSC.shape
  width = channels // heads
  padded = jnp.pad(
    array_BSC.reshape(batch, length, heads, width),
    (
      (0, 0),
      (0, hopper.padded(length, hopper.BLOCK) - length),
      (0, 0),
      (0, hopper.padded(width, hopper.WIDTH_STEP) - width),
    ),
  )
  return padded.reshape(*padded.shape[:2], -1)


def _cut(array_BSC: jax.Array, like_BSC: jax.Array, heads: int) -> jax.Array:
  """Undoes `_pad` of an array like another."""
  batch, length, channels = like_BSC.shape
  array = array_BSC.reshape(batch, array_BSC.shape[1], heads, -1)
  array = array[:, :length, :, : channels // heads]
  return array.reshape(like_BSC.shape)
