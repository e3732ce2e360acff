"""The tasks that are known by name: those of `tasks.csv` and a user's file.

A class that no file has is no fault: it is a task like any other, marked as
not known, with the defaults.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import hashlib
import importlib.resources
import os
import pathlib

from rcmed_jax.data.checks import DataError
from rcmed_jax.eval import task_table, wordforms
from rcmed_jax.eval.tasks import Task, TaskInfo

TASKS = "tasks.csv"
UNKNOWN = "unknown"  # the group of tasks that no file has


class Registry:
  """Tasks by any of their names. Make one by `load`."""

  def __init__(self, infos: Iterable[TaskInfo], names: Mapping[Task, TaskInfo]):
    """See `load`.

    Args:
      infos: the tasks.
      names: (modality, key of a name) -> the task it means.
    """
    self.infos = tuple(sorted(infos, key=lambda info: info.task))
    self._names = dict(names)
    self._found: dict[tuple[str, str], TaskInfo] = {}  # of names asked before

  @classmethod
  def load(cls, extra: str | os.PathLike[str] | None = None) -> "Registry":
    """Returns the known tasks.

    Args:
      extra: a file of more tasks. A task that is there already is replaced by
        the file's as a whole, and a name that the file gives a task is taken
        from any other that had it as a synonym or an abbreviation.

    Raises:
      DataError: a file is missing or not of this form, or one name means two
        tasks; it tells line, field and remedy.
    """
    own = importlib.resources.files("rcmed_jax.eval").joinpath(TASKS)
    text = own.read_text(encoding="utf-8")
    infos, names, _ = _collect(task_table.tasks(text, TASKS))
    if extra is None:
      return cls(infos.values(), names)
    path = pathlib.Path(extra)
    try:
      text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
      raise DataError(
        path,
        "tasks",
        f"cannot be read as text: {error}",
        "Give a CSV file in UTF-8",
      ) from error
    more, more_names, lines = _collect(task_table.tasks(text, path))
    for place in sorted((infos.keys() - more.keys()) & more_names.keys()):
      raise lines[place].fault(
        "names",
        f"{place.name!r} is itself a task in {place.modality}, "
        f"{infos[place].name!r}",
        f"Take it out, or give a line of the class {infos[place].name!r}, "
        "which replaces it",
      )
    return cls(*_joined(infos, names, more, more_names))

  def digest(self) -> str:
    """What no registry of other tasks or other names has."""
    held = repr((self.infos, sorted(self._names.items())))
    return hashlib.sha256(held.encode()).hexdigest()

  def canonical(self, name: str, modality: str) -> str:
    """Returns the canonical name: of "GB", "gallbladder".

    Case, number, underscores, word order and spelling do not matter. A name
    that is not known comes back with spaces for underscores.
    """
    return self.task(modality, name).name

  def task(self, modality: str, name: str) -> TaskInfo:
    """Returns what is known of a task.

    Args:
      modality: in words, or the word of a file name: "ct".
      name: the class, in any of its forms.
    """
    found = self._found.get((modality, name))
    if found is None:
      place = Task(task_table.modality_name(modality), wordforms.key(name))
      found = self._names.get(place) or task_table.unknown(modality, name)
      self._found[modality, name] = found
    return found

  def groups(
    self, tasks: Iterable[Task] | None = None
  ) -> dict[str, dict[str, tuple[Task, ...]]]:
    """Returns grouping -> group -> its tasks, for averages over groups.

    The groupings are modality, region, kind and cancer; a task of no cancer
    type is in none of the last. Tasks that no file has are in the group
    `UNKNOWN` of region and kind.

    Args:
      tasks: as a data set names them, and so they come back; None: all that
        are known.
    """
    if tasks is None:
      tasks = [info.task for info in self.infos]
    found: dict[str, dict[str, list[Task]]] = {
      grouping: {} for grouping in ("modality", "region", "kind", "cancer")
    }
    for task in sorted(set(tasks)):
      info = self.task(task.modality, task.name)
      for grouping, groups in found.items():
        group = getattr(info, grouping)
        if not group and grouping != "cancer":
          group = UNKNOWN
        if group:
          groups.setdefault(group, []).append(task)
    return {
      grouping: {group: tuple(groups[group]) for group in sorted(groups)}
      for grouping, groups in found.items()
    }


def _collect(
  tasks: Iterable[tuple[task_table.Line, TaskInfo]],
) -> tuple[
  dict[Task, TaskInfo], dict[Task, TaskInfo], dict[Task, task_table.Line]
]:
  """Returns the tasks of one file by canonical key, by all their names, lines.

  Raises:
    DataError: a name means two tasks.
  """
  infos: dict[Task, TaskInfo] = {}
  names: dict[Task, TaskInfo] = {}
  lines: dict[Task, task_table.Line] = {}
  for line, info in tasks:
    for field, words in (
      ("class", (info.name,)),
      ("synonyms", info.synonyms),
      ("abbreviations", info.abbreviations),
      ("related", info.related),
    ):
      for word in words:
        place = Task(info.modality, wordforms.key(word))
        if not place.name:
          raise line.fault(field, f"{word!r} holds no word", "Write a name")
        lines.setdefault(place, line)
        if names.setdefault(place, info) is not info:
          raise line.fault(
            field,
            f"{word!r} already means {names[place].name!r} in "
            f"{info.modality}, by line {lines[place].number}",
            "Take it out of one of the two",
          )
    infos[Task(info.modality, wordforms.key(info.name))] = info
  return infos, names, lines


def _joined(
  infos: Mapping[Task, TaskInfo],
  names: Mapping[Task, TaskInfo],
  more: Mapping[Task, TaskInfo],
  more_names: Mapping[Task, TaskInfo],
) -> tuple[list[TaskInfo], dict[Task, TaskInfo]]:
  """Returns tasks and names, those of the second file before the first's."""
  kept = {place: info for place, info in infos.items() if place not in more}
  old = {
    place: info
    for place, info in names.items()
    if place not in more_names
    and Task(info.modality, wordforms.key(info.name)) in kept
  }
  # A name that went to the user's task is no longer one of the old task's.
  taken = {
    info.task: dataclasses.replace(
      info,
      synonyms=_without(info, info.synonyms, more_names),
      abbreviations=_without(info, info.abbreviations, more_names),
      related=_without(info, info.related, more_names),
    )
    for info in kept.values()
  }
  joined = {place: taken[info.task] for place, info in old.items()}
  return [*taken.values(), *more.values()], {**joined, **more_names}


def _without(
  info: TaskInfo, words: Sequence[str], taken: Mapping[Task, TaskInfo]
) -> tuple[str, ...]:
  return tuple(
    word
    for word in words
    if Task(info.modality, wordforms.key(word)) not in taken
  )
