"""Time of each TPU kernel by the compiler's own schedule, without a TPU.

  .venv/bin/python benchmarks/tpu_schedule.py [CASE ...] [--slices v5e:2x4 ...]

The compiler writes a kernel as bundles of instructions that run one a clock,
so bundles x steps / clock is its time as long as nothing waits for memory.
Beside it stand two floors: what the matrix unit takes for the products alone,
every side but the rows streamed through it rounded up to the unit's width, and
what memory takes to move the operands and results once, as they are laid out.
The higher one binds; "x floor" divides the larger of schedule and memory by it.
"Padded" stands for the floor usually quoted, which rounds up the streamed rows
too, as a head on the lanes would need; a kernel that streams them can beat it.

Times are for one image and one layer, or step of the loop. Nothing here ran on
a TPU.
"""

import argparse
from collections.abc import Callable
import dataclasses
import datetime
import functools
import math
import os
import pathlib
import shutil
import tempfile
from typing import Any

# The compiler reads its flags when it is loaded, so they come before jax.
_DUMP = pathlib.Path(tempfile.mkdtemp(prefix="tpu_schedule_"))
os.environ["LIBTPU_INIT_ARGS"] = (
  f"--xla_jf_dump_to={_DUMP} --xla_jf_dump_llo_text=true"
)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import tpu_dump  # noqa: E402

from rcmed_jax.kernels import (  # noqa: E402
  correlation_attention_tpu,
  correlation_attention_tpu_backward,
)
from rcmed_jax.kernels import relpos_attention_tpu_grid as grid  # noqa: E402
from rcmed_jax.kernels import relpos_attention_tpu_window as window  # noqa: E402
from rcmed_jax.parallel import topologies  # noqa: E402

SLICES = ("v5e:2x4", "v5p:2x2x1", "v6e:4x4")


@dataclasses.dataclass(frozen=True)
class Chip:
  """What Google Cloud's documentation says of a chip."""

  clock_hz: float
  flops: float  # bfloat16, of all its cores
  bytes_per_s: float
  cores: int  # that share a kernel's steps
  unit: int  # side of the matrix unit


CHIPS = {
  "v5e": Chip(1.5e9, 197e12, 819e9, 1, 128),
  "v5p": Chip(1.75e9, 459e12, 2765e9, 2, 128),
  "v6e": Chip(1.75e9, 918e12, 1640e9, 1, 256),
}


@dataclasses.dataclass(frozen=True)
class Case:
  """One kernel at one size."""

  name: str  # that it gives its pallas_call
  size: str  # in words, where a kernel has several
  run: Callable[..., Any]
  shapes: tuple[tuple[tuple[int, ...], Any], ...]  # and dtypes, of arguments
  images: int  # that these arguments hold
  # (streamed rows, contracted, columns held) of each product, of all images.
  products: tuple[tuple[int, int, int, int], ...]


def _relpos(module, kind, heads, rows, columns, width, images, *, backward):
  """ViT-H's sizes; the products stream keys, then the head width."""
  patches = rows * columns
  x = ((heads, width, patches), jnp.bfloat16)
  biases = tuple(
    ((heads, size, patches), jnp.float32) for size in (rows, columns)
  )
  scores = (heads, patches, width, patches)
  mixed = (heads, width, patches, patches)
  whole = module is window
  lse = ((heads, 1, patches), jnp.float32)
  kept = () if whole else (x, lse)

  def run(*arrays):
    if not backward:
      return module.forward(*arrays, 0.1, interpret=False)
    *five, do = arrays[:5] + arrays[-1:]
    return module.backward(*five, arrays[5:-1], do, 0.1, interpret=False)

  return Case(
    name=f"{kind}_{'backward' if backward else 'forward'}",
    size=f"{rows} x {columns}",
    run=run,
    shapes=(x, x, x, *biases, *((*kept, x) if backward else ())),
    images=images,
    products=(scores, scores, mixed, mixed, mixed)
    if backward
    else (scores, mixed),
  )


