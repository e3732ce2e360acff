"""The same training on every mesh: losses, weights, and going on elsewhere.

Eight devices of a CPU, float32, dropout on. AdamW divides what is left of a
gradient that should be zero by its own size; a larger eps than training's keeps
such noise from moving weights, so that they can be compared.
"""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import toy

from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.parallel import rules
from rcmed_jax.train import checkpoints as checkpoint_files
from rcmed_jax.train import losses
from rcmed_jax.train import optimizer as optimizers
from rcmed_jax.train import step as steps

pytestmark = pytest.mark.heavy

STEPS = 20
BATCH = 8
MESHES = {
  "one device": None,
  "8 data": meshes.MeshConfig(data=8),
  "8 fsdp": meshes.MeshConfig(data=1, fsdp=8),
  "2 data x 2 fsdp x 2 tensor": meshes.MeshConfig(data=2, fsdp=2, tensor=2),
  "4 fsdp x 2 tensor": meshes.MeshConfig(data=1, fsdp=4, tensor=2),
  "2 slices x 4 fsdp": meshes.MeshConfig(slice=2, data=1, fsdp=4),
}
OTHERS = [name for name in MESHES if name != "one device"]
OPTIMIZER = optimizers.OptimizerConfig(
  learning_rate=1e-3, warmup_steps=2, trainable="release", eps=1e-4
)


def model(dtype="float32"):
  config = toy.model_config(lora_rank=2, dropout=0.1, dtype=dtype)
  # One layer of the decoder is as good as two, and half to compile.
  decoder = dataclasses.replace(config.decoder, depth=1)
  return dataclasses.replace(config, decoder=decoder)


class Trainer:
  """A compiled step on one mesh."""

  def __init__(self, name, dtype="float32"):
    sizes = MESHES[name]
    self.mesh = (
      meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1])
      if sizes is None
      else meshes.make_mesh(sizes)
    )
    self.config = model(dtype)
    self.optimizer = optimizers.make_optimizer(OPTIMIZER, STEPS)
    self.layout = steps.make_layout(
      self.config, OPTIMIZER, self.optimizer, self.mesh
    )
    step = steps.make_train_step(
      self.layout, self.optimizer, losses.LossConfig(deep_supervision=0.0)
    )
    self.step = step.lower(self.layout.state, self.put(toy.batch(BATCH)))
    # LLVM would take most of the time, and every step of it is run 20 times.
    self.step = self.step.compile({"xla_backend_optimization_level": 0})

  def put(self, batch):
    arrays = {name: rows for name, rows in batch.items() if name != "record_B"}
    return jax.device_put(arrays, rules.batch_sharding(self.mesh))

  def start(self):
    return steps.init_state(
      self.layout, self.config, OPTIMIZER, self.optimizer, seed=0
    )

  def run(self, state, data, count):
    """(state, losses) after `count` more steps."""
    found = []
    for _ in range(count):
      state, metrics = self.step(state, self.put(next(data)))
      found.append(float(metrics["loss"]))
    return state, found


trainer = functools.cache(Trainer)


@functools.cache
def trained(name, dtype="float32"):
  """(losses of all steps, final trained weights)."""
  on = trainer(name, dtype)
  state, found = on.run(on.start(), toy.Data(BATCH), STEPS)
  return found, jax.device_get(state.trainable)


@pytest.mark.parametrize("name", OTHERS)
def test_every_mesh_trains_the_same_model(name):
  wanted, weights = trained("one device")
  found, own = trained(name)
  np.testing.assert_allclose(found, wanted, rtol=1e-5)
  assert wanted[-1] < wanted[0]
  toy.assert_same_weights(own, weights)


def test_training_goes_on_on_another_mesh(tmp_path):
  """10 steps on one mesh, 10 on another, with the same rows in their order."""
  half = STEPS // 2
  before, after = map(
    trainer, ("2 data x 2 fsdp x 2 tensor", "2 slices x 4 fsdp")
  )
  data = toy.Data(BATCH)
  state, first = before.run(before.start(), data, half)
  with checkpoint_files.Checkpoints(tmp_path, keep=2) as checkpoints:
    checkpoints.save(state, data.get_state(), {})
  with checkpoint_files.Checkpoints(tmp_path) as checkpoints:
    restored = checkpoints.restore(after.layout.state)
  again = toy.Data(BATCH)
  again.set_state(restored.data_state)
  state, second = after.run(restored.state, again, half)
  assert data.seen + again.seen == list(range(STEPS))
  wanted, weights = trained("one device")
  np.testing.assert_allclose(first + second, wanted, rtol=1e-5)
  toy.assert_same_weights(jax.device_get(state.trainable), weights)


def test_bfloat16_stays_close():
  """Losses within 2% of float32's at every step, sharded three ways."""
  wanted, _ = trained("one device")
  found, _ = trained("2 data x 2 fsdp x 2 tensor", "bfloat16")
  np.testing.assert_allclose(found, wanted, rtol=0.02)
