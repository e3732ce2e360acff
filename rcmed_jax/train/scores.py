"""Which steps of a run did best on its held-out set, and since when none did.

What is known of it rides in the meta of every checkpoint, so that a run that
was stopped, or killed, goes on as if it had not been.
"""

from collections.abc import Mapping
import math
from typing import Any

# Where a checkpoint's meta holds it.
_KEY = "held_out"


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

  def restore(self, meta: Mapping[str, Any]) -> None:
    """Goes on from what a checkpoint keeps.

    One from before there was any counts as evaluated.
    """
    held = meta.get(_KEY, {"evaluated": meta["step"], "best": [], "since": 0})
    self._evaluated = held["evaluated"]
    self._best = [(value, step) for value, step in held["best"]]
    self._since = held["since"]


def best(meta: Mapping[str, Any]) -> int | None:
  """The best step that a checkpoint's meta tells of."""
  listed = meta.get(_KEY, {}).get("best")
  return listed[0][1] if listed else None
