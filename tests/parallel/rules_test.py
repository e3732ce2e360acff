from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest
import toy

from rcmed_jax import axes
from rcmed_jax.model import rcmed
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.parallel import rules


@pytest.fixture(scope="module")
def mesh():
  return meshes.make_mesh(meshes.MeshConfig(data=2, fsdp=2, tensor=2))


def state(shape, names):
  variable = nnx.Param(
    jax.ShapeDtypeStruct(shape, jnp.float32),
    out_sharding=names,
    eager_sharding=False,
  )
  return nnx.State({"layer": {"kernel": variable}})


def spec(shape, names, mesh):
  shardings, whole = rules.param_shardings(state(shape, names), mesh)
  return shardings["layer"]["kernel"].spec, whole


def test_the_table_is_total():
  assert set(rules.RULES) == set(axes.LOGICAL_AXES)


def test_names_become_mesh_axes(mesh):
  found, whole = spec((3, 4, 6), (axes.LAYERS, axes.EMBED, axes.MLP), mesh)
  assert found == PartitionSpec(None, "fsdp", "tensor")
  assert not whole


def test_a_mesh_axis_is_used_once(mesh):
  found, whole = spec((4, 6), (axes.EMBED, axes.EMBED), mesh)
  assert found == PartitionSpec("fsdp", None)
  assert not whole


def test_what_does_not_divide_stays_whole_and_is_told(mesh):
  found, whole = spec((33, 4), (axes.HEADS, axes.EMBED), mesh)
  assert found == PartitionSpec(None, "fsdp")
  assert whole == (
    "layer.kernel: axis 0 (heads, 33) does not divide by tensor = 2 and "
    "is replicated.",
  )


def test_a_vocabulary_is_filled_up_and_cut(mesh):
  found, whole = spec((32007, 4), (axes.VOCAB, axes.EMBED), mesh)
  assert found == PartitionSpec(("tensor",), ("fsdp",))
  assert not whole
  shape = jax.eval_shape(
    rules.padded, state((32007, 4), (axes.VOCAB, axes.EMBED))
  )["layer"]["kernel"].shape
  assert shape == (32128, 4)


def test_filling_up_adds_zeros_at_the_far_end():
  held = state((3, 2), (axes.VOCAB, axes.EMBED))
  values = jnp.arange(6.0).reshape(3, 2)
  held["layer"]["kernel"].set_value(values)
  found = rules.padded(held)["layer"]["kernel"][...]
  np.testing.assert_array_equal(found[:3], values)
  assert found.shape == (128, 2) and not np.any(found[3:])


def test_some_mesh_axes_may_be_left_out(mesh):
  shardings, _ = rules.param_shardings(
    state((4, 6), (axes.EMBED, axes.MLP)), mesh, whole_over=frozenset({"fsdp"})
  )
  assert shardings["layer"]["kernel"].spec == PartitionSpec(None, ("tensor",))


def test_activations_lie_by_the_same_table(mesh):
  values = jnp.zeros((8, 3, 4))
  names = (axes.BATCH, axes.LENGTH, axes.MLP)

  def shards(rows):
    placed = jax.jit(lambda a: rules.constrain(a, *names))(values[:rows])
    return {shard.data.shape for shard in placed.addressable_shards}

  assert shards(8) == {(8, 3, 4)}  # no mesh in scope: nothing is said
  with jax.set_mesh(mesh):
    assert shards(8) == {(2, 3, 2)}
    assert shards(3) == {(3, 3, 2)}  # no batch of four parts


def test_an_activation_must_be_named_whole_and_rightly(mesh):
  with pytest.raises(ValueError, match="has 2 axes, but the names are"):
    rules.constrain(jnp.zeros((2, 3)), axes.BATCH)
  with (
    jax.set_mesh(mesh),
    pytest.raises(ValueError, match="'colour' is unknown"),
  ):
    rules.constrain(jnp.zeros((2, 3)), axes.BATCH, "colour")


@pytest.mark.parametrize(
  "names, message",
  [
    (("embed", "colour"), "layer.kernel: logical axis 'colour' is unknown"),
    (("embed",), "has 2 axes, but its logical names are"),
    (None, "has 2 axes, but its logical names are"),
  ],
)
def test_unnamed_and_unknown_axes_are_errors(names, message, mesh):
  with pytest.raises(ValueError, match=message):
    spec((4, 4), names, mesh)


def test_every_parameter_of_the_model_has_a_place(mesh):
  config = toy.model_config(correlation_steps=1, lora_rank=2)
  model = nnx.eval_shape(lambda: rcmed.RCMed(config, rngs=nnx.Rngs(0)))
  shardings, whole = rules.param_shardings(nnx.state(model), mesh)
  assert len(jax.tree.leaves(shardings)) == len(
    nnx.to_flat_state(nnx.state(model))
  )
  assert not whole


def test_a_batch_is_cut_along_its_rows(mesh):
  rows = jax.device_put(jnp.zeros((8, 3)), rules.batch_sharding(mesh))
  assert {shard.data.shape for shard in rows.addressable_shards} == {(2, 3)}
