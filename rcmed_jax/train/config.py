"""Settings of a training, except those of its model, data and optimizer."""

import dataclasses

from rcmed_jax.train import bad_batches, losses


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """How long, how much at a time, and what to write on the way."""

  steps: int = 1000
  batch_size: int = 8  # images a step over all devices and micro-batches
  accumulation: int = 1  # micro-batches a step
  log_every: int = 10
  checkpoint_every: int = 500
  keep: int = 2  # checkpoints on disk, the newest
  eval_every: int = 0  # 0: only after the last step
  # What follows goes by the losses of data.validation.
  metric: str = "loss"  # that steps are judged by, or one of its terms: "dice"
  keep_best: int = 0  # checkpoints on disk besides, those of the lowest metric
  patience: int = 0  # evaluations without a lower one that end a run; 0: never
  seed: int = 0  # of the initial weights and of dropout
  not_finite: str = "stop"  # or "skip": go on without such a batch
  watchdog_s: float = 0.0  # end a run that makes no step for so long; 0: never
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
    if self.not_finite not in bad_batches.POLICIES:
      raise ValueError(
        f"train.not_finite={self.not_finite!r}: expected one of "
        f"{', '.join(bad_batches.POLICIES)}."
      )
    for name in ("watchdog_s", "eval_every", "keep_best", "patience"):
      if getattr(self, name) < 0:
        raise ValueError(f"train.{name}={getattr(self, name)} is below 0.")
    if self.metric not in losses.names(self.loss):
      raise ValueError(
        f"train.metric={self.metric!r} is no loss; choose one of "
        f"{', '.join(losses.names(self.loss))}."
      )
