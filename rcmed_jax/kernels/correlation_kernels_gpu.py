"""Hopper kernels of correlation attention, one for each pass.

Both sides see the same affinity S, so one kernel serves both: the side at rest
("near") reads from the streamed one ("far"), once as pixels from words and once
as words from pixels. Recomputing S from its 32-wide heads is a sixth of the
work of one direction, the exponentials, and spares blocks from exchanging
anything. Backward both softmaxes come from one S, and one dS feeds dq or dk:

  near(S) = exp(S + bias_far - lse_near)   what near reads from far
  far(S)  = exp(S + bias_near - lse_far)   what far reads from near
  dS = near(S) (dnear v_far^T - delta_near)
     + far(S) (v_near dfar^T - delta_far)
  dx_near = scale dS x_far; dv_near = far(S) dfar; dbias_near = its row sums

Bias is the gate of pixels, or -1e30 where there is no word or pixel. Inside
the kernels P counts the near side and S the far one.
Source: the op's own module; FlashAttention-2, arXiv 2307.08691.
"""

import dataclasses
import functools
from typing import Any

import jax
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from rcmed_jax.kernels import hopper
from rcmed_jax.kernels.hopper import LOG2E, TILE, WARPGROUPS

FORWARD_FAR = 128  # streamed rows of one step, forward
STATISTICS = 3  # vectors of a side: bias, logsumexp, delta


@dataclasses.dataclass(frozen=True)
class Plan:
  """One pass of one kernel.

  Attributes:
    heads: N.
    width: H', padded.
    near: length of the side at rest, padded.
    far: length of the streamed side, padded.
    scale: of the affinity.
    interpret: an interpreter's parameters, or None for the GPU.
  """

  heads: int
  width: int
  near: int
  far: int
  scale: float
  interpret: Any

  @property
  def blocks(self) -> int:
    """Blocks of one head of one batch row."""
    return self.near // hopper.BLOCK


@dataclasses.dataclass(frozen=True)
class Side:
  """Pixels or words, padded, heads side by side.

  Attributes:
    x_BSC: queries or keys.
    v_BSC: what the other side reads.
    bias_BS: float32, natural units, of the other side's softmax.
  """

  x_BSC: jax.Array
  v_BSC: jax.Array
  bias_BS: jax.Array

  @property
  def length(self) -> int:
    return self.x_BSC.shape[1]


@dataclasses.dataclass(frozen=True)
class GradientSide(Side):
  """A side with what backward needs.

  Attributes:
    d_BSC: gradient of what this side read.
    stats_BN3S: bias, logsumexp and delta, the first two in powers of two.
  """

  d_BSC: jax.Array
  stats_BN3S: jax.Array


def forward(plan: Plan, near: Side, far: Side) -> tuple[jax.Array, ...]:
  """(what near reads, its logsumexp in powers of two)."""
  batch = near.x_BSC.shape[0]
  tiles = (WARPGROUPS, TILE)
  return hopper.launch(
    functools.partial(_forward, plan),
    batch * plan.heads * plan.blocks,
    (
      jax.ShapeDtypeStruct(near.x_BSC.shape, far.v_BSC.dtype),
      jax.ShapeDtypeStruct((batch, plan.heads, plan.near), jnp.float32),
    ),
    dict(
      x=plgpu.SMEM(
        (*tiles, plan.width),
        near.x_BSC.dtype,
        transforms=hopper.swizzled(plan.width),
      ),
      lse=plgpu.SMEM(tiles, jnp.float32),
      barrier=plgpu.Barrier(num_barriers=WARPGROUPS),
    ),
    *(near.x_BSC, far.x_BSC, far.v_BSC, far.bias_BS * LOG2E),
    name="correlation_forward",
    interpret=plan.interpret,
  )


