import jax
import pytest

from rcmed_jax.parallel import mesh as meshes


def test_rest_of_the_devices():
  mesh = meshes.make_mesh(meshes.MeshConfig(data=-1, fsdp=2, tensor=2))
  assert dict(mesh.shape) == {"slice": 1, "data": 2, "fsdp": 2, "tensor": 2}
  assert meshes.batch_shards(mesh) == 4
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_given_devices():
  mesh = meshes.make_mesh(meshes.MeshConfig(), jax.devices()[:1])
  assert mesh.size == 1


@pytest.mark.parametrize(
  "config, message",
  [
    (meshes.MeshConfig(data=3), "data=3.*makes 3 devices, but there are 8"),
    (meshes.MeshConfig(data=-1, fsdp=3), "fsdp=3.*but there are 8"),
    (meshes.MeshConfig(data=-1, fsdp=16), "fsdp=16.*but there are 8"),
    (meshes.MeshConfig(data=-1, fsdp=-1), "at most one of them -1"),
    (meshes.MeshConfig(data=0), "must be positive"),
  ],
)
def test_wrong_sizes(config, message):
  with pytest.raises(ValueError, match=message):
    meshes.make_mesh(config)
