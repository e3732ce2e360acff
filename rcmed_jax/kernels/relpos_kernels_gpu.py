"""Hopper kernels of attention with decomposed relative positions.

Keys are padded to rows of X' = 16, 32 or 64 columns, so that the scores of 64
queries against one key row are one tile: rel_w adds to it as it lies in
registers, and rel_h is one number a query, which joins the running maximum. The
bias stays float32 and costs one addition a score; concatenated to queries and
keys it would make the products 2.6 times as long on a 64 x 64 grid (208 against
80) and round the bias to bfloat16. Padded keys carry a bias of -1e30.

Backward are two kernels, each with its own side at rest and without atomics:
one for dq, d rel_h, d rel_w, one for dk, dv. Both rebuild the probabilities.
Source: FlashAttention-2, arXiv 2307.08691, and the op's own module.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from rcmed_jax.kernels import hopper
from rcmed_jax.kernels.hopper import LOG2E, TILE, WARPGROUPS

FORWARD_KEYS = 128  # keys of one step; more would spill registers
COLUMNS = (16, 32, 64)  # widths of a padded key row


@dataclasses.dataclass(frozen=True)
class Plan:
  """The padded problem.

  Attributes:
    heads: M, windows or heads of all images.
    rows: Y' of the padded grid.
    columns: X'.
    width: H' of a head.
    scale: of the scores.
    interpret: an interpreter's parameters, or None for the GPU.
  """

  heads: int
  rows: int
  columns: int
  width: int
  scale: float
  interpret: Any

  @property
  def patches(self) -> int:
    return self.rows * self.columns

  @property
  def blocks(self) -> int:
    """Blocks of one head."""
    return self.patches // hopper.BLOCK

  @property
  def layout(self) -> tuple[Any, ...]:
    """Of all matrices in shared memory: how wide their swizzled tiles are.

    Both a head and a key row are whole numbers of tiles, since products start
    from single key rows.
    """
    return hopper.swizzled(math.gcd(self.width, self.columns))

  def matrices(self, width: int, dtype: Any) -> Any:
    """Shared memory for a matrix of `TILE` rows for each warpgroup."""
    return plgpu.SMEM((WARPGROUPS, TILE, width), dtype, transforms=self.layout)


@dataclasses.dataclass(frozen=True)
class Gradient:
  """What both backward kernels take, padded.

  Attributes:
    q_MPH, k_MPH, v_MPH: bfloat16 matrices.
    do_MPH: gradient of o, bfloat16.
    rel_h_MYP: float32 in powers of two, queries last.
    rel_w_MPX: float32 in powers of two.
    lse_MP: float32 logsumexp in powers of two.
    delta_MP: float32 sum of do o.
  """

  q_MPH: jax.Array
  k_MPH: jax.Array
  v_MPH: jax.Array
  do_MPH: jax.Array
  rel_h_MYP: jax.Array
  rel_w_MPX: jax.Array
  lse_MP: jax.Array
  delta_MP: jax.Array

  @property
  def arrays(self) -> tuple[jax.Array, ...]:
    return tuple(
      getattr(self, field.name) for field in dataclasses.fields(self)
    )


def forward(
  plan: Plan,
  q_MPH: jax.Array,
  k_MPH: jax.Array,
  v_MPH: jax.Array,
  rel_h_MYP: jax.Array,
  rel_w_MPX: jax.Array,
) -> tuple[jax.Array, ...]:
  """(o, lse in powers of two) of padded arrays."""
  tiles = (WARPGROUPS, TILE)
  return hopper.launch(
    functools.partial(_forward, plan),
    plan.heads * plan.blocks,
    (
      jax.ShapeDtypeStruct(q_MPH.shape, v_MPH.dtype),
      jax.ShapeDtypeStruct(q_MPH.shape[:2], jnp.float32),
    ),
    dict(
      q=plan.matrices(plan.width, q_MPH.dtype),
      rel_w=plgpu.SMEM((*tiles, plan.columns), jnp.float32),
      lse=plgpu.SMEM(tiles, jnp.float32),
      barrier=plgpu.Barrier(num_barriers=2 * WARPGROUPS),
    ),
    *(q_MPH, k_MPH, v_MPH, rel_h_MYP, rel_w_MPX),
    name="relpos_forward",
    interpret=plan.interpret,
  )


def _forward(plan: Plan, *refs: Any) -> None:
  """o and lse of BLOCK queries; streams keys, values and rows of rel_h."""
  q, k, v, rel_h, rel_w, o, lse, smem = refs
  head, block = hopper.place(plan.blocks)
  group = lax.axis_index("warpgroup")
  queries = hopper.part(block * WARPGROUPS + group, TILE)

  def around(pipeline: Any) -> None:
    hopper.fetch(
      [
        (q.at[head, queries], smem.q.at[group]),
        (rel_w.at[head, queries], smem.rel_w.at[group]),
      ],
      smem.barrier,
      group,
    )
    o_PH, most_P, total_P = pipeline(
      (
        jnp.zeros((TILE, plan.width), jnp.float32),
        jnp.full((TILE,), -jnp.inf, jnp.float32),
        jnp.zeros((TILE,), jnp.float32),
      )
    )
    o_PH /= hopper.along_rows(total_P, o_PH.shape)
    smem.q[group] = o_PH.astype(o.dtype)
    smem.lse[group] = most_P + jnp.log(total_P) * LOG2E
    hopper.store(
      [
        (smem.q.at[group], o.at[head, queries]),
        (smem.lse.at[group], lse.at[head, queries]),
      ]
    )

  keys = (FORWARD_KEYS, plan.width)
  rows = (FORWARD_KEYS // plan.columns, hopper.BLOCK)
  hopper.stream(
    functools.partial(_forward_step, plan, smem, group),
    around,
    [(keys, 0, plan.layout), (keys, 0, plan.layout), (rows, 0, ())],
    plan.patches // FORWARD_KEYS,
  )(
    k.at[head],
    v.at[head],
    rel_h.at[head, :, hopper.part(block, hopper.BLOCK)],
  )


def _forward_step(
  plan: Plan, smem: Any, group: Any, k: Any, v: Any, rel_h: Any, carry: Any
) -> tuple[jax.Array, ...]:
  """One turn of the online softmax, over some key rows."""
  o_PH, before_P, total_P = carry
  shape = (TILE, plan.columns)
  rows = range(FORWARD_KEYS // plan.columns)
  parts = [hopper.part(row, plan.columns) for row in rows]
  products = hopper.products(
    [(smem.q.at[group], k.at[part]) for part in parts], shape, plan.interpret
  )
  rel_w_PX = smem.rel_w[group]
  scores = [score * (plan.scale * LOG2E) + rel_w_PX for score in products]
  shifts = [rel_h[row, hopper.part(group, TILE)] for row in rows]
  most_P = before_P
  for score_PX, shift_P in zip(scores, shifts, strict=True):
    most_P = jnp.maximum(most_P, score_PX.max(axis=1) + shift_P)
  shrink_P = jnp.exp2(before_P - most_P)
  total_P *= shrink_P
  o_PH *= hopper.along_rows(shrink_P, o_PH.shape)
  weights = []
  for score_PX, shift_P in zip(scores, shifts, strict=True):
    weight_PX = jnp.exp2(score_PX - hopper.along_rows(most_P - shift_P, shape))
    total_P += weight_PX.sum(axis=1)
    weights.append(weight_PX.astype(v.dtype))
  pairs = [
    (weight, v.at[part]) for weight, part in zip(weights, parts, strict=True)
  ]
  (o_PH,) = hopper.add_products([o_PH], [pairs], plan.interpret)
  return o_PH, most_P, total_P


def backward_queries(plan: Plan, given: Gradient) -> tuple[jax.Array, ...]:
  """(dq, d rel_h [M, Y', P'], d rel_w) of padded arrays."""
  tiles = (WARPGROUPS, TILE)
  return hopper.launch(
    functools.partial(_queries, plan),
    plan.heads * plan.blocks,
    (
      jax.ShapeDtypeStruct(given.q_MPH.shape, given.q_MPH.dtype),
      jax.ShapeDtypeStruct(given.rel_h_MYP.shape, jnp.float32),
      jax.ShapeDtypeStruct(given.rel_w_MPX.shape, jnp.float32),
    ),
    dict(
      q=plan.matrices(plan.width, given.q_MPH.dtype),
      do=plan.matrices(plan.width, given.do_MPH.dtype),
      rel_w=plgpu.SMEM((*tiles, plan.columns), jnp.float32),
      drel_h=plgpu.SMEM((WARPGROUPS, plan.rows, TILE), jnp.float32),
      lse=plgpu.SMEM(tiles, jnp.float32),
      delta=plgpu.SMEM(tiles, jnp.float32),
      barrier=plgpu.Barrier(num_barriers=5 * WARPGROUPS),
    ),
    *given.arrays,
    name="relpos_backward_queries",
    interpret=plan.interpret,
  )


def _queries(plan: Plan, *refs: Any) -> None:
  """dq, d rel_h, d rel_w of BLOCK queries; streams keys and values."""
  q, k, v, do, rel_h, rel_w, lse, delta, dq, drel_h, drel_w, smem = refs
  head, block = hopper.place(plan.blocks)
  group = lax.axis_index("warpgroup")
  queries = hopper.part(block * WARPGROUPS + group, TILE)

  def around(pipeline: Any) -> None:
    hopper.fetch(
      [
        (q.at[head, queries], smem.q.at[group]),
        (do.at[head, queries], smem.do.at[group]),
        (rel_w.at[head, queries], smem.rel_w.at[group]),
        (lse.at[head, queries], smem.lse.at[group]),
        (delta.at[head, queries], smem.delta.at[group]),
      ],
      smem.barrier,
      group,
    )
    dq_PH, drel_w_PX, _ = pipeline(
      (
        jnp.zeros((TILE, plan.width), jnp.float32),
        jnp.zeros((TILE, plan.columns), jnp.float32),
        jnp.int32(0),
      )
    )
    smem.q[group] = (dq_PH * plan.scale).astype(dq.dtype)
    smem.rel_w[group] = drel_w_PX
    hopper.store(
      [
        (smem.q.at[group], dq.at[head, queries]),
        (smem.drel_h.at[group], drel_h.at[head, :, queries]),
        (smem.rel_w.at[group], drel_w.at[head, queries]),
      ]
    )

  keys = (TILE, plan.width)
  rows = (TILE // plan.columns, hopper.BLOCK)
  hopper.stream(
    functools.partial(_queries_step, plan, smem, group),
    around,
    [(keys, 0, plan.layout), (keys, 0, plan.layout), (rows, 0, ())],
    plan.patches // TILE,
  )(
    k.at[head],
    v.at[head],
    rel_h.at[head, :, hopper.part(block, hopper.BLOCK)],
  )


def _queries_step(
  plan: Plan, smem: Any, group: Any, k: Any, v: Any, rel_h: Any, carry: Any
) -> tuple[jax.Array, ...]:
  """Adds what some key rows give; their number is carried along."""
  dq_PH, drel_w_PX, first = carry
  rows = range(TILE // plan.columns)
  parts = [hopper.part(row, plan.columns) for row in rows]
  weights, dscores = _weights(
    plan,
    [(smem.q.at[group], k.at[part]) for part in parts],
    [(smem.do.at[group], v.at[part]) for part in parts],
    [rel_h[row, hopper.part(group, TILE)] for row in rows],
    (smem.rel_w[group], smem.lse[group], smem.delta[group]),
  )
  del weights
  for row, dscore_PX in enumerate(dscores):
    smem.drel_h[group, first + row] = dscore_PX.sum(axis=1)
    drel_w_PX += dscore_PX
  pairs = [
    (dscore_PX.astype(k.dtype), k.at[part])
    for dscore_PX, part in zip(dscores, parts, strict=True)
  ]
  (dq_PH,) = hopper.add_products([dq_PH], [pairs], plan.interpret)
  return dq_PH, drel_w_PX, first + len(parts)


def backward_keys(plan: Plan, given: Gradient) -> tuple[jax.Array, ...]:
  """(dk, dv) of padded arrays."""
  return hopper.launch(
    functools.partial(_keys, plan),
    plan.heads * plan.blocks,
    (
      jax.ShapeDtypeStruct(given.k_MPH.shape, given.k_MPH.dtype),
      jax.ShapeDtypeStruct(given.v_MPH.shape, given.v_MPH.dtype),
    ),
    dict(
      k=plan.matrices(plan.width, given.k_MPH.dtype),
      v=plan.matrices(plan.width, given.v_MPH.dtype),
      weight=plan.matrices(TILE, given.do_MPH.dtype),
      dscore=plan.matrices(TILE, given.q_MPH.dtype),
      barrier=plgpu.Barrier(num_barriers=2 * WARPGROUPS),
    ),
    *given.arrays,
    name="relpos_backward_keys",
    interpret=plan.interpret,
  )


def _keys(plan: Plan, *refs: Any) -> None:
  """dk, dv of BLOCK keys; streams queries and what belongs to them."""
  q, k, v, do, rel_h, rel_w, lse, delta, dk, dv, smem = refs
  head, block = hopper.place(plan.blocks)
  group = lax.axis_index("warpgroup")
  keys = hopper.part(block * WARPGROUPS + group, TILE)

  def around(pipeline: Any) -> None:
    hopper.fetch(
      [
        (k.at[head, keys], smem.k.at[group]),
        (v.at[head, keys], smem.v.at[group]),
      ],
      smem.barrier,
      group,
    )
    zeros_SH = jnp.zeros((TILE, plan.width), jnp.float32)
    dk_SH, dv_SH = pipeline((zeros_SH, zeros_SH))
    smem.k[group] = (dk_SH * plan.scale).astype(dk.dtype)
    smem.v[group] = dv_SH.astype(dv.dtype)
    hopper.store(
      [
        (smem.k.at[group], dk.at[head, keys]),
        (smem.v.at[group], dv.at[head, keys]),
      ]
    )

  rows = hopper.BLOCK // plan.columns
  hopper.stream(
    functools.partial(_keys_step, plan, smem, group),
    around,
    [
      ((TILE, plan.width), 0, plan.layout),
      ((TILE, plan.width), 0, plan.layout),
      ((rows, TILE), 1, ()),
      ((TILE, plan.columns), 0, ()),
      ((TILE,), 0, ()),
      ((TILE,), 0, ()),
    ],
    plan.patches // TILE,
  )(
    q.at[head],
    do.at[head],
    rel_h.at[head, hopper.part(block, rows)],
    rel_w.at[head],
    lse.at[head],
    delta.at[head],
  )


def _keys_step(
  plan: Plan,
  smem: Any,
  group: Any,
  q: Any,
  do: Any,
  rel_h: Any,
  rel_w: Any,
  lse: Any,
  delta: Any,
  carry: Any,
) -> tuple[jax.Array, ...]:
  """Adds what some queries give.

  Probabilities arise with queries as rows; keys become rows on their way
  through shared memory, read by the tensor core along columns.
  """
  rows = range(TILE // plan.columns)
  parts = [hopper.part(row, plan.columns) for row in rows]
  weights, dscores = _weights(
    plan,
    [(q, smem.k.at[group, part]) for part in parts],
    [(do, smem.v.at[group, part]) for part in parts],
    [rel_h[group * len(parts) + row] for row in rows],
    (rel_w[...], lse[...], delta[...]),
  )
  for part, weight_PX, dscore_PX in zip(parts, weights, dscores, strict=True):
    smem.weight[group, :, part] = weight_PX.astype(do.dtype)
    smem.dscore[group, :, part] = dscore_PX.astype(q.dtype)
  plgpu.commit_smem()
  return hopper.add_products(
    carry,
    [[(smem.dscore.at[group], q)], [(smem.weight.at[group], do)]],
    plan.interpret,
    transposed=True,
  )


def _weights(
  plan: Plan,
  score_pairs: list[tuple[Any, Any]],
  dweight_pairs: list[tuple[Any, Any]],
  rel_h: list[jax.Array],
  rest: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[list[jax.Array], list[jax.Array]]:
  """Probabilities and dS of TILE queries against some key rows.

  Args:
    plan: the problem.
    score_pairs: queries and one key row, for each key row.
    dweight_pairs: gradients of o and the values of one key row.
    rel_h: the queries' bias towards each key row.
    rest: the queries' rel_w, logsumexp and delta.
  """
  shape = (TILE, plan.columns)
  rel_w_PX, lse_P, delta_P = rest
  scores = hopper.products(score_pairs, shape, plan.interpret)
  dweights = hopper.products(dweight_pairs, shape, plan.interpret)
  delta_PX = hopper.along_rows(delta_P, shape)
  weights, dscores = [], []
  for score_PX, dweight_PX, rel_P in zip(scores, dweights, rel_h, strict=True):
    score_PX = score_PX * (plan.scale * LOG2E) + rel_w_PX
    weight_PX = jnp.exp2(score_PX - hopper.along_rows(lse_P - rel_P, shape))
    weights.append(weight_PX)
    dscores.append(weight_PX * (dweight_PX - delta_PX))
  return weights, dscores
