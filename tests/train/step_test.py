import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from rcmed_jax.kernels import language_attention
from rcmed_jax.model import config as model_configs
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.parallel import rules, topologies
from rcmed_jax.train import averages, losses
from rcmed_jax.train import optimizer as optimizers
from rcmed_jax.train import step as steps

# The same settings as in loop_test.py, so that one compilation serves both.
MODEL = toy.model_config(lora_rank=2, dropout=0.1)
OPTIMIZER = optimizers.OptimizerConfig(
  learning_rate=0.01, warmup_steps=0, trainable="release"
)
LOSS = losses.LossConfig(deep_supervision=0.0)


class Trainer:
  """A compiled step and what it needs, on one mesh."""

  def __init__(self, mesh):
    optimizer = optimizers.make_optimizer(OPTIMIZER, steps=10)
    self.mesh = mesh
    self.layout = steps.make_layout(MODEL, OPTIMIZER, optimizer, mesh)
    self.step = steps.make_train_step(
      self.layout, optimizer, LOSS, accumulation=2
    )
    self.optimizer = optimizer

  def state(self):
    return steps.init_state(
      self.layout, MODEL, OPTIMIZER, self.optimizer, seed=0
    )

  def batch(self, seed=0):
    arrays = toy.batch(8, seed)
    del arrays["record_B"]
    return jax.device_put(arrays, rules.batch_sharding(self.mesh))


@pytest.fixture(scope="module")
def single():
  return Trainer(meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1]))


@pytest.fixture(scope="module")
def sharded():
  return Trainer(meshes.make_mesh(meshes.MeshConfig(data=2, fsdp=2, tensor=2)))


@pytest.fixture(scope="module")
def stepped(single):
  """(state before, state after, metrics) of one step on one device."""
  state = single.state()
  before = jax.device_get(state)
  state, metrics = single.step(state, single.batch())
  return before, jax.device_get(state), jax.device_get(metrics)


def test_frozen_weights_stay_and_trained_ones_move(stepped):
  before, after, _ = stepped
  assert after.step == 1
  jax.tree.map(np.testing.assert_array_equal, before.frozen, after.frozen)
  moved = jax.tree.map(
    lambda old, new: not np.array_equal(old, new),
    before.trainable,
    after.trainable,
  )
  # SAM's prompt embeddings, quality head and spare masks take no part in the
  # losses; decay moves them, but not where they start at zero.
  unmoved = [
    jax.tree_util.keystr(path)
    for path, yes in jax.tree.leaves_with_path(moved)
    if not yes
  ]
  assert all("mask_decoder" in path for path in unmoved), unmoved


def test_frozen_weights_are_cast_and_constants_are_not(stepped):
  before, _, _ = stepped
  language = before.frozen["language"]["layers"]
  assert language["q"]["kernel"].dtype == jnp.bfloat16
  constant = before.frozen["mask_decoder"]["prompts"]["frequencies"]
  assert constant.dtype == np.float32
  assert {leaf.dtype for leaf in jax.tree.leaves(before.trainable)} == {
    np.dtype(np.float32)
  }


def test_loss_is_the_mean_of_the_micro_batches(single, stepped):
  before, _, metrics = stepped
  loss = jax.jit(
    functools.partial(steps.loss, graphdef=single.layout.graphdef, config=LOSS)
  )
  step_key = jax.random.fold_in(jax.random.key(0), 0)
  micro = [
    loss(
      before.trainable,
      before.frozen,
      batch={name: rows[i::2] for name, rows in toy.batch(8).items()},
      key=jax.random.fold_in(step_key, i),
    )[0]
    for i in range(2)
  ]
  np.testing.assert_allclose(metrics["loss"], np.mean(micro), rtol=1e-5)
  weighted = sum(
    getattr(LOSS, name) * metrics[name]
    for name in ("text", "dice", "bce", "boundary")
  )
  np.testing.assert_allclose(metrics["loss"], weighted, rtol=1e-5)


