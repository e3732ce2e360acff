import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from rcmed_jax.model import config as configs
from rcmed_jax.model import rcmed
from rcmed_jax.train import optimizer as optimizers


def count(state):
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(state))


@pytest.mark.parametrize(
  "schedule, wanted",
  [
    # By hand, for 4 steps of warm-up and 8 of decay at rate 2.
    ("linear", {0: 0.5, 3: 2.0, 4: 2.0, 6: 1.5, 8: 1.0, 11: 0.25}),
    ("cosine", {0: 0.5, 3: 2.0, 4: 2.0, 6: 1 + math.sqrt(0.5), 8: 1.0}),
    ("constant", {0: 0.5, 3: 2.0, 4: 2.0, 11: 2.0}),
  ],
)
def test_schedule_by_hand(schedule, wanted):
  rate = optimizers.learning_rate(
    optimizers.OptimizerConfig(
      learning_rate=2.0, warmup_steps=4, schedule=schedule
    ),
    steps=12,
  )
  for step, value in wanted.items():
    np.testing.assert_allclose(rate(step), value, rtol=1e-6)


@pytest.mark.parametrize(
  "name, value",
  [
    ("learning_rate", -1.0),
    ("learning_rate", math.nan),
    ("clip_norm", 0.0),
    ("weight_decay", -0.1),
    ("b1", 1.0),
    ("b2", -0.5),
    ("eps", 0.0),
  ],
)
def test_numbers_that_cannot_train_are_refused(name, value):
  with pytest.raises(ValueError, match=rf"optimizer.{name}={value}: expected"):
    optimizers.OptimizerConfig(**{name: value})


@pytest.mark.parametrize("rule", optimizers.RULES)
def test_the_schedule_goes_by_the_step_and_not_by_the_moments(rule):
  config = optimizers.OptimizerConfig(
    rule=rule, learning_rate=1.0, warmup_steps=0, weight_decay=0.0
  )
  optimizer = optimizers.make_optimizer(config, steps=4)
  weights = {"scale": jnp.ones(2), "kernel": jnp.ones((2, 2))}
  gradients = jax.tree.map(jnp.ones_like, weights)
  # Two batches were skipped: the moments are as at the start.
  fresh = optimizer.init(weights)
  first, _ = optimizer.update(gradients, fresh, weights)
  moments = optimizers.at_step(fresh, jnp.int32(2))
  updates, moments = optimizer.update(gradients, moments, weights)
  # Two of four steps of linear decay are done.
  np.testing.assert_allclose(updates["scale"], first["scale"] / 2, rtol=1e-5)
  counts = optax.tree.get_all_with_path(moments, "count")
  assert {int(count) for _, count in counts} == {1, 3}


def test_warmup_must_be_shorter_than_training():
  config = optimizers.OptimizerConfig(warmup_steps=100)
  with pytest.raises(ValueError, match=r"warmup_steps=100.*train.steps=100"):
    optimizers.learning_rate(config, steps=100)


def test_muon_makes_all_singular_values_of_a_kernel_alike():
  config = optimizers.OptimizerConfig(
    rule="muon",
    learning_rate=0.1,
    warmup_steps=0,
    schedule="constant",
    weight_decay=0.0,
    clip_norm=1e9,
  )
  optimizer = optimizers.make_optimizer(config, steps=10)
  rng = np.random.default_rng(0)
  shapes = {
    "up": (2, 6, 4),  # two layers
    "qkv": (6, 3, 6),  # q, k and v
    "head": (6, 5),
  }
  gradients = {
    name: {"kernel": rng.standard_normal(shape), "bias": rng.normal(size=3)}
    for name, shape in shapes.items()
  }
  params = jax.tree.map(lambda g: jnp.zeros(g.shape, jnp.float32), gradients)
  updates, _ = optimizer.update(
    jax.tree.map(jnp.float32, gradients), optimizer.init(params), params
  )
  pairs = [
    *zip(updates["up"]["kernel"], gradients["up"]["kernel"], strict=True),
    *(
      (updates["qkv"]["kernel"][:, k], gradients["qkv"]["kernel"][:, k])
      for k in range(3)
    ),
  ]
  assert len(pairs) == 5
  for update, gradient in pairs:
    # The gradient's own directions, each with about the same length: five
    # rounds of the iteration leave singular values within 0.65..1.25.
    left, _, right = np.linalg.svd(gradient, full_matrices=False)
    turned = left.T @ np.float64(update) @ right.T
    scale = -0.1 * 0.2 * math.sqrt(max(gradient.shape))
    values = np.diagonal(turned) / scale
    assert np.all((values > 0.65) & (values < 1.25))
    np.testing.assert_allclose(
      turned / scale, np.diag(values), atol=2e-3, rtol=0
    )
  # AdamW's first step has one length wherever the gradient goes: the rate,
  # times 1 + b1 / (1 + b1) with Nesterov's momentum.
  for update in (
    updates["head"]["kernel"],
    updates["up"]["bias"],
    updates["qkv"]["bias"],
  ):
    first = 0.1 * (1 + 0.9 / 1.9)
    np.testing.assert_allclose(np.abs(update), first, rtol=1e-4)


