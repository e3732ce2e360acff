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

# Name -> (topology, step, further flags, GiB a chip that it may take).
CASES: Mapping[str, tuple[str, str, tuple[str, ...], float]] = {
  "v5e:16x16 train": ("v5e:16x16", "train", (), 14),
  "v5p:4x4x8 train": ("v5p:4x4x8", "train", (), 80),
  "v6e:16x16 train": ("v6e:16x16", "train", (), 28),
  "v5p:8x8x8 train": (
    "v5p:8x8x8",
    "train",
    ("--config.train.accumulation=3",),
    80,
  ),
  "v5e:2x4 train": (
    "v5e:2x4",
    "train",
    ("--config.mesh.fsdp=8", "--config.train.batch_size=96"),
    14,
  ),
  "v5e:8x8 train": (
    "v5e:8x8",
    "train",
    ("--config.train.batch_size=768",),
    14,
  ),
  "v5e:16x16 evaluate": ("v5e:16x16", "evaluate", (), 14),
  "v5e:16x16 decode": ("v5e:16x16", "decode", (), 14),
  "v5e:16x16 decode, tensor": ("v5e:16x16", "decode", TENSOR, 14),
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
      held[name] = dataclasses.asdict(_plan(name))
      HELD.write_text(json.dumps(held, indent=1) + "\n")
  if not args.cases:
    reports = {name: from_json(held[name]) for name in CASES if name in held}
    TABLE.write_text(_table(reports))
    FIGURE.write_text(_figure(reports))


def from_json(values: dict[str, Any]) -> plan_report.Report:
  """What `dataclasses.asdict` took apart."""
  compiled = dict(values["plan"])
  compiled["largest"] = tuple(
    plan.Array(**{**one, "shape": tuple(one["shape"])})
    for one in compiled["largest"]
  )
  compiled["collectives"] = tuple(
    traffic.Sum(**one) for one in compiled["collectives"]
  )
  return plan_report.Report(
    **{
      **values,
      "plan": plan.Plan(**compiled),
      "estimate": plan_estimate.Estimate(**values["estimate"]),
    }
  )


def _plan(name: str) -> plan_report.Report:
  topology, step, flags, _ = CASES[name]
  told = settings.parse([f"--config={CONFIG}", *flags])
  where = plan_steps.place(topology)
  return plan_report.report(told, where, step, utilisation=UTILISATION)[0]


def _table(reports: Mapping[str, plan_report.Report]) -> str:
  compiler = {found.compiler for found in reports.values()}
  lines = [
    "# The 7B on real slices",
    "",
    "    .venv/bin/python benchmarks/plan_7b.py",
    "",
    f"{', '.join(sorted(compiler))}. Compiled, **not run**: memory is the",
    "compiler's, traffic is read in the program, seconds assume arithmetic at",
    f"{UTILISATION:.0%} of the peak. All parts are the real ones: own kernels,",
    "splash attention, mask decoder, losses, low-rank updates; embeddings and",
    "SAM train as in the release. `rcmed plan` prints each case in full.",
    "",
    "| case | mesh | images a call | GiB a chip (may take) | GB sent a chip |"
    " arithmetic s | sending s | images/s | compiled in s |",
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
  ]
  for name, found in reports.items():
    compiled = found.plan
    assert compiled is not None
    mesh = " x ".join(f"{n} {axis}" for axis, n in found.mesh.items() if n > 1)
    lines.append(
      f"| {name} | {mesh} | {found.images} | {found.needs_gib:.2f} "
      f"({CASES[name][3]}) | {compiled.sent(False) / 1e9:.1f} | "
      f"{found.compute_s:.3g} | {found.links_s:.3g} | "
      f"{found.images_per_s:.0f} | {compiled.seconds:.0f} |"
    )
  for name, found in reports.items():
    topology, step, flags, _ = CASES[name]
    command = " ".join(
      (f"rcmed plan --config={CONFIG} --topology={topology}", *flags)
    )
    lines += ["", f"## {name}", "", f"    {command} --step={step}", ""]
    told = plan_report.table(found).splitlines()
    lines += [f"    {line}".rstrip() for line in told]
  return "\n".join(lines) + "\n"


def _estimated(topology: str, count: int) -> float:
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
    told,
    step,
    "train",
    mesh,
    chips.TPUS[topology.partition(":")[0]],
    utilisation=UTILISATION,
  )
  return found.sent / 1e9


def _figure(reports: Mapping[str, plan_report.Report]) -> str:
  """GB sent a chip against chips: counted, and compiled where it was."""
  counted = [_estimated("v5e", count) for count in SIZES]
  compiled = [
    (found.chips, found.plan.sent(False) / 1e9 * 6 / _turns(found), name)
    for name, found in reports.items()
    if found.step == "train" and found.plan is not None
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
      f'text-anchor="middle">{name.partition(" ")[0]}</text>'
    )
  parts.append('<text x="305" y="302" text-anchor="middle">chips</text></svg>')
  return "\n".join(parts) + "\n"


def _turns(found: plan_report.Report) -> float:
  """Micro-batches of a call."""
  shards = found.chips / found.mesh["tensor"]
  return found.images / found.rows / shards


if __name__ == "__main__":
  main()