def test_accumulation_weighs_micro_batches_equally():
  # The mean of two means, by hand, is not the mean of the four rows.
  rows = {
    "value": jnp.array([1.0, 10.0, 3.0, 30.0]),
    "weight": jnp.array([1.0, 1.0, 3.0, 0.0]),
  }

  def mean(scale, part):
    return (
      scale**2
      * jnp.sum(part["value"] * part["weight"])
      / jnp.sum(part["weight"])
    )

  def micro(index, part):
    return jax.grad(mean)(1.0, part), mean(1.0, part), index

  gradient, value, index = steps.accumulate(micro, rows, 2)
  assert value == ((1 + 9) / 4 + 10) / 2
  assert gradient == 2 * value
  assert index == 0.5
  with pytest.raises(ValueError, match=r"accumulation=3.*batch of 4"):
    steps.accumulate(micro, rows, 3)


def test_a_step_that_is_not_finite_counts_and_changes_nothing(single):
  state = single.state()
  before = jax.device_get(state)
  batch = single.batch()
  batch["labels_BT"] = batch["labels_BT"].at[1, -1].set(toy.VOCABULARY)
  state, metrics = single.step(state, batch)
  assert metrics["non_finite"] == 1
  after = jax.device_get(state)
  assert after.step == before.step + 1
  after = dataclasses.replace(after, step=before.step)
  jax.tree.map(np.testing.assert_array_equal, before, after)


def test_averaged_weights_lie_where_the_weights_do(sharded):
  config = dataclasses.replace(OPTIMIZER, average=0.9)
  optimizer = optimizers.make_optimizer(config, steps=10)
  state = steps.make_layout(MODEL, config, optimizer, sharded.mesh).state
  (average,) = (
    part for part in state.moments if isinstance(part, averages.Average)
  )
  places = [
    [leaf.sharding for leaf in jax.tree.leaves(tree)]
    for tree in (average.weights, state.trainable)
  ]
  assert places[0] == places[1]


def test_sharded_equals_unsharded(sharded, stepped):
  before, after, wanted = stepped
  state = sharded.state()
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, atol=1e-7),
    jax.device_get(state.trainable),
    before.trainable,
  )
  state, metrics = sharded.step(state, sharded.batch())
  for name, value in wanted.items():
    # Sums in another order may move a maximum of the boundary loss, or the side
    # of a ReLU: 4e-5 of the norm was seen on one processor, 1e-5 on others.
    rtol = 1e-4 if name == "grad_norm" else 1e-5
    np.testing.assert_allclose(metrics[name], value, rtol=rtol, err_msg=name)
  # The first moment is a tenth of the clipped gradient.
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
    jax.device_get(optax.tree.get(state.moments, "mu")),
    optax.tree.get(after.moments, "mu"),
  )


def test_kernels_see_the_mesh_and_their_own_rows_and_heads(
  sharded, monkeypatch
):
  attend = language_attention.causal_attention
  seen = []

  def remember(query_BSNH, *others, **settings):
    seen.append(query_BSNH.shape)
    return attend(query_BSNH, *others, **settings)

  monkeypatch.setattr(language_attention, "causal_attention", remember)
  step = steps.make_train_step(sharded.layout, sharded.optimizer, LOSS)
  jax.eval_shape(step, sharded.layout.state, sharded.batch())
  # 8 rows over data * fsdp = 4, 2 heads over tensor = 2.
  assert seen
  assert {(rows, heads) for rows, _, heads, _ in seen} == {(2, 1)}


@pytest.mark.heavy
def test_a_step_is_compiled_for_a_slice_with_its_kernels():
  """Nothing but the layout says for which devices."""
  pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
  devices = topologies.devices("v5e:2x4").tolist()
  mesh = meshes.make_mesh(meshes.MeshConfig(data=2, fsdp=2, tensor=2), devices)
  trainer = Trainer(mesh)
  batch = {
    name: jax.ShapeDtypeStruct(
      rows.shape, rows.dtype, sharding=rules.batch_sharding(mesh)
    )
    for name, rows in toy.batch(8).items()
    if name != "record_B"
  }
  compiled = trainer.step.lower(trainer.layout.state, batch).compile()
  assert "splash_mha_fwd" in compiled.as_text()
  assert "splash_mha_dkv" in compiled.as_text()


