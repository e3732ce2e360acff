"""Tensors of .pth files; whatever else a pickle asks for is refused."""

import collections
import io
import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest
import torch_files

from rcmed_jax.convert import torch_pickle


def _write(path, program):
  """A .pth whose data.pkl is this pickle program."""
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", program)
    archive.writestr("archive/data/0", np.arange(6, dtype=np.float32).tobytes())
  return path


def _dumped(value) -> bytes:
  file = io.BytesIO()
  torch_files.Pickler(file, 2).dump(value)
  return file.getvalue()


@pytest.fixture
def state():
  rng = np.random.default_rng(0)
  square = rng.normal(size=(5, 7)).astype(np.float32)
  return {
    "plain": square,
    "transposed": square.T,
    "inner": square[1:4, 2:],
    "every_second": square[::2, ::3],
    "half": rng.normal(size=(3, 2, 4)).astype(ml_dtypes.bfloat16),
    "count": np.arange(4),
    "scalar": np.float16([[2.5]]).reshape(()),
    "empty": np.zeros((0, 3), np.float32),
  }


def test_tensors_come_back_bit_for_bit(state, tmp_path):
  found = torch_pickle.read(torch_files.save(tmp_path / "a.pth", state))
  assert list(found) == list(state)
  for name, expected in state.items():
    array = np.asarray(found[name])
    assert found[name].dtype == array.dtype == expected.dtype
    assert found[name].shape == array.shape == expected.shape
    assert array.tobytes() == expected.tobytes(), name


def test_one_row_of_a_transposed_tensor_is_read_alone(state, tmp_path):
  found = torch_pickle.read(torch_files.save(tmp_path / "a.pth", state))
  row = found["transposed"][(3,)]
  np.testing.assert_array_equal(row, state["transposed"][3])


def test_parameters_are_their_tensors(tmp_path):
  value = np.arange(3, dtype=np.float32)
  parameter = torch_files.call(
    "torch._utils",
    "_rebuild_parameter",
    torch_files.tensor("0", value),
    True,
    collections.OrderedDict(),
  )
  path = torch_files.save(tmp_path / "a.bin", {"w": parameter}, {"0": value})
  np.testing.assert_array_equal(torch_pickle.read(path)["w"], value)


def test_as_torch_itself_writes(state, tmp_path):
  torch = pytest.importorskip("torch", reason="torch is not installed")
  held = {
    "a": torch.arange(6.0).reshape(2, 3).T,
    "b": torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
  }
  torch.save(held, tmp_path / "a.pth")
  found = torch_pickle.read(tmp_path / "a.pth")
  for name, expected in held.items():
    values = np.asarray(found[name]).astype(np.float32)
    np.testing.assert_array_equal(values, expected.detach().float().numpy())


@pytest.mark.parametrize(
  ("module", "name"),
  [("posix", "system"), ("os", "system"), ("subprocess", "check_call")],
)
def test_a_pickle_that_runs_a_command_is_refused(module, name, tmp_path):
  trace = tmp_path / "trace"
  argument = f"touch {trace}" if name == "system" else ["touch", str(trace)]
  call = torch_files.call(module, name, argument)
  program = _dumped({"w": call})
  with pytest.raises(ValueError, match=rf"asks for {module}\.{name}, which"):
    torch_pickle.read(_write(tmp_path / "a.pth", program))
  assert not trace.exists()
  # The same program does run where nobody restricts it.
  pickle.loads(program)
  assert trace.exists()


@pytest.mark.parametrize(
  ("module", "name"),
  [
    ("builtins", "eval"),
    ("builtins", "getattr"),
    ("torch", "load"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("collections", "OrderedDict.fromkeys"),
    ("functools", "partial"),
    ("numpy.core.multiarray", "_reconstruct"),
  ],
)
def test_any_other_name_is_refused(module, name, tmp_path):
  # Protocol 4 takes dotted names apart.
  program = (
    b"\x80\x04"
    + b"".join(
      b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)
    )
    + b"\x93."
  )
  with pytest.raises(ValueError, match="which is no tensor; it was refused"):
    torch_pickle.read(_write(tmp_path / "a.pth", program))


def test_what_was_checked_cannot_be_changed_afterwards(tmp_path):
  """BUILD would set attributes, such as the place of the numbers."""
  value = np.arange(6, dtype=np.float32)
  good = _dumped(torch_files.tensor("0", value))
  assert good.endswith(b".")
  for state in ({"offset": 0}, (None, {"offset": 0})):
    build = good[:-1] + pickle.dumps(state, 2)[2:-1] + b"b."
    with pytest.raises(ValueError, match="cut short or broken"):
      torch_pickle.read(_write(tmp_path / "a.pth", build))


@pytest.mark.parametrize(
  ("first", "shape", "strides"),
  [
    (0, (7,), (1,)),
    (5, (2,), (1,)),
    (0, (2, 2), (5, 1)),
    (-1, (2,), (1,)),
    (4, (2,), (-1,)),
    (0, (2, 2), (1,)),
    (0, (1.5,), (1,)),
  ],
)
def test_a_tensor_outside_its_storage_is_refused(
  first, shape, strides, tmp_path
):
  value = np.arange(6, dtype=np.float32)
  tensor = torch_files.tensor("0", value, first, shape, strides)
  path = _write(tmp_path / "a.pth", _dumped({"w": tensor}))
  with pytest.raises(ValueError, match=r"a\.pth: .*a tensor of shape"):
    torch_pickle.read(path)


def test_a_truncated_file_is_named(state, tmp_path):
  path = torch_files.save(tmp_path / "a.pth", state)
  path.write_bytes(path.read_bytes()[:-200])
  with pytest.raises(ValueError, match=r"a\.pth is cut short or broken"):
    torch_pickle.read(path)


def test_the_format_before_zip_is_named(tmp_path):
  (tmp_path / "a.pth").write_bytes(pickle.dumps(0x1950A86A20F9469CFC6C, 2))
  with pytest.raises(ValueError, match=r"torch 1\.6 or newer"):
    torch_pickle.read(tmp_path / "a.pth")


def test_a_compressed_file_is_refused(state, tmp_path):
  path = torch_files.save(
    tmp_path / "a.pth", state, compress=zipfile.ZIP_DEFLATED
  )
  with pytest.raises(ValueError, match="is compressed; save the file again"):
    torch_pickle.read(path)


@pytest.mark.parametrize("value", [{"epoch": 3}, {"model": {}}, 3, ["w"]])
def test_other_things_than_tensors_by_name_are_refused(value, tmp_path):
  path = _write(tmp_path / "a.pth", pickle.dumps(value, 2))
  with pytest.raises(ValueError, match=r"save model\.state_dict\(\) alone"):
    torch_pickle.read(path)
