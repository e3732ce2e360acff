"""What `rcmed plan` says of one step, in numbers and as a table."""

import dataclasses
import functools
import importlib.metadata
import math
from typing import Any

import jax

from rcmed_jax.apps import plan_estimate, plan_steps
from rcmed_jax.apps.settings import Settings
from rcmed_jax.parallel import chips, links, plan

_GB = 1e9


@dataclasses.dataclass(frozen=True)
class Question:
  """What is to be planned."""

  told: Settings  # the mesh among them
  where: plan_steps.Place
  step: str = "train"  # one of plan_steps.STEPS
  utilisation: float = 0.4  # of the peak that arithmetic reaches
  price: float | None = None  # US dollars of a device's hour


@dataclasses.dataclass(frozen=True)
class Report:
  """One step on one mesh."""

  asked: Question
  step: plan_steps.Step
  estimate: plan_estimate.Estimate
  plan: plan.Plan | None  # None where nothing was compiled
  compiler: str  # versions; "none: estimated"

  @property
  def chip(self) -> chips.Chip:
    return self.asked.where.chip

  @property
  def needs(self) -> int:
    """Bytes of a device."""
    return (self.plan or self.estimate).total

  @property
  def fits(self) -> bool:
    refused = self.plan is not None and bool(self.plan.refusal)
    return not refused and self.needs <= self.chip.usable_gib * plan.GIB

  @property
  def sent(self) -> tuple[tuple[tuple[str, ...], float], ...]:
    """(mesh axes, bytes of a device), as compiled or else estimated."""
    if self.plan is not None:
      return tuple((one.axes, one.sent) for one in self.plan.collectives)
    return tuple(
      ((axis,), size) for axis, size in self.estimate.sent.items() if size
    )

  @functools.cached_property
  def links_s(self) -> float:
    """Of sending over links, one after another, at their full speed."""
    return self._sending_s(False)

  @functools.cached_property
  def network_s(self) -> float:
    """Of sending over the data centre's network."""
    return self._sending_s(True)

  @property
  def per_s(self) -> float:
    """Images, or tokens, as if all else hid behind what takes longest."""
    return self.step.images / max(
      self.estimate.compute_s,
      self.estimate.memory_s,
      self.links_s,
      self.network_s,
    )

  @property
  def usd_per_million(self) -> float | None:
    """Of images, or tokens."""
    if self.asked.price is None:
      return None
    return self.asked.price * self.asked.where.count / 3600 / self.per_s * 1e6

  @property
  def whole(self) -> dict[str, int]:
    """Large weights that no mesh axis divides: names and bytes."""
    found = self.step.whole("trained weights")
    if self.asked.told.optimizer.frozen_placement != "replicated":
      found |= self.step.whole("frozen weights")
    return found

  def as_json(self) -> dict[str, Any]:
    """What --json prints; seconds are of a call."""
    own, done = self.step.flops
    return {
      "step": self.step.name,
      "topology": self.asked.where.topology,
      "slices": self.asked.where.slices,
      "chips": self.asked.where.count,
      "mesh": dict(self.step.mesh.shape),
      "images": self.step.images,
      "rows": self.step.rows,
      "text": self.step.text,
      "remat": str(self.asked.told.model.remat),
      "frozen_placement": self.asked.told.optimizer.frozen_placement,
      "compiler": self.compiler,
      "fits": self.fits,
      "chip_gib": self.chip.memory_gib,
      "usable_gib": self.chip.usable_gib,
      "needs_gib": self.needs / plan.GIB,
      "plan": self.plan and dataclasses.asdict(self.plan),
      "estimate": dataclasses.asdict(self.estimate),
      "whole": self.whole,
      "replicated": self.step.replicated,
      "image_flops": own,
      "image_flops_done": done,
      "utilisation": self.asked.utilisation,
      "compute_s": self.estimate.compute_s,
      "memory_s": self.estimate.memory_s,
      "links_s": self.links_s,
      "network_s": self.network_s,
      "unit": self.step.unit,
      "images_per_s": self.per_s,  # or of another unit
      "usd_per_million": self.usd_per_million,
    }

  def road(self, axes: tuple[str, ...]) -> links.Road:
    """The way along mesh axes."""
    return links.road(self.chip, self.step.mesh, axes)

  def _sending_s(self, network: bool) -> float:
    taken = ((self.road(axes), size) for axes, size in self.sent)
    return sum(
      size / (road.gbs * _GB) for road, size in taken if road.network == network
    )


