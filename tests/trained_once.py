"""What training compiles, made once for many runs with equal settings."""

import jax

from rcmed_jax.train import step as steps


class Parts:
  """Layout, step and first states of the runs for which it is put in place."""

  def __init__(self, **step_changes):
    """Takes arguments of `steps.make_train_step` that replace the runs' own."""
    self._layout = _once(steps.make_layout)
    self._step = _once(steps.make_train_step, **step_changes)
    self._init = steps.init_state
    self._states = {}  # by seed

  def put(self, patch):
    """Has training use these until the `pytest.MonkeyPatch` is undone."""
    patch.setattr(steps, "make_layout", self._layout)
    patch.setattr(steps, "make_train_step", self._step)
    patch.setattr(steps, "init_state", self._state)

  def _state(self, layout, *args):
    """A copy, for a step may take its arrays; args end in the seed."""
    seed = args[-1]
    if seed not in self._states:
      self._states[seed] = jax.device_get(self._init(layout, *args))
    return jax.device_put(self._states[seed], layout.shardings)


def _once(make, **changes):
  """What gives each caller what the first one got."""
  made = []

  def once(*args, **kwargs):
    if not made:
      made.append(make(*args, **kwargs | changes))
    return made[0]

  return once