def _forward(plan: Plan, *refs: Any) -> None:
  """What BLOCK rows of the near side read, and their logsumexp."""
  x, x_far, v_far, bias_far, out, lse, smem = refs
  batch, head, block = _place(plan)
  group = lax.axis_index("warpgroup")
  nears = hopper.part(block * WARPGROUPS + group, TILE)
  channels = hopper.part(head, plan.width)

  def around(pipeline: Any) -> None:
    source = x.at[batch, nears, channels]
    hopper.fetch([(source, smem.x.at[group])], smem.barrier, group)
    out_PH, most_P, total_P = pipeline(
      (
        jnp.zeros((TILE, plan.width), jnp.float32),
        jnp.full((TILE,), -jnp.inf, jnp.float32),
        jnp.zeros((TILE,), jnp.float32),
      )
    )
    out_PH /= hopper.along_rows(total_P, out_PH.shape)
    smem.x[group] = out_PH.astype(out.dtype)
    smem.lse[group] = most_P + jnp.log(total_P) * LOG2E
    hopper.store(
      [
        (smem.x.at[group], out.at[batch, nears, channels]),
        (smem.lse.at[group], lse.at[batch, head, nears]),
      ]
    )

  layout = hopper.swizzled(plan.width)
  matrix = ((FORWARD_FAR, plan.width), 0, layout)
  hopper.stream(
    functools.partial(_forward_step, plan, smem, group),
    around,
    [matrix, matrix, ((FORWARD_FAR,), 0, ())],
    plan.far // FORWARD_FAR,
  )(
    x_far.at[batch, :, channels],
    v_far.at[batch, :, channels],
    bias_far.at[batch],
  )


def _forward_step(
  plan: Plan, smem: Any, group: Any, x: Any, v: Any, bias: Any, carry: Any
) -> tuple[jax.Array, ...]:
  """One turn of the online softmax, over a tile of the far side."""
  out_PH, before_P, total_P = carry
  shape = (TILE, FORWARD_FAR)
  (score_PS,) = hopper.products([(smem.x.at[group], x)], shape, plan.interpret)
  bias_PS = hopper.along_columns(bias[...], shape)
  score_PS = score_PS * (plan.scale * LOG2E) + bias_PS
  most_P = jnp.maximum(before_P, score_PS.max(axis=1))
  shrink_P = jnp.exp2(before_P - most_P)
  weight_PS = jnp.exp2(score_PS - hopper.along_rows(most_P, shape))
  total_P = total_P * shrink_P + weight_PS.sum(axis=1)
  out_PH *= hopper.along_rows(shrink_P, out_PH.shape)
  pairs = [(weight_PS.astype(v.dtype), v)]
  (out_PH,) = hopper.add_products([out_PH], [pairs], plan.interpret)
  return out_PH, most_P, total_P


def backward(
  plan: Plan, near: GradientSide, far: GradientSide
) -> tuple[jax.Array, ...]:
  """(dx, dv, dbias [B, N, P]) of the near side."""
  batch = near.x_BSC.shape[0]
  matrix = functools.partial(
    plgpu.SMEM,
    (WARPGROUPS, TILE, plan.width),
    transforms=hopper.swizzled(plan.width),
  )
  return hopper.launch(
    functools.partial(_backward, plan),
    batch * plan.heads * plan.blocks,
    (
      jax.ShapeDtypeStruct(near.x_BSC.shape, near.x_BSC.dtype),
      jax.ShapeDtypeStruct(near.v_BSC.shape, near.v_BSC.dtype),
      jax.ShapeDtypeStruct((batch, plan.heads, plan.near), jnp.float32),
    ),
    dict(
      x=matrix(near.x_BSC.dtype),
      v=matrix(near.v_BSC.dtype),
      d=matrix(near.v_BSC.dtype),
      stats=plgpu.SMEM((WARPGROUPS, STATISTICS, TILE), jnp.float32),
      barrier=plgpu.Barrier(num_barriers=4 * WARPGROUPS),
    ),
    *(near.x_BSC, near.v_BSC, near.d_BSC, near.stats_BN3S),
    *(far.x_BSC, far.v_BSC, far.d_BSC, far.stats_BN3S),
    name="correlation_backward",
    interpret=plan.interpret,
  )


