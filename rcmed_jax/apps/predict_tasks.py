"""What a run can be asked for: `rcmed predict --list-tasks`."""

import json
import os
import pathlib
import tempfile
from typing import Any

from rcmed_jax.apps import manifest, runs
from rcmed_jax.data import checks
from rcmed_jax.eval import registry

# Where the list comes from.
TRAINED = "the run's training data"
KNOWN = "the tasks that are known by name; the run's training data is not here"


def show(workdir: str | os.PathLike[str] | None, *, as_json: bool) -> int:
  """Prints the list; see `tasks`."""
  source, found = tasks(workdir)
  if as_json:
    print(json.dumps({"source": source, "tasks": found}, indent=2))
    return 0
  print(f"predict: {len(found)} tasks, {source}:")
  for task in found:
    count = f"  {task['images']} images" if "images" in task else ""
    print(f"  {task['modality']}: {task['class']}{count}")
  return 0


def tasks(
  workdir: str | os.PathLike[str] | None,
) -> tuple[str, list[dict[str, Any]]]:
  """Where they come from, and [{modality, class, images}, ...].

  Of a run whose index or built set still lies where it was, what it was
  trained on; else all that the registry knows, without `images`.

  Args:
    workdir: of a run or converted checkpoint; None: the newest run.

  Raises:
    FileNotFoundError: as `runs.recorded`, or there is no run.
  """
  workdir = workdir or runs.newest()
  told = runs.recorded(workdir)
  sets = [name for name, _ in told.data.mixture] or [told.data.index]
  counts: dict[tuple[str, str], int] = {}
  try:
    # The run's own file has the faults already; these are let go.
    with tempfile.TemporaryDirectory() as folder:
      faults = checks.Quarantine(pathlib.Path(folder) / runs.QUARANTINE)
      for name in sets:
        for item in runs.read_items(told, name, faults):
          for one in item.classes:
            place = (item.modality, one)
            counts[place] = counts.get(place, 0) + 1
  except (ValueError, OSError):
    known = registry.Registry.load().infos
    return KNOWN, [
      {"modality": info.modality, "class": info.name} for info in known
    ]
  return TRAINED, [
    {"modality": modality, "class": name, "images": counts[modality, name]}
    for modality, name in sorted(counts)
  ]


def trained(workdir: str | os.PathLike[str]) -> dict[str, tuple[str, ...]]:
  """Modality -> the classes that a run was trained on; {} where nothing tells.

  What its starts put down, else what its training data says.

  Args:
    workdir: of a run or converted checkpoint.

  Raises:
    FileNotFoundError: as `runs.recorded`.
    ValueError: as `manifest.read`.
  """
  found: dict[str, set[str]] = {}
  for start in manifest.read(workdir):
    for modality, names in start.get("tasks", {}).items():
      found.setdefault(modality, set()).update(names)
  if not found:
    source, told = tasks(workdir)
    for task in told if source == TRAINED else ():
      found.setdefault(task["modality"], set()).add(task["class"])
  return {modality: tuple(sorted(names)) for modality, names in found.items()}


def windows_of(workdir: str | os.PathLike[str]) -> tuple[str, ...]:
  """Windows of CT that a run learnt in, as its starts put down; () if none did.

  Args:
    workdir: of a run or converted checkpoint.

  Raises:
    ValueError: as `manifest.read`.
  """
  return tuple(
    dict.fromkeys(
      name
      for start in manifest.read(workdir)
      for name in start.get("windows", ())
    )
  )
