"""Losses of a held-out set, against those of its batches one by one."""

import dataclasses

import jax
import numpy as np
import pytest
import toy

from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.train import losses, scores, validation
from rcmed_jax.train import optimizer as optimizers
from rcmed_jax.train import step as steps

MODEL = toy.model_config(dropout=0.5)
OPTIMIZER = optimizers.OptimizerConfig(warmup_steps=0)
LOSS = losses.LossConfig()


@pytest.fixture(scope="module")
def world():
  """(layout, state) on two devices."""
  mesh = meshes.make_mesh(meshes.MeshConfig(data=2), jax.devices()[:2])
  optimizer = optimizers.make_optimizer(OPTIMIZER, 10)
  layout = steps.make_layout(MODEL, OPTIMIZER, optimizer, mesh)
  return layout, steps.init_state(layout, MODEL, OPTIMIZER, optimizer, 0)


def evaluation(layout, data, known, **more):
  told = {"metric": "loss", "every": 2, "last": 5}
  rows = data and validation.Rows(data, batches=3)
  return validation.Evaluation(
    layout,
    {},
    rows,
    known,
    loss_config=LOSS,
    micro_batches=1,
    **(told | more),
  )


def test_they_are_the_mean_over_the_same_batches_each_time(world):
  layout, state = world
  data = toy.Data(4, distinct=5)
  known = scores.Scores(1, 0)
  held_out = evaluation(layout, data, known)
  found = held_out.run(state)
  assert held_out.run(state) == found
  assert data.seen == [0, 1, 2, 0, 1, 2]
  assert known.kept == {0}  # of a state of no step
  one = jax.jit(
    lambda batch: steps.loss(
      state.trainable, state.frozen, layout.graphdef, batch, None, LOSS
    )
  )
  wanted = []
  for seed in range(3):
    total, terms = one(toy.batch(4, seed))
    wanted.append({"loss": total, **terms})
  assert found.keys() == {f"validation/{name}" for name in wanted[0]}
  for name in wanted[0]:
    mean = np.mean([terms[name] for terms in wanted])
    np.testing.assert_allclose(found[f"validation/{name}"], mean, rtol=1e-5)


def test_a_metric_that_is_none_is_named(world):
  layout, _ = world
  for metric in ("accuracy", "quality"):  # known, but not of this loss
    with pytest.raises(
      ValueError, match=rf"train.metric='{metric}' is none.*dice"
    ):
      evaluation(layout, toy.Data(4), scores.Scores(1, 0), metric=metric)


def test_it_ends_between_batches_where_the_run_is_to_stop(world):
  layout, state = world
  data, known = toy.Data(4), scores.Scores(1, 0)
  held_out = evaluation(
    layout, data, known, asked=lambda: 15 if len(data.seen) == 2 else 0
  )
  with pytest.raises(validation.StoppedError):
    held_out.run(dataclasses.replace(state, step=4))
  assert data.seen == [0, 1]
  assert known.evaluated == 0


def test_due_at_every_second_step_and_the_last(world):
  layout, _ = world
  known = scores.Scores(1, 0)
  held_out = evaluation(layout, toy.Data(4), known)
  assert [s for s in range(1, 6) if held_out.due(s)] == [2, 4, 5]
  known.add(2, 1.0)
  assert [s for s in range(6) if held_out.overdue(s)] == [4, 5]
  assert not evaluation(layout, None, known).due(4)


def test_where_nothing_is_held_out_what_goes_by_it_is_told_to_be_idle(world):
  layout, _ = world
  (told,) = evaluation(layout, None, scores.Scores(0, 5)).idle()
  assert "data.validation" in told
  assert not evaluation(layout, None, scores.Scores(0, 0)).idle()
  assert not evaluation(layout, toy.Data(4), scores.Scores(1, 0)).idle()