def _correlation(words: int, *, backward: bool) -> Case:
  """The loop's sizes, 8 images; each side streams its rows past the other's."""
  images, pixels, channels, heads = 8, 4096, 256, 8
  count, head, size = images * heads, channels // heads, "bfloat16"
  pixel = ((images, pixels, channels), size)
  word = ((images, words, channels), size)
  read = ((images, words, channels), "float32")
  given = (
    *(pixel, pixel, word, word),
    ((images, words), "bool"),
    ((images, pixels), "float32"),
  )
  lse = tuple(
    ((images, channels // 128, 128 // head, length), "float32")
    for length in (pixels, words)
  )
  scores = (count, words, head, pixels)
  to_words, to_pixels = (
    (count, words, pixels, head),
    (count, head, words, pixels),
  )

  def run(*arrays):
    call = (
      correlation_attention_tpu_backward.backward
      if backward
      else correlation_attention_tpu.forward
    )
    return call(*arrays, heads=heads, interpret=False)

  return Case(
    name=f"correlation_{'backward' if backward else 'forward'}",
    size=f"{words} words",
    run=run,
    shapes=(*given, *((pixel, read, *lse, pixel, word) if backward else ())),
    images=images,
    products=(*(scores,) * 3, *(to_words,) * 2, *(to_pixels,) * 2)
    if backward
    else (scores, to_words, to_pixels),
  )


# ViT-H, 8 images: 16 heads of 80, 25 windows of 14 x 14 an image, or its whole
# grid of 64 x 64.
CASES = tuple(
  functools.partial(_relpos, *sizes, backward=backward)()
  for sizes in (
    (window, "relpos_window", 8 * 400, 14, 14, 80, 8),
    (grid, "relpos", 8 * 16, 64, 64, 80, 8),
  )
  for backward in (False, True)
) + tuple(
  _correlation(words, backward=backward)
  for words in (128, 512)
  for backward in (False, True)
)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  names = sorted({case.name for case in CASES})
  parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {names}")
  parser.add_argument("--slices", nargs="+", default=SLICES)
  args = parser.parse_args()
  unknown = set(args.cases) - set(names)
  if unknown:
    parser.error(f"unknown cases {sorted(unknown)}; choose some of {names}")
  print(
    f"jax {jax.__version__}, libtpu {tpu_dump.libtpu_version()}, "
    f"{datetime.date.today()}\n"
  )
  print(
    "| kernel | chip | bundles x steps | schedule ms | matrix unit ms "
    "(padded) | memory ms | x floor (padded) | busiest | spills | VMEM MiB | "
    "temporaries MB |"
  )
  print("|" + " --- |" * 11)
  try:
    for name in args.slices:
      for case in CASES:
        if not args.cases or case.name in args.cases:
          print(_row(case, name), flush=True)
  finally:
    shutil.rmtree(_DUMP)


def _row(case: Case, slice_name: str) -> str:
  """A line of the table."""
  generation = slice_name.partition(":")[0]
  chip = CHIPS[generation]
  tpu_dump.clear(_DUMP)
  compiled, steps, moved = _compile(case, slice_name)
  schedule = tpu_dump.read(_DUMP, case.name)
  to_ms = 1e3 / case.images
  time = schedule.bundles * steps / chip.clock_hz / chip.cores * to_ms
  streamed = _products_s(case, chip, padded=False) * to_ms
  padded = _products_s(case, chip, padded=True) * to_ms
  memory = moved / chip.bytes_per_s * to_ms
  taken = max(time, memory)
  analysis = compiled.memory_analysis()
  cells = (
    f"{case.name}, {case.size}",
    generation,
    f"{schedule.bundles} x {steps}",
    f"{time:.3f}",
    f"{streamed:.3f} ({padded:.3f})",
    f"{memory:.3f}",
    f"{taken / max(streamed, memory):.2f} ({taken / max(padded, memory):.2f})",
    schedule.busiest(),
    str(schedule.spills),
    f"{tpu_dump.vmem_bytes(compiled) / 2**20:.1f}",
    f"{analysis.temp_size_in_bytes / 1e6:.0f}",
  )
  return f"| {' | '.join(cells)} |"


def _compile(case: Case, slice_name: str) -> tuple[Any, int, int]:
  """The program for one chip, its kernel's steps, the bytes it must move."""
  mesh = jax.sharding.Mesh(topologies.devices(slice_name)[:1], ("x",))
  whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
  given = [
    jax.ShapeDtypeStruct(shape, dtype, sharding=whole)
    for shape, dtype in case.shapes
  ]
  with jax.set_mesh(mesh):
    traced = jax.jit(case.run).trace(*given)
    compiled = traced.lower().compile()
  steps = tpu_dump.steps(traced.jaxpr, case.name)
  arrays = [*given, *jax.tree.leaves(traced.out_info)]
  return compiled, steps, sum(map(_laid_out_bytes, arrays))


def _products_s(case: Case, chip: Chip, *, padded: bool) -> float:
  """Seconds of the products at the peak rate of the matrix unit."""

  def up(size: int) -> int:
    return math.ceil(size / chip.unit) * chip.unit

  flops = sum(
    2 * count * (up(rows) if padded else rows) * up(contracted) * up(columns)
    for count, rows, contracted, columns in case.products
  )
  return flops / chip.flops


def _laid_out_bytes(array: Any) -> int:
  """In memory, rows of an array come by 8 and columns by 128."""
  *lead, rows, columns = array.shape
  rows = rows if rows == 1 else rows + -rows % 8
  columns += -columns % 128
  return math.prod(lead) * rows * columns * array.dtype.itemsize


if __name__ == "__main__":
  main()
