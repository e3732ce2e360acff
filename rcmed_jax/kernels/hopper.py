"""What our kernels for Hopper GPUs share: tiles, products, a block's shape.

A block owns `BLOCK` rows of one side of an attention, `TILE` for each of its
warpgroups that compute; one more warpgroup fetches tiles of the other side
into shared memory ahead of them (TMA). Bodies are written for Mosaic GPU's
warpgroup semantics: one value is one tile across a warpgroup, and layouts in
registers and swizzles in shared memory are inferred.

Softmaxes count in powers of two, as the hardware does: scores carry LOG2E.
"""

from collections.abc import Callable, Sequence
import math
import types
from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from rcmed_jax.kernels import choice

TILE = 64  # rows of one warpgroup's matrix instruction
WARPGROUPS = 2  # that compute
BLOCK = TILE * WARPGROUPS
LOG2E = math.log2(math.e)
# Far below any score, yet finite: sums of two of them stay free of NaN.
HIDDEN = -1e30

WIDTH_STEP = 16  # depth of one matrix instruction for 16-bit operands
MAX_WIDTH = 128  # what accumulators of one warpgroup leave room for

# Tiles in flight from device memory: one is used while the next one arrives.
STAGES = 2
# Registers left to each thread of the warpgroup that fetches.
FETCH_REGISTERS = 40

# Marketing names of compute capability 9.0, as drivers report them.
HOPPERS = ("H100", "H200", "H800", "GH200")


def refusal(*operands: jax.Array | jax.ShapeDtypeStruct) -> str | None:
  """Why kernels for Hopper cannot take these matrices here, or None."""
  platform, kind = choice.device()
  if platform != "gpu" or not any(h in kind for h in HOPPERS):
    return f"it needs a Hopper GPU (one of {HOPPERS}), not {kind!r}"
  dtypes = sorted({str(jnp.dtype(operand.dtype)) for operand in operands})
  if dtypes != ["bfloat16"]:
    return f"it needs bfloat16 operands, not {', '.join(dtypes)}"
  return None


