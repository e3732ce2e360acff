"""The 7B planned for real slices: tables, and the figure of docs/scaling.md.

  make .venv/compiler
  .venv/bin/python benchmarks/plan_7b.py            # 20 minutes a case
  .venv/bin/python benchmarks/plan_7b.py --cases    # those there are

Each case is what `rcmed plan` prints for its arguments. Cases that stand in
results/plan_7b.json are not compiled again: delete one to have it done anew.
"""

import argparse
from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

import jax

from rcmed_jax.apps import plan_estimate, plan_report, plan_steps, settings
from rcmed_jax.parallel import chips, plan, traffic
from rcmed_jax.parallel import mesh as meshes

RESULTS = pathlib.Path(__file__).parent / "results"
HELD, TABLE = RESULTS / "plan_7b.json", RESULTS / "plan_7b.md"
FIGURE = pathlib.Path(__file__).parents[1] / "docs" / "scaling.svg"
CONFIG = "configs/pretrain_7b.py"
UTILISATION = 0.4
TENSOR = (
  "--config.mesh.data=32",
  "--config.mesh.fsdp=1",
  "--config.mesh.tensor=8",
  "--config.eval.rows=8",
)


@dataclasses.dataclass(frozen=True)
class Case:
  """What `rcmed plan` is asked."""

  topology: str
  limit_gib: float  # that it may take of a chip
  step: str = "train"
  flags: tuple[str, ...] = ()
  slices: int = 1

  @property
  def command(self) -> str:
    slices = (f"--slices={self.slices}",) if self.slices > 1 else ()
    return " ".join(
      (
        f"rcmed plan --config={CONFIG} --topology={self.topology}",
        *slices,
        *self.flags,
        f"--step={self.step}",
      )
    )


CASES: Mapping[str, Case] = {
  "v5e:16x16 train": Case("v5e:16x16", 14),
  "v5p:4x4x8 train": Case("v5p:4x4x8", 80),
  "v6e:16x16 train": Case("v6e:16x16", 28),
  "v5p:8x8x8 train": Case(
    "v5p:8x8x8", 80, flags=("--config.train.accumulation=3",)
  ),
  "v5e:2x4 train": Case(
    "v5e:2x4",
    14,
    flags=("--config.mesh.fsdp=8", "--config.train.batch_size=96"),
  ),
  "v5e:8x8 train": Case(
    "v5e:8x8", 14, flags=("--config.train.batch_size=768",)
  ),
  "2 x v5e:4x4 train": Case(
    "v5e:4x4",
    14,
    flags=("--config.mesh.slice=2", "--config.train.batch_size=384"),
    slices=2,
  ),
  "v5e:16x16 evaluate": Case("v5e:16x16", 14, "evaluate"),
  "v5e:16x16 decode": Case("v5e:16x16", 14, "decode"),
  "v5e:16x16 decode, tensor": Case("v5e:16x16", 14, "decode", TENSOR),
}
SIZES = (8, 16, 32, 64, 128, 256, 512)  # chips of the figure


def main() -> None:
  """Plans what is missing and writes table and figure."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--cases", action="store_true", help="list and stop")
  parser.add_argument("--only", choices=CASES, nargs="+", help="default: all")
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  held = json.loads(HELD.read_text()) if HELD.exists() else {}
  for name in args.only or CASES:
    if args.cases:
      print(name, "done" if name in held else "missing")
    elif name not in held:
      print(f"compiling {name}", flush=True)
      found, _ = plan_report.report(_question(name))
      assert found.plan is not None
      held[name] = {
        "compiler": found.compiler,
        "plan": dataclasses.asdict(found.plan),
      }
      HELD.write_text(json.dumps(held, indent=1) + "\n")
  if not args.cases:
    reports = {
      name: from_json(name, held[name]) for name in CASES if name in held
    }
    TABLE.write_text(_table(reports))
    FIGURE.write_text(_figure(reports))


def from_json(name: str, values: dict[str, Any]) -> plan_report.Report:
  """The report of a case: the compiler's part as held, all else anew."""
  asked = _question(name)
  mesh = asked.where.mesh(asked.told.mesh)
  step = plan_steps.make(asked.told, mesh, asked.step)
  compiled = dict(values["plan"])
  compiled["largest"] = tuple(
    plan.Array(**{**one, "shape": tuple(one["shape"])})
    for one in compiled["largest"]
  )
  compiled["collectives"] = tuple(
    _sum(one, step) for one in compiled["collectives"]
  )
  return plan_report.assemble(
    asked, step, plan.Plan(**compiled), values["compiler"]
  )


def _question(name: str) -> plan_report.Question:
  case = CASES[name]
  return plan_report.Question(
    settings.parse([f"--config={CONFIG}", *case.flags]),
    plan_steps.place(case.topology, case.slices),
    case.step,
    UTILISATION,
  )