def _backward(plan: Plan, *refs: Any) -> None:
  """dx, dv and dbias of BLOCK rows of the near side."""
  x, v, d, stats, x_far, v_far, d_far, stats_far, dx, dv, dbias, smem = refs
  batch, head, block = _place(plan)
  group = lax.axis_index("warpgroup")
  nears = hopper.part(block * WARPGROUPS + group, TILE)
  channels = hopper.part(head, plan.width)
  here = (batch, nears, channels)

  def around(pipeline: Any) -> None:
    hopper.fetch(
      [
        (x.at[here], smem.x.at[group]),
        (v.at[here], smem.v.at[group]),
        (d.at[here], smem.d.at[group]),
        (stats.at[batch, head, :, nears], smem.stats.at[group]),
      ],
      smem.barrier,
      group,
    )
    zeros_PH = jnp.zeros((TILE, plan.width), jnp.float32)
    dx_PH, dv_PH, dbias_P = pipeline(
      (zeros_PH, zeros_PH, jnp.zeros((TILE,), jnp.float32))
    )
    smem.x[group] = (dx_PH * plan.scale).astype(dx.dtype)
    smem.v[group] = dv_PH.astype(dv.dtype)
    smem.stats[group, 0] = dbias_P
    hopper.store(
      [
        (smem.x.at[group], dx.at[here]),
        (smem.v.at[group], dv.at[here]),
        (smem.stats.at[group, 0], dbias.at[batch, head, nears]),
      ]
    )

  matrix = ((TILE, plan.width), 0, hopper.swizzled(plan.width))
  hopper.stream(
    functools.partial(_backward_step, plan, smem, group),
    around,
    [matrix, matrix, matrix, ((STATISTICS, TILE), 1, ())],
    plan.far // TILE,
  )(
    x_far.at[batch, :, channels],
    v_far.at[batch, :, channels],
    d_far.at[batch, :, channels],
    stats_far.at[batch, head],
  )


def _backward_step(
  plan: Plan,
  smem: Any,
  group: Any,
  x: Any,
  v: Any,
  d: Any,
  stats: Any,
  carry: Any,
) -> tuple[jax.Array, ...]:
  """Adds what a tile of the far side gives."""
  dx_PH, dv_PH, dbias_P = carry
  shape = (TILE, TILE)
  score_PS, dnear_PS, dfar_PS = hopper.products(
    [(smem.x.at[group], x), (smem.d.at[group], v), (smem.v.at[group], d)],
    shape,
    plan.interpret,
  )
  bias_PS, lse_PS, delta_PS = (
    hopper.along_rows(smem.stats[group, index], shape)
    for index in range(STATISTICS)
  )
  far_bias_PS, far_lse_PS, far_delta_PS = (
    hopper.along_columns(stats[index], shape) for index in range(STATISTICS)
  )
  score_PS = score_PS * (plan.scale * LOG2E)
  weight_PS = jnp.exp2(score_PS + bias_PS - far_lse_PS)
  dscore_PS = weight_PS * (dfar_PS - far_delta_PS)
  dbias_P += dscore_PS.sum(axis=1)
  read_PS = jnp.exp2(score_PS + far_bias_PS - lse_PS)
  dscore_PS += read_PS * (dnear_PS - delta_PS)
  dx_PH, dv_PH = hopper.add_products(
    [dx_PH, dv_PH],
    [[(dscore_PS.astype(x.dtype), x)], [(weight_PS.astype(d.dtype), d)]],
    plan.interpret,
  )
  return dx_PH, dv_PH, dbias_P


def _place(plan: Plan) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(batch row, head, block of the near side) of this block."""
  group, block = hopper.place(plan.blocks)
  heads = jnp.int32(plan.heads)
  return lax.div(group, heads), lax.rem(group, heads), block
