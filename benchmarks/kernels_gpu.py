"""Milliseconds and errors of our attention ops on one GPU, against others.

  python benchmarks/kernels_gpu.py --json kernels.json
  python benchmarks/kernels_gpu.py --tiny   # anywhere, in seconds

Forward and backward together, bfloat16: one global and one windowed layer of
SAM's ViT-H at batch 8, and correlation attention of 4096 pixels. Errors are
||x - reference|| / ||reference||, the largest among results and gradients, on
the first heads (or rows) and against float32 at the highest precision. A share
of the ceiling counts the products of the formulas only, nothing recomputed or
padded. What cannot run is listed with its reason; rows fail alone.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import kernels_gpu_torch
import numpy as np

from rcmed_jax.kernels import (
  correlation_attention,
  correlation_attention_gpu,
  relpos_attention,
  relpos_attention_blocks,
  relpos_attention_cudnn,
  relpos_attention_gpu,
)

CEILING = 790.0  # TFLOP/s of a large bfloat16 product on an H100 SXM
ROUNDS = 11  # to take the median of
CALLS = 5  # between two looks at the clock
PRODUCT = 8192  # side of the square matrices that show the card's own ceiling

Arrays = Sequence[jax.Array]
Op = Callable[..., Any]


@dataclasses.dataclass(frozen=True)
class Case:
  """One problem and whoever solves it.

  Attributes:
    name: for the table.
    arrays: differentiable inputs.
    rest: other inputs, after them.
    flop: of the products of forward and backward.
    part: takes arrays and returns a part of them, small enough to check.
    exact: the formula; takes arrays and rest.
    ops: by name, what to time, or why it cannot run.
  """

  name: str
  arrays: Arrays
  rest: Arrays
  flop: float
  part: Callable[[Arrays], list[jax.Array]]
  exact: Op
  ops: dict[str, Op | str]


def main() -> None:
  """Prints a Markdown table and writes the rows where asked."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--tiny", action="store_true", help="sizes for a CPU")
  parser.add_argument(
    "--only", nargs="+", default=[""], help="problems that begin so"
  )
  parser.add_argument("--rounds", type=int, default=ROUNDS)
  parser.add_argument("--ceiling", type=float, default=CEILING)
  parser.add_argument("--json", type=pathlib.Path)
  args = parser.parse_args()
  # PyTorch needs room on the same card; read when JAX first looks at it.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  told = facts()
  print(f"jax {told['jax']}, {told['device']}, {args.rounds} rounds\n")
  print("| problem | by | ms | TFLOP/s | share | error | temporaries, GB |")
  print("|---|---|---|---|---|---|---|")
  rows = []
  for row in measured(args.tiny, args.only, args.rounds, args.ceiling):
    rows.append(row)
    print(_line(row), flush=True)
  if args.json is not None:
    report = {
      **told,
      "ceiling_tflops": args.ceiling,
      "rounds": args.rounds,
      "rows": rows,
    }
    args.json.write_text(json.dumps(report, indent=1) + "\n")


def facts() -> dict[str, Any]:
  """What the numbers hold for."""
  return {"jax": jax.__version__, "device": jax.devices()[0].device_kind}


def measured(
  tiny: bool,
  only: Sequence[str] = ("",),
  rounds: int = ROUNDS,
  ceiling: float = CEILING,
) -> Iterator[dict[str, Any]]:
  """A row for each problem and whoever solves it.

  Args:
    tiny: sizes for a CPU.
    only: problems whose names begin so.
    rounds: to take the median of.
    ceiling: TFLOP/s that a share is of.
  """
  for name, make in _cases(tiny).items():
    if name.startswith(tuple(only)):
      case = make()
      for by, op in case.ops.items():
        found = _measure(case, op, rounds, ceiling)
        yield {"problem": case.name, "by": by, **found}


def _line(row: dict[str, Any]) -> str:
  if "failed" in row:
    return f"| {row['problem']} | {row['by']} | {row['failed']} | | | | |"
  return (
    f"| {row['problem']} | {row['by']} | {row['ms']:.3f} | {row['tflops']:.1f} "
    f"| {row['share']:.1%} | {row['error']:.1e} | {row['temporary_gb']:.2f} |"
  )


def _measure(
  case: Case, op: Op | str, rounds: int, ceiling: float
) -> dict[str, Any]:
  """The row's numbers, or why there are none."""
  if isinstance(op, str):
    return {"failed": op}
  try:
    error = _error(case, op)
    run, wait, temporary = _compiled(op, case.arrays, case.rest)
    seconds = _seconds(run, wait, rounds)
  except Exception as reason:  # one row must not cost the others
    text = str(reason).strip() or repr(reason)
    return {"failed": f"{type(reason).__name__}: {text.splitlines()[0][:160]}"}
  tflops = case.flop / seconds / 1e12
  return {
    "ms": seconds * 1e3,
    "tflops": tflops,
    "share": tflops / ceiling,
    "error": error,
    "temporary_gb": temporary / 1e9,
  }


