"""What `rcmed plan` says of one step, in numbers and as a table."""

import dataclasses
import importlib.metadata
import math

import jax

from rcmed_jax.apps import plan_estimate, plan_steps
from rcmed_jax.apps.settings import Settings
from rcmed_jax.parallel import plan

_GB = 1e9


@dataclasses.dataclass(frozen=True)
class Report:
  """One step on one mesh."""

  step: str  # one of plan_steps.STEPS
  topology: str
  slices: int
  chips: int
  mesh: dict[str, int]
  images: int  # a call
  rows: float  # images of a chip's group at a time
  text: int  # tokens of each image
  remat: str
  frozen_placement: str
  compiler: str  # versions; "none: estimated"
  fits: bool
  chip_gib: float
  needs_gib: float
  plan: plan.Plan | None  # None where nothing was compiled
  estimate: plan_estimate.Estimate
  replicated: tuple[str, ...]  # sentences
  image_flops: float  # the model's own
  image_flops_done: float  # with what is made again
  utilisation: float
  compute_s: float  # a call, at this utilisation
  memory_s: float  # weights and cache read once
  links_s: float  # sent at full speed within the slice
  network_s: float  # and between slices
  images_per_s: float  # as if sending hid behind arithmetic
  usd_per_million: float | None  # images


def report(
  told: Settings,
  where: plan_steps.Place,
  name: str,
  *,
  utilisation: float,
  price: float | None = None,
  compiles: bool = True,
  step: plan_steps.Step | None = None,
) -> tuple[Report, str]:
  """Plans one step.

  Args:
    told: settings, the mesh among them.
    where: the accelerators.
    name: of the step.
    utilisation: of the peak that arithmetic reaches.
    price: US dollars of a chip's hour.
    compiles: whether to, where a compiler is at hand.
    step: made already, of these settings.

  Returns:
    (the report, the text of the program; "" where none was compiled).
  """
  mesh = where.mesh(told.mesh)
  step = step or plan_steps.make(told, mesh, name)
  chip = where.chip
  guess = plan_estimate.estimate(
    told, step, name, mesh, chip, utilisation=utilisation
  )
  compiled, text = None, ""
  needs = guess.total
  links_s, network_s = guess.sent_s, 0.0
  if where.compiles and compiles:
    compiled, text = plan.compile_plan(
      step.lower, step.held, slices=where.slices, turns=step.turns
    )
    needs = compiled.total
    links_s = compiled.sent(False) / (chip.link_gbs * _GB)
    network_s = compiled.sent(True) / (chip.network_gbs * _GB)
  own, done = plan_estimate.image_flops(told, step, name)
  step_s = max(guess.compute_s, guess.memory_s, links_s, network_s)
  refused = compiled is not None and bool(compiled.refusal)
  per_s = step.images / step_s
  return Report(
    step=name,
    topology=where.topology,
    slices=where.slices,
    chips=where.count,
    mesh=dict(mesh.shape),
    images=step.images,
    rows=step.rows(mesh),
    text=step.text,
    remat=str(told.model.remat),
    frozen_placement=told.optimizer.frozen_placement,
    compiler=_versions() if compiled else "none: estimated",
    fits=not refused and needs <= chip.memory_gib * plan.GIB,
    chip_gib=chip.memory_gib,
    needs_gib=needs / plan.GIB,
    plan=compiled,
    estimate=guess,
    replicated=step.replicated,
    image_flops=own,
    image_flops_done=done,
    utilisation=utilisation,
    compute_s=guess.compute_s,
    memory_s=guess.memory_s,
    links_s=links_s,
    network_s=network_s,
    images_per_s=per_s,
    usd_per_million=(
      None if price is None else price * where.count / 3600 / per_s * 1e6
    ),
  ), text


def table(found: Report) -> str:
  """The report for people."""
  mesh = " x ".join(f"{size} {axis}" for axis, size in found.mesh.items())
  slices = f"{found.slices} x " if found.slices > 1 else ""
  lines = [
    f"{found.step} step on {slices}{found.topology}: {found.chips} devices, "
    f"mesh {mesh}",
    f"{found.images} images of {found.text} tokens a call, {found.rows:g} at a "
    f"time on each group; remat {found.remat}, frozen weights "
    f"{found.frozen_placement}; compiler: {found.compiler}",
    "",
    f"{'fits' if found.fits else 'DOES NOT FIT'}: "
    f"{_binary(found.needs_gib * plan.GIB)} of {found.chip_gib:g} GiB a device",
  ]
  compiled = found.plan
  lines += _memory(found)
  if compiled is not None and compiled.refusal:
    lines += ["", "The compiler:", *_quoted(compiled.refusal)]
  elif compiled is not None:
    lines += ["", *_arrays(compiled), "", *_traffic(compiled)]
  lines += ["", *_speed(found), "", *found.replicated]
  return "\n".join(lines).rstrip()


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


def _traffic(compiled: plan.Plan) -> list[str]:
  lines = ["Collectives of a call, and what a device sends:"]
  for one in compiled.collectives:
    across = ", between slices" if one.across_slices else ""
    lines.append(
      f"  {_decimal(one.sent)}B  {one.count:6d} x {one.kind} of "
      f"{one.dtype}{across}"
    )
  if compiled.loops:
    lines.append(
      f"  Taken to turn {compiled.turns} times: {', '.join(compiled.loops)}"
    )
  return lines


def _speed(found: Report) -> list[str]:
  lines = [
    f"{_decimal(found.image_flops).strip()}FLOP an image, "
    f"{_decimal(found.image_flops_done).strip()}FLOP with what is made again",
    f"A call takes {found.compute_s:.3g} s of arithmetic at "
    f"{found.utilisation:.0%} of the peak, {found.links_s:.3g} s of sending "
    "between neighbours"
    + (f", {found.network_s:.3g} s between slices" if found.slices > 1 else "")
    + f", {found.memory_s:.3g} s of reading what is held",
    f"If the longest decides: {found.images_per_s:.4g} "
    f"{'tokens' if found.step == 'decode' else 'images'}/s",
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
