"""Arrays on the disk: cut up between devices where that is worth it."""

from etils import epath
import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.train import reading, writing


def test_only_large_arrays_are_cut_up(tmp_path):
  mesh = meshes.make_mesh(meshes.MeshConfig(data=4), jax.devices()[:4])
  whole = NamedSharding(mesh, PartitionSpec())
  rng = np.random.default_rng(0)
  arrays = {
    name: jax.device_put(rng.random(shape, np.float32), whole)
    for name, shape in (("small", (4, 8)), ("large", (1024, 1024)))
  }
  folder = epath.Path(tmp_path / "arrays")
  writing.alone(folder, arrays)
  found = reading.shapes(folder)
  assert found["small"].storage.chunk_shape == (4, 8)
  assert found["large"].storage.chunk_shape == (256, 1024)
  wanted = reading.abstract(found, whole)
  jax.tree.map(
    np.testing.assert_array_equal, reading.arrays(folder, wanted), arrays
  )
