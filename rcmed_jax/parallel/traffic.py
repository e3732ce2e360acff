"""What the chips of a compiled program send to each other."""

import collections
from collections.abc import Mapping, Sequence
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
# A program for several slices is one slice's, and what leaves it is a transfer
# by the host with these words, one of KINDS among the second's.
_ABROAD = '_xla_host_transfer_handler_name="xla_megascale_runtime"'
_TRANSFER = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One instruction, and all that it moves in one call of the program."""

  kind: str  # one of KINDS
  dtype: str
  held: int  # bytes that one chip gives, each time
  group: int  # chips that take part together; of several slices: slices
  axes: tuple[str, ...]  # of the mesh, along which they differ
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

  @property
  def across_slices(self) -> bool:
    return "slice" in self.axes


@dataclasses.dataclass(frozen=True)
class Sum:
  """All collectives of one kind and dtype along the same mesh axes."""

  kind: str
  dtype: str
  axes: tuple[str, ...]
  count: int  # in one call
  sent: float  # bytes a chip in one call

  @property
  def across_slices(self) -> bool:
    return "slice" in self.axes


def collectives(
  program: hlo.Program, mesh: Mapping[str, int] | None = None, turns: int = 1
) -> list[Collective]:
  """Every collective, those that move most first.

  Args:
    program: compiled for all chips at once, or for each of several slices.
    mesh: sizes by axis, in order; None: nobody asks which axes.
    turns: of loops whose length the program does not tell.
  """
  times, _ = program.times(turns)
  mesh = dict(mesh or {})
  slices = mesh.get("slice", 1)
  if program.devices * slices == math.prod(mesh.values()):
    mesh.pop("slice", None)  # it sees its own slice only
  found: dict[tuple[str, str], Collective] = {}
  for name, lines in program.computations.items():
    if not times.get(name):
      continue
    by_name = {one.name: one for one in lines}
    for one in lines:
      kind = one.opcode.removesuffix("-start")
      abroad = kind == "send" and _ABROAD in one.attributes
      if kind not in KINDS and not abroad:
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
      if abroad:
        kind, group, axes = _transfer(one.attributes), slices, ("slice",)
      else:
        groups = _groups(one.attributes, program.devices)
        group, axes = groups.shape[-1], _axes(groups, mesh)
      if group == 1 or not given:
        continue
      collective = Collective(
        kind,
        given[0].dtype,
        sum(leaf.payload for leaf in given),
        group,
        axes,
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
  """By kind, dtype and mesh axes; the most sent first."""
  groups = collections.defaultdict(list)
  for one in found:
    groups[one.kind, one.dtype, one.axes].append(one)
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


def _transfer(attributes: str) -> str:
  """The kind of what leaves a slice; one that is unknown goes to one other."""
  named = _TRANSFER.search(attributes)
  kind = named.group(1).lower().replace("_", "-") if named else ""
  return kind if kind in KINDS else "collective-permute"


def _axes(groups: np.ndarray, mesh: Mapping[str, int]) -> tuple[str, ...]:
  """The mesh axes along which the members of a group differ."""
  if not mesh:
    return ()
  places = np.unravel_index(groups, tuple(mesh.values()))
  return tuple(
    axis
    for axis, place in zip(mesh, places, strict=True)
    if (place != place[:, :1]).any()
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
