"""The training loop, top to bottom."""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import os
import signal
import types
from typing import Any

from etils import epath
from flax import nnx
import jax
import numpy as np

from rcmed_jax.model import config as model_configs
from rcmed_jax.model import rcmed
from rcmed_jax.parallel import hosts
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.train import (
  bad_batches,
  feed,
  logs,
  meter,
  profiles,
  scores,
  stopping,
  validation,
)
from rcmed_jax.train import checkpoints as checkpoint_files
from rcmed_jax.train import optimizer as optimizers
from rcmed_jax.train import step as steps
from rcmed_jax.train import watchdog as watchdogs
from rcmed_jax.train.config import TrainConfig
from rcmed_jax.train.recipe import Recipe


def train(
  model_config: model_configs.ModelConfig,
  config: TrainConfig,
  optimizer_config: optimizers.OptimizerConfig,
  mesh_config: meshes.MeshConfig,
  make_data: Callable[[], feed.Batches],
  workdir: str | os.PathLike[str],
  evaluators: Mapping[str, validation.Evaluator] = types.MappingProxyType({}),
  held_out: validation.Rows | None = None,
  weights: Mapping[str, Any] | None = None,
  profile: tuple[int, int] | None = None,
) -> rcmed.RCMed:
  """The model after the last step. Goes on where `workdir` holds a run.

  Args:
    model_config, config, optimizer_config, mesh_config: the settings.
    make_data: makes the iterator of this process' share of each batch, as
      `mesh.batch_part` tells it.
    workdir: takes checkpoints, metrics.jsonl and TensorBoard files; a folder
      that all processes see, or gs://.
    evaluators: by name; each takes the model and returns numbers. The model's
      arrays are overwritten by the next step: do not keep them.
    held_out: rows that it does not train on, to judge steps by.
    weights: arrays by dotted path that a new run starts from; None: from
      nothing.
    profile: first and last step of a profiler's trace.

  Raises:
    FloatingPointError: at the first loss or gradient that is not finite, or
      where `train.not_finite` skips, at too many in a row; the last checkpoint
      stays.
    SystemExit: after SIGINT (code 130) or SIGTERM (`hosts.STOPPED`) of any
      process, in all after the same step, with a checkpoint written.
  """
  workdir = epath.Path(workdir)
  mesh = meshes.make_mesh(mesh_config)
  _check_batch(config, mesh)
  rate = optimizers.learning_rate(optimizer_config, config.steps)
  recipe = Recipe(model_config, config, optimizer_config)
  layout = recipe.layout(mesh)
  train_step = recipe.step(layout)
  meta = {
    "model": dataclasses.asdict(model_config),
    "trainable": optimizer_config.trainable,
  }

  with contextlib.ExitStack() as stack:
    watchdog = stack.enter_context(
      watchdogs.Watchdog(config.watchdog_s, workdir)
    )
    checkpoints = stack.enter_context(
      checkpoint_files.Checkpoints(workdir, keep=config.keep)
    )
    known = scores.Scores(config.keep_best, config.patience)
    vote = hosts.Vote()
    evaluation = _evaluation(recipe, layout, evaluators, held_out, known, vote)
    data = make_data()
    state, damaged = _state(
      *(checkpoints, layout, data, known, watchdog),
      fresh=lambda: recipe.fresh(layout, weights),
    )
    start = int(state.step)
    over = start >= config.steps or known.exhausted
    if over and not evaluation.overdue(start):
      return nnx.merge(layout.graphdef, state.trainable, state.frozen)
    gauge = meter.Meter(model_config, optimizer_config.trainable, mesh)
    log = stack.enter_context(
      logs.Log(workdir, start=start, steps=config.steps, meter=gauge)
      if hosts.is_first()
      else logs.Silence()
    )
    for sentence in (*layout.replicated, *damaged, *evaluation.idle()):
      log.say(sentence)
    if start:
      log.say(f"{workdir}: going on after step {start}.")
    stack.enter_context(stopping.Signals(vote.tell))
    profiler = stack.enter_context(profiles.Window(profile, workdir))
    guard = bad_batches.Guard(config.not_finite, workdir)

    left = _Left(checkpoints, evaluation, known, log, rate, meta, workdir)
    if evaluation.overdue(start):  # it was told to stop, and to be quick
      if not left.judgement(state):  # told again
        log.say(_farewell(vote.told, start, workdir))
        raise SystemExit(stopping.exit_code(vote.told))
      if known.exhausted or start >= config.steps:
        return nnx.merge(layout.graphdef, state.trainable, state.frozen)
    pending: list[bad_batches.Done] = []  # since the last log
    upcoming = feed.fetch(data, mesh, start)
    for step in range(start + 1, config.steps + 1):
      batch = upcoming
      profiler.before(step)
      state, metrics = train_step(state, batch.arrays)
      pending.append(
        bad_batches.Done(step, metrics, batch.records, batch.before)
      )
      log.advance(config.batch_size, gauge.work(batch.arrays))
      # The host prepares the next batch while the device computes.
      if step < config.steps:
        with log.spending("data"):
          upcoming = feed.fetch(data, mesh, step)
      profiler.after(step, metrics)
      if step == start + 1:
        jax.block_until_ready(metrics)
        log.restart_clock()  # compilation is no part of the rate

      # Looking at a step waits for it: at the one before, while this one runs,
      # unless this one is about to be kept.
      with log.spending("wait"):
        skipped = guard.look(pending, step - 1)
      stopped = vote.cast()
      last = step == config.steps or stopped
      writes = last or step % config.log_every == 0
      saves = last or step % config.checkpoint_every == 0
      evaluates = evaluation.due(step) and not stopped
      if writes or saves or evaluates:
        with log.spending("wait"):
          skipped += guard.look(pending, step)
      for sentence in skipped:
        log.say(sentence)
      if writes:
        pending = left.means(pending)
      if saves:  # before it evaluates: there may be no time to
        left.checkpoint(state, batch.data_state)
      if evaluates:
        if not left.judgement(state):
          stopped = vote.told
          pending = left.means(pending)
        if stopped or known.exhausted or step in known.kept:
          left.checkpoint(state, batch.data_state)
      watchdog.fed()
      if stopped:
        checkpoints.wait()
        log.say(_farewell(stopped, step, workdir))
        raise SystemExit(stopping.exit_code(stopped))
      if known.exhausted:
        log.say(f"{known.verdict()} Ended after step {step}.")
        break
  return nnx.merge(layout.graphdef, state.trainable, state.frozen)


