from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
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
  found, whole = spec((32007, 4), (axes.VOCAB, axes.EMBED), mesh)
  assert found == PartitionSpec(None, "fsdp")
  assert whole == (
    "layer.kernel: axis 0 (vocab, 32007) does not divide by tensor = 2 and "
    "is replicated.",
  )


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
