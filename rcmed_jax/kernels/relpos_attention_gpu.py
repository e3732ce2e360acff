"""Attention with decomposed relative positions on Hopper: the face of it.

What the kernels of `relpos_kernels_gpu` take and give, padded and cut.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from rcmed_jax.kernels import hopper
from rcmed_jax.kernels import relpos_kernels_gpu as kernels
from rcmed_jax.kernels.hopper import LOG2E
from rcmed_jax.kernels.relpos_kernels_gpu import COLUMNS, Plan

# d rel_h of a block's queries waits in shared memory, a row of it for each key
# row: 48 kB of the 227, beside heads of width 128.
MAX_ROWS = 96


def refusal(
  q_MPH: jax.Array | jax.ShapeDtypeStruct,
  k_MPH: jax.Array | jax.ShapeDtypeStruct,
  v_MPH: jax.Array | jax.ShapeDtypeStruct,
  grid: tuple[int, int],
) -> str | None:
  """Why the kernels cannot run on such arrays here, or None.

  Args:
    q_MPH, k_MPH, v_MPH: of `forward`.
    grid: rows and columns.
  """
  rows, columns = grid
  width = q_MPH.shape[-1]
  if rows > MAX_ROWS:
    return f"it needs a grid of at most {MAX_ROWS} rows, not {rows}"
  if columns > COLUMNS[-1]:
    return f"it needs a grid of at most {COLUMNS[-1]} columns, not {columns}"
  if width > hopper.MAX_WIDTH:
    return f"it needs heads of width {hopper.MAX_WIDTH} or less, not {width}"
  return hopper.refusal(q_MPH, k_MPH, v_MPH)


def forward(
  q_MPH: jax.Array,
  k_MPH: jax.Array,
  v_MPH: jax.Array,
  rel_h_MPY: jax.Array,
  rel_w_MPX: jax.Array,
  scale: float,
  interpret: Any = None,
) -> tuple[jax.Array, jax.Array]:
  """(o [M, P, H] of v's dtype, logsumexp float32[M, P]).

  Args:
    q_MPH: bfloat16 queries, row-major over the grid.
    k_MPH: keys.
    v_MPH: values.
    rel_h_MPY: float32 bias of each query towards each key row.
    rel_w_MPX: float32 bias of each query towards each key column.
    scale: of the scores.
    interpret: parameters of JAX's interpreter for Mosaic GPU, for machines
      without a GPU.
  """
  grid = (rel_h_MPY.shape[-1], rel_w_MPX.shape[-1])
  plan = _plan(q_MPH, grid, scale, interpret)
  rel_h_MYP, rel_w_MPX = _biases(rel_h_MPY, rel_w_MPX, plan)
  o_MPH, lse_MP = kernels.forward(
    plan,
    _pad(q_MPH, grid, plan, plan.width),
    _pad(k_MPH, grid, plan, plan.width),
    _pad(v_MPH, grid, plan, plan.width),
    rel_h_MYP,
    rel_w_MPX,
  )
  o_MPH = _cut(o_MPH, grid, plan)[..., : v_MPH.shape[-1]]
  return o_MPH, _cut(lse_MP[..., None], grid, plan)[..., 0] / LOG2E


def backward(
  q_MPH: jax.Array,
  k_MPH: jax.Array,
  v_MPH: jax.Array,
  rel_h_MPY: jax.Array,
  rel_w_MPX: jax.Array,
  o_MPH: jax.Array,
  lse_MP: jax.Array,
  do_MPH: jax.Array,
  scale: float,
  interpret: Any = None,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
  """(dq, dk, dv, d rel_h, d rel_w), shaped and typed as what they belong to.

  With P = exp(S - lse), dP = do v^T and delta = sum(do o) over the width:
  dS = P (dP - delta); dq = scale dS k; dk = scale dS^T q; dv = P^T do;
  d rel_h sums dS over the columns of a key row, d rel_w over the rows.

  Args:
    q_MPH, k_MPH, v_MPH, rel_h_MPY, rel_w_MPX, scale, interpret: of `forward`.
    o_MPH, lse_MP: its results.
    do_MPH: gradient of o, bfloat16.
  """
  grid = (rel_h_MPY.shape[-1], rel_w_MPX.shape[-1])
  plan = _plan(q_MPH, grid, scale, interpret)
  delta_MP1 = jnp.sum(
    o_MPH.astype(jnp.float32) * do_MPH.astype(jnp.float32), -1, keepdims=True
  )
  rel_h_MYP, rel_w_MPX = _biases(rel_h_MPY, rel_w_MPX, plan)
  problem = kernels.Gradient(
    q_MPH=_pad(q_MPH, grid, plan, plan.width),
    k_MPH=_pad(k_MPH, grid, plan, plan.width),
    v_MPH=_pad(v_MPH, grid, plan, plan.width),
    do_MPH=_pad(do_MPH, grid, plan, plan.width),
    rel_h_MYP=rel_h_MYP,
    rel_w_MPX=rel_w_MPX,
    lse_MP=_pad(lse_MP[..., None] * LOG2E, grid, plan, 1)[..., 0],
    delta_MP=_pad(delta_MP1, grid, plan, 1)[..., 0],
  )
  dq_MPH, drel_h_MYP, drel_w_MPX = kernels.backward_queries(plan, problem)
  dk_MPH, dv_MPH = kernels.backward_keys(plan, problem)
  width = q_MPH.shape[-1]
  return (
    _cut(dq_MPH, grid, plan)[..., :width],
    _cut(dk_MPH, grid, plan)[..., :width],
    _cut(dv_MPH, grid, plan)[..., : v_MPH.shape[-1]],
    _cut(drel_h_MYP.transpose(0, 2, 1), grid, plan)[..., : grid[0]],
    _cut(drel_w_MPX, grid, plan)[..., : grid[1]],
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def attend(*arguments: Any) -> jax.Array:
  """[M, P, H] of v's dtype, differentiable; arguments as of `forward`."""
  return forward(*arguments)[0]


def _attend_forward(*arguments: Any) -> tuple[Any, Any]:
  results = forward(*arguments)
  return results[0], (*arguments[:5], *results)


def _attend_backward(scale: float, residuals: Any, do_MPH: Any) -> Any:
  arguments: Any = (*residuals, do_MPH, scale)
  return backward(*arguments)


attend.defvjp(_attend_forward, _attend_backward)


def _plan(
  q_MPH: jax.Array, grid: tuple[int, int], scale: float, interpret: Any
) -> Plan:
  columns = next(size for size in COLUMNS if size >= grid[1])
  return Plan(
    heads=q_MPH.shape[0],
    rows=hopper.padded(grid[0], hopper.BLOCK // columns),
    columns=columns,
    width=hopper.padded(q_MPH.shape[-1], hopper.WIDTH_STEP),
    scale=scale,
    interpret=interpret,
  )


def _pad(
  array_MPC: jax.Array, grid: tuple[int, int], plan: Plan, width: int
) -> jax.Array:
  """[M, Y' X', width]: zeros after the rows, columns and channels."""
  heads, _, channels = array_MPC.shape
  padded = jnp.pad(
    array_MPC.reshape(heads, *grid, channels),
    (
      (0, 0),
      (0, plan.rows - grid[0]),
      (0, plan.columns - grid[1]),
      (0, width - channels),
    ),
  )
  return padded.reshape(heads, plan.patches, width)


def _cut(array_MPC: jax.Array, grid: tuple[int, int], plan: Plan) -> jax.Array:
  """[M, Y X, C]: undoes the padding of the grid."""
  heads, _, channels = array_MPC.shape
  array = array_MPC.reshape(heads, plan.rows, plan.columns, channels)
  array = array[:, : grid[0], : grid[1]]
  return array.reshape(heads, grid[0] * grid[1], channels)


def _biases(
  rel_h_MPY: jax.Array, rel_w_MPX: jax.Array, plan: Plan
) -> tuple[jax.Array, jax.Array]:
  """([M, Y', P'], [M, P', X']) in powers of two, hidden where no key is.

  rel_h lies with queries last: a key row of it is one contiguous vector.
  """
  grid = (rel_h_MPY.shape[-1], rel_w_MPX.shape[-1])

  def hidden(rel_MPS: jax.Array, size: int) -> jax.Array:
    tail = ((0, 0), (0, 0), (0, size - rel_MPS.shape[-1]))
    rel_MPS = rel_MPS.astype(jnp.float32) * LOG2E
    rel_MPS = jnp.pad(rel_MPS, tail, constant_values=hopper.HIDDEN)
    return _pad(rel_MPS, grid, plan, size)

  rel_h_MPY = hidden(rel_h_MPY, plan.rows)
  return rel_h_MPY.transpose(0, 2, 1), hidden(rel_w_MPX, plan.columns)
