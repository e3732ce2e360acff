"""TPU kernels of relative-position attention over large grids.

Each program holds one head's keys and values and one block of queries; the
next block's scores are issued before this block's softmax, so that matrix
unit and vector unit work at once. k (and v, backwards) are transposed once a
head.
"""

import functools
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from rcmed_jax.kernels import choice
from rcmed_jax.kernels.relpos_attention_tpu import (
  LANES,
  LOG2E,
  NN,
  NT,
  SUBLANES,
  VMEM_BYTES,
  cost,
  highest,
  partial_sums,
  product,
  row_step,
)

# (queries, keys) of a block, by the width of the matrix unit; the fastest of
# those compiled, see benchmarks/results/tpu_schedule_relpos.md.
_FORWARD_BLOCK = {128: (512, 128), 256: (1024, 1024)}
_BACKWARD_BLOCK = {128: (512, 512), 256: (512, 512)}
# Float32 is for checking: six times the products, and of program to compile.
_FLOAT32_BLOCK = (128, 512)


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
  """The attention [M, H, P] and what `backward` needs of it.

  Args:
    q_MHP: queries over a grid that `padded_grid` returned.
    k_MHP: keys.
    v_MHP: values.
    rel_h_MYP: float32 bias of each key row, for each query.
    rel_w_MXP: float32 bias of each key column, for each query.
    scale: of the scores.
    interpret: runs the body on any platform, slowly.
  """
  heads, width, patches = q_MHP.shape
  rows, columns = rel_h_MYP.shape[1], rel_w_MXP.shape[1]
  queries, block_rows = _block(_FORWARD_BLOCK, rows, columns, q_MHP.dtype)
  of_queries, of_head = _specs(width, patches, queries)
  o_MHP, lse_M1P = pl.pallas_call(
    functools.partial(_forward_body, scale=scale, block_rows=block_rows),
    grid=(heads, patches // queries),
    in_specs=[
      of_queries(width),
      of_head,
      of_head,
      of_queries(rows),
      of_queries(columns),
    ],
    out_specs=[of_queries(width), of_queries(1)],
    out_shape=[
      jax.ShapeDtypeStruct(v_MHP.shape, v_MHP.dtype),
      jax.ShapeDtypeStruct((heads, 1, patches), jnp.float32),
    ],
    scratch_shapes=[pltpu.VMEM((patches, width), k_MHP.dtype)],
    compiler_params=_PARAMS,
    cost_estimate=cost(q_MHP, products=2, arrays=4),
    name="relpos_forward",
    interpret=interpret,
  )(q_MHP, k_MHP, v_MHP, rel_h_MYP, rel_w_MXP)
  return o_MHP, (o_MHP, lse_M1P)


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
  """Gradients of `forward`'s first five arguments, each of its shape and dtype.

  With P the weights, D = sum over H of dO * O:
    dS = P * (dO v^T - D),  dv = P^T dO,  dk = scale dS^T q,  dq = scale dS k,
    d rel_h and d rel_w are dS summed over the columns and rows of the keys.
  """
  heads, width, patches = q_MHP.shape
  rows, columns = rel_h_MYP.shape[1], rel_w_MXP.shape[1]
  queries, block_rows = _block(_BACKWARD_BLOCK, rows, columns, q_MHP.dtype)
  of_queries, of_head = _specs(width, patches, queries)
  inputs = (q_MHP, k_MHP, v_MHP, rel_h_MYP, rel_w_MXP)
  specs = [
    of_queries(width),
    of_head,
    of_head,
    of_queries(rows),
    of_queries(columns),
  ]
  return pl.pallas_call(
    functools.partial(_backward_body, scale=scale, block_rows=block_rows),
    grid=(heads, patches // queries),
    in_specs=[*specs, of_queries(width), of_queries(1), of_queries(width)],
    out_specs=specs,
    out_shape=[jax.ShapeDtypeStruct(a.shape, a.dtype) for a in inputs],
    scratch_shapes=[
      pltpu.VMEM((patches, width), k_MHP.dtype),
      pltpu.VMEM((patches, width), v_MHP.dtype),
      pltpu.VMEM((width, patches), jnp.float32),
      pltpu.VMEM((width, patches), jnp.float32),
    ],
    compiler_params=_PARAMS,
    cost_estimate=cost(q_MHP, products=5, arrays=8),
    name="relpos_backward",
    interpret=interpret,
  )(*inputs, *kept, do_MHP)


_PARAMS = pltpu.CompilerParams(
  # Heads may go to the two cores of a chip; blocks share what a head holds.
  dimension_semantics=("parallel", "arbitrary"),
  vmem_limit_bytes=VMEM_BYTES,
)


def _forward_body(
  q_ref, k_ref, v_ref, rel_h_ref, rel_w_ref, o_ref, lse_ref, k_SH, *, scale,
  block_rows,
):  # fmt: skip
  """One block of queries against every key, softmax online."""
  columns, queries = rel_w_ref.shape[1:]
  blocks = rel_h_ref.shape[1] // block_rows
  keys = block_rows * columns

  @pl.when(pl.program_id(1) == 0)
  def _():
    k_SH[...] = k_ref[0].T

  q_HP = q_ref[0]
  rel_h_YP, rel_w_XP = rel_h_ref[0] * LOG2E, rel_w_ref[0] * LOG2E

  def issue(block):
    return product(k_SH[pl.ds(block * keys, keys), :], q_HP, NN)

  highest_1P = jnp.full((1, queries), -jnp.inf, jnp.float32)
  sums_8P = jnp.zeros((SUBLANES, queries), jnp.float32)
  o_HP = jnp.zeros((q_HP.shape[0], queries), jnp.float32)
  scores_SP = issue(0)
  for block in range(blocks):
    following_SP = issue(block + 1) if block + 1 < blocks else scores_SP
    row_h_YP = rel_h_YP[block * block_rows : (block + 1) * block_rows]
    # The scale is no power of two: on q it would cost bfloat16 another digit.
    scores_YXP = scores_SP.reshape(block_rows, columns, queries)
    scores_YXP = scores_YXP * (scale * LOG2E) + rel_w_XP[None]
    raised_1P = jnp.maximum(highest_1P, highest(scores_YXP, row_h_YP))
    shrink_1P = jnp.exp2(highest_1P - raised_1P)
    weights_YXP = jnp.exp2(scores_YXP + (row_h_YP - raised_1P)[:, None])
    weights_SP = weights_YXP.reshape(keys, queries)
    sums_8P = sums_8P * shrink_1P + partial_sums(weights_SP)
    v_HS = v_ref[0, :, pl.ds(block * keys, keys)]
    mixed_HP = product(v_HS, weights_SP.astype(v_HS.dtype), NN)
    o_HP = o_HP * shrink_1P + mixed_HP
    highest_1P, scores_SP = raised_1P, following_SP
  sum_1P = jnp.sum(sums_8P, axis=0, keepdims=True)
  o_ref[0] = (o_HP / sum_1P).astype(o_ref.dtype)
  lse_ref[0] = highest_1P + jnp.log2(sum_1P)


def _backward_body(
  q_ref, k_ref, v_ref, rel_h_ref, rel_w_ref, o_ref, lse_ref, do_ref,
  dq_ref, dk_ref, dv_ref, drel_h_ref, drel_w_ref,
  k_SH, v_SH, dk_HS, dv_HS, *, scale, block_rows,
):  # fmt: skip
  """One block of queries: its own gradients, its part of the keys'."""
  columns, queries = rel_w_ref.shape[1:]
  blocks = rel_h_ref.shape[1] // block_rows
  keys = block_rows * columns

  @pl.when(pl.program_id(1) == 0)
  def _():
    k_SH[...], v_SH[...] = k_ref[0].T, v_ref[0].T
    dk_HS[...], dv_HS[...] = jnp.zeros_like(dk_HS), jnp.zeros_like(dv_HS)

  q_HP, do_HP = q_ref[0], do_ref[0]
  # Added in the forward pass's order, to round as it did: of biases in the tens
  # every rounding shows in float32.
  rel_h_YP = rel_h_ref[0] * LOG2E - lse_ref[0]
  rel_w_XP = rel_w_ref[0] * LOG2E
  delta_HP = do_HP.astype(jnp.float32) * o_ref[0].astype(jnp.float32)
  delta_1P = jnp.sum(delta_HP, axis=0, keepdims=True)

  def issue(block):
    span = pl.ds(block * keys, keys)
    return product(k_SH[span, :], q_HP, NN), product(v_SH[span, :], do_HP, NN)

  dq_HP = jnp.zeros(q_HP.shape, jnp.float32)
  drel_w_XP = jnp.zeros((columns, queries), jnp.float32)
  current = issue(0)
  for block in range(blocks):
    following = issue(block + 1) if block + 1 < blocks else current
    scores_YXP, dweights_YXP = (
      a.reshape(block_rows, columns, queries) for a in current
    )
    rows = pl.ds(block * block_rows, block_rows)
    row_h_YP = rel_h_YP[block * block_rows : (block + 1) * block_rows]
    scores_YXP = scores_YXP * (scale * LOG2E) + rel_w_XP[None]
    weights_YXP = jnp.exp2(scores_YXP + row_h_YP[:, None])
    dscores_YXP = weights_YXP * (dweights_YXP - delta_1P[None])
    drel_w_XP += jnp.sum(dscores_YXP, axis=0)
    drel_h_ref[0, rows, :] = jnp.sum(dscores_YXP, axis=1)
    weights_SP = weights_YXP.reshape(keys, queries).astype(q_HP.dtype)
    dscores_SP = dscores_YXP.reshape(keys, queries).astype(q_HP.dtype)
    span = pl.ds(block * keys, keys)
    dv_HS[:, span] += product(do_HP, weights_SP, NT)
    dk_HS[:, span] += product(q_HP, dscores_SP, NT)
    dq_HP += product(k_ref[0, :, span], dscores_SP, NN)
    current = following
  dq_ref[0] = (dq_HP * scale).astype(dq_ref.dtype)
  drel_w_ref[0] = drel_w_XP

  @pl.when(pl.program_id(1) == pl.num_programs(1) - 1)
  def _():
    dk_ref[0] = (dk_HS[...] * scale).astype(dk_ref.dtype)
    dv_ref[0] = dv_HS[...].astype(dv_ref.dtype)


def _specs(width: int, patches: int, queries: int) -> tuple[Any, pl.BlockSpec]:
  """Blocks of one head: some features of its queries, or all there is."""

  def of_queries(features: int) -> pl.BlockSpec:
    return pl.BlockSpec((1, features, queries), lambda m, i: (m, 0, i))

  return of_queries, pl.BlockSpec((1, width, patches), lambda m, i: (m, 0, 0))


def _block(
  targets: dict[int, tuple[int, int]],
  rows: int,
  columns: int,
  dtype: jnp.dtype,
) -> tuple[int, int]:
  """Queries and rows of keys in a block: what divides the grid, near target."""
  wide = choice.device()[1].startswith(("TPU v6", "TPU7"))
  most_queries, most_keys = targets[256 if wide else 128]
  if dtype == jnp.float32:
    most_queries, most_keys = _FLOAT32_BLOCK
  patches, step = rows * columns, row_step(columns)
  queries = max(
    n for n in range(LANES, most_queries + 1, LANES) if patches % n == 0
  )
  block_rows = max(
    n
    for n in range(step, rows + 1, step)
    if rows % n == 0 and n * columns <= max(most_keys, step * columns)
  )
  return queries, block_rows
