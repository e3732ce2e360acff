"""What the TPU compiler writes down about the kernels that it compiles.

With `--xla_jf_dump_llo_text=true` among LIBTPU_INIT_ARGS it leaves, for every
kernel, how full each bundle of its final schedule is. A kernel fills some 60 MB
with such files: `clear` them after each.
"""

import dataclasses
import importlib.metadata
import math
import pathlib
import re
from typing import Any

_UTILIZATION = "final_hlo-static-per-bundle-utilization.txt"
# Not units but parts of one, counted apart.
_PARTS = ("VLOAD:FILL", "VSTORE:SPILL")


@dataclasses.dataclass(frozen=True)
class Schedule:
  """The final schedule of one kernel, every branch and one step of its grid."""

  bundles: int
  used: dict[str, int]  # instructions a unit
  slots: dict[str, int]  # that a bundle has for it

  @property
  def spills(self) -> int:
    return self.used["VSTORE:SPILL"]

  def busiest(self) -> str:
    """The two units with the fullest slots, and how full."""
    full = {
      unit: used / self.slots[unit] / self.bundles
      for unit, used in self.used.items()
      if unit not in _PARTS
    }
    first = sorted(full, key=lambda unit: -full[unit])[:2]
    return ", ".join(f"{unit} {full[unit]:.0%}" for unit in first)


def clear(folder: pathlib.Path) -> None:
  """Removes what earlier compilations left."""
  for path in folder.iterdir():
    path.unlink()


def read(folder: pathlib.Path, name: str) -> Schedule:
  """The schedule of the kernel that was given this name.

  Raises:
    FileNotFoundError: the compiler wrote none.
  """
  files = [
    path
    for path in folder.glob(f"*{_UTILIZATION}")
    if re.search(rf"-{name}(\.\d+)?-\d+-{_UTILIZATION}$", path.name)
  ]
  if len(files) != 1:
    raise FileNotFoundError(
      f"expected one schedule of {name} in {folder}, found {len(files)}; the "
      "compiler must be loaded with LIBTPU_INIT_ARGS set, and the folder be "
      "cleared before it compiles."
    )
  # A table of names and slots, then a table of bundles by units.
  lines = files[0].read_text(encoding="utf-8").splitlines()
  head = next(i for i, line in enumerate(lines) if "MXU," in line)
  units = [unit.strip() for unit in lines[head].split(",")]
  slots = [int(count) for count in lines[head + 1].split()]
  start = next(
    i
    for i, line in enumerate(lines)
    if "UTILIZATION" in line and "CAP" not in line
  )
  rows = [
    [int(count) for count in line.split()]
    for line in lines[start + 1 :]
    if line.strip()[:1].isdigit()
  ]
  used = [sum(column) for column in zip(*rows, strict=True)]
  return Schedule(
    bundles=len(rows),
    used=dict(zip(units, used, strict=False)),
    slots=dict(zip(units, slots, strict=True)),
  )


def steps(jaxpr: Any, name: str) -> int:
  """How often the grid of the pallas_call of this name runs its body."""
  for equation in jaxpr.eqns:
    kernel = equation.primitive.name == "pallas_call"
    if kernel and equation.params["name"] == name:
      return math.prod(equation.params["grid_mapping"].grid)
  raise ValueError(f"the program has no kernel {name}")


def vmem_bytes(compiled: Any) -> int:
  """Vector memory that the program's only kernel takes, buffers included.

  XLA may keep whole arrays in vector memory below the kernel's own part.

  Raises:
    ValueError: the compiler does not say, or the program has other kernels.
  """
  calls = [
    line
    for line in compiled.as_text().splitlines()
    if 'custom_call_target="tpu_custom_call"' in line
  ]
  numbers = [
    (
      re.search(r'"scoped_memory_configs":.*?"offset":"(\d+)"', call),
      re.search(r'"used_scoped_memory_configs":.*?"size":"(\d+)"', call),
    )
    for call in calls
  ]
  if len(numbers) != 1 or None in numbers[0]:
    raise ValueError(f"expected one kernel and its memory, found {calls}")
  below, top = (int(found.group(1)) for found in numbers[0] if found)
  return top - below


def libtpu_version() -> str:
  return importlib.metadata.version("libtpu")
