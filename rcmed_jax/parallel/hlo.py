"""The text of a compiled program, taken apart.

`compiled.as_text()` of XLA lists computations, instruction by instruction in
the order in which they run, with a table of source lines at its head. What
this parser does not need it leaves as text.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import functools
import math
import re

ITEM_BYTES = {
  **dict.fromkeys(("pred", "s8", "u8", "s4", "u4", "s2", "u2"), 1),
  **dict.fromkeys(("f8e4m3fn", "f8e5m2", "f8e4m3b11fnuz"), 1),
  **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
  **dict.fromkeys(("s32", "u32", "f32"), 4),
  **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
  "c128": 16,
}

_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.-]+) = ")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{\s*$")
_LEAF = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_CALLED = re.compile(
  r"(calls|body|condition|to_apply|branch_computations)"
  r"=(\{[^}]*\}|%?[\w.-]+)"
)


@dataclasses.dataclass(frozen=True)
class Leaf:
  """One array of a result."""

  dtype: str
  shape: tuple[int, ...]
  size: int  # bytes, filled up to whole tiles
  main: bool  # in the chip's main memory, not near its units

  @property
  def payload(self) -> int:
    """Bytes without what tiles add."""
    return ITEM_BYTES.get(self.dtype, 0) * math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """A line: name = result opcode(operands), attributes."""

  name: str
  result: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  root: bool

  @functools.cached_property
  def leaves(self) -> tuple[Leaf, ...]:
    """The arrays of the result, nested tuples flattened."""
    return tuple(map(_leaf, _LEAF.finditer(self.result)))

  @property
  def elements(self) -> tuple[int, ...]:
    """How many leaves each element of a tuple has."""
    return tuple(len(_LEAF.findall(part)) for part in _split(self.result[1:-1]))

  def attribute(self, name: str) -> str | None:
    """A simple attribute: dimensions, index, channel_id."""
    found = re.search(rf"\b{name}=([^,\s]+)", self.attributes)
    return found and found.group(1)

  @functools.cached_property
  def op_name(self) -> str:
    """JAX's own name of what made it: jit(f)/transpose(jvp())/dot_general."""
    found = re.search(r'op_name="([^"]*)"', self.attributes)
    return found.group(1) if found else ""

  def called(self, kind: str) -> tuple[str, ...]:
    """Computations that it runs as `kind`, such as "body"."""
    found = [
      re.findall(r"[\w.-]+", names)
      for key, names in _CALLED.findall(self.attributes)
      if key == kind
    ]
    return tuple(name for names in found for name in names)


@dataclasses.dataclass(frozen=True)
class Program:
  """Computations by name."""

  computations: Mapping[str, tuple[Instruction, ...]]
  entry: str
  devices: int
  sources: Mapping[int, str]  # stack frame -> "model/language.py:120"

  def source(self, instruction: Instruction) -> str:
    """The line of Python that asked for it; "" where none is known."""
    frame = instruction.attribute("stack_frame_id")
    digits = re.match(r"\d+", frame or "")
    return self.sources.get(int(digits.group()), "") if digits else ""

  def times(self, turns: int = 1) -> tuple[dict[str, int], tuple[str, ...]]:
    """How often each computation runs in one call of the program.

    Args:
      turns: of a loop whose length the program does not tell.

    Returns:
      (times by computation, those loops).
    """
    counted: dict[str, int] = {}
    unknown: list[str] = []

    def visit(name: str, times: int) -> None:
      counted[name] = counted.get(name, 0) + times
      for one in self.computations[name]:
        trips = 1
        if one.opcode == "while":
          (condition,) = one.called("condition")
          found = self._trips(condition)
          if found is None:
            unknown.append(self.source(one) or one.name)
          trips = turns if found is None else found
        for kind in ("body", "calls", "branch_computations"):
          for called in one.called(kind):
            visit(called, times * trips)
        if one.opcode in ("call", "async-start"):
          for called in one.called("to_apply"):
            visit(called, times)

    visit(self.entry, 1)
    return counted, tuple(unknown)

  def _trips(self, condition: str) -> int | None:
    """Of a loop that counts from 0, as JAX's scans do."""
    lines = self.computations[condition]
    constants = {
      one.name: int(one.operands[0])
      for one in lines
      if one.opcode == "constant" and re.fullmatch(r"\d+", one.operands[0])
    }
    for one in lines:
      if one.root and one.opcode == "compare":
        if one.attribute("direction") == "LT":
          return constants.get(one.operands[1])
        if one.attribute("direction") == "GT":
          return constants.get(one.operands[0])
      if one.root and one.opcode == "fusion":
        inner = self._trips(one.called("calls")[0])
        named = [constants[name] for name in one.operands if name in constants]
        return inner if inner is not None else next(iter(named), None)
    return None


