"""`rcmed plan --search`: which mesh, how much at a time, what to make again.

Every choice is counted; the best of those that seem to fit are compiled, and
the compiler decides.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import itertools
import math
from typing import Any

from rcmed_jax.apps import plan_report, plan_steps
from rcmed_jax.apps.settings import Settings
from rcmed_jax.parallel import mesh as meshes

# Tensor parallelism sends states in every layer: beyond 8 it never pays.
TENSOR = (1, 2, 4, 8)
FROZEN = ("sharded", "replicated")
REMAT = ("full", "attention", "dots")
ROWS = (1, 2, 4, 8, 16)  # images at a time of each device, or tensor group
# An estimate may be wrong by so much; what seems to need more is left out.
MARGIN = 1.1
# Choices that are counted, at milliseconds each beside seconds for each mesh.
MOST = 2000


@dataclasses.dataclass(frozen=True)
class Choice:
  """Settings, and the report of what they take."""

  settings: tuple[str, ...]  # flags that ask for them
  report: plan_report.Report
  other: float  # doublings between the batch that was asked for and its own

  @property
  def compiled(self) -> bool:
    return self.report.plan is not None

  @property
  def fits(self) -> bool:
    return self.report.fits

  def as_json(self) -> dict[str, Any]:
    return {"settings": self.settings, "report": self.report.as_json()}


def search(
  asked: plan_report.Question,
  *,
  compiles: int,
  say: Callable[[str], None] = lambda sentence: None,
) -> list[Choice]:
  """Choices: those that fit first, of these compiled ones, then the fastest.

  Args:
    asked: of which mesh, batch size, accumulation, remat and the placement of
      frozen weights are tried; of steps that answer mesh, placement and rows.
    compiles: goes on compiling until so many fit.
    say: hears of the progress.
  """
  where = asked.where
  tried = sorted(
    _choices(asked), key=lambda told: _other(asked.told, told, asked.step)
  )
  if len(tried) > MOST:
    say(f"{len(tried) - MOST} choices of other batch sizes are left out")
  layouts: dict[Any, Any] = {}
  counted = []
  for told in tried[:MOST]:
    # What lies where is the same for all that is tried on a mesh.
    key = told.mesh, told.optimizer.frozen_placement
    mesh = where.mesh(told.mesh)
    if key not in layouts:
      layouts[key] = plan_steps.lay_out(told, mesh)
    step = plan_steps.make(told, mesh, asked.step, layouts[key])
    choice = dataclasses.replace(asked, told=told)
    counts, _ = plan_report.report(choice, compiles=False, step=step)
    other = _other(asked.told, told, asked.step)
    counted.append(Choice(_flags(told, asked.step), counts, other))
  say(f"{len(counted)} choices counted")
  counted.sort(key=_rank)
  found, missing = [], compiles if where.compiles else 0
  for one in counted:
    likely = one.report.needs <= MARGIN * _usable(one)
    if missing > 0 and likely:
      say(f"compiling {' '.join(one.settings)}")
      compiled, _ = plan_report.report(one.report.asked)
      one = dataclasses.replace(one, report=compiled)
      missing -= one.fits
    found.append(one)
  return sorted(found, key=_rank)


def table(found: Sequence[Choice], most: int = 20) -> str:
  """The best choices for people, and all that were compiled."""
  lines = ["  GiB        per s     settings; * compiled, others estimated"]
  shown = [
    one for place, one in enumerate(found) if place < most or one.compiled
  ]
  lines += [
    f"{'*' if one.compiled else ' '} {one.report.needs / 2**30:6.2f} "
    f"{'fits' if one.fits else '----'}  {one.report.per_s:8.4g}  "
    f"{' '.join(one.settings)}"
    for one in shown
  ]
  if len(found) > len(shown):
    lines.append(f"  and {len(found) - len(shown)} more; --json lists all")
  return "\n".join(lines)


def _rank(one: Choice) -> tuple[bool, bool, float, float, int]:
  report = one.report
  return (
    not one.fits,
    not one.compiled,
    -report.per_s,
    one.other,
    report.needs,
  )


def _usable(one: Choice) -> float:
  return one.report.chip.usable_gib * 2**30


def _layouts(
  where: plan_steps.Place,
) -> Iterator[tuple[meshes.MeshConfig, str]]:
  """All meshes, and placements of frozen weights where these are cut."""
  a_slice = where.count // where.slices
  for tensor in TENSOR:
    if a_slice % tensor:
      continue
    ways = a_slice // tensor
    for data in (size for size in range(1, ways + 1) if ways % size == 0):
      fsdp = ways // data
      for frozen in FROZEN if fsdp > 1 else FROZEN[:1]:
        yield meshes.MeshConfig(where.slices, data, fsdp, tensor), frozen


def _choices(asked: plan_report.Question) -> Iterator[Settings]:
  """Everything that is tried."""
  for mesh, frozen in _layouts(asked.where):
    told = dataclasses.replace(
      asked.told,
      mesh=mesh,
      optimizer=dataclasses.replace(
        asked.told.optimizer, frozen_placement=frozen
      ),
    )
    if asked.step != "train":
      for rows in sorted({*ROWS, told.eval.rows}):
        yield dataclasses.replace(
          told, eval=dataclasses.replace(told.eval, rows=rows)
        )
      continue
    shards = asked.where.count // mesh.tensor
    for remat, rows in itertools.product(REMAT, ROWS):
      for batch in _batches(told.train.batch_size, rows * shards):
        yield dataclasses.replace(
          told,
          model=dataclasses.replace(told.model, remat=remat),
          train=dataclasses.replace(
            told.train,
            batch_size=batch,
            accumulation=batch // (rows * shards),
          ),
        )


def _batches(asked: int, at_a_time: int) -> set[int]:
  """Half, once and twice the batch, as near as micro-batches come to it."""
  return {
    max(1, round(size / at_a_time)) * at_a_time
    for size in (asked / 2, asked, asked * 2)
  }


def _other(asked: Settings, told: Settings, step: str) -> float:
  """How far a batch is from the one asked for, in doublings."""
  if step != "train":
    return 0.0
  return abs(math.log2(told.train.batch_size / asked.train.batch_size))


def _flags(told: Settings, step: str) -> tuple[str, ...]:
  """What asks for a choice."""
  flags: dict[str, Any] = {
    f"mesh.{axis}": size for axis, size in dataclasses.asdict(told.mesh).items()
  }
  flags["optimizer.frozen_placement"] = told.optimizer.frozen_placement
  if step == "train":
    flags["train.batch_size"] = told.train.batch_size
    flags["train.accumulation"] = told.train.accumulation
    flags["model.remat"] = told.model.remat
  else:
    flags["eval.rows"] = told.eval.rows
  return tuple(f"--config.{name}={value}" for name, value in flags.items())
