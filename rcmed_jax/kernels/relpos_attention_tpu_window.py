"""TPU kernels of relative-position attention over small grids: windows.

One tile holds a window's scores whole, so softmax needs no second look and
the backward pass recomputes it: nothing is kept. A program takes several
windows, each one's scores issued before the softmax of the one before it.

Rows of 14 keys fill no registers, so the biases are not added but come out of
the product: [q, rel_h, rel_w] with [k, one-hot row, one-hot column]. Layout and
softmax are described in `relpos_attention_tpu.py`.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from rcmed_jax.kernels.relpos_attention_tpu import (
  LOG2E,
  NN,
  NT,
  TILE_PATCHES,
  TN,
  VMEM_BYTES,
  cost,
  product,
)

# Windows a program: enough that filling the pipeline costs little, few enough
# that the widest tiles in float32 fit vector memory.
WINDOWS = 16
_PACK = 16  # rows of bfloat16 in a register


def forward(
  q_MHP: jax.Array,
  k_MHP: jax.Array,
  v_MHP: jax.Array,
  rel_h_MYP: jax.Array,
  rel_w_MXP: jax.Array,
  scale: float,
  *,
  interpret: bool,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
  """As `relpos_attention_tpu_grid.forward`, but nothing need be kept."""
  inputs = (q_MHP, k_MHP, v_MHP, rel_h_MYP, rel_w_MXP)
  (o_MHP,) = _call(
    functools.partial(_forward_body, scale=scale),
    inputs,
    (v_MHP,),
    name="relpos_window_forward",
    products=2,
    interpret=interpret,
  )
  return o_MHP, ()


def backward(
  q_MHP: jax.Array,
  k_MHP: jax.Array,
  v_MHP: jax.Array,
  rel_h_MYP: jax.Array,
  rel_w_MXP: jax.Array,
  kept: tuple[jax.Array, ...],
  do_MHP: jax.Array,
  scale: float,
  *,
  interpret: bool,
) -> tuple[jax.Array, ...]:
  """As `relpos_attention_tpu_grid.backward`; `kept` is empty."""
  inputs = (q_MHP, k_MHP, v_MHP, rel_h_MYP, rel_w_MXP)
  return _call(
    functools.partial(_backward_body, scale=scale),
    (*inputs, *kept, do_MHP),
    inputs,
    name="relpos_window_backward",
    products=5,
    interpret=interpret,
  )


def _call(
  body,
  inputs: tuple[jax.Array, ...],
  outputs: tuple[jax.Array, ...],
  *,
  name: str,
  products: int,
  interpret: bool,
) -> tuple[jax.Array, ...]:
  """Runs a body over programs of several windows each.

  The last program may lack some: windows do not meet, so what it reads there
  is nobody's, and what it writes there is dropped.
  """
  windows, _, patches = inputs[0].shape
  group = min(windows, max(1, min(WINDOWS, 8 * TILE_PATCHES // patches)))

  def of_group(array: jax.Array) -> pl.BlockSpec:
    return pl.BlockSpec((group, *array.shape[1:]), lambda m: (m, 0, 0))

  return pl.pallas_call(
    body,
    grid=(pl.cdiv(windows, group),),
    in_specs=[of_group(a) for a in inputs],
    out_specs=[of_group(a) for a in outputs],
    out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in outputs],
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel",), vmem_limit_bytes=VMEM_BYTES
    ),
    cost_estimate=cost(
      inputs[0], products=products, arrays=len(inputs) + len(outputs)
    ),
    name=name,
    interpret=interpret,
  )(*inputs)


def _forward_body(
  q_ref, k_ref, v_ref, rel_h_ref, rel_w_ref, o_ref, *, scale
):  # fmt: skip
  windows = q_ref.shape[0]
  picks = _picks(rel_h_ref.shape[1], rel_w_ref.shape[1], q_ref.dtype)

  def issue(window):
    biases = rel_h_ref[window], rel_w_ref[window]
    q_FP = _with_biases(q_ref[window], *biases, scale)
    return product(_with_picks(k_ref[window], picks), q_FP, TN)

  scores_SP = issue(0)
  for window in range(windows):
    following_SP = issue(window + 1) if window + 1 < windows else scores_SP
    weights_SP, sum_1P = _softmax(scores_SP, scale)
    weights_SP = weights_SP.astype(v_ref.dtype)
    o_HP = product(v_ref[window], weights_SP, NN) / sum_1P
    o_ref[window] = o_HP.astype(o_ref.dtype)
    scores_SP = following_SP


def _backward_body(
  q_ref, k_ref, v_ref, rel_h_ref, rel_w_ref, do_ref,
  dq_ref, dk_ref, dv_ref, drel_h_ref, drel_w_ref, *, scale,
):  # fmt: skip
  windows, width, _ = q_ref.shape
  dtype = q_ref.dtype
  rows, columns = rel_h_ref.shape[1], rel_w_ref.shape[1]
  picks = _picks(rows, columns, dtype)

  def issue(window):
    biases = rel_h_ref[window], rel_w_ref[window]
    q_FP = _with_biases(q_ref[window], *biases, scale)
    scores_SP = product(_with_picks(k_ref[window], picks), q_FP, TN)
    return scores_SP, product(v_ref[window], do_ref[window], TN)

  current = issue(0)
  for window in range(windows):
    following = issue(window + 1) if window + 1 < windows else current
    scores_SP, dweights_SP = current
    weights_SP, sum_1P = _softmax(scores_SP, scale)
    delta_1P = jnp.sum(weights_SP * dweights_SP, axis=0, keepdims=True)
    weights_SP *= 1 / sum_1P
    dscores_SP = weights_SP * (dweights_SP - delta_1P / sum_1P)
    dscores_SP = dscores_SP.astype(dtype)
    dv_HS = product(do_ref[window], weights_SP.astype(dtype), NT)
    dk_HS = product(q_ref[window], dscores_SP, NT) * scale
    # The sums over rows and columns of keys share dq's pass through the
    # matrix unit, which is idle for as long as it loads dscores.
    sums_FP = product(
      jnp.concatenate([k_ref[window], *picks], axis=0), dscores_SP, NN
    )
    dq_ref[window] = (sums_FP[:width] * scale).astype(dtype)
    dk_ref[window] = dk_HS.astype(dtype)
    dv_ref[window] = dv_HS.astype(dtype)
    drel_h_ref[window] = sums_FP[width : width + rows]
    first = width + len(picks[0])
    drel_w_ref[window] = sums_FP[first : first + columns]
    current = following


def _with_biases(
  q_HP: jax.Array, rel_h_YP: jax.Array, rel_w_XP: jax.Array, scale: float
) -> jax.Array:
  """Queries and, below them, what the product with `_with_picks` adds.

  That sum is scaled by `scale`, so the biases are divided by it. Each goes as
  two bfloat16 whose sum has 16 digits of float32's 24.
  """
  biases_RP = jnp.concatenate(
    [_to_registers(bias / scale) for bias in (rel_h_YP, rel_w_XP)], axis=0
  )
  if q_HP.dtype == jnp.float32:
    return jnp.concatenate([q_HP, biases_RP], axis=0)
  high_RP = biases_RP.astype(q_HP.dtype)
  low_RP = (biases_RP - high_RP.astype(jnp.float32)).astype(q_HP.dtype)
  return jnp.concatenate([q_HP, high_RP, low_RP], axis=0)


def _with_picks(
  k_HS: jax.Array, picks: tuple[jax.Array, jax.Array]
) -> jax.Array:
  """Keys and, below them, which biases each of them takes."""
  times = 1 if k_HS.dtype == jnp.float32 else 2
  return jnp.concatenate([k_HS, *(times * picks)], axis=0)


def _picks(
  rows: int, columns: int, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
  """Ones where a key (minor axis) is in a row, and in a column (major axis)."""
  found = []
  for count, index in (
    (rows, lambda key: key // columns),
    (columns, lambda key: key % columns),
  ):
    shape = (count + -count % _PACK, rows * columns)
    place = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    key = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    found.append((index(key) == place).astype(jnp.float32).astype(dtype))
  return found[0], found[1]


def _to_registers(bias: jax.Array) -> jax.Array:
  """Filled up with rows of zeros to whole registers of bfloat16."""
  rows, patches = bias.shape
  if rows % _PACK == 0:
    return bias
  zeros = jnp.zeros((-rows % _PACK, patches), bias.dtype)
  return jnp.concatenate([bias, zeros], axis=0)


def _softmax(scores_SP: jax.Array, scale: float) -> tuple[jax.Array, jax.Array]:
  """Weights before their division, [S, P], and their sums, [1, P]."""
  # On q the scale, which is no power of two, would cost bfloat16 a digit.
  scores_SP = scores_SP * (scale * LOG2E)
  highest_1P = jnp.max(scores_SP, axis=0, keepdims=True)
  weights_SP = jnp.exp2(scores_SP - highest_1P)
  return weights_SP, jnp.sum(weights_SP, axis=0, keepdims=True)
