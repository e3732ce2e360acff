"""A sweep in words: what it is, its tables as Markdown, what they can show."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

from rcmed_jax.eval import sweep_scores
from rcmed_jax.eval.resampling import FEWEST
from rcmed_jax.eval.sweep_scores import LOWER, SCORES, Estimate, SweepScores

# As tables and drawings call the scores.
TITLES = {
  "dice": "Dice",
  "iou": "IoU",
  "recognition": "Recognition",
  "absent": "Absent rejected",
  "false_rejection": "False rejections",
}


@dataclasses.dataclass(frozen=True)
class Run:
  """A run of a sweep, done or not."""

  cell: str
  seed: int
  folder: pathlib.Path  # of the run
  state: str  # "finished", "failed", "begun" or "missing"
  error: str = ""
  batch_size: int = 1  # images a training step

  @property
  def name(self) -> str:
    return f"{self.cell}/seed{self.seed}"


@dataclasses.dataclass(frozen=True)
class Told:
  """What the sweep is, as its reader should know it."""

  title: str
  baseline: str
  overrides: Mapping[str, Mapping[str, Any]]  # cell -> what it sets
  facts: Mapping[str, object]  # the same for all cells


@dataclasses.dataclass(frozen=True)
class Results:
  """All that the tables hold."""

  found: SweepScores
  seconds: Mapping[str, float | None]  # cell -> of a training step
  runs: Sequence[Run]  # all of the sweep, in its order
  told: Told

  @property
  def seeds(self) -> int:
    return len({run.seed for run in self.runs})

  @property
  def undone(self) -> list[Run]:
    return [run for run in self.runs if run.state != "finished"]

  def finished(self, cell: str) -> int:
    """How many runs of a cell the tables hold."""
    return sum(r.cell == cell and r.state == "finished" for r in self.runs)


def numbers_of_seeds(results: Results) -> dict[str, int]:
  """What the tables hold -> of how many seeds; differences where of fewer."""
  told = {cell: results.finished(cell) for cell in results.found.cells}
  for cell, scores in results.found.differences.items():
    common = min(len(one.by_seed) for one in scores.values())
    if common < told[cell]:
      told[f"{cell} less {results.told.baseline}"] = common
  return told


def caution(numbers: Mapping[str, int]) -> list[str]:
  """Sentences: what the intervals say, and what so few seeds cannot.

  Args:
    numbers: as `numbers_of_seeds` tells.
  """
  texts = [
    "Over seeds: Student's t at 95% over the runs of a cell. Another seed, the "
    "same test images. It is right where runs scatter normally.",
    "Over images: bootstrap at 95% over test images of the mean over seeds. "
    "Other images, the same trained models: it knows of no other training. "
    f"None where a task has fewer than {FEWEST} images.",
    "Differences are paired: each run with the baseline's run of the same "
    "seed, on the same resampled images. A difference is seen where both "
    "intervals exclude 0. Nothing is corrected for the number of cells: of 20 "
    "comparisons without any effect one is expected outside its interval.",
  ]
  found = sorted(set(numbers.values()), reverse=True)
  for seeds in found:
    names = [name for name, number in numbers.items() if number == seeds]
    of = f" ({', '.join(names)})" if len(found) > 1 else ""
    texts.append(_reach(seeds, of))
  return texts


def _reach(seeds: int, of: str) -> str:
  """What so many seeds can tell; `of` says of which cells, or nothing."""
  if seeds < 2:
    return (
      f"One seed{of} tells nothing about the scatter between trainings; no "
      "difference here is known to be one of the settings."
    )
  return (
    f"With {seeds} seeds{of} the interval over seeds reaches "
    f"{sweep_scores.breadth(seeds):.2f} standard deviations of one run to "
    "each side. Smaller effects cannot be told from chance, and where none "
    f"is seen there may be one. That all {seeds} runs lie on one side of "
    f"the baseline happens by chance once in {2 ** (seeds - 1)} times."
  )


def subtitle(results: Results) -> str:
  """One sentence: how many runs there are, and on how many images."""
  found, runs = results.found, results.runs
  done = sum(run.state == "finished" for run in runs)
  failed = sum(run.state == "failed" for run in runs)
  cells = len({run.cell for run in runs})
  text = (
    f"{cells} cells, {results.seeds} seeds: {done} of {len(runs)} runs "
    f"finished, {failed} failed; {found.images} test images"
  )
  if found.left_out:
    text += f", {found.left_out} left out that not every run could read"
  return f"{text}."


def how_to_read(results: Results) -> list[str]:
  """All that a reader of the tables should know, a text a paragraph."""
  texts = caution(numbers_of_seeds(results))
  if any(seconds is not None for seconds in results.seconds.values()):
    texts.append(
      "s/step: median seconds of a training step, whatever else the machine "
      "did meanwhile. It is no measurement: cells compare in it only where "
      "every run had the same machine to itself."
    )
  return texts


def title(name: str) -> str:
  """What a score is called over a drawing of its own."""
  return f"{TITLES[name]}{', lower is better' if name in LOWER else ''}"


def speed(seconds: float | None) -> str:
  """Seconds of a step as text."""
  return "–" if seconds is None else f"{seconds:.3f}"


def overrides(one: Mapping[str, Any]) -> str:
  """What a cell sets, as text."""
  return ", ".join(f"{key}={value}" for key, value in one.items()) or "nothing"


def markdown(results: Results) -> str:
  """The tables, what is missing in them, and how to read them."""
  found, told = results.found, results.told
  scores = [
    name for name in SCORES if any(name in c for c in found.cells.values())
  ]
  parts = [f"# {told.title}", "", subtitle(results), ""]
  head = ["Cell", "Seeds", *(TITLES[name] for name in scores), "s/step"]
  body = [
    [
      cell,
      str(results.finished(cell)),
      *(_text(found.cells[cell].get(name)) for name in scores),
      speed(results.seconds.get(cell)),
    ]
    for cell in found.cells
  ]
  parts += ["Mean ± half of the 95% interval over seeds [95% over images].", ""]
  parts += [*_table(head, body), ""]
  if found.differences:
    parts += [
      f"Differences to {told.baseline}, paired by seed and image.",
      "",
      *_table(
        ["Cell", "Seeds", *(TITLES[name] for name in scores)],
        [
          [
            cell,
            str(min(len(score.by_seed) for score in one.values())),
            *(_text(one.get(name), sign="+") for name in scores),
          ]
          for cell, one in found.differences.items()
        ],
      ),
      "",
    ]
  if results.undone:
    rows = [[run.name, run.state, run.error] for run in results.undone]
    parts += ["Not in the table:", ""]
    parts += [*_table(["Run", "State", "Last line"], rows), ""]
  parts += ["Cells:", ""]
  parts += [
    f"- {cell}: {overrides(one)}" for cell, one in told.overrides.items()
  ]
  parts += ["", *(f"- {name}: {fact}" for name, fact in told.facts.items()), ""]
  parts += [f"{text}\n" for text in how_to_read(results)]
  return "\n".join(parts).rstrip() + "\n"


def _text(one: Estimate | None, sign: str = "") -> str:
  """0.512 ± 0.034 [0.480, 0.541]"""
  if one is None:
    return "–"
  half = ""
  if one.seeds_high is not None:
    half = f" ± {one.seeds_high - one.mean:.3f}"
  span = "[–]"
  if one.images_low is not None and one.images_high is not None:
    span = f"[{one.images_low:{sign}.3f}, {one.images_high:{sign}.3f}]"
  return f"{one.mean:{sign}.3f}{half} {span}"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
  clean = [[cell.replace("|", "\\|") for cell in row] for row in (head, *body)]
  lines = [f"| {' | '.join(row)} |" for row in clean]
  return [lines[0], f"|{'---|' * len(head)}", *lines[1:]]
