"""What eight chips of TPU v5e are told to do, read in the compiled step."""

import dataclasses
import re

import jax
import pytest
import toy

from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.parallel import rules, topologies
from rcmed_jax.train import losses
from rcmed_jax.train import optimizer as optimizers
from rcmed_jax.train import step as steps

pytestmark = pytest.mark.unproven

# All forms in which this compiler scatters a sum: as such, fused with the
# product before it, or as a ring of its parts beside that product.
SCATTERS = ("reduce-scatter(", "calls=%all-reduce-scatter", "_body_rs")


@pytest.fixture(scope="module")
def text():
  """The step of a bfloat16 toy that trains wholly, on 4 fsdp x 2 tensor."""
  pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
  config = toy.model_config(dropout=0.1, dtype="bfloat16")
  config = dataclasses.replace(
    config,
    decoder=dataclasses.replace(config.decoder, depth=1),
    remat="full",
  )
  optimizer_config = optimizers.OptimizerConfig(warmup_steps=0)
  mesh = meshes.make_mesh(
    meshes.MeshConfig(data=1, fsdp=4, tensor=2),
    topologies.devices("v5e:2x4").tolist(),
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
  return step.lower(layout.state, batch).compile().as_text()


def test_gradients_are_scattered_in_float32(text):
  scattered = [
    line for line in text.splitlines() if any(form in line for form in SCATTERS)
  ]
  assert scattered
  # Sums of activations over `tensor` are bfloat16; what is float32 and comes
  # out of a backward product is a weight's gradient, and none comes whole.
  whole = [
    shape
    for line in text.splitlines()
    if "transpose(jvp" in line and "dot_general" in line
    for result in re.findall(r"= (.*?) all-reduce(?:-start)?\(", line)
    for shape in re.findall(r"f32\[([\d,]+)\]", result)
    if shape.count(",")
  ]
  assert not whole
  rings = re.findall(
    r"= \((\w+)\[[\d,]+\].*collective-permute-start\(.*transpose\(jvp\(\)\)"
    r'[^"]*dot_general"',
    text,
  )
  assert "f32" in rings


def test_weights_are_gathered_in_bfloat16(text):
  gathered = re.findall(
    r"= (\w+)\[[\d,]+\]\S* all-gather\(.*dot_general\"", text
  )
  assert gathered
  assert set(gathered) == {"bf16"}


def test_no_moment_of_the_optimizer_is_gathered(text):
  entry = text[text.index("\nENTRY ") :].splitlines()
  moments = {
    line.split(" = ")[0].strip().removeprefix("%")
    for line in entry
    if " parameter(" in line and 'op_name="state.moments' in line
  }
  assert moments
  readers = [
    line
    for line in entry
    if " parameter(" not in line
    and moments.intersection(re.findall(r"%([\w.-]+)", line))
  ]
  assert len(readers) >= len(moments) / 2  # both of one parameter at once
  for line in readers:
    called = re.findall(r"calls=%([\w.-]+)", line)
    bodies = [_computation(text, name) for name in called]
    assert not any("all-gather" in part for part in (line, *bodies))


def test_the_whole_state_is_donated(text):
  header = text[: text.index("\n")]
  held = set(re.findall(r'op_name="(state\.[^"]+)"', text))
  assert held
  assert header.count("-alias)") == len(held)


def _computation(text: str, name: str) -> str:
  start = re.search(rf"^%?{re.escape(name)} \(", text, re.M)
  assert start
  return text[start.start() : text.index("\n}", start.start())]
