"""`rcmed plan --search`: which mesh, how much at a time, what to make again.

Every choice is counted; the best of those that seem to fit are compiled, and
the compiler decides.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import functools
import itertools
from typing import Any

from rcmed_jax.apps import plan_report, plan_steps
from rcmed_jax.apps.settings import Settings
from rcmed_jax.parallel import mesh as meshes

# Tensor parallelism sends states in every layer: beyond 8 it never pays.
TENSOR = (1, 2, 4, 8)
DATA = (1, 2, 4, 8, 16)  # copies of the weights in a slice
FROZEN = ("sharded", "replicated")
REMAT = ("full", "attention", "dots")
ROWS = (1, 2, 4, 8, 16)  # images at a time of each device, or tensor group
# An estimate may be wrong by so much; what seems to need more is left out.
MARGIN = 1.1


@dataclasses.dataclass(frozen=True)
class Choice:
  """Settings, and the report of what they take."""

  settings: tuple[str, ...]  # flags that ask for them
  report: plan_report.Report

  @property
  def compiled(self) -> bool:
    return self.report.plan is not None

  @property
  def fits(self) -> bool:
    return self.report.fits


def search(
  told: Settings,
  where: plan_steps.Place,
  name: str,
  *,
  utilisation: float,
  price: float | None,
  compiles: int,
  say: Callable[[str], None] = lambda sentence: None,
) -> list[Choice]:
  """Choices, those that fit and are fastest first, compiled ones before all.

  Args:
    told: settings, of which mesh, accumulation, remat and the placement of
      frozen weights are tried; the batch size stays.
    where: the accelerators.
    name: of the step.
    utilisation: as `plan_report.report`.
    price: as there.
    compiles: how many of the best to compile.
    say: hears of the progress.

  Raises:
    ValueError: no mesh divides the batch.
  """

  report = functools.partial(
    plan_report.report,
    where=where,
    name=name,
    utilisation=utilisation,
    price=price,
  )
  counted = []
  for mesh, frozen in _layouts(where):
    base = dataclasses.replace(
      told,
      mesh=mesh,
      optimizer=dataclasses.replace(told.optimizer, frozen_placement=frozen),
    )
    # What lies where is the same for all that is tried on a mesh.
    step = plan_steps.make(base, where.mesh(mesh), name)
    for choice in _choices(base, where, name):
      step = dataclasses.replace(step, accumulation=choice.train.accumulation)
      counts, _ = report(choice, compiles=False, step=step)
      counted.append((choice, Choice(_flags(choice, name), counts)))
  if not counted:
    raise ValueError(
      f"no mesh of {where.count} devices divides the batch; choose "
      "train.batch_size as a multiple of them."
    )
  say(f"{len(counted)} choices counted")
  counted.sort(key=lambda pair: _rank(pair[1]))
  found = []
  for index, (choice, estimated) in enumerate(counted):
    counts = estimated.report
    likely = counts.needs_gib <= MARGIN * counts.chip_gib
    if where.compiles and index < compiles and likely:
      say(f"compiling {' '.join(estimated.settings)}")
      estimated = Choice(estimated.settings, report(choice)[0])
    found.append(estimated)
  return sorted(found, key=lambda one: (not one.compiled, *_rank(one)))


def table(found: Sequence[Choice], most: int = 20) -> str:
  """The best choices for people."""
  lines = ["  GiB        images/s  settings; * compiled, others estimated"]
  lines += [
    f"{'*' if one.compiled else ' '} {one.report.needs_gib:6.2f} "
    f"{'fits' if one.fits else '----'}  {one.report.images_per_s:8.4g}  "
    f"{' '.join(one.settings)}"
    for one in found[:most]
  ]
  if len(found) > most:
    lines.append(f"  and {len(found) - most} more; --json lists all")
  return "\n".join(lines)


def _rank(choice: Choice) -> tuple[bool, float, float]:
  report = choice.report
  return not choice.fits, -report.images_per_s, report.needs_gib


def _layouts(
  where: plan_steps.Place,
) -> Iterator[tuple[meshes.MeshConfig, str]]:
  """Meshes that cut weights, and placements of frozen ones."""
  a_slice = where.count // where.slices
  for tensor in TENSOR:
    for data in DATA:
      if a_slice % (tensor * data) or a_slice <= tensor * data:
        continue
      fsdp = a_slice // tensor // data
      for frozen in FROZEN:
        yield meshes.MeshConfig(where.slices, data, fsdp, tensor), frozen


def _choices(
  told: Settings, where: plan_steps.Place, name: str
) -> Iterator[Settings]:
  """How much at a time, and what to make again, on one mesh."""
  if name != "train":
    yield _with(told, 1, str(told.model.remat))
    return
  shards = where.count // told.mesh.tensor
  for remat, rows in itertools.product(REMAT, ROWS):
    if told.train.batch_size % (rows * shards) == 0:
      yield _with(told, told.train.batch_size // rows // shards, remat)


def _with(told: Settings, accumulation: int, remat: str) -> Settings:
  return dataclasses.replace(
    told,
    model=dataclasses.replace(told.model, remat=remat),
    train=dataclasses.replace(told.train, accumulation=accumulation),
  )


def _flags(told: Settings, name: str) -> tuple[str, ...]:
  """What asks for a choice."""
  flags: dict[str, Any] = {
    f"mesh.{axis}": size for axis, size in dataclasses.asdict(told.mesh).items()
  }
  flags["optimizer.frozen_placement"] = told.optimizer.frozen_placement
  if name == "train":
    flags["train.accumulation"] = told.train.accumulation
    flags["model.remat"] = told.model.remat
  return tuple(f"--config.{name}={value}" for name, value in flags.items())