def _evaluation(
  recipe: Recipe,
  layout: steps.Layout,
  evaluators: Mapping[str, validation.Evaluator],
  held_out: validation.Rows | None,
  known: scores.Scores,
  vote: hosts.Vote,
) -> validation.Evaluation:
  config = recipe.train
  return validation.Evaluation(
    layout,
    evaluators,
    held_out,
    known,
    metric=config.metric,
    every=config.eval_every,
    last=config.steps,
    micro_batches=config.accumulation,
    loss_config=config.loss.for_model(recipe.model),
    asked=vote.cast,
  )


def _state(
  checkpoints: checkpoint_files.Checkpoints,
  layout: steps.Layout,
  data: feed.Batches,
  known: scores.Scores,
  watchdog: watchdogs.Watchdog,
  *,
  fresh: Callable[[], steps.TrainState],
) -> tuple[steps.TrainState, tuple[str, ...]]:
  """What the run goes on from, and sentences on checkpoints set aside.

  Data and scores are put where they stood.
  """
  if not hosts.first_decides(bool(checkpoints.latest())):
    return fresh(), ()
  restored = checkpoints.restore(layout.state, alive=watchdog.fed)
  watchdog.rest()
  data.set_state(restored.data_state)
  known.restore(restored.meta, checkpoints.told())
  return restored.state, restored.damaged


def _check_batch(config: TrainConfig, mesh: jax.sharding.Mesh) -> None:
  parts = meshes.batch_shards(mesh) * config.accumulation
  if config.batch_size % parts:
    raise ValueError(
      f"train.batch_size={config.batch_size} must be a multiple of {parts}: "
      f"{meshes.batch_shards(mesh)} devices share a batch (mesh "
      f"{dict(mesh.shape)}) and train.accumulation={config.accumulation}."
    )


@dataclasses.dataclass(frozen=True)
class _Left:
  """What a run leaves of its steps: checkpoints, judgements, means."""

  checkpoints: checkpoint_files.Checkpoints
  evaluation: validation.Evaluation
  known: scores.Scores
  log: logs.Log | logs.Silence
  rate: Callable[[jax.typing.ArrayLike], jax.Array]
  meta: Mapping[str, Any]
  workdir: epath.Path

  def checkpoint(self, state: steps.TrainState, data_state: Any) -> None:
    """One, with what is known, where there is none of the step yet."""
    with self.log.spending("checkpoint"):
      told = {**self.meta, **self.known.meta()}
      self.checkpoints.save(state, data_state, told, kept=self.known.kept)

  def judgement(self, state: steps.TrainState) -> bool:
    """Evaluates and writes what is known; False: the run was told to stop."""
    try:
      with self.log.spending("evaluate"):
        found = self.evaluation.run(state)
    except validation.StoppedError:
      return False
    self.log.write(int(state.step), found)
    if hosts.is_first():
      self.known.write(self.workdir)
    return True

  def means(self, done: list[bad_batches.Done]) -> list[bad_batches.Done]:
    """Writes those of the steps, with the rate of the last; none are left."""
    if done:
      with self.log.spending("wait"):
        found = _means(done)
      found["learning_rate"] = float(self.rate(done[-1].step - 1))
      self.log.write_training(done[-1].step, found)
    return []


def _means(done: list[bad_batches.Done]) -> dict[str, float]:
  """Mean of each metric over the steps, fetched in one transfer.

  Skipped steps, which have no numbers, are counted.
  """
  fetched = jax.device_get([one.metrics for one in done])
  finite = [metrics for metrics in fetched if not metrics["non_finite"]]
  means = {
    name: float(np.mean([metrics[name] for metrics in finite]))
    for name in fetched[0]
    if name != "non_finite" and finite
  }
  skipped = len(fetched) - len(finite)
  return means | ({"skipped": float(skipped)} if skipped else {})


def _farewell(stopped: int, step: int, workdir: epath.Path) -> str:
  return (
    f"Stopped by {signal.Signals(stopped).name} after step {step}, saved in "
    f"{workdir}. The same command goes on from there."
  )
