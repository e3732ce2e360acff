import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rcmed_jax.train import averages
from rcmed_jax.train import optimizer as optimizers

DECAY = 0.75


def _steps(optimizer, count):
  """(state, weights after each step) of a weight that a gradient drives."""
  params = {"a": jnp.float32([1.0, -2.0])}
  state, seen = optimizer.init(params), []
  for step in range(count):
    gradient = {"a": jnp.float32([0.5, 1.0 + step])}
    updates, state = optimizer.update(gradient, state, params)
    params = optax.apply_updates(params, updates)
    seen.append(np.asarray(params["a"]))
  return state, seen


def test_it_is_the_formula():
  optimizer = optax.chain(optax.sgd(0.1), averages.averaging(DECAY))
  plain, wanted = _steps(optax.sgd(0.1), 5)
  state, seen = _steps(optimizer, 5)
  np.testing.assert_array_equal(seen, wanted)  # updates pass unchanged
  powers = DECAY ** np.arange(4, -1, -1)
  average = (powers[:, None] * np.asarray(wanted)).sum(0) / powers.sum()
  np.testing.assert_allclose(averages.of(state)["a"], average, rtol=1e-6)
  assert averages.of(plain) is None


def test_after_one_step_it_is_its_weights():
  optimizer = optax.chain(optax.sgd(0.1), averages.averaging(0.999))
  state, seen = _steps(optimizer, 1)
  np.testing.assert_allclose(averages.of(state)["a"], seen[0], rtol=1e-4)


@pytest.mark.parametrize("rule", optimizers.RULES)
def test_an_optimizer_keeps_it_where_asked(rule):
  def made(average):
    config = optimizers.OptimizerConfig(
      rule=rule, warmup_steps=0, average=average
    )
    return optimizers.make_optimizer(config, 10)

  params = {"m": {"kernel": jnp.ones((4, 4))}, "b": {"bias": jnp.ones(4)}}
  state = made(0.9).init(params)
  assert jax.tree.map(jnp.shape, averages.of(state)) == jax.tree.map(
    jnp.shape, params
  )
  assert averages.of(made(0.0).init(params)) is None
  # Its arrays lie where their parameters do.
  marked = optax.tree.map_params(
    made(0.9), lambda leaf: "param", state, transform_non_params=lambda _: "not"
  )
  (average,) = (
    node
    for node in jax.tree.leaves(
      marked, is_leaf=lambda n: isinstance(n, averages.Average)
    )
    if isinstance(node, averages.Average)
  )
  assert set(jax.tree.leaves(average.weights)) == {"param"}
  assert average.total == "not"


def test_a_decay_of_one_is_refused():
  with pytest.raises(ValueError, match=r"optimizer.average=1.0"):
    optimizers.OptimizerConfig(average=1.0)
