"""What the settings of a training make: its state and its step."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax
import optax

from rcmed_jax.model.config import ModelConfig
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.train import initial
from rcmed_jax.train import optimizer as optimizers
from rcmed_jax.train import step as steps
from rcmed_jax.train.config import TrainConfig

Step = Callable[
  [steps.TrainState, steps.Arrays],
  tuple[steps.TrainState, dict[str, jax.Array]],
]


@dataclasses.dataclass(frozen=True)
class Recipe:
  """Settings that one state and one step follow from."""

  model: ModelConfig
  train: TrainConfig
  optimizer: optimizers.OptimizerConfig

  @functools.cached_property
  def _rule(self) -> optax.GradientTransformation:
    return optimizers.make_optimizer(self.optimizer, self.train.steps)

  def layout(self, mesh: meshes.AnyMesh) -> steps.Layout:
    """Where the state lies; see `steps.make_layout`."""
    return steps.make_layout(self.model, self.optimizer, self._rule, mesh)

  def step(self, layout: steps.Layout, *, donate: bool = True) -> Step:
    """The jitted step of such states; see `steps.make_train_step`."""
    return steps.make_train_step(
      layout,
      self._rule,
      self.train.loss.for_model(self.model),
      accumulation=self.train.accumulation,
      seed=self.train.seed,
      reduce_dtype=self.optimizer.reduce_dtype,
      donate=donate,
    )

  def fresh(
    self, layout: steps.Layout, weights: Mapping[str, Any] | None = None
  ) -> steps.TrainState:
    """The state before the first step.

    Args:
      weights: arrays by dotted path that it starts from; None: from nothing.

    Raises:
      ValueError: as `initial.with_weights`.
    """
    state = steps.init_state(
      layout, self.model, self.optimizer, self._rule, self.train.seed
    )
    if weights is None:
      return state
    return initial.with_weights(state, weights, layout.weights)
