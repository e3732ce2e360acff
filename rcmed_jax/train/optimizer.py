"""AdamW or Muon, the schedule, and which parameters train.

Source: data_train_eval, Optimizer. Decay acts on every trained tensor, norms
and biases included, as in the release, whose optimizer is AdamW. Muon learns
from nothing in half of the steps (README, `make demo`).
"""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import optax
import optax.contrib

from rcmed_jax.model import lora
from rcmed_jax.train import averages

RULES = ("adamw", "muon")
SCHEDULES = ("linear", "cosine", "constant")
FROZEN_DTYPES = ("float32", "bfloat16")
FROZEN_PLACEMENTS = ("sharded", "replicated")
REDUCE_DTYPES = ("float32", "bfloat16")

# Of Muon's published recipes: its momentum, and the root mean square of an
# update, which is about AdamW's, so that both take the same learning rate.
MUON_MOMENTUM = 0.95
MUON_RMS = 0.2

_VOCABULARY = nnx.Any(nnx.PathContains("embedding"), nnx.PathContains("head"))
_ENCODER = nnx.PathContains("image_encoder")
_RELEASE = nnx.Any(
  lora.Lora,
  nnx.All(
    nnx.Param, nnx.Any(nnx.Not(nnx.PathContains("language")), _VOCABULARY)
  ),
)
_FILTERS: dict[str, nnx.filterlib.Filter] = {
  "all": nnx.Param,
  "all_but_encoder": nnx.All(nnx.Param, nnx.Not(_ENCODER)),
  "release": _RELEASE,
  "release_but_encoder": nnx.All(_RELEASE, nnx.Not(_ENCODER)),
  "lora": lora.Lora,
}
TRAINABLES = tuple(_FILTERS)


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """The released training's numbers."""

  rule: str = "adamw"  # or "muon": `make_optimizer`
  learning_rate: float = 1e-4
  warmup_steps: int = 100
  schedule: str = "linear"  # to 0 at the true last step; or cosine, constant
  weight_decay: float = 0.01
  b1: float = 0.9
  b2: float = 0.999
  eps: float = 1e-8
  clip_norm: float = 1.0  # of all gradients together
  trainable: str = "all"  # or "release", "lora", ...: `trainable_filter`
  frozen_dtype: str = "bfloat16"  # in which frozen weights are held
  # "sharded" like what trains, or "replicated": whole on every device but for
  # tensor parallelism. 13.5 GB of the 7B, never gathered again.
  frozen_placement: str = "sharded"
  # In which devices add up their gradients: `step.make_train_step`.
  reduce_dtype: str = "float32"
  # Decay a step of averaged weights, as 0.999; 0: none are kept.
  average: float = 0.0

  def __post_init__(self) -> None:
    for name, value, allowed in (
      ("rule", self.rule, RULES),
      ("schedule", self.schedule, SCHEDULES),
      ("trainable", self.trainable, TRAINABLES),
      ("frozen_dtype", self.frozen_dtype, FROZEN_DTYPES),
      ("frozen_placement", self.frozen_placement, FROZEN_PLACEMENTS),
      ("reduce_dtype", self.reduce_dtype, REDUCE_DTYPES),
    ):
      if value not in allowed:
        raise ValueError(
          f"optimizer.{name}={value!r} is unknown; choose one of {allowed}."
        )
    for name, right, wanted in (
      ("learning_rate", 0 <= self.learning_rate < math.inf, "0 or more"),
      ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
      ("b1", 0 <= self.b1 < 1, "0..1, below 1"),
      ("b2", 0 <= self.b2 < 1, "0..1, below 1"),
      ("eps", 0 < self.eps < math.inf, "above 0"),
      # All gradients would be made 0. inf clips none.
      ("clip_norm", self.clip_norm > 0, "above 0"),
    ):
      if not right:
        raise ValueError(
          f"optimizer.{name}={getattr(self, name)}: expected {wanted}."
        )
    if not 0 <= self.average < 1:
      raise ValueError(
        f"optimizer.average={self.average} must lie in 0..1, below 1."
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
  """Global-norm clip, the rule with the schedule, the average if asked.

    adamw  every parameter by AdamW
    muon   kernels by Muon: momentum whose singular values are all made about
           1; the rest, embedding and head among it, by AdamW with Nesterov's
           momentum

  Source: Jordan et al., "Muon: an optimizer for hidden layers in neural
  networks"; its scale from Liu et al., arXiv 2502.16982.
  """
  rate = learning_rate(config, steps)
  if config.rule == "muon":
    rule = optax.contrib.muon(
      rate,
      beta=MUON_MOMENTUM,
      eps=config.eps,
      weight_decay=config.weight_decay,
      adam_b1=config.b1,
      adam_b2=config.b2,
      adam_weight_decay=config.weight_decay,
      muon_weight_dimension_numbers=matrices,
      consistent_rms=MUON_RMS,
    )
  else:
    rule = optax.adamw(
      rate,
      b1=config.b1,
      b2=config.b2,
      eps=config.eps,
      weight_decay=config.weight_decay,
    )
  parts = [optax.clip_by_global_norm(config.clip_norm), rule]
  if config.average:
    parts.append(averages.averaging(config.average))
  return optax.chain(*parts)


def at_step(moments: Any, step: jax.Array) -> Any:
  """The moments, their schedule where step n = 0, 1, ... has it.

  What a skipped batch would have done to the moments is kept from them, and
  their own count of steps with it: the schedule would lag behind what is
  logged, and never come to its end.
  """
  return jax.tree.map(
    lambda one: (
      one._replace(count=jnp.asarray(step, jnp.int32))
      if isinstance(one, optax.ScaleByScheduleState)
      else one
    ),
    moments,
    is_leaf=lambda one: isinstance(one, optax.ScaleByScheduleState),
  )


def matrices(params: Any) -> Any:
  """Which axes of each kernel map inputs to outputs; None for the rest.

  A kernel is [..., inputs, outputs] with layers, heads or taps of a
  convolution in front, each a matrix of its own; q, k and v of the image
  encoder share [..., inputs, 3, outputs].
  """

  def axes_of(
    path: tuple[Any, ...], leaf: Any
  ) -> optax.contrib.MuonDimensionNumbers | None:
    *_, module, name = ("", *(str(key.key) for key in path))
    if name != "kernel" or module == "head":
      return None
    inputs = leaf.ndim - (3 if module == "qkv" else 2)
    return optax.contrib.MuonDimensionNumbers((inputs,), (leaf.ndim - 1,))

  return jax.tree.map_with_path(axes_of, params)


def trainable_filter(trainable: str) -> nnx.filterlib.Filter:
  """An nnx filter, true for the variables that train.

    all                  every parameter
    all_but_encoder      the same without the image encoder
    release              every parameter but the language model's own layers
                         and final norm, where low-rank updates train
    release_but_encoder  the same without the image encoder
    lora                 low-rank updates alone

  Constants of a checkpoint (`nnx.Variable`, no `nnx.Param`) never train.
  """
  return _FILTERS[trainable]
