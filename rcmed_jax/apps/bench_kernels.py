"""What `rcmed bench kernels` measures: ops, typical shapes, and the clock."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rcmed_jax.kernels import choice, language_attention
from rcmed_jax.kernels import correlation_attention as correlation
from rcmed_jax.kernels import relpos_attention as relpos

SIZES = ("toy", "small", "full")

Shapes = dict[str, jax.ShapeDtypeStruct]  # of an op's operands, by name
Refusals = Mapping[str, str | None]

CORRELATION_HEADS = 8  # the model's own


@dataclasses.dataclass(frozen=True, eq=False)
class Op:
  """One op and what it takes."""

  # size -> numbers by axis letter; "full" is the released 7B, one image.
  sizes: Mapping[str, Mapping[str, int]]
  shapes: Callable[[Mapping[str, int], Any], Shapes]
  run: Callable[..., Any]  # (operands by name, implementation=name)
  refusals: Callable[[Shapes], Refusals]
  learns: bool = True  # whether anything is trained through it


@dataclasses.dataclass(frozen=True)
class Row:
  """One implementation of one op at one size."""

  op: str
  size: str
  shape: str  # numbers by axis letter
  dtype: str
  implementation: str
  chosen: bool  # what runs where nobody insists
  refusal: str | None  # why it cannot run here
  forward_ms: float | None = None
  both_ms: float | None = None  # forward and backward
  # The largest difference to the reference, of results and gradients, over
  # the largest value of the reference's.
  difference: float | None = None


def rows(op: str, size: str, dtype: str) -> list[Row]:
  """What could run, without running it."""
  numbers = OPS[op].sizes[size]
  refusals = OPS[op].refusals(OPS[op].shapes(numbers, jnp.dtype(dtype)))
  chosen = choice.choose(op, None, refusals)
  shape = " ".join(f"{axis}={number}" for axis, number in numbers.items())
  return [
    Row(op, size, shape, dtype, name, name == chosen, why)
    for name, why in refusals.items()
  ]


def timed(found: Sequence[Row], rounds: int) -> list[Row]:
  """The rows of one op and size, those that can run with times.

  Each round runs every implementation once, so that a slow moment of the
  machine meets them all.

  Args:
    found: of `rows`.
    rounds: of which the median is taken.
  """
  op = OPS[found[0].op]
  numbers = op.sizes[found[0].size]
  operands = _draw(op.shapes(numbers, jnp.dtype(found[0].dtype)))
  names = [row.implementation for row in found if row.refusal is None]
  forward = {name: functools.partial(_forward, op, name) for name in names}
  both = {name: functools.partial(_both, op, name) for name in names}
  forward_ms = _medians(forward, operands, rounds)
  both_ms = _medians(both, operands, rounds) if op.learns else {}
  results = {
    name: jax.device_get((both if op.learns else forward)[name](operands))
    for name in names
  }
  wanted = results[choice.REFERENCE]
  return [
    dataclasses.replace(
      row,
      forward_ms=forward_ms[row.implementation],
      both_ms=both_ms[row.implementation] if op.learns else None,
      difference=_difference(results[row.implementation], wanted),
    )
    if row.refusal is None
    else row
    for row in found
  ]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _forward(op: Op, implementation: str, operands: Any) -> Any:
  return op.run(**operands, implementation=implementation)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _both(op: Op, implementation: str, operands: Any) -> Any:
  """(results, gradients of a weighted sum of them)."""
  learning = {
    name: array
    for name, array in operands.items()
    if jnp.issubdtype(array.dtype, jnp.floating)
  }

  def loss(learning: Any) -> tuple[jax.Array, Any]:
    results = _forward(op, implementation, {**operands, **learning})
    total = jnp.float32(0)
    for leaf in jax.tree.leaves(results):
      total += jnp.sum(
        jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape) * leaf
      )
    return total, results

  gradients, results = jax.grad(loss, has_aux=True)(learning)
  return results, gradients


def _medians(
  runs: Mapping[str, Callable[[Any], Any]], operands: Any, rounds: int
) -> dict[str, float]:
  """Milliseconds of each."""
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  for number in range(rounds + 1):
    for name, run in runs.items():
      start = time.perf_counter()
      jax.block_until_ready(run(operands))
      if number:  # the first compiles
        seconds[name].append(time.perf_counter() - start)
  return {name: 1e3 * statistics.median(all_) for name, all_ in seconds.items()}


def _difference(ours: Any, wanted: Any) -> float:
  def one(ours: np.ndarray, wanted: np.ndarray) -> float:
    apart = np.abs(ours.astype(np.float32) - wanted.astype(np.float32))
    return float(apart.max() / np.abs(wanted.astype(np.float32)).max())

  return max(jax.tree.leaves(jax.tree.map(one, ours, wanted)))


def _draw(shapes: Shapes) -> dict[str, jax.Array]:
  """Normal numbers; whole numbers are lengths, as long as there is room."""
  rng = np.random.default_rng(0)
  longest = max(shape.shape[1] for shape in shapes.values() if shape.ndim > 1)

  def draw(shape: jax.ShapeDtypeStruct) -> jax.Array:
    if jnp.issubdtype(shape.dtype, jnp.floating):
      return jnp.asarray(rng.normal(size=shape.shape), shape.dtype)
    if shape.dtype == jnp.bool:
      return jnp.ones(shape.shape, shape.dtype)
    return jnp.full(shape.shape, longest, shape.dtype)

  return {name: draw(shape) for name, shape in shapes.items()}


def _relpos_shapes(numbers: Mapping[str, int], dtype: Any) -> Shapes:
  heads, rows, columns, width = (numbers[axis] for axis in "MYXH")
  patches = jax.ShapeDtypeStruct((heads, rows * columns, width), dtype)
  return dict(
    q_MPH=patches,
    k_MPH=patches,
    v_MPH=patches,
    rel_h_MPY=_float32(heads, rows * columns, rows),
    rel_w_MPX=_float32(heads, rows * columns, columns),
  )


def _correlation_shapes(numbers: Mapping[str, int], dtype: Any) -> Shapes:
  batch, pixels, words, channels = (numbers[axis] for axis in "BPTC")
  of_pixels = jax.ShapeDtypeStruct((batch, pixels, channels), dtype)
  of_words = jax.ShapeDtypeStruct((batch, words, channels), dtype)
  return dict(
    query_BPC=of_pixels,
    value_BPC=of_pixels,
    key_BTC=of_words,
    value_BTC=of_words,
    mask_BT=jax.ShapeDtypeStruct((batch, words), jnp.bool),
    gate_BP=_float32(batch, pixels),
  )


def _causal_shapes(numbers: Mapping[str, int], dtype: Any) -> Shapes:
  shape = tuple(numbers[axis] for axis in "BSNH")
  names = ("query_BSNH", "key_BSNH", "value_BSNH")
  return dict.fromkeys(names, jax.ShapeDtypeStruct(shape, dtype))


def _prefix_shapes(numbers: Mapping[str, int], dtype: Any) -> Shapes:
  prefix_B = jax.ShapeDtypeStruct((numbers["B"],), jnp.int32)
  return {**_causal_shapes(numbers, dtype), "prefix_B": prefix_B}


def _cached_shapes(numbers: Mapping[str, int], dtype: Any) -> Shapes:
  batch, slots, heads, width = (numbers[axis] for axis in "BSNH")
  cache = jax.ShapeDtypeStruct((batch, heads, slots, width), dtype)
  return dict(
    query_BTNH=jax.ShapeDtypeStruct((batch, 1, heads, width), dtype),
    key_BNSH=cache,
    value_BNSH=cache,
    length_B=jax.ShapeDtypeStruct((batch,), jnp.int32),
  )


def _float32(*shape: int) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, jnp.float32)


def _run_relpos(*, q_MPH: jax.Array, implementation: str, **operands: Any):
  scale = q_MPH.shape[-1] ** -0.5
  return relpos.relpos_attention(
    q_MPH, scale=scale, implementation=implementation, **operands
  )


def _relpos_refusals(shapes: Shapes) -> Refusals:
  return relpos.refusals(*shapes.values())


def _correlation_refusals(shapes: Shapes) -> Refusals:
  operands = ("query_BPC", "value_BPC", "key_BTC", "value_BTC")
  return correlation.refusals(
    *(shapes[name] for name in operands), heads=CORRELATION_HEADS
  )


_LANGUAGE_SIZES = dict(
  toy=dict(B=2, S=64, N=2, H=16),
  small=dict(B=1, S=384, N=8, H=64),
  full=dict(B=1, S=1536, N=32, H=128),
)

OPS: dict[str, Op] = {
  "relpos": Op(
    sizes=dict(
      toy=dict(M=2, Y=8, X=8, H=16),
      small=dict(M=12, Y=32, X=32, H=64),
      full=dict(M=16, Y=64, X=64, H=80),
    ),
    shapes=_relpos_shapes,
    run=_run_relpos,
    refusals=_relpos_refusals,
  ),
  "relpos_windows": Op(
    sizes=dict(
      toy=dict(M=8, Y=7, X=7, H=16),
      small=dict(M=108, Y=14, X=14, H=64),  # 3 x 3 windows of 12 heads
      full=dict(M=400, Y=14, X=14, H=80),  # 5 x 5 windows of 16 heads
    ),
    shapes=_relpos_shapes,
    run=_run_relpos,
    refusals=_relpos_refusals,
  ),
  "correlation": Op(
    sizes=dict(
      toy=dict(B=2, P=64, T=16, C=32),
      small=dict(B=1, P=1024, T=128, C=256),
      full=dict(B=1, P=4096, T=512, C=256),
    ),
    shapes=_correlation_shapes,
    run=functools.partial(
      correlation.correlation_attention, heads=CORRELATION_HEADS
    ),
    refusals=_correlation_refusals,
  ),
  "causal": Op(
    sizes=_LANGUAGE_SIZES,
    shapes=_causal_shapes,
    run=language_attention.causal_attention,
    refusals=lambda shapes: language_attention.refusals(shapes["query_BSNH"]),
  ),
  "prefix": Op(
    sizes=_LANGUAGE_SIZES,
    shapes=_prefix_shapes,
    run=language_attention.causal_attention,
    refusals=lambda shapes: language_attention.refusals(
      shapes["query_BSNH"], prefix_B=shapes["prefix_B"]
    ),
  ),
  "cached": Op(
    sizes=_LANGUAGE_SIZES,
    shapes=_cached_shapes,
    run=language_attention.cached_attention,
    refusals=lambda shapes: language_attention.cached_refusals(
      shapes["query_BTNH"]
    ),
    learns=False,
  ),
}
