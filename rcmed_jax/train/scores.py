"""Which steps of a run did best on its held-out set, and since when none did.

What is known of it rides in the meta of every checkpoint, and in a file of its
own, because a step is judged after it is kept: so a run that was stopped, or
killed, goes on as if it had not been.
"""

from collections.abc import Mapping, Sequence
import json
import math
from typing import Any

from etils import epath

from rcmed_jax.data import files

# Where a checkpoint's meta holds it.
_KEY = "held_out"

# The file, in the folder of a run: what was known after each evaluation.
FILE = "scores.json"


class Scores:
  """The best steps so far; a lower value is better, the earlier of equals."""

  def __init__(self, keep: int, patience: int):
    """Knows the `keep` best; `patience` evaluations in a row may be no better.

    Args:
      keep: 0: none is kept.
      patience: 0: any number.
    """
    self._keep = keep
    self._patience = patience
    self._evaluated = 0  # the last step that was
    self._best: list[tuple[float, int]] = []  # (value, step), best first
    self._since = 0  # evaluations since the best of all
    self._told: list[dict[str, Any]] = []  # what `write` wrote before

  def add(self, step: int, value: float) -> None:
    """Takes in the value of a step; one that is not finite is no good."""
    self._evaluated = step
    self._since += 1
    if not math.isfinite(value):
      return
    if not self._best or value < self._best[0][0]:
      self._since = 0
    self._best = sorted([*self._best, (value, step)])[: max(self._keep, 1)]

  def passed(self, step: int) -> None:
    """The step was evaluated, and there is nothing to judge it by."""
    self._evaluated = step

  @property
  def wanted(self) -> bool:
    """Whether anything goes by the values."""
    return self._keep > 0 or self._patience > 0

  @property
  def evaluated(self) -> int:
    """The last step that was evaluated."""
    return self._evaluated

  @property
  def kept(self) -> frozenset[int]:
    """Steps whose checkpoints are to be kept."""
    return frozenset(step for _, step in self._best[: self._keep])

  @property
  def exhausted(self) -> bool:
    """Whether none was better for as long as there is patience."""
    return 0 < self._patience <= self._since

  def verdict(self) -> str:
    """A sentence on the best step, for a run that ends early."""
    if not self._best:
      return f"None of {self._since} evaluations gave a finite number."
    value, step = self._best[0]
    return (
      f"None of the last {self._since} evaluations was better than the best, "
      f"{value:g} at step {step}."
    )

  def meta(self) -> dict[str, Any]:
    """What a checkpoint keeps of it, as JSON values."""
    return {
      _KEY: {
        "evaluated": self._evaluated,
        "best": [[value, step] for value, step in self._best],
        "since": self._since,
      }
    }

  def write(self, workdir: epath.Path) -> None:
    """Adds what is known now to the run's file."""
    self._told.append(self.meta()[_KEY])
    files.write_whole(workdir / FILE, json.dumps(self._told))

  def restore(
    self, meta: Mapping[str, Any], told: Sequence[Mapping[str, Any]] = ()
  ) -> None:
    """Goes on from what a checkpoint keeps, and what the file tells until then.

    A checkpoint from before there was any counts as evaluated.
    """
    self._told = [dict(one) for one in told if one["evaluated"] <= meta["step"]]
    nothing = {"evaluated": meta["step"], "best": [], "since": 0}
    held = _newest(meta, self._told) or nothing
    self._evaluated = held["evaluated"]
    self._best = [(value, step) for value, step in held["best"]]
    self._since = held["since"]


def read(workdir: epath.Path) -> list[dict[str, Any]]:
  """What the file of a run tells; nothing, where there is none yet."""
  path = workdir / FILE
  return json.loads(path.read_text()) if path.exists() else []


def best(
  meta: Mapping[str, Any], told: Sequence[Mapping[str, Any]] = ()
) -> int | None:
  """The best step that a checkpoint's meta and the run's file tell of."""
  until = [one for one in told if one["evaluated"] <= meta["step"]]
  held = _newest(meta, until)
  return held["best"][0][1] if held and held["best"] else None


def _newest(
  meta: Mapping[str, Any], told: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
  """What is known after the last evaluation of those."""
  held = [meta[_KEY]] if _KEY in meta else []
  return max([*held, *told], key=lambda one: one["evaluated"], default=None)
