"""Slices to compile for, on a machine without one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcmed_jax.parallel import chips, mesh, topologies


@pytest.fixture(autouse=True)
def compiler():
  pytest.importorskip("libtpu", reason="the TPU compiler is not installed")


def test_a_slice_has_its_devices():
  devices = topologies.devices("v5e:2x4")
  assert devices.shape == (8,)
  assert devices[0].device_kind == "TPU v5 lite"


def test_a_program_is_compiled_for_a_slice():
  sizes = mesh.MeshConfig(data=8)
  of = mesh.make_mesh(sizes, topologies.devices("v5e:2x4").tolist())
  whole = jax.sharding.NamedSharding(of, jax.sharding.PartitionSpec())
  given = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=whole)
  with jax.set_mesh(of):
    compiled = jax.jit(lambda a: a @ a).lower(given).compile()
  assert compiled.memory_analysis().argument_size_in_bytes == 2 * 256 * 256


@pytest.mark.parametrize("name", ["h100:8", "v5e", "v5e:3x5"])
def test_an_unknown_slice_is_an_error_that_names_it(name):
  with pytest.raises(ValueError, match=name):
    topologies.devices(name)


def test_every_generation_of_the_tables_is_known_to_the_compiler():
  assert list(topologies.SHAPES) == list(chips.TPUS)
  for generation, shapes in topologies.SHAPES.items():
    assert np.size(topologies.devices(f"{generation}:{shapes[1]}")) >= 4


def test_an_unknown_slice_is_told_the_known_ones():
  with pytest.raises(ValueError, match=r"v5e:2x2, 2x4.*v5p:2x2x1"):
    topologies.devices("v5e:3x5")


def test_only_gradients_leave_a_slice():
  config = mesh.MeshConfig(slice=2, data=1, fsdp=4, tensor=2)
  of = mesh.make_mesh(config, topologies.devices("v5e:2x4", 2).tolist())

  def given(shape, *spec):
    sharding = jax.sharding.NamedSharding(of, jax.sharding.PartitionSpec(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=sharding)

  rows = given((64, 256), mesh.BATCH_AXES)
  weights = given((256, 256), "fsdp", "tensor")
  # The gradient needs all rows; a pass forward needs all weights, but those
  # that the other slice has are here as well.
  forward = jax.jit(lambda w, x: x @ w, out_shardings=rows.sharding)
  backward = jax.jit(
    jax.grad(lambda w, x: jnp.sum(jnp.square(x @ w))),
    out_shardings=weights.sharding,
  )
  with jax.set_mesh(of):
    texts = [
      step.lower(weights, rows).compile().as_text()
      for step in (forward, backward)
    ]
  # What the compiler calls a transfer over the data-centre network.
  assert ["Megascale" in text for text in texts] == [False, True]
  assert "all-gather" in texts[0]
