"""The rows of `gpu.py` as a page: goals, and a table a part."""

from collections.abc import Callable, Iterator, Sequence
import json
import math
import pathlib
from typing import Any

ROWS, TABLE = "gpu.jsonl", "gpu.md"
KERNEL_ROUNDS = 11
MAX_ERROR = 0.03  # of an attention in bfloat16 that may be used

# Of the image encoder's settings, who runs them in `kernels_gpu.py`.
ATTENTIONS = {
  "reference": "XLA",
  "blocks": "XLA, by blocks",
  "cudnn": "cuDNN, concatenated",
  "pallas": "ours",
}
MEMORY = "training's best batch, GB at the peak"
LAYERS = {"windows": 28, "global": 4}  # of ViT-H

Row = dict[str, Any]
Emit = Callable[[Row], None]


def read(out: pathlib.Path) -> list[Row]:
  """All rows so far."""
  path = out / ROWS
  lines = path.read_text().splitlines() if path.exists() else []
  return [json.loads(line) for line in lines]


def forget(out: pathlib.Path, part: str) -> None:
  """Takes the rows of a part out."""
  kept = [row for row in read(out) if row["part"] != part]
  text = "".join(json.dumps(row) + "\n" for row in kept)
  (out / ROWS).write_text(text)


def measured(out: pathlib.Path, part: str) -> bool:
  """Whether a part has numbers."""
  return any(row["part"] == part and "ms" in row for row in read(out))


def fastest(out: pathlib.Path) -> str:
  """The setting whose attention takes least in all layers; "auto" of none."""
  rows = [row for row in read(out) if row["part"] == "kernels"]
  found = {}
  for setting, by in ATTENTIONS.items():
    times = [
      count * _kernel(rows, problem, by) for problem, count in LAYERS.items()
    ]
    found[setting] = sum(times)
  best = min(found, key=found.__getitem__)
  return best if math.isfinite(found[best]) else "auto"


def write(out: pathlib.Path) -> None:
  """The page of all rows."""
  rows = read(out)
  (out / TABLE).write_text("\n".join(_page(rows)) + "\n")


def _page(rows: list[Row]) -> Iterator[str]:
  yield "# The 7B on one GPU\n"
  for row in rows:
    if row.get("facts"):
      told = {
        name: value
        for name, value in row.items()
        if name not in ("facts", "part", "toy") and value not in ("", None)
      }
      yield f"* {row['part']}: " + ", ".join(
        f"{name} {_text(value)}" for name, value in told.items()
      )
  yield (
    "\nWeights and pixels are random. A time is the median of calls that are "
    "waited for. TFLOP/s\ncount the model's own arithmetic "
    "(`model/flops.py`), nothing that is made again; their share is\nof a "
    "large bfloat16 product timed in the same process, in decoding of the "
    "bandwidth of a\ncopy. GB: the peak of the process's allocator where the "
    "case set it, and what the compiler\nsays that the program takes.\n"
  )
  if any(row.get("toy") for row in rows):
    yield "Of toy sizes: they say that the program runs, and nothing else."
  else:
    yield from _goals(rows)
  yield from _steps(rows)
  yield from _kernels(rows)


def _goals(rows: list[Row]) -> Iterator[str]:
  train, answer = _best(rows, "train", 1), _best(rows, "evaluate", 8)
  theirs = _best(_theirs(rows), "train", 1)
  kernels = [row for row in rows if row["part"] == "kernels"]
  goals: tuple[tuple[str, float, float | None], ...] = (
    ("training, images/s, twice the release's", 4.3, _per_s(train)),
    ("training, images/s, aim", 6.5, _per_s(train)),
    ("training, against PyTorch here", 1.0, _quotient(train, theirs)),
    ("evaluation from 8 rows on, images/s", 14.0, _per_s(answer)),
    (MEMORY, 120.0, _peak(train)),
    (
      "global attention, ours against XLA's best",
      1.3,
      _ratio(kernels, "global", "XLA"),
    ),
    (
      "global attention, ours against any other",
      1.3,
      _ratio(kernels, "global", ""),
    ),
    (
      "windows' attention, ours against any other",
      1.5,
      _ratio(kernels, "windows", ""),
    ),
  )
  yield "| | goal | measured | |\n| --- | --- | --- | --- |"
  for name, goal, value in goals:
    sign = "<" if name == MEMORY else ">="
    if value is None:
      yield f"| {name} | {sign} {goal} | | not measured |"
      continue
    met = value < goal if name == MEMORY else value >= goal
    verdict = "met" if met else "**missed**"
    yield f"| {name} | {sign} {goal} | {value:.2f} | {verdict} |"