def report(
  asked: Question,
  *,
  compiles: bool = True,
  step: plan_steps.Step | None = None,
) -> tuple[Report, str]:
  """Plans one step.

  Args:
    asked: what.
    compiles: whether to, where a compiler is at hand.
    step: made already, of these settings.

  Returns:
    (the report, the text of the program; "" where none was compiled).
  """
  step = step or plan_steps.make(
    asked.told, asked.where.mesh(asked.told.mesh), asked.step
  )
  if not (asked.where.compiles and compiles):
    return assemble(asked, step, None, "none: estimated"), ""
  compiled, text = plan.compile_plan(
    step.lower, step.held, mesh=step.mesh.shape, turns=step.turns
  )
  return assemble(asked, step, compiled, _versions()), text


def assemble(
  asked: Question,
  step: plan_steps.Step,
  compiled: plan.Plan | None,
  compiler: str,
) -> Report:
  """The report of a step that was compiled now, before, or not at all."""
  guess = plan_estimate.estimate(
    asked.told, step, asked.where.chip, utilisation=asked.utilisation
  )
  return Report(asked, step, guess, compiled, compiler)


def table(found: Report) -> str:
  """The report for people."""
  step, where = found.step, found.asked.where
  mesh = " x ".join(f"{size} {axis}" for axis, size in step.mesh.shape.items())
  slices = f"{where.slices} x " if where.slices > 1 else ""
  lines = [
    f"{step.name} step on {slices}{where.topology}: {where.count} devices, "
    f"mesh {mesh}",
    f"{step.images} images of {step.text} tokens a call, {step.rows:g} at a "
    f"time on each group; remat {found.asked.told.model.remat}, frozen weights "
    f"{found.asked.told.optimizer.frozen_placement}; compiler: "
    f"{found.compiler}",
    "",
    *_verdict(found),
    *_memory(found),
  ]
  compiled = found.plan
  if compiled is not None and compiled.refusal:
    lines += ["", "The compiler:", *_quoted(compiled.refusal)]
  elif compiled is not None:
    lines += ["", *_arrays(compiled), "", *_traffic(found, compiled)]
  lines += ["", *_speed(found), "", *step.replicated]
  return "\n".join(lines).rstrip()


def warning(found: Report, most: int = 3) -> str:
  """A sentence on large weights that the mesh leaves whole, or ""."""
  whole = found.whole
  if not whole:
    return ""
  largest = sorted(whole, key=lambda name: -whole[name])
  listed = ", ".join(
    f"{name} ({_binary(whole[name])})" for name in largest[:most]
  )
  more = f" and {len(largest) - most} more" if len(largest) > most else ""
  return (
    f"WARNING: every device holds {_binary(sum(whole.values()))} of weights "
    f"whole, which fsdp={found.step.mesh.shape['fsdp']} does not divide: "
    f"{listed}{more}. Choose an fsdp that divides the model's widths."
  )


def _verdict(found: Report) -> list[str]:
  chip, needs = found.chip, _binary(found.needs)
  word = "fits" if found.fits else "DOES NOT FIT"
  if chip.share == 1:
    lines = [f"{word}: {needs} of {chip.memory_gib:g} GiB a device"]
  else:
    unset = chips.GPU_SHARE_UNSET * chip.memory_gib
    suffices = "enough" if found.needs <= unset * plan.GIB else "too little"
    lines = [
      f"{word}: {needs} of the {chip.usable_gib:.4g} GiB that "
      f"XLA_PYTHON_CLIENT_MEM_FRACTION={chip.share} takes of a device's "
      f"{chip.memory_gib:g}",
      f"(unset, JAX takes {chips.GPU_SHARE_UNSET} of it: {unset:.4g} GiB, "
      f"{suffices})",
    ]
  told = warning(found)
  return [*lines, *([told] if told else [])]


