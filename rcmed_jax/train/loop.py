"""The training loop, top to bottom."""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import os
import signal
import threading
import types
from typing import Any, Protocol

from etils import epath
from flax import nnx
import jax
import numpy as np

from rcmed_jax.model import config as model_configs
from rcmed_jax.model import rcmed
from rcmed_jax.parallel import hosts, rules
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.train import checkpoints as checkpoint_files
from rcmed_jax.train import initial, logs, losses
from rcmed_jax.train import optimizer as optimizers
from rcmed_jax.train import step as steps


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How long, how much at a time, and what to write on the way."""

  steps: int = 1000
  batch_size: int = 8  # images a step over all devices and micro-batches
  accumulation: int = 1  # micro-batches a step
  log_every: int = 10
  checkpoint_every: int = 500
  keep: int = 2  # checkpoints on disk
  eval_every: int = 0  # 0: only after the last step
  seed: int = 0  # of the initial weights and of dropout
  loss: losses.LossConfig = losses.LossConfig()

  def __post_init__(self) -> None:
    for name in (
      "steps",
      "batch_size",
      "accumulation",
      "log_every",
      "checkpoint_every",
      "keep",
    ):
      if getattr(self, name) < 1:
        raise ValueError(
          f"train.{name}={getattr(self, name)} must be at least 1."
        )


class Batches(Protocol):
  """An endless iterator of batches that can say and take back its place."""

  def __next__(self) -> dict[str, np.ndarray]: ...

  def get_state(self) -> Any: ...  # JSON

  def set_state(self, state: Any) -> None: ...


Evaluator = Callable[[rcmed.RCMed], dict[str, float]]


@dataclasses.dataclass(frozen=True)
class _Fetched:
  arrays: dict[str, jax.Array]  # on the devices
  records: np.ndarray  # int64[B], which records the rows are
  data_state: Any  # of the iterator after this batch


@dataclasses.dataclass(frozen=True)
class _Done:
  step: int
  metrics: dict[str, jax.Array]
  records: np.ndarray


def train(
  model_config: model_configs.ModelConfig,
  config: TrainConfig,
  optimizer_config: optimizers.OptimizerConfig,
  mesh_config: meshes.MeshConfig,
  make_data: Callable[[], Batches],
  workdir: str | os.PathLike[str],
  evaluators: Mapping[str, Evaluator] = types.MappingProxyType({}),
  weights: Mapping[str, Any] | None = None,
) -> rcmed.RCMed:
  """The trained model. Goes on where `workdir` holds an earlier run.

  Args:
    model_config, config, optimizer_config, mesh_config: the settings.
    make_data: makes the iterator of this process' share of each batch, as
      `mesh.batch_part` tells it.
    workdir: takes checkpoints, metrics.jsonl and TensorBoard files; a folder
      that all processes see, or gs://.
    evaluators: by name; each takes the model and returns numbers. The model's
      arrays are overwritten by the next step: do not keep them.
    weights: arrays by dotted path that a new run starts from; None: from
      nothing.

  Raises:
    FloatingPointError: at the first loss or gradient that is not finite; the
      last checkpoint stays.
    SystemExit: after SIGINT (code 130) or SIGTERM (`hosts.STOPPED`) of any
      process, in all after the same step, with a checkpoint written.
  """
  workdir = epath.Path(workdir)
  mesh = meshes.make_mesh(mesh_config)
  _check_batch(config, mesh)
  optimizer = optimizers.make_optimizer(optimizer_config, config.steps)
  rate = optimizers.learning_rate(optimizer_config, config.steps)
  layout = steps.make_layout(model_config, optimizer_config, optimizer, mesh)
  train_step = steps.make_train_step(
    layout,
    optimizer,
    config.loss.for_model(model_config),
    accumulation=config.accumulation,
    seed=config.seed,
    reduce_dtype=optimizer_config.reduce_dtype,
  )
  meta = {
    "model": dataclasses.asdict(model_config),
    "trainable": optimizer_config.trainable,
  }

  with contextlib.ExitStack() as stack:
    checkpoints = stack.enter_context(
      checkpoint_files.Checkpoints(workdir, keep=config.keep)
    )
    data = make_data()
    start = checkpoints.latest() or 0
    if start:
      state, data_state = checkpoints.restore(layout.state)
      if start >= config.steps:
        return nnx.merge(layout.graphdef, state.trainable, state.frozen)
      data.set_state(data_state)
    else:
      state = steps.init_state(
        layout, model_config, optimizer_config, optimizer, config.seed
      )
      if weights is not None:
        state = initial.with_weights(state, weights)
    log = stack.enter_context(
      logs.Log(workdir, start=start, steps=config.steps)
      if hosts.is_first()
      else logs.Silence()
    )
    for sentence in layout.replicated:
      log.say(sentence)
    if start:
      log.say(f"{workdir}: going on after step {start}.")
    stop = stack.enter_context(_StopSignals())
    vote = hosts.Vote(mesh)

    pending: list[_Done] = []  # since the last log
    upcoming = _fetch(data, mesh, start)
    for step in range(start + 1, config.steps + 1):
      batch = upcoming
      state, metrics = train_step(state, batch.arrays)
      pending.append(_Done(step, metrics, batch.records))
      log.advance(config.batch_size)
      # The host prepares the next batch while the device computes.
      if step < config.steps:
        upcoming = _fetch(data, mesh, step)
      if step == start + 1:
        jax.block_until_ready(metrics)
        log.restart_clock()  # compilation is no part of the rate

      stopped = vote.cast(stop.signal)
      last = step == config.steps or stopped
      writes = last or step % config.log_every == 0
      saves = last or step % config.checkpoint_every == 0
      evaluates = step == config.steps or (
        config.eval_every > 0 and step % config.eval_every == 0
      )
      # Looking at a step waits for it: at the one before, while this one runs,
      # unless this one is about to be kept.
      due = writes or saves or evaluates
      _require_finite(pending[-1:] if due else pending[-2:-1], workdir)
      if writes:
        log.write_training(
          step, {**_means(pending), "learning_rate": float(rate(step - 1))}
        )
        pending = []
      if saves:
        checkpoints.save(state, batch.data_state, meta)
      if evaluates and not stopped:
        model = nnx.merge(layout.graphdef, state.trainable, state.frozen)
        for name, evaluate in evaluators.items():
          scores = evaluate(model)
          log.write(step, {f"{name}/{k}": v for k, v in scores.items()})
      if saves or evaluates:
        log.restart_clock()
      if stopped:
        checkpoints.wait()
        log.say(
          f"Stopped by {signal.Signals(stopped).name} after step {step}, saved "
          f"in {workdir}. The same command goes on from there."
        )
        raise SystemExit(_exit_code(stopped))
  return nnx.merge(layout.graphdef, state.trainable, state.frozen)


def _check_batch(config: TrainConfig, mesh: jax.sharding.Mesh) -> None:
  parts = meshes.batch_shards(mesh) * config.accumulation
  if config.batch_size % parts:
    raise ValueError(
      f"train.batch_size={config.batch_size} must be a multiple of {parts}: "
      f"{meshes.batch_shards(mesh)} devices share a batch (mesh "
      f"{dict(mesh.shape)}) and train.accumulation={config.accumulation}."
    )


def _fetch(data: Batches, mesh: jax.sharding.Mesh, step: int) -> _Fetched:
  """The next batch, on its way to the devices."""
  try:
    batch = next(data)
  except StopIteration as error:
    raise ValueError(
      f"the data ended after step {step}; make_data must repeat without end."
    ) from error
  sharding = rules.batch_sharding(mesh)
  arrays = {
    name: jax.make_array_from_process_local_data(sharding, rows)
    for name, rows in batch.items()
    if name != "record_B"
  }
  return _Fetched(arrays, batch["record_B"], data.get_state())


def _require_finite(done: list[_Done], workdir: epath.Path) -> None:
  for one in done:
    if one.metrics["non_finite"]:
      values = {k: float(v) for k, v in one.metrics.items()}
      raise FloatingPointError(
        f"step {one.step}: the loss or its gradient is not finite: {values}. "
        f"Records of the batch: {one.records.tolist()}. The weights were left "
        f"as they were before it, the last checkpoint in {workdir} is whole. "
        "Look at these records, or lower optimizer.learning_rate, and start "
        "again to go on from the checkpoint."
      )


def _means(done: list[_Done]) -> dict[str, float]:
  """Mean of each metric over the steps, fetched in one transfer."""
  fetched = jax.device_get([one.metrics for one in done])
  return {
    name: float(np.mean([metrics[name] for metrics in fetched]))
    for name in fetched[0]
    if name != "non_finite"
  }


def _exit_code(stopped: int) -> int:
  """A person's Ctrl-C is final; a scheduler's SIGTERM asks to come back."""
  return hosts.STOPPED if stopped == signal.SIGTERM else 128 + stopped


class _StopSignals:
  """Notes SIGINT and SIGTERM while it is entered; a second one acts at once.

  Outside the main thread Python takes no handlers; there it notes nothing.
  """

  def __init__(self) -> None:
    self.signal = 0
    self._before: dict[signal.Signals, Any] = {}

  def __enter__(self) -> "_StopSignals":
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGINT, signal.SIGTERM):
        self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _note(self, number: int, _: object) -> None:
    self.signal = number
    signal.signal(number, self._before[signal.Signals(number)])