def _steps(rows: list[Row]) -> Iterator[str]:
  for part in ("train", "evaluate", "prefill", "decode"):
    chosen = [("ours", row) for row in rows if row["part"] == part]
    chosen += [("PyTorch", row) for row in _theirs(rows) if row["part"] == part]
    chosen = [(by, row) for by, row in chosen if not row.get("facts")]
    if not chosen:
      continue
    each = "token" if part == "decode" else "image"
    yield (
      f"\n## {part}\n\n| by | made again | rows | text | ms | {each}s/s | "
      "TFLOP each | TFLOP/s | share | GB, peak | GB, program | compiled in s |"
      "\n" + "| --- " * 12 + "|"
    )
    for by, row in chosen:
      yield _step(by, row)


def _step(by: str, row: Row) -> str:
  head = [by, row.get("remat", ""), row.get("rows", ""), row.get("text", "")]
  if "failed" in row:
    cells = [*head, row["failed"], *[""] * 7]
  else:
    cells = [
      *head,
      f"{row['ms']:.1f}",
      f"{row['per_s']:.2f}",
      f"{row['tflop_each']:.3g}",
      f"{row['tflops']:.3g}",
      _number(row.get("share"), ".1%"),
      _number(row.get("peak_gb"), ".1f"),
      _number(row.get("program_gb"), ".1f"),
      _number(row.get("compile_s"), ".0f"),
    ]
  return f"| {' | '.join(map(str, cells))} |"


def _kernels(rows: list[Row]) -> Iterator[str]:
  chosen = [row for row in rows if "problem" in row]
  if not chosen:
    return
  yield (
    "\n## Kernels, forward and backward\n\nShares are of 790 TFLOP/s, errors "
    "against float32 at the highest precision.\n\n| problem | by | ms | "
    "TFLOP/s | share | error | GB, temporary |\n" + "| --- " * 7 + "|"
  )
  for row in chosen:
    if "failed" in row:
      yield (f"| {row['problem']} | {row['by']} | {row['failed']} | | | | |")
      continue
    yield (
      f"| {row['problem']} | {row['by']} | {row['ms']:.3f} | "
      f"{row['tflops']:.1f} | {row['share']:.1%} | {row['error']:.1e} | "
      f"{row['temporary_gb']:.2f} |"
    )


def _theirs(rows: Sequence[Row]) -> list[Row]:
  """PyTorch's rows under the names of ours."""
  return [
    row | {"part": row["step"]}
    for row in rows
    if row["part"] == "torch" and "step" in row
  ]


def _best(rows: Sequence[Row], part: str, least: int) -> Row | None:
  """The fastest row of a part at the shortest text, from `least` rows on."""
  found = [row for row in rows if row["part"] == part and "ms" in row]
  shortest = min((row["text"] for row in found), default=0)
  found = [
    row for row in found if row["text"] == shortest and row["rows"] >= least
  ]
  return max(found, key=lambda row: row["per_s"], default=None)


def _per_s(row: Row | None) -> float | None:
  return None if row is None else row["per_s"]


def _peak(row: Row | None) -> float | None:
  """GB of the allocator, or of the program where it does not tell."""
  if row is None:
    return None
  return row.get("peak_gb") or row.get("program_gb")


def _quotient(ours: Row | None, theirs: Row | None) -> float | None:
  if ours is None or theirs is None:
    return None
  return ours["per_s"] / theirs["per_s"]


def _ratio(rows: Sequence[Row], problem: str, others: str) -> float | None:
  """Time of the best other whose name begins so, over ours."""
  ours = _kernel(rows, problem, "ours")
  names = {row["by"] for row in rows if "problem" in row} - {"ours"}
  best = min(
    (_kernel(rows, problem, by) for by in names if by.startswith(others)),
    default=math.inf,
  )
  return best / ours if math.isfinite(ours) and math.isfinite(best) else None


def _kernel(rows: Sequence[Row], problem: str, by: str) -> float:
  """Milliseconds; infinite where it did not run, or not well enough."""
  for row in rows:
    named = row.get("problem", "").startswith(problem) and row["by"] == by
    if named and row.get("error", math.inf) < MAX_ERROR:
      return row["ms"]
  return math.inf


def _number(value: float | None, form: str) -> str:
  return "" if value is None else format(value, form)


def _text(value: Any) -> str:
  return f"{value:.4g}" if isinstance(value, float) else str(value)
