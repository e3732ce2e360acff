"""A table in parts gives the rows, and takes the gradients, of a whole one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcmed_jax.parallel import mesh
from rcmed_jax.parallel.lookup import lookup

MESHES = {
  "columns": mesh.MeshConfig(data=2, fsdp=4),
  "rows and columns": mesh.MeshConfig(slice=2, data=1, fsdp=2, tensor=2),
  "rows": mesh.MeshConfig(data=2, fsdp=1, tensor=4),
}


def _of(seed=0, columns=8):
  rng = np.random.default_rng(seed)
  table_VD = np.float32(rng.standard_normal((12, columns)))
  # One id many times, the first and the last row among them.
  ids_BS = np.int32([[0, 3, 3, 11, 5]] * 7 + [[7, 1, 2, 11, 11]])
  change_BSD = np.float32(rng.standard_normal((8, 5, columns)))
  return table_VD, ids_BS, change_BSD


@pytest.mark.parametrize("name", MESHES)
def test_rows_and_gradients_are_those_of_the_whole_table(name):
  table_VD, ids_BS, change_BSD = _of()
  wanted_VD = np.zeros(table_VD.shape)
  np.add.at(wanted_VD, ids_BS, change_BSD)

  def weigh(table_VD, ids_BS):
    found_BSD = lookup(table_VD, ids_BS, jnp.float32)
    return jnp.sum(found_BSD * change_BSD), found_BSD

  with jax.set_mesh(mesh.make_mesh(MESHES[name])):
    (_, found), gradient = jax.jit(jax.value_and_grad(weigh, has_aux=True))(
      table_VD, ids_BS
    )
  np.testing.assert_array_equal(found, table_VD[ids_BS])
  np.testing.assert_allclose(gradient, wanted_VD, rtol=1e-6, atol=1e-6)


def test_what_the_mesh_does_not_divide_is_looked_up_whole():
  table_VD, ids_BS, _ = _of(columns=6)
  with jax.set_mesh(mesh.make_mesh(MESHES["columns"])):
    found = jax.jit(lambda t, i: lookup(t, i, jnp.float32))(table_VD, ids_BS)
  np.testing.assert_array_equal(found, table_VD[ids_BS])


def test_the_table_never_comes_together():
  table_VD, ids_BS, change_BSD = _of()
  table_VD = np.zeros((1024, 8), np.float32)
  with jax.set_mesh(mesh.make_mesh(MESHES["columns"])) as _:
    of = jax.sharding.get_mesh()
    part = jax.sharding.NamedSharding(
      of, jax.sharding.PartitionSpec("tensor", "fsdp")
    )
    step = jax.jit(
      jax.grad(lambda t, i: jnp.sum(lookup(t, i, jnp.float32) * change_BSD)),
      out_shardings=part,
    )
    given = jax.ShapeDtypeStruct(table_VD.shape, jnp.float32, sharding=part)
    text = step.lower(given, ids_BS).compile().as_text()
  assert "f32[1024,2]" in text
  assert "f32[1024,8]" not in text
