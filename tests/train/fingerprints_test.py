import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.train import fingerprints

ARRAYS = {
  "float": np.arange(32, dtype=np.float32).reshape(8, 4),
  "half": np.ones((8, 2), jax.numpy.bfloat16),
  "count": np.int32(7),
}


def test_no_mesh_changes_it():
  wanted = fingerprints.of(jax.device_put(ARRAYS))
  for fsdp in (2, 8):
    mesh = meshes.make_mesh(meshes.MeshConfig(fsdp=fsdp), jax.devices()[:fsdp])
    cut = NamedSharding(mesh, PartitionSpec("fsdp"))
    whole = NamedSharding(mesh, PartitionSpec())
    placed = {
      name: jax.device_put(array, cut if array.ndim else whole)
      for name, array in ARRAYS.items()
    }
    assert fingerprints.of(placed) == wanted


def test_every_bit_and_every_place_counts():
  array = ARRAYS["float"]
  seen = {fingerprints.of({"a": array})["a"]}
  for bit in range(32):
    changed = array.view(np.uint32).copy()
    changed[3, 1] ^= np.uint32(1 << bit)
    seen.add(fingerprints.of({"a": changed.view(np.float32)})["a"])
  assert len(seen) == 33
  for other in (array[::-1], array[:, ::-1], np.zeros_like(array)):
    seen.add(fingerprints.of({"a": other})["a"])
  assert len(seen) == 36


def test_what_differs_is_named():
  saved = fingerprints.of(ARRAYS)
  fingerprints.require(ARRAYS, saved)
  with pytest.raises(ValueError, match="count does not hold the numbers"):
    fingerprints.require({**ARRAYS, "count": np.int32(8)}, saved)
  with pytest.raises(ValueError, match="half does not"):
    fingerprints.require({k: ARRAYS[k] for k in ("float", "count")}, saved)