def _memory(found: Report) -> list[str]:
  guess, compiled = found.estimate, found.plan
  if compiled is None:
    rows = {
      "weights, moments, batch": guess.held,
      "gradients": guess.gradients,
      "activations": guess.activations,
      "the largest layer's work": guess.work,
    }
    return _sizes(rows)
  rows = {**compiled.held}
  if not compiled.refusal:
    exact = sum(compiled.held.values())
    rows["filling up tiles, random keys"] = compiled.arguments - exact
    rows["results beside the arguments"] = compiled.results
    rows["activations (estimate)"] = compiled.activations
  rows["temporaries" if compiled.refusal else "other temporaries"] = (
    compiled.temporaries - compiled.activations
  )
  rows["program"] = compiled.program
  return _sizes(rows)


def _sizes(rows: dict[str, int]) -> list[str]:
  width = max(map(len, rows))
  return [
    f"  {name:<{width}}  {_binary(size):>11}" for name, size in rows.items()
  ]


def _arrays(compiled: plan.Plan) -> list[str]:
  lines = ["Largest arrays at the peak (estimate):"]
  for one in compiled.largest:
    shape = f"{one.dtype}[{','.join(map(str, one.shape))}]"
    lines.append(
      f"  {_binary(one.count * one.size):>11}  {one.count} x "
      f"{shape:<28} {one.source or _tail(one.op_name)}"
    )
  return lines


def _traffic(found: Report, compiled: plan.Plan) -> list[str]:
  lines = ["Collectives of a call, and what a device sends:"]
  for one in compiled.collectives:
    road = found.road(one.axes)
    over = " and ".join(one.axes) or "all"
    lines.append(
      f"  {_decimal(one.sent)}B  {one.count:6d} x {one.kind} of {one.dtype} "
      f"over {over}, {road.gbs:.3g} GB/s"
      + (" between slices" if one.across_slices else "")
    )
  if compiled.loops:
    lines.append(
      f"  Taken to turn {compiled.turns} times: {', '.join(compiled.loops)}"
    )
  return lines


def _speed(found: Report) -> list[str]:
  own, done = found.step.flops
  guess = found.estimate
  lines = [
    f"{_decimal(own).strip()}FLOP an image, "
    f"{_decimal(done).strip()}FLOP with what is made again",
    f"A call takes {guess.compute_s:.3g} s of arithmetic at "
    f"{found.asked.utilisation:.0%} of the peak, {found.links_s:.3g} s of "
    "sending over links"
    + (f", {found.network_s:.3g} s over the network" if found.network_s else "")
    + f", {guess.memory_s:.3g} s of reading what is held",
    f"If the longest decides: {found.per_s:.4g} {found.step.unit}/s",
  ]
  if found.usd_per_million is not None:
    lines.append(f"{found.usd_per_million:,.0f} US dollars a million of them")
  return lines


def _binary(size: float) -> str:
  """Bytes in the largest unit below them."""
  units = ("B", "KiB", "MiB", "GiB")
  power = min(int(math.log2(size)) // 10, 3) if size >= 1 else 0
  return f"{size / 2 ** (10 * power):.2f} {units[power]}"


def _decimal(number: float) -> str:
  """A number and the prefix of its unit, right-aligned."""
  power = min(int(math.log10(number)) // 3, 4) if number >= 1 else 0
  return f"{number / 10 ** (3 * power):7.2f} {('', 'k', 'M', 'G', 'T')[power]}"


def _quoted(message: str, lines: int = 40) -> list[str]:
  return [f"  {line[:160]}" for line in message.splitlines()[:lines]]


def _tail(op_name: str) -> str:
  return op_name if len(op_name) < 60 else f"...{op_name[-57:]}"


def _versions() -> str:
  return f"libtpu {importlib.metadata.version('libtpu')}, JAX {jax.__version__}"
