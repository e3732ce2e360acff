"""What training compiles, made once for many runs with equal settings."""

import jax

from rcmed_jax.train import step as steps


class Parts:
  """Layout, step and first states of the runs for which it is put in place."""

  def __init__(self, **step_changes):
    """Takes arguments of `steps.make_train_step` that replace the runs' own."""
    self._changes = {"make_train_step": step_changes}
    self._made = {}
    self._init = steps.init_state

  def put(self, patch):
    """Has training use these until the `pytest.MonkeyPatch` is undone."""
    for name in ("make_layout", "make_train_step"):
      patch.setattr(steps, name, self._once(name, getattr(steps, name)))
    patch.setattr(steps, "init_state", self._state)

  def _once(self, name, make):
    def once(*args, **kwargs):
      if name not in self._made:
        changes = self._changes.get(name, {})
        self._made[name] = make(*args, **{**kwargs, **changes})
      return self._made[name]

    return once

  def _state(self, layout, *args):
    """A copy, for a step may take its arrays; args end in the seed."""
    seed = args[-1]
    if seed not in self._made:
      self._made[seed] = jax.device_get(self._init(layout, *args))
    return jax.device_put(self._made[seed], layout.shardings)
