"""A step compiled for chips that nobody has rented, and what it would take."""

from collections.abc import Callable, Mapping
import dataclasses
import math
import re
import time
from typing import Any

import jax

from rcmed_jax.parallel import buffers, hlo, traffic

GIB = 2**30
LARGEST = 12  # arrays that are named


@dataclasses.dataclass(frozen=True)
class Array:
  """Equal arrays that are in memory at once."""

  count: int
  size: int  # bytes of each
  dtype: str
  shape: tuple[int, ...]
  source: str  # "model/language.py:120"
  op_name: str


@dataclasses.dataclass(frozen=True)
class Plan:
  """What the compiler says; bytes are those of one chip."""

  held: Mapping[str, int]  # by kind: weights, moments, batch, cache
  arguments: int  # all of the above as the chip lays them out
  results: int  # that do not take an argument's place
  activations: int  # estimated part of the temporaries, kept by forward passes
  temporaries: int  # all of them
  program: int
  largest: tuple[Array, ...]  # in memory at the peak, estimated
  collectives: tuple[traffic.Sum, ...]  # of one call
  loops: tuple[str, ...]  # of unknown length, taken to turn `turns` times
  turns: int
  refusal: str  # the compiler's, or "": then everything else is known
  seconds: float  # to compile

  @property
  def total(self) -> int:
    """Bytes of one chip that the step takes."""
    return self.arguments + self.results + self.temporaries + self.program

  @property
  def sent(self) -> float:
    """Bytes that a chip sends in one call."""
    return sum(one.sent for one in self.collectives)


def compile_plan(
  lower: Callable[[], jax.stages.Lowered],
  held: Mapping[str, Any],
  *,
  mesh: Mapping[str, int],
  turns: int = 1,
) -> tuple[Plan, str]:
  """Compiles a step and reads what came out.

  Args:
    lower: of the step, with its abstract arguments.
    held: trees of these arguments, jax.ShapeDtypeStruct with shardings, by
      what they are.
    mesh: sizes of its axes.
    turns: of loops whose length the program does not tell.

  Returns:
    (the plan, the program's text; "" where the compiler refuses it because it
    does not fit).
  """
  start = time.monotonic()
  sizes = {name: shard_bytes(tree) for name, tree in held.items()}
  try:
    compiled = lower().compile()
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    return _refused(sizes, str(error), time.monotonic() - start), ""
  seconds = time.monotonic() - start
  text = compiled.as_text() or ""
  memory = compiled.memory_analysis()
  assert memory is not None  # every TPU program has one
  program = hlo.parse(text)
  _, loops = program.times()
  peak = buffers.peak(program)
  kept = sum(one.size for one in peak if one.kept)
  return Plan(
    held=sizes,
    arguments=memory.argument_size_in_bytes,
    results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    activations=min(kept, memory.temp_size_in_bytes),
    temporaries=memory.temp_size_in_bytes,
    program=memory.generated_code_size_in_bytes,
    largest=_largest(peak),
    collectives=tuple(traffic.sums(traffic.collectives(program, mesh, turns))),
    loops=loops,
    turns=turns,
    refusal="",
    seconds=seconds,
  ), text


def shard_bytes(tree: Any) -> int:
  """Bytes of one device's part of shapes with shardings, without tiles."""
  return sum(
    leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
    for leaf in jax.tree.leaves(tree)
  )


def _refused(sizes: Mapping[str, int], message: str, seconds: float) -> Plan:
  """A plan that does not fit: how much it would take, and the words."""
  used = re.search(r"Used ([\d.]+)([KMGT]?) of", message)
  factor = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
  total = int(float(used.group(1)) * factor[used.group(2)]) if used else 0
  arguments = sum(sizes.values())
  return Plan(
    held=sizes,
    arguments=arguments,
    results=0,
    activations=0,
    temporaries=max(0, total - arguments),
    program=0,
    largest=(),
    collectives=(),
    loops=(),
    turns=1,
    refusal=message,
    seconds=seconds,
  )


def _largest(peak: list[buffers.Buffer]) -> tuple[Array, ...]:
  """The largest arrays, equal ones of one line together."""
  counted: dict[tuple[Any, ...], int] = {}
  for one in peak:
    key = one.size, one.dtype, one.shape, one.source, one.op_name
    counted[key] = counted.get(key, 0) + 1
  found = [Array(count, *key) for key, count in counted.items()]
  found.sort(key=lambda one: -one.count * one.size)
  return tuple(found[:LARGEST])