def parse(text: str) -> Program:
  """Takes the text of a program apart."""
  computations: dict[str, tuple[Instruction, ...]] = {}
  entry, name = "", None
  lines: list[str] = []
  for line in text.splitlines():
    if name is None:
      header = _COMPUTATION.match(line)
      if header:
        name, lines = header.group(2), []
        entry = name if header.group(1) else entry
    elif line.rstrip() == "}":
      computations[name], name = tuple(map(_instruction, lines)), None
    elif _INSTRUCTION.match(line):
      lines.append(line)
    elif lines:  # the text of a kernel goes on
      lines[-1] += line
  devices = re.search(r"\bnum_partitions=(\d+)", text)
  count = int(devices.group(1)) if devices else 1
  return Program(computations, entry, count, _sources(text))


def _instruction(line: str) -> Instruction:
  head = _INSTRUCTION.match(line)
  assert head  # checked by `parse`
  rest = line[head.end() :]
  result_end = _closing(rest) + 1 if rest[0] == "(" else rest.index(" ")
  result, rest = rest[:result_end], rest[result_end + 1 :]
  opcode, _, _ = rest.partition("(")
  rest = rest[len(opcode) :]
  end = _closing(rest)
  inside, attributes = rest[1:end], rest[end + 1 :]
  if opcode in ("constant", "parameter"):
    operands = (inside,)
  else:
    operands = tuple(re.findall(r"%([\w.-]+)", inside))
  return Instruction(
    head.group(2), result, opcode, operands, attributes, bool(head.group(1))
  )


def _closing(text: str) -> int:
  """Index of the bracket that closes the first one."""
  depth = 0
  for found in re.finditer(r"[()]", text):
    depth += 1 if found.group() == "(" else -1
    if depth == 0:
      return found.start()
  return len(text)


def _split(text: str) -> Iterator[str]:
  """Parts between commas that no bracket holds."""
  depth, start = 0, 0
  for found in re.finditer(r"[(){}\[\],]", text):
    if found.group() == ",":
      if depth == 0:
        yield text[start : found.start()]
        start = found.end()
    else:
      depth += 1 if found.group() in "({[" else -1
  if text[start:].strip():
    yield text[start:]


def _leaf(found: re.Match[str]) -> Leaf:
  dtype, sizes, layout = found.groups()
  shape = tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size)
  order, _, rest = (layout or "").partition(":")
  major_first = [
    shape[int(axis)] for axis in reversed(order.split(",")) if axis
  ]
  dims = major_first if len(major_first) == len(shape) else list(shape)
  tile = re.search(r"T\(([\d,]+)\)", rest)
  if tile and dims:
    sides = [int(side) for side in tile.group(1).split(",")][-len(dims) :]
    for place, side in zip(range(-len(sides), 0), sides, strict=True):
      dims[place] += -dims[place] % side
  space = re.search(r"S\((\d+)\)", rest)
  return Leaf(
    dtype,
    shape,
    ITEM_BYTES.get(dtype, 0) * math.prod(dims),
    main=space is None or space.group(1) == "0",
  )


def _sources(text: str) -> dict[int, str]:
  """Stack frame -> file and line, from the tables at the head."""

  def table(title: str) -> str:
    found = re.search(rf"^{title}\n((?:\d.*\n)+)", text, re.M)
    return found.group(1) if found else ""

  files = {
    int(number): path
    for number, path in re.findall(r'^(\d+) "(.*)"', table("FileNames"), re.M)
  }
  lines = {
    int(number): f"{_short(files[int(file)])}:{line}"
    for number, file, line in re.findall(
      r"^(\d+) \{file_name_id=(\d+).*? line=(\d+)", table("FileLocations"), re.M
    )
  }
  frames = {
    int(number): (int(location), int(parent or 0))
    for number, location, parent in re.findall(
      r"^(\d+) \{file_location_id=(\d+)(?: parent_frame_id=(\d+))?",
      table("StackFrames"),
      re.M,
    )
  }
  return {number: lines[location] for number, (location, _) in frames.items()}


def _short(path: str) -> str:
  """A path from the package on, or the file's name."""
  _, inside, rest = path.rpartition("/rcmed_jax/")
  return rest if inside else path.rpartition("/")[2]
