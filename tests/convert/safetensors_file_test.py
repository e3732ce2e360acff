"""The format, against the library that defines it."""

import json

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch_files

from rcmed_jax.convert import safetensors_file


@pytest.fixture
def arrays():
  rng = np.random.default_rng(0)
  return {
    "half": rng.normal(size=(3, 5)).astype(ml_dtypes.bfloat16),
    "odd": rng.normal(size=7).astype(np.float16),
    "single": rng.normal(size=(2, 3, 4)).astype(np.float32),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 4), np.float32),
  }


def _assert_same(found, expected):
  assert found.keys() == expected.keys()
  for name, array in expected.items():
    value = np.asarray(found[name])
    assert value.dtype == array.dtype and value.shape == array.shape, name
    assert value.tobytes() == array.tobytes(), name


def test_reads_what_the_library_writes(arrays, tmp_path):
  safetensors.numpy.save_file(arrays, tmp_path / "a.safetensors")
  _assert_same(safetensors_file.read(tmp_path / "a.safetensors"), arrays)


def test_the_library_reads_what_is_written_here(arrays, tmp_path):
  folder = torch_files.write(tmp_path / "a", arrays)
  (path,) = folder.glob("*.safetensors")
  _assert_same(safetensors.numpy.load_file(path), arrays)
  with safetensors.safe_open(path, framework="numpy") as file:
    assert file.metadata() == {"format": "pt"}


def test_every_array_begins_at_a_multiple_of_its_width(arrays, tmp_path):
  folder = torch_files.write(tmp_path / "a", arrays)
  (path,) = folder.glob("*.safetensors")
  for tensor in safetensors_file.read(path).values():
    assert tensor.offset % tensor.dtype.itemsize == 0


@pytest.mark.parametrize(
  "header",
  [
    b"not json",
    b"[]",
    {"a": {"dtype": "F32", "shape": [2]}},
    {"a": {"dtype": "F8", "shape": [2], "data_offsets": [0, 2]}},
    {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
    {"a": {"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}},
    {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
    {"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}},
  ],
)
def test_a_header_that_cannot_be_is_refused(header, tmp_path):
  if not isinstance(header, bytes):
    header = json.dumps(header).encode()
  path = tmp_path / "a.safetensors"
  path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
  with pytest.raises(ValueError, match="is cut short or no safetensors file"):
    safetensors_file.read(path)
