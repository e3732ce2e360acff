"""What eight chips of TPU v5e are told to do, read in the compiled step."""

import dataclasses
import math
import re

import jax
import pytest
import toy

from rcmed_jax.parallel import hlo, rules, topologies, traffic
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.train import losses
from rcmed_jax.train import optimizer as optimizers
from rcmed_jax.train import step as steps

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def compiled():
  """The step of a bfloat16 toy, 2 copies of weights in 4 parts: text, layout.

  Wide enough that parts of the language model's weights fill a TPU's tiles.
  """
  pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
  config = toy.model_config(lora_rank=2, dropout=0.1, dtype="bfloat16")
  config = dataclasses.replace(
    config,
    language=dataclasses.replace(config.language, width=256, hidden=512),
    decoder=dataclasses.replace(config.decoder, depth=1),
    remat="full",
  )
  optimizer_config = optimizers.OptimizerConfig(warmup_steps=0)
  mesh = meshes.make_mesh(
    meshes.MeshConfig(data=2, fsdp=4), topologies.devices("v5e:2x4").tolist()
  )
  optimizer = optimizers.make_optimizer(optimizer_config, steps=10)
  layout = steps.make_layout(config, optimizer_config, optimizer, mesh)
  step = steps.make_train_step(
    layout,
    optimizer,
    losses.LossConfig(deep_supervision=0.0),
    accumulation=2,
  )
  batch = {
    name: jax.ShapeDtypeStruct(
      rows.shape, rows.dtype, sharding=rules.batch_sharding(mesh)
    )
    for name, rows in toy.batch(16).items()
    if name != "record_B"
  }
  return step.lower(layout.state, batch).compile().as_text(), layout


@pytest.fixture(scope="module")
def collectives(compiled):
  return traffic.collectives(hlo.parse(compiled[0]))


def test_gradients_are_scattered_in_float32(compiled, collectives):
  scattered = [one for one in collectives if one.kind == "reduce-scatter"]
  assert {one.dtype for one in scattered} == {"f32"}
  # Every kernel of the language model's layers, in both micro-batches.
  kernels = sum(
    4 * leaf.size
    for path, leaf in jax.tree.leaves_with_path(
      compiled[1].state.trainable["language"]["layers"]
    )
    if "kernel" in jax.tree_util.keystr(path) and min(leaf.shape) > 2
  )
  assert sum(one.held * one.times for one in scattered) >= 2 * kernels
  # What is added up whole is small: biases, norms, low-rank updates, scalars,
  # and parts between the two copies of the weights.
  largest = 4 * max(
    math.prod(leaf.sharding.shard_shape(leaf.shape))
    for leaf in jax.tree.leaves(compiled[1].state.trainable)
  )
  for one in collectives:
    if one.kind == "all-reduce" and one.group == 4:
      assert one.held <= largest, one


def test_weights_are_gathered_in_bfloat16(collectives):
  gathered = [one for one in collectives if one.kind == "all-gather"]
  assert gathered
  assert {one.dtype for one in gathered if one.held > 4096} == {"bf16"}


def test_the_optimizer_gathers_nothing(collectives):
  """Moments and updates stay in the parts that they lie in."""
  outside = [
    one
    for one in collectives
    if one.op_name and "while/body" not in one.op_name
  ]
  assert {one.kind for one in outside} <= {"all-reduce"}


def test_no_moment_is_read_by_a_gather(compiled):
  text, _ = compiled
  program = hlo.parse(text)
  entry = program.computations[program.entry]
  moments = {
    one.name
    for one in entry
    if one.opcode == "parameter" and one.op_name.startswith("state.moments")
  }
  assert moments
  readers = [one for one in entry if moments.intersection(one.operands)]
  assert len(readers) >= len(moments) / 2  # both of one parameter at once
  for one in readers:
    bodies = [program.computations[name] for name in one.called("calls")]
    opcodes = {line.opcode for body in bodies for line in body}
    assert not any("all-gather" in name for name in {one.opcode, *opcodes})


def test_the_whole_state_is_donated(compiled):
  text, _ = compiled
  header = text[: text.index("\n")]
  held = set(re.findall(r'op_name="(state\.[^"]+)"', text))
  assert held
  assert header.count("-alias)") == len(held)
