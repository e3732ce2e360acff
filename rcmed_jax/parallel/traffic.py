"""What the chips of a compiled program send to each other."""

import collections
from collections.abc import Sequence
import dataclasses
import math
import re

import numpy as np

from rcmed_jax.parallel import hlo

# By what is moved, in the order of tables. A reduce-scatter that the compiler
# writes as a fused all-reduce and slice counts as such; a collective-permute is
# most often one turn of a ring that gathers or scatters beside a product.
KINDS = (
  "all-gather",
  "reduce-scatter",
  "all-reduce",
  "all-to-all",
  "collective-permute",
)
_SCATTER = "all-reduce-scatter"  # how such a fused computation's name begins


@dataclasses.dataclass(frozen=True)
class Collective:
  """One instruction, and all that it moves in one call of the program."""

  kind: str  # one of KINDS
  dtype: str
  held: int  # bytes that one chip gives, each time
  group: int  # chips that take part together
  across_slices: bool
  times: int
  source: str
  op_name: str

  @property
  def sent(self) -> float:
    """Bytes that one chip sends in a call, by the best known algorithms."""
    others = self.group - 1
    factor = {
      "all-gather": others,
      "reduce-scatter": others / self.group,
      "all-reduce": 2 * others / self.group,
      "all-to-all": others / self.group,
      "collective-permute": 1,
    }[self.kind]
    return self.held * factor * self.times


@dataclasses.dataclass(frozen=True)
class Sum:
  """All collectives of one kind and dtype."""

  kind: str
  dtype: str
  across_slices: bool
  count: int  # in one call
  sent: float  # bytes a chip in one call


def collectives(
  program: hlo.Program, slices: int = 1, turns: int = 1
) -> list[Collective]:
  """Every collective, those that move most first.

  Args:
    program: compiled for all chips at once.
    slices: how many the chips lie in, the first ids in the first one.
    turns: of loops whose length the program does not tell.
  """
  times, _ = program.times(turns)
  per_slice = program.devices // slices
  found: dict[tuple[str, str], Collective] = {}
  for name, lines in program.computations.items():
    if not times.get(name):
      continue
    by_name = {one.name: one for one in lines}
    for one in lines:
      kind = one.opcode.removesuffix("-start")
      if kind not in KINDS:
        continue
      given = [
        leaf
        for operand in one.operands
        if operand in by_name
        for leaf in by_name[operand].leaves
        if leaf.payload
      ]
      if kind == "all-reduce" and name.startswith(_SCATTER):
        kind = "reduce-scatter"
      groups = _groups(one.attributes, program.devices)
      if groups.shape[-1] == 1 or not given:
        continue
      collective = Collective(
        kind,
        given[0].dtype,
        sum(leaf.payload for leaf in given),
        groups.shape[-1],
        bool((groups // per_slice != groups[:, :1] // per_slice).any()),
        times[name],
        program.source(one),
        one.op_name,
      )
      # Start and end of one that runs beside others both name it.
      key = kind, one.attribute("channel_id") or one.name
      if key not in found or found[key].times < collective.times:
        found[key] = collective
  return sorted(found.values(), key=lambda one: -one.sent)


def sums(found: Sequence[Collective]) -> list[Sum]:
  """By kind, dtype, and whether it crosses slices; the most sent first."""
  groups = collections.defaultdict(list)
  for one in found:
    groups[one.kind, one.dtype, one.across_slices].append(one)
  return sorted(
    (
      Sum(
        *key,
        count=sum(one.times for one in group),
        sent=sum(one.sent for one in group),
      )
      for key, group in groups.items()
    ),
    key=lambda one: -one.sent,
  )


def _groups(attributes: str, devices: int) -> np.ndarray:
  """[groups, members] of chip numbers; of a permutation its pairs."""
  pairs = re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes)
  if pairs:
    return _listed(pairs.group(1))
  listed = re.search(r"replica_groups=\{(\{.*?\})\}", attributes)
  if listed:
    return _listed(listed.group(1))
  iota = re.search(
    r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
  )
  if iota:
    shape, source, order = iota.groups()
    return _iota(source, order).reshape(_ints(shape))
  mesh = re.search(
    r"replica_groups=mesh\[(.*?)\]"
    r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? ?\{(.*?)\}",
    attributes,
  )
  if mesh:
    named, source, order, given = mesh.groups()
    sizes = {
      axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", named)
    }
    axes, along = list(sizes), re.findall(r"'(\w+)'", given)
    ids = _iota(source or str(math.prod(sizes.values())), order)
    ids = np.moveaxis(
      ids.reshape(list(sizes.values())),
      [axes.index(axis) for axis in along],
      range(-len(along), 0),
    )
    return ids.reshape(-1, math.prod(sizes[axis] for axis in along))
  if "replica_groups={}" in attributes:  # all of them
    return np.arange(devices)[None]
  raise ValueError(f"replica groups that this parser cannot read: {attributes}")


def _iota(source: str, order: str | None) -> np.ndarray:
  """Numbers from 0 in the shape `source`, its axes in another order."""
  sizes = _ints(source)
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  return ids.transpose(_ints(order) or None)


def _listed(text: str) -> np.ndarray:
  return np.array([_ints(group) for group in re.findall(r"\{([^{}]*)\}", text)])


def _ints(text: str | None) -> tuple[int, ...]:
  return tuple(int(number) for number in (text or "").split(",") if number)
