"""Arrays of .npz files, and damage that is always told the same way."""

import numpy as np
import pytest

from rcmed_jax.data import npz

ARRAYS = {"a": np.arange(2_000, dtype=np.int32), "b": np.float32([[1, 2]])}


def test_arrays_come_back(tmp_path):
  np.savez(tmp_path / "held.npz", **ARRAYS)
  found = npz.read(tmp_path / "held.npz")
  assert list(found) == ["a", "b"]
  for name, array in ARRAYS.items():
    assert found[name].dtype == array.dtype
    np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("data", [b"", b"no zip", b"\x93NUMPY\x01\x00v\x00"])
def test_other_files_are_refused(tmp_path, data):
  (tmp_path / "other.npz").write_bytes(data)
  with pytest.raises(ValueError, match="no zip file"):
    npz.read(tmp_path / "other.npz")


def test_objects_are_refused(tmp_path):
  np.savez(tmp_path / "objects.npz", a=np.array([{}], object))
  with pytest.raises(ValueError, match="pickle"):
    npz.read(tmp_path / "objects.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_no_damage_is_told_in_another_way(tmp_path, save):
  path = tmp_path / "held.npz"
  save(path, **ARRAYS)
  whole, random = path.read_bytes(), np.random.default_rng(0)
  told = 0
  for turn in range(300):
    spoilt = bytearray(whole)
    spoilt[random.integers(len(whole))] ^= 1 << random.integers(8)
    path.write_bytes(
      spoilt[: random.integers(1, len(whole))] if turn % 2 else spoilt
    )
    try:
      npz.read(path)
    except ValueError:
      told += 1
  assert told > 200