def test_unknown_choices_are_named():
  with pytest.raises(ValueError, match=r"trainable='some'.*'lora'"):
    optimizers.OptimizerConfig(trainable="some")


def test_two_updates_match_adamw_in_float64():
  config = optimizers.OptimizerConfig(
    learning_rate=0.1, warmup_steps=0, schedule="constant"
  )
  optimizer = optimizers.make_optimizer(config, steps=10)
  params = {"kernel": np.float64([[1.0, -2.0]]), "bias": np.float64([0.5])}
  gradients = [
    {"kernel": np.float64([[3.0, 0.0]]), "bias": np.float64([4.0])},
    {"kernel": np.float64([[0.1, -0.2]]), "bias": np.float64([0.0])},
  ]
  trained = jax.tree.map(jnp.float32, params)
  moments = optimizer.init(trained)
  first, second = ({k: 0 * v for k, v in params.items()} for _ in range(2))
  for step, gradient in enumerate(gradients, start=1):
    updates, moments = optimizer.update(
      jax.tree.map(jnp.float32, gradient), moments, trained
    )
    trained = optax.apply_updates(trained, updates)
    norm = math.sqrt(sum((g**2).sum() for g in gradient.values()))
    for name, value in params.items():
      g = gradient[name] / max(norm, 1.0)
      first[name] = 0.9 * first[name] + 0.1 * g
      second[name] = 0.999 * second[name] + 0.001 * g**2
      mean = first[name] / (1 - 0.9**step)
      root = np.sqrt(second[name] / (1 - 0.999**step))
      # Decay on every tensor, the bias too.
      params[name] = value - 0.1 * (mean / (root + 1e-8) + 0.01 * value)
  for name, value in params.items():
    np.testing.assert_allclose(trained[name], value, rtol=1e-5)


def test_release_trains_as_many_parameters_as_the_release():
  config = configs.ModelConfig(lora=configs.LoraConfig(rank=16))
  model = nnx.eval_shape(lambda: rcmed.RCMed(config, rngs=nnx.Rngs(0)))
  trained, frozen, constants = nnx.state(
    model, optimizers.trainable_filter("release"), nnx.Param, ...
  )
  assert count(trained) == 977_757_744
  assert count(frozen) == 6_476_271_616
  assert count(constants) == 2 * config.decoder.width // 2


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_all_and_lora(trainable):
  config = toy.model_config(lora_rank=2)
  model = nnx.eval_shape(lambda: rcmed.RCMed(config, rngs=nnx.Rngs(0)))
  trained, rest = nnx.state(model, optimizers.trainable_filter(trainable), ...)
  if trainable == "all":
    assert not any(
      isinstance(leaf, nnx.Param) for _, leaf in nnx.to_flat_state(rest)
    )
  else:
    names = {path[-1] for path, _ in nnx.to_flat_state(trained)}
    assert names == {"down", "up"}


@pytest.mark.parametrize("trainable", ["all", "release"])
def test_frozen_encoder_is_all_that_does_not_train(trainable):
  config = toy.model_config(lora_rank=2)
  model = nnx.eval_shape(lambda: rcmed.RCMed(config, rngs=nnx.Rngs(0)))

  def trained(name):
    state, _ = nnx.state(model, optimizers.trainable_filter(name), ...)
    return {path for path, _ in nnx.to_flat_state(state)}

  whole, part = trained(trainable), trained(f"{trainable}_but_encoder")
  assert part < whole
  assert {path[0] for path in whole - part} == {"image_encoder"}
  assert "image_encoder" not in {path[0] for path in part}
