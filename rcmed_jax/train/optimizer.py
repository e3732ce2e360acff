"""AdamW, its schedule, and which parameters it trains.

Source: data_train_eval, Optimizer. Decay acts on every trained tensor, norms
and biases included, as in the release.
"""

from collections.abc import Callable
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from rcmed_jax.model import lora

SCHEDULES = ("linear", "cosine", "constant")
FROZEN_DTYPES = ("float32", "bfloat16")

_VOCABULARY = nnx.Any(nnx.PathContains("embedding"), nnx.PathContains("head"))
_FILTERS: dict[str, nnx.filterlib.Filter] = {
  "all": nnx.Param,
  "release": nnx.Any(
    lora.Lora,
    nnx.All(
      nnx.Param, nnx.Any(nnx.Not(nnx.PathContains("language")), _VOCABULARY)
    ),
  ),
  "lora": lora.Lora,
}


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The released training's numbers."""

  learning_rate: float = 1e-4
  warmup_steps: int = 100
  schedule: str = "linear"  # to 0 at the true last step; or cosine, constant
  weight_decay: float = 0.01
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  clip_norm: float = 1.0  # of all gradients together
  trainable: str = "all"  # or "release" or "lora": `trainable_filter`
  frozen_dtype: str = "bfloat16"  # in which frozen weights are held

  def __post_init__(self) -> None:
    for name, value, allowed in (
      ("schedule", self.schedule, SCHEDULES),
      ("trainable", self.trainable, tuple(_FILTERS)),
      ("frozen_dtype", self.frozen_dtype, FROZEN_DTYPES),
    ):
      if value not in allowed:
        raise ValueError(
          f"optimizer.{name}={value!r} is unknown; choose one of {allowed}."
        )


def learning_rate(
  config: OptimizerConfig, steps: int
) -> Callable[[jax.typing.ArrayLike], jax.Array]:
  """The rate of step n = 0, 1, ..., steps - 1.

    warm-up  rate * (n + 1) / warmup          for n < warmup
    linear   rate * (1 - p)                   p = (n - warmup) /
    cosine   rate * (1 + cos(pi p)) / 2           (steps - warmup)

  The first step already moves and the last still does: 0 would be reached at
  n = steps. The release lets its first step have rate 0.

  Raises:
    ValueError: where warm-up is longer than training.
  """
  warmup = config.warmup_steps
  if not 0 <= warmup < steps:
    raise ValueError(
      f"optimizer.warmup_steps={warmup} must lie in 0..{steps - 1}, below "
      f"train.steps={steps}."
    )

  def rate(step: jax.typing.ArrayLike) -> jax.Array:
    step = jnp.asarray(step)
    rise = (step + 1) / max(warmup, 1)
    progress = jnp.clip((step - warmup) / (steps - warmup), 0.0, 1.0)
    fall = {
      "linear": 1 - progress,
      "cosine": (1 + jnp.cos(jnp.pi * progress)) / 2,
      "constant": jnp.ones_like(progress),
    }[config.schedule]
    return config.learning_rate * jnp.where(step < warmup, rise, fall)

  return rate


def make_optimizer(
  config: OptimizerConfig, steps: int
) -> optax.GradientTransformation:
  """Global-norm clip, then AdamW with the schedule."""
  return optax.chain(
    optax.clip_by_global_norm(config.clip_norm),
    optax.adamw(
      learning_rate(config, steps),
      b1=config.b1,
      b2=config.b2,
      eps=config.eps,
      weight_decay=config.weight_decay,
    ),
  )


def trainable_filter(trainable: str) -> nnx.filterlib.Filter:
  """An nnx filter, true for the variables that train.

    all      every parameter
    release  every parameter but the language model's own layers and final
             norm, where low-rank updates train
    lora     low-rank updates alone

  Constants of a checkpoint (`nnx.Variable`, no `nnx.Param`) never train.
  """
  return _FILTERS[trainable]
