"""Ops on each device's own part: the same numbers, and no communication."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from rcmed_jax import axes
from rcmed_jax.parallel import local, mesh

_ROWS = PartitionSpec(axes.BATCH)
_STATES = PartitionSpec(axes.BATCH, None, axes.HEADS)


@pytest.fixture(scope="module")
def eight():
  return mesh.make_mesh(mesh.MeshConfig(data=2, fsdp=2, tensor=2))


class Attention:
  """Attends within rows and heads; remembers the shapes that it was given."""

  def __init__(self):
    self.shapes = []

  def __call__(self, states_BSNH, gain_B):
    self.shapes.append(states_BSNH.shape)
    scores_BNST = jnp.einsum("BSNH,BTNH->BNST", states_BSNH, states_BSNH)
    if gain_B is not None:
      scores_BNST = scores_BNST * gain_B[:, None, None, None]
    weights_BNST = jax.nn.softmax(scores_BNST)
    mixed_BSNH = jnp.einsum("BNST,BTNH->BSNH", weights_BNST, states_BSNH)
    return mixed_BSNH, scores_BNST


def _local(op):
  scores = PartitionSpec(axes.BATCH, axes.HEADS)
  return local.local(op, (_STATES, _ROWS), (_STATES, scores))


def _loss(op, scale, states_BSNH, gain_B):
  """Of three layers, scanned and recomputed, as the model runs an op."""

  def layer(states_BSNH, _):
    mixed_BSNH, scores_BNST = op(scale * states_BSNH, gain_B)
    return mixed_BSNH, jnp.sum(jnp.sin(scores_BNST))

  states_BSNH, sums = jax.lax.scan(
    jax.checkpoint(layer, prevent_cse=False), states_BSNH, None, length=3
  )
  return jnp.sum(states_BSNH**2) + jnp.sum(sums)


_grad = jax.value_and_grad(_loss, argnums=(1, 2, 3))


def _inputs(batch: int, heads: int):
  rng = np.random.default_rng(0)
  return (
    jnp.float32(0.7),
    jnp.asarray(rng.normal(size=(batch, 3, heads, 2)), jnp.float32),
    jnp.asarray(rng.normal(size=batch), jnp.float32),
  )


@pytest.mark.parametrize(
  ("shape", "part"),
  [
    ((8, 4), (2, 2)),
    ((4, 3), (1, 3)),  # 3 heads on 2 devices
    ((1, 4), (1, 2)),  # 1 row on 4 devices
    ((3, 1), (3, 1)),
  ],
)
def test_every_device_gets_its_part(eight, shape, part):
  _, *inputs = _inputs(*shape)
  op = Attention()
  with jax.set_mesh(eight):
    mixed, scores = jax.eval_shape(_local(op), *inputs)
  assert op.shapes == [(part[0], 3, part[1], 2)]
  assert mixed.shape == (shape[0], 3, shape[1], 2)
  assert scores.shape == (*shape, 3, 3)


@pytest.mark.parametrize("shape", [(8, 4), (1, 3)])  # divides; does not
def test_values_and_gradients_are_those_of_the_whole_op(eight, shape):
  inputs = _inputs(*shape)
  with jax.set_mesh(eight):
    ours = jax.jit(lambda *args: _grad(_local(Attention()), *args))(*inputs)
  wanted = jax.jit(lambda *args: _grad(Attention(), *args))(*inputs)
  jax.tree.map(
    lambda one, other: np.testing.assert_allclose(
      one, other, rtol=2e-5, atol=1e-5
    ),
    ours,
    wanted,
  )


def test_what_is_cut_already_is_computed_without_communication(eight):
  _, *arrays = _inputs(8, 4)
  rows = mesh.BATCH_AXES
  specs = (PartitionSpec(rows, None, "tensor"), PartitionSpec(rows))
  given = [
    jax.ShapeDtypeStruct(
      array.shape,
      array.dtype,
      sharding=NamedSharding(eight, spec),
    )
    for array, spec in zip(arrays, specs, strict=True)
  ]

  def run(states_BSNH, gain_B):
    return _local(Attention())(states_BSNH, gain_B)[0]

  with jax.set_mesh(eight):
    text = jax.jit(run).lower(*given).compile().as_text()
  for collective in ("all-gather", "all-reduce", "all-to-all", "permute"):
    assert collective not in text


def test_an_argument_may_be_missing(eight):
  _, states_BSNH, _ = _inputs(4, 2)
  with jax.set_mesh(eight):
    ours = jax.jit(lambda states: _local(Attention())(states, None))
    mixed, _ = ours(states_BSNH)
  np.testing.assert_allclose(
    mixed, Attention()(states_BSNH, None)[0], atol=1e-6
  )


def test_without_a_mesh_or_with_one_device_it_is_the_op_itself():
  _, states_BSNH, gain_B = _inputs(4, 2)
  op = Attention()
  jax.eval_shape(_local(op), states_BSNH, gain_B)
  one = mesh.make_mesh(mesh.MeshConfig(), jax.devices()[:1])
  with jax.set_mesh(one):
    text = str(jax.make_jaxpr(_local(op))(states_BSNH, gain_B))
  assert "shard_map" not in text
  assert set(op.shapes) == {states_BSNH.shape}


def test_it_may_stand_inside_another(eight):
  _, states_BSNH, gain_B = _inputs(8, 4)
  op = Attention()
  with jax.set_mesh(eight):
    jax.eval_shape(_local(_local(op)), states_BSNH, gain_B)
  assert op.shapes == [(2, 3, 2, 2)]


def test_an_unknown_axis_is_an_error(eight):
  attend = local.local(jnp.sin, (PartitionSpec("depth"),), _ROWS)
  with (
    jax.set_mesh(eight),
    pytest.raises(ValueError, match=r"local: logical axis 'depth'.*'batch'"),
  ):
    attend(jnp.zeros(8))


def test_rows_go_to_the_mesh_on_which_the_arrays_lie(eight):
  """Whole arrays: each device its own rows. Cut ones: the compiler cuts."""
  data = mesh.make_mesh(mesh.MeshConfig(data=8))
  rows_BD = jnp.arange(16.0).reshape(16, 1)
  seen = []

  def double(scale, rows_BD):
    scope = jax.sharding.get_abstract_mesh()
    seen.append((len(rows_BD), dict(scope.shape), bool(scope.manual_axes)))
    return scale[0] * rows_BD

  whole, cut = PartitionSpec(), PartitionSpec("fsdp")
  scale = jnp.full(2, 2.0)
  for arrays in (
    jax.device_put(scale, NamedSharding(data, whole)),
    jax.device_put(scale, NamedSharding(eight, cut)),
    scale,
  ):
    run = jax.jit(local.rows_apart(double, arrays))
    np.testing.assert_array_equal(run(arrays, rows_BD), 2 * rows_BD)
    np.testing.assert_array_equal(run(arrays, rows_BD[:3]), 2 * rows_BD[:3])
  own, uneven, cut, uneven_cut, alone, _ = seen
  assert own == (2, dict(data.shape), True)
  assert uneven == (3, dict(data.shape), False)
  assert cut == (16, dict(eight.shape), False)
  assert uneven_cut[0] == 3
  assert alone == (16, {}, False)


def test_the_mesh_of_arrays(eight):
  rows = NamedSharding(eight, PartitionSpec(mesh.BATCH_AXES))
  shape = jax.ShapeDtypeStruct((4,), jnp.float32, sharding=rows)
  assert local.mesh_of([shape]) == eight
  assert local.mesh_of({"a": jnp.zeros(4)}) is None
