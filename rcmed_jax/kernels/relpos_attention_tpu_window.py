"""TPU kernels of relative-position attention over small grids: windows.

One tile holds a window's scores whole, so softmax needs no second look and
the backward pass recomputes it: nothing is kept. A program takes several
windows, each one's scores issued before the softmax of the one before it.
Layout and mathematics are described in `relpos_attention_tpu.py`.
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
  highest,
  partial_sums,
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

  def issue(window):
    return product(k_ref[window], q_ref[window], TN)

  scores_SP = issue(0)
  for window in range(windows):
    following_SP = issue(window + 1) if window + 1 < windows else scores_SP
    weights_SP, sum_1P = _softmax(
      scores_SP, rel_h_ref[window], rel_w_ref[window], scale
    )
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
  picks = _row_and_column(rel_h_ref.shape[1], rel_w_ref.shape[1], dtype)

  def issue(window):
    return (
      product(k_ref[window], q_ref[window], TN),
      product(v_ref[window], do_ref[window], TN),
    )

  current = issue(0)
  for window in range(windows):
    following = issue(window + 1) if window + 1 < windows else current
    scores_SP, dweights_SP = current
    weights_SP, sum_1P = _softmax(
      scores_SP, rel_h_ref[window], rel_w_ref[window], scale
    )
    delta_8P = partial_sums(weights_SP * dweights_SP)
    delta_1P = jnp.sum(delta_8P, axis=0, keepdims=True) / sum_1P
    weights_SP *= 1 / sum_1P
    dscores_SP = (weights_SP * (dweights_SP - delta_1P)).astype(dtype)
    dv_HS = product(do_ref[window], weights_SP.astype(dtype), NT)
    dk_HS = product(q_ref[window], dscores_SP, NT) * scale
    # The sums over rows and columns of keys share dq's pass through the
    # matrix unit, which is idle for as long as it loads dscores.
    joint = jnp.concatenate([k_ref[window], *picks], axis=0)
    sums = product(joint, dscores_SP, NN)
    dq_ref[window] = (sums[:width] * scale).astype(dtype)
    dk_ref[window] = dk_HS.astype(dtype)
    dv_ref[window] = dv_HS.astype(dtype)
    drel_h_ref[window] = sums[width : width + rel_h_ref.shape[1]]
    drel_w_ref[window] = sums[width + picks[0].shape[0] :][: rel_w_ref.shape[1]]
    current = following


def _softmax(
  scores_SP: jax.Array, rel_h_YP: jax.Array, rel_w_XP: jax.Array, scale: float
) -> tuple[jax.Array, jax.Array]:
  """Weights before their division, [S, P], and their sums, [1, P]."""
  rel_h_YP, rel_w_XP = rel_h_YP * LOG2E, rel_w_XP * LOG2E
  scores_YXP = scores_SP.reshape(len(rel_h_YP), *rel_w_XP.shape)
  # The scale is no power of two: on q it would cost bfloat16 another digit.
  scores_YXP = scores_YXP * (scale * LOG2E) + rel_w_XP[None]
  shift_YP = rel_h_YP - highest(scores_YXP, rel_h_YP)
  weights_SP = jnp.exp2(scores_YXP + shift_YP[:, None]).reshape(scores_SP.shape)
  sum_1P = jnp.sum(partial_sums(weights_SP), axis=0, keepdims=True)
  return weights_SP, sum_1P


def _row_and_column(
  rows: int, columns: int, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
  """Ones where a key (minor axis) is in a row, and in a column (major axis).

  Rows and columns are filled up with zeros to whole registers.
  """
  keys = rows * columns
  found = []
  for count, index in (
    (rows, lambda key: key // columns),
    (columns, lambda key: key % columns),
  ):
    shape = (count + -count % _PACK, keys)
    place = jax.lax.broadcasted_iota(jnp.int32, shape, 0)
    key = jax.lax.broadcasted_iota(jnp.int32, shape, 1)
    found.append((index(key) == place).astype(jnp.float32).astype(dtype))
  return found[0], found[1]
