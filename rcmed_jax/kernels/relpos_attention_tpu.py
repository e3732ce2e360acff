"""What the TPU kernels of relative-position attention share.

Everything is feature-major, [M, H, P]: patches lie on the 128 lanes, so no
head width is padded in memory, and scores are held transposed, keys on the
sublanes and queries on the lanes. There rel_w adds without a broadcast, rel_h
is one value a key row, and the bias stays float32. Products take their operands
as they lie, or the matrix unit transposes them; only k, and v in the backward
pass, are transposed before. Softmax runs in powers of two, because that is the
exponential that the hardware has.

`relpos_attention_tpu_grid.py` has the kernels of large grids, which go through
the keys block by block, `relpos_attention_tpu_window.py` those of small ones,
which hold all scores at once.
"""

import math
from typing import Any

import jax
from jax.experimental import pallas as pl
import jax.numpy as jnp

LANES, SUBLANES = 128, 8
LOG2E = math.log2(math.e)
# Grids up to this many patches are attended to in one tile.
TILE_PATCHES = 512
# Keys, values and their gradients of one head stay in vector memory. This many
# patches compile for every generation, in float32 and at head width 128 too.
MAX_PATCHES = 4096
# A bound on vector memory that every generation has (v5p and 7x: 64 MiB).
VMEM_BYTES = 48 * 2**20

# Which axes a product contracts: rows by columns, and with either transposed.
NN = (((1,), (0,)), ((), ()))
NT = (((1,), (1,)), ((), ()))
TN = (((0,), (0,)), ((), ()))


def refusal(
  patches: int, head_width: int, dtypes: tuple[jnp.dtype, ...]
) -> str | None:
  """Why these kernels cannot run, as a clause, or None where they can."""
  if len(set(dtypes)) > 1 or dtypes[0] not in (jnp.bfloat16, jnp.float32):
    names = ", ".join(str(dtype) for dtype in dtypes)
    return f"q, k and v must be all bfloat16 or all float32, not {names}"
  if head_width % 16 or head_width > LANES:
    return f"it needs a head width of 16, 32, ... 128, not {head_width}"
  if patches > MAX_PATCHES:
    return (
      f"it holds a head's keys in vector memory: at most {MAX_PATCHES} "
      f"patches after padding, not {patches}"
    )
  return None


def padded_grid(rows: int, columns: int) -> tuple[int, int]:
  """The rows and columns that the kernels take in place of a grid's own.

  Small grids stay as they are. On large ones a row of keys fills whole
  sublanes and a block of rows whole lanes: 33 x 62 becomes 34 x 64.
  """
  if rows * columns <= TILE_PATCHES:
    return rows, columns
  columns += -columns % SUBLANES
  return rows + -rows % row_step(columns), columns


def product(left: jax.Array, right: jax.Array, contract: Any) -> jax.Array:
  """float32 product on the matrix unit.

  It multiplies bfloat16; float32 operands are taken apart into three of these
  each (HIGHEST), or a float32 model would compute in bfloat16 here.
  """
  whole = left.dtype == jnp.float32
  precision = jax.lax.Precision.HIGHEST if whole else None
  return jax.lax.dot_general(
    left,
    right,
    contract,
    precision=precision,
    preferred_element_type=jnp.float32,
  )


def highest(scores_YXP: jax.Array, rel_h_YP: jax.Array) -> jax.Array:
  """[1, P], the largest of scores + rel_h.

  Whole registers first, sublanes within a register last: those are slow.
  """
  rows, columns, patches = scores_YXP.shape
  scores = scores_YXP.reshape(rows, columns // SUBLANES, SUBLANES, patches)
  highest_Y8P = jnp.max(scores, axis=1) + rel_h_YP[:, None]
  return jnp.max(jnp.max(highest_Y8P, axis=0), axis=0, keepdims=True)


def partial_sums(values_SP: jax.Array) -> jax.Array:
  """[8, P], sums over the keys of one sublane."""
  keys, patches = values_SP.shape
  return jnp.sum(values_SP.reshape(keys // SUBLANES, SUBLANES, patches), axis=0)


def cost(q_MHP: jax.Array, *, products: int, arrays: int) -> pl.CostEstimate:
  """What XLA's scheduler should know of a kernel: it cannot look inside."""
  heads, width, patches = q_MHP.shape
  return pl.CostEstimate(
    flops=2 * products * heads * width * patches**2,
    transcendentals=heads * patches**2,
    bytes_accessed=arrays * q_MHP.size * q_MHP.dtype.itemsize,
  )


def row_step(columns: int) -> int:
  """The fewest rows that fill whole lanes."""
  return LANES // math.gcd(columns, LANES)
