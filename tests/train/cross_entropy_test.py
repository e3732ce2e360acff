"""The text's loss from states, against the plain one from logits."""

import functools

import jax
from jax.extend.core import subjaxprs
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest
from scipy import special

from rcmed_jax.data.tokens import IGNORE_LABEL
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.train import cross_entropy, losses

VOCABULARY, HELD = 500, 512
ROWS, LENGTH, WIDTH = 8, 11, 6


@pytest.fixture(scope="module")
def case():
  """States, a head with places beyond the vocabulary, labels."""
  rng = np.random.default_rng(0)
  states_BTD = rng.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
  head_DV = rng.normal(size=(WIDTH, HELD)).astype(np.float32)
  labels_BT = rng.integers(0, VOCABULARY, (ROWS, LENGTH))
  labels_BT[:, :3] = IGNORE_LABEL
  labels_BT[0] = IGNORE_LABEL
  return states_BTD, head_DV, labels_BT


def in_float64(states_BTD, head_DV, labels_BT):
  """(loss, its gradients by states and head) by the formula."""
  states, head = np.float64(states_BTD), np.float64(head_DV)[:, :VOCABULARY]
  rows, columns = np.nonzero(labels_BT != IGNORE_LABEL)
  picked_ND, labels_N = states[rows, columns], labels_BT[rows, columns]
  log_NV = special.log_softmax(picked_ND @ head, axis=1)
  count = len(labels_N)
  slope_NV = (np.exp(log_NV) - np.eye(VOCABULARY)[labels_N]) / count
  d_states = np.zeros_like(states)
  d_states[rows, columns] = slope_NV @ head.T
  d_head = np.zeros((WIDTH, HELD))
  d_head[:, :VOCABULARY] = picked_ND.T @ slope_NV
  return -log_NV[np.arange(count), labels_N].mean(), d_states, d_head


@functools.cache
def compiled(max_ids):
  loss = functools.partial(
    cross_entropy.text_loss, vocabulary=VOCABULARY, max_ids=max_ids
  )
  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))


def value_and_slopes(case, max_ids=128):
  value, slopes = compiled(max_ids)(*map(jnp.asarray, case))
  return value, *slopes


@pytest.mark.parametrize("max_ids", [128, 200, 4096])  # 4, 3 and 1 parts
def test_value_and_gradients_are_the_formula_s(case, max_ids):
  found = value_and_slopes(case, max_ids)
  for ours, wanted in zip(found, in_float64(*case), strict=True):
    np.testing.assert_allclose(ours, wanted, atol=1e-6)
  # Nothing reaches places beyond the vocabulary, not even a little.
  assert not np.any(np.asarray(found[2])[:, VOCABULARY:])


def test_it_is_the_plain_loss_of_the_logits(case):
  states_BTD, head_DV, labels_BT = case
  logits_BTV = jnp.asarray(states_BTD @ head_DV[:, :VOCABULARY])
  np.testing.assert_allclose(
    value_and_slopes(case)[0],
    losses.text_loss(logits_BTV, jnp.asarray(labels_BT)),
    rtol=1e-6,
  )


def test_a_vocabulary_in_parts_changes_nothing(case):
  mesh = meshes.make_mesh(meshes.MeshConfig(data=2, fsdp=2, tensor=2))

  def put(array, *spec):
    return jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))

  states_BTD, head_DV, labels_BT = case
  batch = meshes.BATCH_AXES
  placed = (
    put(states_BTD, batch),
    put(head_DV, "fsdp", "tensor"),
    put(labels_BT, batch),
  )
  with jax.set_mesh(mesh):
    found = value_and_slopes(placed)
  for ours, wanted in zip(found, in_float64(*case), strict=True):
    np.testing.assert_allclose(ours, wanted, atol=1e-6)


def test_no_label_at_all_is_zero_and_a_wrong_one_is_not_finite(case):
  states_BTD, head_DV, labels_BT = case
  nothing = np.full_like(labels_BT, IGNORE_LABEL)
  value, d_states, d_head = value_and_slopes((states_BTD, head_DV, nothing))
  assert value == 0
  assert not np.any(d_states) and not np.any(d_head)
  wrong = labels_BT.copy()
  wrong[3, -1] = VOCABULARY  # a place that the head holds and no id has
  assert np.isnan(value_and_slopes((states_BTD, head_DV, wrong))[0])


def test_logits_of_all_ids_never_exist(case):
  jaxpr = jax.make_jaxpr(compiled(128))(*map(jnp.asarray, case))
  sizes = {
    np.prod(variable.aval.shape)
    for inner in _jaxprs(jaxpr.jaxpr)
    for equation in inner.eqns
    for variable in equation.outvars
  }
  assert ROWS * LENGTH * 128 in sizes
  assert max(sizes) < ROWS * LENGTH * HELD


def _jaxprs(jaxpr):
  """It and all within it."""
  yield jaxpr
  for inner in subjaxprs(jaxpr):
    yield from _jaxprs(inner)