def padded(size: int, step: int) -> int:
  """The next multiple of `step`."""
  return -(-size // step) * step


def products(
  pairs: Sequence[tuple[Any, Any]], shape: tuple[int, int], interpret: Any
) -> list[jax.Array]:
  """float32 a b^T of each pair of tiles, all issued before the first wait."""
  if interpret:
    return [_dot(a, b, 1, 1) for a, b in pairs]

  def run(*sums: Any) -> list[jax.Array]:
    for total, (a, b) in zip(sums, pairs, strict=True):
      plgpu.wgmma(total, a, plgpu.transpose_ref(b, (1, 0)))
    return [total[...] for total in sums]

  return pl.run_scoped(
    run, *[plgpu.WGMMAAccumulatorRef(shape, jnp.float32)] * len(pairs)
  )


def add_products(
  totals: Sequence[jax.Array],
  pairs: Sequence[Sequence[tuple[Any, Any]]],
  interpret: Any,
  *,
  transposed: bool = False,
) -> tuple[jax.Array, ...]:
  """Each total plus the products a b of its pairs; a^T b if `transposed`.

  Args:
    totals: float32 tiles in registers.
    pairs: for each total, tiles a (in registers or shared memory) and b.
    interpret: emulate, for JAX's interpreter of Mosaic GPU has no tensor core
      that starts from a value.
    transposed: a lies in shared memory and is read along its columns.
  """
  if interpret:
    return tuple(
      total + sum(_dot(a, b, 0 if transposed else 1, 0) for a, b in parts)
      for total, parts in zip(totals, pairs, strict=True)
    )

  def run(sums: Sequence[Any]) -> None:
    for total, parts in zip(sums, pairs, strict=True):
      for a, b in parts:
        turned = plgpu.transpose_ref(a, (1, 0)) if transposed else a
        plgpu.wgmma(total, turned, b)

  initial: Any = tuple(map(plgpu.WGMMAAccumulatorRef.init, totals))
  return tuple(pl.run_state(run)(initial))


def swizzled(columns: int) -> tuple[Any, ...]:
  """How a 16-bit matrix lies in shared memory for the tensor core.

  In tiles of 8 rows, as wide as a swizzle whose width divides the columns.
  """
  size = plgpu.find_swizzle(16 * columns)
  return (
    plgpu.TilingTransform((8, size // 2)),
    plgpu.SwizzleTransform(size),
  )


def along_rows(values: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """One value a row, repeated over the columns of a tile."""
  return lax.broadcast_in_dim(values, shape, [0])


def along_columns(values: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """One value a column, repeated over the rows of a tile."""
  return lax.broadcast_in_dim(values, shape, [1])


def part(index: Any, size: int) -> Any:
  """Slice number `index` of slices of one size."""
  return pl.ds(index * size, size)


def fetch(pairs: Sequence[tuple[Any, Any]], barriers: Any, group: Any) -> None:
  """Copies device memory to shared memory and waits.

  Args:
    pairs: sources and targets.
    barriers: one for each pair and warpgroup.
    group: the warpgroup that copies for itself.
  """
  for index, (source, target) in enumerate(pairs):
    barrier = barriers.at[group * len(pairs) + index]
    plgpu.copy_gmem_to_smem(source, target, barrier)
  for index in range(len(pairs)):
    plgpu.barrier_wait(barriers.at[group * len(pairs) + index])


def store(pairs: Sequence[tuple[Any, Any]]) -> None:
  """Copies what was written to shared memory out and waits."""
  plgpu.commit_smem()
  for source, target in pairs:
    plgpu.copy_smem_to_gmem(source, target)
  plgpu.wait_smem_to_gmem(0)


def stream(
  step: Callable[..., Any],
  around: Callable[..., None],
  blocks: Sequence[tuple[tuple[int, ...], int, tuple[Any, ...]]],
  steps: int,
) -> Callable[..., None]:
  """Runs `step` over tiles that arrive while earlier ones are worked on.

  Args:
    step: takes the tiles of this step, then what the last step returned.
    around: takes the pipeline, calls it with the first carry, gets the last.
    blocks: for each streamed array, the shape of its tile, the axis that
      advances, and `swizzled(...)` of a matrix.
    steps: number of tiles.
  """

  def spec(
    shape: tuple[int, ...], axis: int, layout: tuple[Any, ...]
  ) -> pl.BlockSpec:
    return plgpu.BlockSpec(
      shape,
      lambda index: tuple(
        index if place == axis else 0 for place in range(len(shape))
      ),
      transforms=layout,
    )

  return plgpu.emit_pipeline_warp_specialized(
    lambda _, *tiles: step(*tiles[:-1], carry=tiles[-1]),
    grid=(steps,),
    in_specs=[spec(*block) for block in blocks],
    max_concurrent_steps=STAGES,
    num_compute_wgs=WARPGROUPS,
    memory_registers=FETCH_REGISTERS,
    wg_axis="warpgroup",
    compute_context=around,
  )


def launch(
  body: Callable[..., None],
  blocks: int,
  out_type: Sequence[jax.ShapeDtypeStruct],
  scratch: dict[str, Any],
  *operands: jax.Array,
  name: str,
  interpret: Any,
) -> tuple[jax.Array, ...]:
  """Runs `body` in `blocks` blocks of WARPGROUPS + 1 warpgroups.

  `body` takes the references of operands and results, then the scratch memory
  as attributes of one object. One grid axis holds all blocks: the others of
  CUDA end at 65,535, fewer than the windows of a large batch. Neighbours run at
  the same time, so those that read the same tiles should be neighbours.
  """
  return plgpu.kernel(
    lambda *refs, **held: body(*refs, types.SimpleNamespace(**held)),
    out_type=tuple(out_type),
    scratch_types=scratch,
    grid=(blocks,),
    grid_names=("block",),
    num_threads=WARPGROUPS + 1,
    thread_name="warpgroup",
    compiler_params=plgpu.CompilerParams(
      approx_math=True,
      lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
    ),
    kernel_name=name,
    interpret=interpret,
  )(*operands)


def place(blocks_each: int) -> tuple[jax.Array, jax.Array]:
  """(which group, which of its `blocks_each` blocks) this block is."""
  block = lax.axis_index("block")
  each = jnp.int32(blocks_each)
  return lax.div(block, each), lax.rem(block, each)


def _dot(a: Any, b: Any, axis_a: int, axis_b: int) -> jax.Array:
  """What a tensor core computes, by XLA."""
  return lax.dot_general(
    a[...],
    b[...],
    (((axis_a,), (axis_b,)), ((), ())),
    preferred_element_type=jnp.float32,
  )