def _both(op: Op) -> Op:
  """Results, and gradients for cotangents of ones times the results."""

  def run(arrays: Arrays, rest: Arrays) -> Any:
    out, pull = jax.vjp(lambda *given: op(*given, *rest), *arrays)
    return out, pull(out)

  return run


def _compiled(
  op: Op, arrays: Arrays, rest: Arrays
) -> tuple[Callable[[], Any], Callable[[Any], Any], float]:
  """(what to time, how to wait for it, bytes of temporaries)."""
  if isinstance(op, kernels_gpu_torch.Op):
    return op.timed(arrays, rest), kernels_gpu_torch.wait, float("nan")
  compiled = jax.jit(_both(op)).lower(arrays, rest).compile()
  temporary = compiled.memory_analysis().temp_size_in_bytes
  return lambda: compiled(arrays, rest), jax.block_until_ready, temporary


def _seconds(
  run: Callable[[], Any], wait: Callable[[Any], Any], rounds: int
) -> float:
  """Median over rounds of the mean of some calls."""
  wait(run())
  found = []
  for _ in range(rounds):
    start = time.perf_counter()
    for _ in range(CALLS):
      last = run()
    wait(last)
    found.append((time.perf_counter() - start) / CALLS)
  return statistics.median(found)


def _error(case: Case, op: Op) -> float:
  arrays, rest = case.part(case.arrays), case.part(case.rest)
  if isinstance(op, kernels_gpu_torch.Op):
    found = op.results(arrays, rest)
  else:
    found = jax.jit(_both(op))(arrays, rest)

  def exact(arrays: Arrays, rest: Arrays) -> Any:
    out, pull = jax.vjp(lambda *given: case.exact(*given, *rest), *arrays)
    rounded = jax.tree.map(
      lambda result: result.astype(jnp.bfloat16).astype(result.dtype), out
    )
    return out, pull(rounded)

  with jax.default_matmul_precision("highest"):
    exact_arrays = [array.astype(jnp.float32) for array in arrays]
    expected = jax.jit(exact)(exact_arrays, rest)
  errors = []
  for ours, theirs in zip(
    jax.tree.leaves(found), jax.tree.leaves(expected), strict=True
  ):
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    errors.append(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
  return float(np.max(errors))  # NaN stays NaN


def _cases(tiny: bool) -> dict[str, Callable[[], Case]]:
  """By name; arrays are made when a case is."""
  if tiny:
    makers = {
      "global": functools.partial(_relpos, heads=2, side=8, width=16),
      "windows": functools.partial(_relpos, heads=3, side=3, width=16),
      "correlation": functools.partial(
        _correlation, batch=2, pixels=24, words=8, channels=32, heads=2
      ),
    }
  else:
    makers = {
      f"a b, {PRODUCT}^3": functools.partial(_product, side=PRODUCT),
      "global, ViT-H, batch 8": functools.partial(
        _relpos, heads=8 * 16, side=64, width=80
      ),
      "windows, ViT-H, batch 8": functools.partial(
        _relpos, heads=8 * 25 * 16, side=14, width=80
      ),
    }
    for batch, words in itertools.product((8, 64), (128, 512)):
      makers[f"correlation, batch {batch}, {words} words"] = functools.partial(
        _correlation,
        batch=batch,
        pixels=4096,
        words=words,
        channels=256,
        heads=8,
      )
  return {name: functools.partial(make, name) for name, make in makers.items()}


def _product(name: str, side: int) -> Case:
  """A plain product: the ceiling of this card, as it is now."""
  arrays = _normal(jnp.bfloat16, (side, side), (side, side))
  return Case(
    name=name,
    arrays=arrays,
    rest=[],
    flop=6 * side**3,
    part=lambda arrays: [array[:512, :512] for array in arrays],
    exact=jnp.matmul,
    ops={"XLA": jnp.matmul},
  )


def _relpos(name: str, heads: int, side: int, width: int) -> Case:
  patches, scale = side * side, width**-0.5
  grid = (side, side)
  arrays = _normal(jnp.bfloat16, *[(heads, patches, width)] * 3)
  arrays += _normal(jnp.float32, *[(heads, patches, side)] * 2)

  @jax.custom_vjp
  def ours(*given: jax.Array) -> jax.Array:
    return relpos_attention_gpu.forward(*given, scale)[0]

  def keep(*given: jax.Array) -> Any:
    results = relpos_attention_gpu.forward(*given, scale)
    return results[0], (*given, *results)

  ours.defvjp(
    keep, lambda held, do: relpos_attention_gpu.backward(*held, do, scale)
  )

  def reference(*given: jax.Array) -> jax.Array:
    return relpos_attention.relpos_attention(
      *given, scale, implementation="reference"
    )

  def concatenated(implementation: Any) -> Op:
    return lambda *given: relpos_attention_cudnn.attend(
      *given, scale, implementation=implementation
    )

  q_MPH, k_MPH, v_MPH = arrays[:3]
  return Case(
    name=name,
    arrays=arrays,
    rest=[],
    flop=12 * heads * patches**2 * width,
    part=lambda arrays: [array[:2] for array in arrays],
    exact=reference,
    ops={
      "XLA": reference,
      "XLA, by blocks": lambda *given: relpos_attention_blocks.attend(
        *given, scale
      ),
      "XLA, concatenated": concatenated("xla"),
      "cuDNN, concatenated": (
        relpos_attention_cudnn.refusal(q_MPH, grid) or concatenated("cudnn")
      ),
      "ours": relpos_attention_gpu.refusal(q_MPH, k_MPH, v_MPH, grid) or ours,
      "PyTorch SDPA, bias in full": (
        kernels_gpu_torch.refusal() or kernels_gpu_torch.relpos(scale)
      ),
    },
  )


def _correlation(
  name: str, batch: int, pixels: int, words: int, channels: int, heads: int
) -> Case:
  width = channels // heads
  pixel, word = (batch, pixels, channels), (batch, words, channels)
  arrays = _normal(jnp.bfloat16, pixel, pixel, word, word)
  arrays += _normal(jnp.float32, (batch, pixels))
  mask_BT = jnp.arange(words)[None] < words - jnp.arange(batch)[:, None] % 8

  @jax.custom_vjp
  def ours(*given: jax.Array) -> Any:
    return keep(*given)[0]

  def keep(*given: jax.Array) -> Any:
    *matrices, gate_BP, mask_BT = given
    results = correlation_attention_gpu.forward(
      *matrices, mask_BT, gate_BP, heads=heads
    )
    return results[:2], (*matrices, mask_BT, gate_BP, results)

  def pull(held: Any, cotangents: Any) -> Any:
    gradients = correlation_attention_gpu.backward(
      *held, *cotangents, heads=heads
    )
    return (*gradients, None)

  ours.defvjp(keep, pull)

  def reference(*given: jax.Array) -> Any:
    *matrices, gate_BP, mask_BT = given
    return correlation_attention.reference(
      *matrices, mask_BT, heads=heads, gate_BP=gate_BP
    )

  return Case(
    name=name,
    arrays=arrays,
    rest=[mask_BT],
    flop=18 * batch * pixels * words * channels,
    part=lambda arrays: [array[:1] for array in arrays],
    exact=reference,
    ops={
      "XLA": reference,
      "XLA, rematerialized": jax.checkpoint(reference),
      "XLA, concatenated": _concatenated(heads, "xla"),
      "cuDNN, concatenated": (
        relpos_attention_cudnn.refusal(arrays[0][..., :width], (1, 0))
        or _concatenated(heads, "cudnn")
      ),
      "ours": (
        correlation_attention_gpu.refusal(*arrays[:4], heads=heads) or ours
      ),
      "PyTorch SDPA, twice": (
        kernels_gpu_torch.refusal() or kernels_gpu_torch.correlation(heads)
      ),
    },
  )


def _concatenated(heads: int, implementation: Any) -> Op:
  """Both directions as attentions whose bias is one more channel of keys."""

  def widened(array_BSC: jax.Array, bias_BS: jax.Array | None) -> jax.Array:
    batch, length, channels = array_BSC.shape
    split = array_BSC.reshape(batch, length, heads, channels // heads)
    tail = jnp.zeros((batch, length, heads, 8), array_BSC.dtype)
    if bias_BS is not None:
      tail = tail.at[..., 0].set(bias_BS[..., None].astype(tail.dtype))
    return jnp.concatenate([split, tail], axis=-1)

  def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, bias_BS: jax.Array
  ) -> jax.Array:
    batch, length, channels = query.shape
    scale = (channels // heads) ** -0.5
    mixed = jax.nn.dot_product_attention(
      widened(query, jnp.ones((batch, length))),
      widened(key, bias_BS / scale),
      widened(value, None),
      scale=scale,
      implementation=implementation,
    )
    return mixed[..., :-8].reshape(query.shape)

  def run(*given: jax.Array) -> Any:
    query, value_P, key, value_T, gate_BP, mask_BT = given
    hidden_BT = jnp.where(mask_BT, 0.0, correlation_attention.MASKED)
    pixels = attend(query, key, value_T, hidden_BT)
    words = attend(key, query, value_P, gate_BP)
    return pixels, words * mask_BT[..., None]

  return run


def _normal(dtype: Any, *shapes: tuple[int, ...]) -> list[jax.Array]:
  keys = jax.random.split(jax.random.key(len(shapes)), len(shapes))
  return [
    jax.random.normal(key, shape, dtype)
    for key, shape in zip(keys, shapes, strict=True)
  ]


if __name__ == "__main__":
  main()
