"""Which of a run's checkpoints survive."""

from collections.abc import Collection, Sequence
from typing import Any

import orbax.checkpoint as ocp


class Survivors(ocp.checkpoint_managers.PreservationPolicy):
  """The newest few, and the steps that are given."""

  def __init__(self, newest: int):
    self._newest = newest
    self.steps: Collection[int] | None = None  # None: not told yet

  def should_preserve(
    self, checkpoints: Sequence[Any], *, context: Any
  ) -> list[bool]:
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = self.among(steps)
    return [step in kept for step in steps]

  def among(self, steps: Collection[int]) -> set[int]:
    """Those of the steps that survive."""
    if self.steps is None:
      return set(steps)
    return {*sorted(steps)[-self._newest :], *self.steps}
