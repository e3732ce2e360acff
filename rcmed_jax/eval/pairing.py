"""The masks of two runs side by side.

Two runs compare on the same masks only: those of one record and one class,
scored against the same reference. What one run has and the other lacks is
never passed over: it is refused, or listed where that was asked for.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import os
import pathlib
import sys

from rcmed_jax.data.checks import DataError
from rcmed_jax.eval import row_lines
from rcmed_jax.eval.metrics import Counts
from rcmed_jax.eval.rows import MaskScore
from rcmed_jax.eval.tasks import Task

# Where `rcmed evaluate` puts its files in a run's folder.
FOLDERS = (".", "report")

SHOWN = 3  # examples in an error

Key = tuple[str, str]  # a record's id, a class


@dataclasses.dataclass(frozen=True, slots=True)
class Scored:
  """One mask of one run."""

  modality: str
  counts: Counts
  canonical: str = ""  # the registry's name of the class; "": the same


@dataclasses.dataclass(frozen=True, slots=True)
class Pair:
  """One mask of both runs."""

  record: str
  task: Task
  a: float  # Dice
  b: float


@dataclasses.dataclass(frozen=True)
class Pairing:
  """What two runs have in common, and what not."""

  pairs: tuple[Pair, ...]  # sorted by record and class
  only_a: tuple[Key, ...]
  only_b: tuple[Key, ...]


def find(run: str | os.PathLike[str], split: str) -> pathlib.Path:
  """Returns the path of a run's scores of a split.

  Args:
    run: the file itself, the folder that holds it, or that folder's parent.

  Raises:
    DataError: there is none; it names the splits that there are.
  """
  run = pathlib.Path(run)
  if run.is_file():
    return run
  for folder in FOLDERS:
    path = run / folder / f"metrics--{split}.jsonl"
    if path.is_file():
      return path
  there = sorted(
    path.stem.removeprefix("metrics--")
    for folder in FOLDERS
    for path in (run / folder).glob("metrics--*.jsonl")
  )
  raise DataError(
    run,
    f"metrics--{split}.jsonl",
    "is not there" + (f"; splits that are: {', '.join(there)}" * bool(there)),
    "Give --split with one of them" if there else "Run `rcmed evaluate` first",
  )


def read(path: str | os.PathLike[str]) -> dict[Key, Scored]:
  """Returns the masks of a metrics--<split>.jsonl.

  Raises:
    DataError: the file is missing, holds no line, or a line is not of this
      form, contradicts itself, or is of a mask that was there before.
  """
  scores: dict[Key, Scored] = {}
  for number, row in enumerate(row_lines.read(path, MaskScore), start=1):
    # Names are in memory once, not once a mask.
    key = row.record, sys.intern(row.name)
    if key in scores:
      raise DataError(
        f"{path}, line {number}",
        "record",
        f"{_name(key)} comes twice",
        "Evaluate again into an empty folder",
      )
    names = sys.intern(row.modality), sys.intern(row.canonical)
    scores[key] = Scored(names[0], row.counts, names[1])
  if not scores:
    raise DataError(
      path, "scores", "holds no mask", "Evaluate on an index with masks"
    )
  return scores


def match(
  a: Mapping[Key, Scored],
  b: Mapping[Key, Scored],
  names: tuple[str, str] = ("A", "B"),
  *,
  common: bool = False,
) -> Pairing:
  """Returns the masks of two runs in pairs.

  Args:
    names: of the runs, for errors.
    common: compare what both have, and list the rest; otherwise masks that one
      run lacks are refused.

  Raises:
    ValueError: a run lacks masks of the other; they have none in common; a
      mask was scored against different references.
  """
  both = sorted(a.keys() & b.keys())
  only_a, only_b = sorted(a.keys() - b.keys()), sorted(b.keys() - a.keys())
  if not both:
    raise ValueError(
      f"{names[0]} has {len(a)} masks and {names[1]} {len(b)}, none of them "
      f"the same; {names[0]} begins with {_name(only_a[0])}, {names[1]} with "
      f"{_name(only_b[0])}. Evaluate both on one index."
    )
  if (only_a or only_b) and not common:
    lacking = [
      f"{names[place]} lacks {len(keys)} masks of {names[1 - place]}: "
      f"{_listed(keys)}"
      for place, keys in ((0, only_b), (1, only_a))
      if keys
    ]
    raise ValueError(
      f"{'; '.join(lacking)}. {len(both)} masks are in both. Evaluate both on "
      "one index with the same limit and seed, or give --common to compare "
      "what they share."
    )
  for what, differs in (
    ("modality", lambda one, other: one.modality != other.modality),
    ("reference", lambda one, other: one.counts.ref != other.counts.ref),
  ):
    keys = [key for key in both if differs(a[key], b[key])]
    if keys:
      raise ValueError(
        f"{len(keys)} of {len(both)} masks have another {what} in {names[1]} "
        f"than in {names[0]}: {_listed(keys)}. The data changed between the "
        "runs; evaluate both on one index."
      )
  pairs = tuple(
    Pair(
      record=key[0],
      task=Task(a[key].modality, a[key].canonical or key[1]),
      a=a[key].counts.dice,
      b=b[key].counts.dice,
    )
    for key in both
  )
  return Pairing(pairs, tuple(only_a), tuple(only_b))


def _name(key: Key) -> str:
  return f"{key[1]!r} of {key[0]}"


def _listed(keys: Sequence[Key]) -> str:
  more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
  return ", ".join(_name(key) for key in keys[:SHOWN]) + more
