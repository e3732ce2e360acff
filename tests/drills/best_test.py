"""A run that is judged by a held-out set, killed on the way."""

import random

import drilling
from flax import nnx
import jax
import numpy as np
import pytest

from rcmed_jax.apps import answering, provenance
from rcmed_jax.data import phantoms
from rcmed_jax.train import checkpoints

pytestmark = pytest.mark.heavy


@pytest.fixture
def judged(tmp_path):
  """Settings of a run that is judged by rows of its own."""
  phantoms.write(tmp_path / "held_out", 9, seed=1)
  return (
    f"--config.data.validation={tmp_path / 'held_out/image2label_train.json'}",
    *("--config.train.eval_every=3", "--config.train.keep_best=2"),
    *("--config.train.keep=1", "--config.train.metric=bce"),
  )


def test_the_best_is_the_same_and_can_be_asked(
  judged, data, go_on, tmp_path, monkeypatch
):
  whole, torn = tmp_path / "whole", tmp_path / "torn"
  assert go_on(whole, *judged) == 0
  child = drilling.start(drilling.flags(torn, data, *judged))
  wanted = random.randrange(3, drilling.STEPS)
  drilling.wait(child, lambda: len(drilling.rows(torn)) >= wanted)
  child.kill()
  drilling.finish(child)
  assert go_on(torn, *judged) == 0
  drilling.assert_as_if_nothing_had_happened(torn, whole)

  values = {
    row["step"]: row["validation/bce"]
    for row in drilling.rows(torn)
    if "validation/bce" in row
  }
  assert list(values) == [3, 6, 9, 12]
  best, second, *_ = sorted(values, key=values.get)
  with checkpoints.Checkpoints(torn) as saved:
    assert saved.best() == best
    assert saved.all_steps() == sorted({best, second, drilling.STEPS})
    wanted = saved.weights(step=best)
  assert f"step {best}, weights " in provenance.identity(torn, best=True)
  monkeypatch.setattr(
    answering, "make_assistant", lambda model, *_, **__: model
  )
  found = nnx.to_pure_dict(nnx.state(answering.load_assistant(torn, best=True)))
  jax.tree.map(np.testing.assert_array_equal, found, wanted)
