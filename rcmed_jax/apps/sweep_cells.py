"""The tasks of a sweep: a cell and a seed, each an ordinary run.

A task's folder is `DIR/CELL/seedN`. All tasks are checked before one begins.
"""

from collections.abc import Iterable, Sequence
import dataclasses
import difflib
import json
import pathlib
import shutil
import tempfile
from typing import Any

from rcmed_jax.apps import settings
from rcmed_jax.apps.sweep_file import Phantoms, Sweep
from rcmed_jax.data import phantoms
from rcmed_jax.data.pipeline import DataConfig
from rcmed_jax.train import optimizer as optimizers

# What a task is to be trained with, beside the record of its run: the record
# is made by the run itself, and tells the tokenizer's size as well.
TOLD = "told.json"


@dataclasses.dataclass(frozen=True)
class Task:
  """One run of a sweep."""

  cell: str
  seed: int
  told: settings.Settings
  folder: pathlib.Path

  @property
  def name(self) -> str:
    return f"{self.cell}/seed{self.seed}"


def tasks(
  sweep: Sweep,
  workdir: pathlib.Path,
  *,
  seeds: int,
  flags: Sequence[str] = (),
  index: str = "",
) -> list[Task]:
  """All runs of a sweep, every cell with seed 0 first: each checked.

  Args:
    flags: `--config.key=value` of all cells, as settings.parse takes them.
    index: training index; "": as the flags say.

  Raises:
    ValueError: a setting that is none, a flag that a cell sets itself, or two
      cells that are the same.
  """
  if seeds < 1:
    raise ValueError(f"--seeds={seeds} must be at least 1.")
  made: dict[str, settings.Settings] = {}
  for cell, overrides in sweep.cells.items():
    for key in overrides:
      if any(flag.split("=")[0] == f"--config.{key}" for flag in flags):
        raise ValueError(
          f"--config.{key} is set by cell {cell} itself; change the sweep file."
        )
    told = _settings(sweep, cell, flags, index)
    for other, before in made.items():
      if before == told:
        raise ValueError(
          f"{sweep.name}: the cells {other} and {cell} have the same settings; "
          "take one out."
        )
    made[cell] = told
  return [
    Task(cell, seed, _seeded(told, seed), workdir / cell / f"seed{seed}")
    for seed in range(seeds)
    for cell, told in made.items()
  ]


def choose(found: Sequence[Task], only: Iterable[str]) -> list[Task]:
  """The tasks of the named cells, or of names such as `K=2/seed0`; all if none.

  Raises:
    ValueError: a name that is neither (names the nearest one).
  """
  names = {task.cell for task in found} | {task.name for task in found}
  only = list(only)
  for name in only:
    if name not in names:
      (near,) = difflib.get_close_matches(name, sorted(names), n=1, cutoff=0)
      raise ValueError(f"--only {name}: there is none; the nearest is {near}.")
  return [t for t in found if not only or t.cell in only or t.name in only]


def prepare(task: Task) -> None:
  """Makes the task's folder and notes what it is to be trained with.

  Raises:
    ValueError: it holds a run with other settings.
  """
  text, path = settings.to_json(task.told), task.folder / TOLD
  if path.exists():
    before = path.read_text(encoding="utf-8")
    lines = difflib.ndiff(before.splitlines(), text.splitlines())
    changes = "\n  ".join(line for line in lines if line[0] in "+-")
    if changes:
      raise ValueError(
        f"{task.folder} was begun with other settings (-: its own, +: these):"
        f"\n  {changes}\nDelete the folder, or give another --workdir."
      )
    return
  task.folder.mkdir(parents=True, exist_ok=True)
  path.write_text(text, encoding="utf-8")


def draw(told: Phantoms, folder: pathlib.Path) -> None:
  """Draws the images, unless they are there.

  They appear at once or not at all, so that several jobs may begin together.

  Raises:
    ValueError: the folder holds other images.
  """
  note = json.dumps(dataclasses.asdict(told)) + "\n"
  path = folder / "phantoms.json"
  if not path.exists():
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = pathlib.Path(tempfile.mkdtemp(prefix="data-", dir=folder.parent))
    made.chmod(0o755)  # others read it; mkdtemp keeps it to ourselves
    try:
      phantoms.write(
        made,
        told.images,
        held_out=told.held_out,
        size=told.size,
        seed=told.seed,
        detail=told.detail,
        processes=2,
      )
      if told.modalities:
        _keep(made, told.modalities)
      (made / path.name).write_text(note, encoding="utf-8")
      try:
        made.rename(folder)
      except OSError:
        if not path.exists():  # not that another job was faster
          raise
    finally:
      shutil.rmtree(made, ignore_errors=True)
  if path.read_text(encoding="utf-8") != note:
    raise ValueError(
      f"{folder} holds other images than {note.strip()}; delete it, or give "
      "another --workdir."
    )


def _keep(folder: pathlib.Path, modalities: Sequence[str]) -> None:
  """Takes the images of other modalities out of the indexes."""
  for path in (*folder.glob("image2label_*"), *folder.glob("descriptions_*")):
    rows = json.loads(path.read_text(encoding="utf-8"))
    kept = {
      image: row
      for image, row in rows.items()
      if pathlib.Path(image).name.split("--")[0] in modalities
    }
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def _settings(
  sweep: Sweep, cell: str, flags: Sequence[str], index: str
) -> settings.Settings:
  try:
    told = settings.parse(
      [
        f"--config={sweep.config}",
        *map(_flag, sweep.every.items()),
        *flags,
        *map(_flag, sweep.cells[cell].items()),
      ]
    )
    optimizers.learning_rate(told.optimizer, told.train.steps)  # warm-up fits
  except ValueError as error:
    raise ValueError(f"{sweep.name}, cell {cell}: {error}") from error
  if not index:
    return told
  return dataclasses.replace(told, data=_with_drawn(told.data, index))


def _with_drawn(data: DataConfig, index: str) -> DataConfig:
  """The settings for drawn data, whose descriptions lie beside the index."""
  path = pathlib.Path(index)
  texts = path.with_name(path.name.replace("image2label", "descriptions"))
  return dataclasses.replace(data, index=index, descriptions=str(texts))


def _flag(override: tuple[str, Any]) -> str:
  key, value = override
  return f"--config.{key}={value}"


def _seeded(told: settings.Settings, seed: int) -> settings.Settings:
  return dataclasses.replace(
    told,
    train=dataclasses.replace(told.train, seed=seed),
    data=dataclasses.replace(told.data, seed=seed),
  )