def test_moments_lie_where_their_parameters_lie(sharded):
  state = sharded.state()
  for name in ("mu", "nu"):
    moments = optax.tree.get(state.moments, name)
    same = jax.tree.map(
      lambda moment, param: moment.sharding == param.sharding,
      moments,
      state.trainable,
    )
    assert all(jax.tree.leaves(same))
  kernel = optax.tree.get(state.moments, "mu")["language"]["head"]["kernel"]
  assert kernel.addressable_shards[0].data.size == kernel.size // 4


def test_places_beyond_the_vocabulary_are_zero_and_stay(stepped):
  before, after, _ = stepped
  for state in (before, after):
    language = state.trainable["language"]
    assert language["embedding"].shape[0] == language["head"]["kernel"].shape[1]
    assert language["embedding"].shape[0] == 128
    for held in (
      language["embedding"][toy.VOCABULARY :],
      language["head"]["kernel"][:, toy.VOCABULARY :],
    ):
      assert not np.any(held)


def test_a_kernel_of_muon_has_one_moment_and_the_rest_two(sharded):
  config = optimizers.OptimizerConfig(rule="muon", warmup_steps=0)
  optimizer = optimizers.make_optimizer(config, steps=2)
  state = steps.make_layout(
    toy.model_config(), config, optimizer, sharded.mesh
  ).state
  moments = [
    (jax.tree_util.keystr(path), leaf)
    for path, leaf in jax.tree.leaves_with_path(state.moments)
  ]
  for path, param in jax.tree.leaves_with_path(state.trainable):
    name = jax.tree_util.keystr(path)
    own = [leaf for there, leaf in moments if there.endswith(name)]
    by_muon = "kernel" in name and "head" not in name
    assert len(own) == (1 if by_muon else 2), name
    assert all(leaf.sharding == param.sharding for leaf in own)


def full_layout(mesh_sizes, **changes):
  """Of the release's training, on devices that need not be there."""
  config = model_configs.ModelConfig(lora=model_configs.LoraConfig(rank=16))
  settings = optimizers.OptimizerConfig(trainable="release", **changes)
  mesh = jax.sharding.AbstractMesh(
    mesh_sizes,
    meshes.MESH_AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * len(mesh_sizes),
  )
  optimizer = optimizers.make_optimizer(settings, steps=1000)
  return steps.make_layout(config, settings, optimizer, mesh)


def test_full_size_lies_in_parts_that_the_table_declares():
  layout = full_layout((2, 1, 32, 4))
  assert layout.replicated == ()
  for path, leaf in jax.tree.leaves_with_path(layout.state):
    parts = leaf.size // np.prod(leaf.sharding.shard_shape(leaf.shape))
    name = jax.tree_util.keystr(path)
    assert parts > 1 or leaf.size * leaf.dtype.itemsize <= 64 << 20, name
    if "head" in name and leaf.ndim == 2:
      assert leaf.shape == (4096, 32128) and parts == 32 * 4, name


def test_the_frozen_base_may_be_whole_on_every_device():
  layout = full_layout((1, 1, 32, 1), frozen_placement="replicated")
  assert all(
    leaf.sharding.is_fully_replicated
    for leaf in jax.tree.leaves(layout.state.frozen)
  )
  embedding = layout.state.trainable["language"]["embedding"]
  assert not embedding.sharding.is_fully_replicated


def test_lora_needs_a_rank():
  mesh = meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1])
  config = optimizers.OptimizerConfig(trainable="lora", warmup_steps=0)
  with pytest.raises(ValueError, match=r"'lora' selects no parameter.*rank"):
    steps.make_layout(
      toy.model_config(),
      config,
      optimizers.make_optimizer(config, steps=2),
      mesh,
    )
