"""What lies in a chip's memory while a compiled program runs.

The compiler tells how much memory a program takes, but not, through JAX, for
what. This follows the program's instructions in their order: every array in
main memory lives from the instruction that makes it to the last that reads it,
unless it is another one under a new name or written in place. What comes out
is an estimate, for names and source lines; sizes come from the compiler.
"""

from collections.abc import Sequence
import dataclasses

from rcmed_jax.parallel import hlo

# Results that are their operands by another name.
_ALIASES = ("bitcast", "tuple", "while", "optimization-barrier", "domain")
# Results that are written over their first operand.
_IN_PLACE = ("dynamic-update-slice", "scatter")


@dataclasses.dataclass(frozen=True, eq=False)
class Buffer:
  """An array in main memory."""

  size: int  # bytes
  dtype: str
  shape: tuple[int, ...]
  source: str  # "model/language.py:120"
  op_name: str

  @property
  def kept(self) -> bool:
    """Made by a forward pass, for the backward pass."""
    return "jvp(" in self.op_name and "transpose(" not in self.op_name


_Leaves = tuple[Buffer | None, ...]  # None: of a caller, or not in main memory


def peak(program: hlo.Program) -> list[Buffer]:
  """The arrays in memory when they are most, the largest first.

  Arguments and results of the program are not among them.
  """
  return sorted(_Walk(program).most(program.entry), key=lambda b: -b.size)


class _Walk:
  """A walk through the computations of one program."""

  def __init__(self, program: hlo.Program):
    self._program = program
    self._done: dict[str, list[Buffer]] = {}

  def most(self, name: str) -> list[Buffer]:
    """The buffers of one computation, and of what it calls, at its peak."""
    if name not in self._done:
      self._done[name] = self._most(self._program.computations[name])
    return self._done[name]

  def _most(self, lines: Sequence[hlo.Instruction]) -> list[Buffer]:
    held: dict[str, _Leaves] = {}
    last: dict[Buffer, int] = {}
    made: dict[int, list[Buffer]] = {}
    by_name = {one.name: one for one in lines}
    for index, one in enumerate(lines):
      leaves, new = self._leaves(one, held, by_name)
      held[one.name], made[index] = leaves, new
      for operand in (one.name, *one.operands):
        for buffer in held.get(operand, ()):
          if buffer is not None:
            last[buffer] = index
    # What a computation returns lies where its caller wants it.
    returned = {
      buffer for one in lines if one.root for buffer in held[one.name]
    }
    living: dict[Buffer, None] = {}
    best: list[Buffer] = []
    best_size = 0
    for index, one in enumerate(lines):
      living |= dict.fromkeys(b for b in made[index] if b not in returned)
      inner = self._inner(one)
      size = sum(buffer.size for buffer in (*living, *inner))
      if size > best_size:
        best, best_size = [*living, *inner], size
      living = {b: None for b in living if last[b] > index}
    return best

  def _inner(self, one: hlo.Instruction) -> list[Buffer]:
    called = (
      *one.called("body"),
      *one.called("branch_computations"),
      *(one.called("to_apply") if one.opcode == "call" else ()),
    )
    parts = [self.most(name) for name in called]
    return max(parts, key=lambda p: sum(b.size for b in p), default=[])

  def _leaves(
    self,
    one: hlo.Instruction,
    held: dict[str, _Leaves],
    by_name: dict[str, hlo.Instruction],
  ) -> tuple[_Leaves, list[Buffer]]:
    """The buffers of a result, and those among them that are new."""
    if one.opcode in ("parameter", "constant"):
      return (None,) * len(one.leaves), []
    given = [buffer for name in one.operands for buffer in held.get(name, ())]
    if one.opcode in _ALIASES and len(given) == len(one.leaves):
      return tuple(given), []
    if one.opcode == "get-tuple-element":
      sizes = by_name[one.operands[0]].elements
      index = int(one.attribute("index") or 0)
      start = sum(sizes[:index])
      return tuple(given[start : start + sizes[index]]), []
    if one.opcode.endswith("-done"):
      # One of the leaves of its start: the one of the same array.
      start = by_name[one.operands[0]]
      pairs = list(zip(start.leaves, given, strict=False))
      found = [
        next((b for leaf, b in pairs if leaf == wanted), None)
        for wanted in one.leaves
      ]
      return tuple(found), []
    leaves: list[Buffer | None] = []
    new: list[Buffer] = []
    in_place = self._written_over(one, held)
    for place, leaf in enumerate(one.leaves):
      if place in in_place:
        leaves.append(in_place[place])
      elif not leaf.main or not leaf.size:
        leaves.append(None)
      else:
        made = Buffer(
          leaf.size,
          leaf.dtype,
          leaf.shape,
          self._program.source(one),
          one.op_name,
        )
        leaves.append(made)
        new.append(made)
    return tuple(leaves), new

  def _written_over(
    self, one: hlo.Instruction, held: dict[str, _Leaves]
  ) -> dict[int, Buffer | None]:
    """Leaf -> the operand's buffer that it takes over."""
    if one.opcode in _IN_PLACE:
      return dict(enumerate(held.get(one.operands[0], (None,))[:1]))
    if one.opcode.endswith("-start"):
      # Results name their operands first, but for a copy, its source second.
      operands = held.get(one.operands[0], ()) if one.operands else ()
      place = 1 if one.opcode == "copy-start" else 0
      several = len(one.leaves) > 1
      return {place: operands[0]} if operands and several else {}
    if one.opcode != "fusion":
      return {}
    lines = self._program.computations[one.called("calls")[0]]
    inside = {line.name: line for line in lines}
    (root,) = (line for line in lines if line.root)
    results = root.operands if root.opcode == "tuple" else (root.name,)
    found = {}
    for place, name in enumerate(results):
      line = inside[name]
      while line.opcode == "bitcast":
        line = inside[line.operands[0]]
      if line.opcode not in _IN_PLACE:
        continue
      line = inside[line.operands[0]]
      while line.opcode == "bitcast":
        line = inside[line.operands[0]]
      if line.opcode == "parameter":
        operand = held.get(one.operands[int(line.operands[0])], ())
        if len(operand) == 1:
          found[place] = operand[0]
    return found