def _sum(values: Mapping[str, Any], step: plan_steps.Step) -> traffic.Sum:
  """One of a program's sums; of those held before axes were, by what it is.

  Weights go along fsdp, and along tensor where nothing is cut by fsdp; sums of
  a train step are mostly those between copies.
  """
  values = dict(values)
  if "axes" in values:
    return traffic.Sum(**{**values, "axes": tuple(values["axes"])})
  del values["across_slices"]  # there was one slice
  sizes = step.mesh.shape
  parts = "fsdp" if sizes["fsdp"] > 1 else "tensor"
  copies = step.trains and values["kind"] == "all-reduce" and sizes["data"] > 1
  return traffic.Sum(**values, axes=("data" if copies else parts,))


def _table(reports: Mapping[str, plan_report.Report]) -> str:
  compiler = {found.compiler for found in reports.values()}
  lines = [
    "# The 7B on real slices",
    "",
    "    .venv/bin/python benchmarks/plan_7b.py",
    "",
    f"{', '.join(sorted(compiler))}. Compiled, **not run**: memory is the",
    "compiler's, traffic is read in the program, seconds assume arithmetic at",
    f"{UTILISATION:.0%} of the peak, and the links that lead along a mesh axis",
    "at full speed, one transfer after another. All parts are the real ones:",
    "own kernels, splash attention, mask decoder, losses, low-rank updates;",
    "embeddings and SAM train as in the release. `rcmed plan` prints each case",
    "in full.",
    "",
    "| case | mesh | images a call | GiB a chip (may take) | GB sent a chip |"
    " arithmetic s | links s | network s | images/s | compiled in s |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
  ]
  for name, found in reports.items():
    compiled, sizes = found.plan, found.step.mesh.shape
    assert compiled is not None
    mesh = " x ".join(f"{n} {axis}" for axis, n in sizes.items() if n > 1)
    lines.append(
      f"| {name} | {mesh} | {found.step.images} | "
      f"{found.needs / plan.GIB:.2f} ({CASES[name].limit_gib}) | "
      f"{compiled.sent / 1e9:.1f} | {found.estimate.compute_s:.3g} | "
      f"{found.links_s:.3g} | {found.network_s:.3g} | {found.per_s:.0f} | "
      f"{compiled.seconds:.0f} |"
    )
  for name, found in reports.items():
    lines += ["", f"## {name}", "", f"    {CASES[name].command}", ""]
    told = plan_report.table(found).splitlines()
    lines += [f"    {line}".rstrip() for line in told]
  return "\n".join(lines) + "\n"


def _estimated(count: int) -> float:
  """GB that a chip sends in a train step of two images at a time, six times."""
  parts = min(16, count)
  told = settings.parse(
    [
      f"--config={CONFIG}",
      f"--config.mesh.fsdp={parts}",
      f"--config.train.batch_size={12 * count}",
    ]
  )
  mesh = meshes.abstract_mesh(told.mesh, count)
  step = plan_steps.make(told, mesh, "train")
  found = plan_estimate.estimate(
    told, step, chips.TPUS["v5e"], utilisation=UTILISATION
  )
  return sum(found.sent.values()) / 1e9


def _figure(reports: Mapping[str, plan_report.Report]) -> str:
  """GB sent a chip against chips: counted, and compiled where it was."""
  counted = [_estimated(count) for count in SIZES]
  compiled = [
    (
      found.step.mesh.size,
      found.plan.sent / 1e9 * 6 / found.step.accumulation,
      name,
    )
    for name, found in reports.items()
    if found.step.trains and found.plan is not None
  ]
  top = 1.2 * max([*counted, *(sent for _, sent, _ in compiled)])

  def x(count: int) -> float:
    return 80 + 75 * SIZES.index(count)

  def y(sent: float) -> float:
    return 260 - 220 * sent / top

  line = " ".join(
    f"{x(count):.0f},{y(sent):.1f}"
    for count, sent in zip(SIZES, counted, strict=True)
  )
  parts = [
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 600 310" '
    'font-family="sans-serif" font-size="12">',
    '<rect width="600" height="310" fill="white"/>',
    '<text x="60" y="22">GB that a chip sends in a step of six micro-batches; '
    "line counted, dots compiled</text>",
    f'<polyline points="{line}" fill="none" stroke="#1f6feb" '
    'stroke-width="2"/>',
  ]
  for count in SIZES:
    parts.append(
      f'<text x="{x(count):.0f}" y="280" text-anchor="middle">{count}</text>'
    )
  step = 10 ** len(str(int(top))) // 20
  for tick in range(0, int(top) + 1, step):
    parts.append(
      f'<text x="20" y="{y(tick) + 4:.1f}">{tick}</text><line x1="55" '
      f'x2="560" y1="{y(tick):.1f}" y2="{y(tick):.1f}" stroke="#ddd"/>'
    )
  named = set()
  for count, sent, name in compiled:
    below = 30 if count in named else 0  # two of one size
    named.add(count)
    parts.append(
      f'<circle cx="{x(count):.0f}" cy="{y(sent):.1f}" r="4" fill="#d1242f"/>'
      f'<text x="{x(count):.0f}" y="{y(sent) - 9 + below:.1f}" '
      f'text-anchor="middle">{name.removesuffix(" train")}</text>'
    )
  parts.append('<text x="305" y="302" text-anchor="middle">chips</text></svg>')
  return "\n".join(parts) + "\n"


if __name__ == "__main__":
  main()
