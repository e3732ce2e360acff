"""A bad batch, kept by a run and run again."""

import functools

import jax
import numpy as np
import pytest
import toy
import trained_once

from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.train import loop, replay
from rcmed_jax.train import optimizer as optimizers
from rcmed_jax.train.config import TrainConfig

MODEL = toy.model_config()
OPTIMIZER = optimizers.OptimizerConfig(
  learning_rate=0.01, warmup_steps=0, trainable="all"
)
MESH = meshes.MeshConfig(data=2)
BAD = 5  # step
ROW = 2


class Spoilt(toy.Data):
  """One row of step 5 has a label that the vocabulary lacks."""

  def __next__(self):
    batch = super().__next__()
    batch["record_B"] = np.arange(8) + 10 * self._next
    if self._next == BAD:
      batch["labels_BT"][ROW, -1] = toy.VOCABULARY
    return batch


@pytest.fixture(scope="module", autouse=True)
def one_compilation():
  """Run and replay share one step, which leaves its state alone.

  On two devices: how many there are changes nothing but the time it takes.
  """
  two = functools.partial(meshes.make_mesh, devices=jax.devices()[:2])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(meshes, "make_mesh", two)
    trained_once.Parts(donate=False).put(patch)
    yield


def _config(**changes):
  given = dict(steps=8, batch_size=8, log_every=8, keep=1)
  return TrainConfig(**(given | changes))


def _replay(workdir, config, step=BAD):
  return replay.replay(
    MODEL, config, OPTIMIZER, MESH, lambda: Spoilt(8), workdir, step
  )


def _train(workdir, config):
  return loop.train(MODEL, config, OPTIMIZER, MESH, lambda: Spoilt(8), workdir)


def _assert_row_is_found(found):
  assert found.whole.metrics["non_finite"] == 1
  assert [one.record for one in found.alone] == list(range(50, 58))
  bad = [one.record for one in found.alone if one.metrics["non_finite"]]
  assert bad == [50 + ROW]


@pytest.mark.parametrize("every", [3, 8], ids=["saved", "nothing saved"])
def test_the_record_at_fault_is_found_with_the_weights_it_met(every, tmp_path):
  config = _config(checkpoint_every=every)
  with pytest.raises(FloatingPointError):
    _train(tmp_path, config)
  before = sorted(tmp_path.rglob("*"))
  found = _replay(tmp_path, config)
  assert (found.weights_step, found.exact) == (BAD - 1, True)
  _assert_row_is_found(found)
  assert sorted(tmp_path.rglob("*")) == before
  with pytest.raises(ValueError, match="holds no batch of step 4"):
    _replay(tmp_path, config, step=4)


def test_where_older_checkpoints_are_gone_the_newest_weights_serve(tmp_path):
  config = _config(checkpoint_every=3, not_finite="skip")
  _train(tmp_path, config)
  found = _replay(tmp_path, config)
  assert (found.weights_step, found.exact) == (8, False)
  _assert_row_is_found(found)
