"""A kept batch run again, whole and record by record."""

from collections.abc import Callable, Mapping
import dataclasses
import os
from typing import Any

from etils import epath
import jax
import numpy as np

from rcmed_jax.model import config as model_configs
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.train import bad_batches, feed
from rcmed_jax.train import checkpoints as checkpoint_files
from rcmed_jax.train import optimizer as optimizers
from rcmed_jax.train.config import TrainConfig
from rcmed_jax.train.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Outcome:
  """Losses of a batch: non_finite 0 or 1, grad_norm, the loss and its terms."""

  record: int | None  # None: the whole batch
  metrics: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Replay:
  """What a kept batch did when it ran again."""

  weights_step: int  # steps that the weights had done
  exact: bool  # whether those are the weights that the batch met
  whole: Outcome
  alone: tuple[Outcome, ...]  # each record, in all rows of the batch


def replay(
  model_config: model_configs.ModelConfig,
  config: TrainConfig,
  optimizer_config: optimizers.OptimizerConfig,
  mesh_config: meshes.MeshConfig,
  make_data: Callable[[], feed.Batches],
  workdir: str | os.PathLike[str],
  step: int,
  weights: Mapping[str, Any] | None = None,
) -> Replay:
  """What the batch that was kept of a step does; nothing is written.

  The run is gone through again from the newest checkpoint before the step, or
  from its start where none was written yet, so that the batch meets the weights
  that it met. Where all checkpoints that are left are later, it meets those of
  the newest. Holds two training states at a time.

  Args:
    model_config, config, optimizer_config, mesh_config: as of the run.
    make_data: as of the run.
    workdir: of the run.
    step: of the batch.
    weights: that the run started from.

  Raises:
    ValueError: no batch of the step was kept, the checkpoint cannot be read, or
      there are several processes.
  """
  if jax.process_count() > 1:
    raise ValueError("a batch is replayed by one process; start one.")
  workdir = epath.Path(workdir)
  kept = bad_batches.read(workdir, step)
  mesh = meshes.make_mesh(mesh_config)
  recipe = Recipe(model_config, config, optimizer_config)
  layout = recipe.layout(mesh)
  train_step = recipe.step(layout, donate=False)
  data = make_data()
  with checkpoint_files.Checkpoints(workdir) as checkpoints:
    held = checkpoints.all_steps()
    earlier = [one for one in held if one < step]
    if held:
      found = checkpoints.restore(
        layout.state, before=step if earlier else max(held) + 1
      )
      state = found.state
      data.set_state(found.data_state)
    else:
      state = recipe.fresh(layout, weights)
  exact = not held or bool(earlier)
  if exact:
    for number in range(int(state.step), step - 1):
      state, _ = train_step(state, feed.fetch(data, mesh, number).arrays)
  data.set_state(kept.data_state)
  batch = next(data)

  def outcome(record: int | None, rows: Mapping[str, np.ndarray]) -> Outcome:
    _, metrics = train_step(state, feed.on_devices(rows, mesh))
    found = jax.device_get(metrics)
    return Outcome(record, {name: float(v) for name, v in found.items()})

  return Replay(
    int(state.step),
    exact,
    outcome(None, batch),
    tuple(
      outcome(int(record), _only(batch, row))
      for row, record in enumerate(batch["record_B"])
    ),
  )


def _only(batch: Mapping[str, np.ndarray], row: int) -> dict[str, np.ndarray]:
  """One row of a batch in the place of all."""
  return {
    name: np.repeat(rows[row : row + 1], len(rows), axis=0)
    for name, rows in batch.items()
  }
