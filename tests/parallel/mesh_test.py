import dataclasses
import types

import jax
import numpy as np
import pytest

from rcmed_jax.parallel import mesh as meshes


def test_sizes_are_read_from_text():
  assert meshes.parse("data=4, fsdp=2") == meshes.MeshConfig(data=4, fsdp=2)
  assert meshes.parse("data=-1").data == -1
  for text in ("data", "data=0", "rows=2", "data=two", ""):
    with pytest.raises(ValueError, match="expected sizes of slice, data"):
      meshes.parse(text)


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


@dataclasses.dataclass(frozen=True)
class Chip:
  """What a mesh asks a device for."""

  id: int
  process_index: int
  slice_index: int = 0
  platform: str = "tpu"
  device_kind: str = "unknown"
  core_on_chip: int = 0

  @property
  def coords(self):
    """Of a slice of eight: two by four."""
    return self.id % 8 // 4, self.id % 4, 0


def chips(slices, hosts, each, platform="tpu"):
  """Devices in any order: slices of hosts of chips."""
  found = [
    Chip((s * hosts + h) * each + chip, s * hosts + h, s, platform=platform)
    for s in range(slices)
    for h in range(hosts)
    for chip in range(each)
  ]
  return found[::2] + found[1::2]


@dataclasses.dataclass(frozen=True)
class CubeChip(Chip):
  """One of a torus of 4 x 4 x 4."""

  device_kind: str = "TPU v5"

  @property
  def coords(self):
    return self.id // 16, self.id // 4 % 4, self.id % 4


def in_order(devices, sizes):
  """A mesh of devices in their order, as far as `batch_part` looks at it."""
  line = np.array(sorted(devices, key=lambda chip: chip.id))
  return types.SimpleNamespace(
    devices=line.reshape(sizes),
    shape=dict(zip(meshes.MESH_AXES, sizes, strict=True)),
  )


def test_only_the_slice_axis_crosses_slices():
  config = meshes.MeshConfig(slice=-1, data=1, fsdp=4, tensor=2)
  mesh = meshes.make_mesh(config, chips(2, 2, 4))
  assert dict(mesh.shape) == {"slice": 2, "data": 1, "fsdp": 4, "tensor": 2}
  for index, part in enumerate(mesh.devices):
    assert {chip.slice_index for chip in part.flat} == {index}
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_an_axis_may_cut_a_side_of_the_torus():
  """No sides of 4 x 4 x 4 multiply to 8."""
  devices = [CubeChip(id, id // 4) for id in range(64)]
  mesh = meshes.make_mesh(meshes.MeshConfig(data=8, fsdp=8), devices)
  assert dict(mesh.shape) == {"slice": 1, "data": 8, "fsdp": 8, "tensor": 1}
  assert {chip.id for chip in mesh.devices.flat} == set(range(64))
  for line in mesh.devices[0, :, :, 0]:
    sides = np.ptp([chip.coords for chip in line], axis=0) + 1
    assert np.prod(sides) == 8  # a box of its own


@pytest.mark.parametrize("size", [1, 4])
def test_weights_are_not_cut_between_slices(size):
  with pytest.raises(ValueError, match=f"mesh.slice={size}.*set mesh.slice=2"):
    meshes.make_mesh(meshes.MeshConfig(slice=size), chips(2, 2, 4))


def test_machines_of_gpus_may_be_one_slice():
  config = meshes.MeshConfig(data=1, fsdp=16)
  mesh = meshes.make_mesh(config, chips(2, 2, 4, platform="gpu"))
  assert mesh.shape["fsdp"] == 16


@pytest.mark.parametrize(
  "sizes, part, parts",
  [
    # Two hosts of four chips; this process is the second.
    ((1, 8, 1, 1), 1, 2),
    ((1, 1, 4, 2), 1, 2),
    ((1, 2, 1, 4), 1, 2),
    ((1, 1, 1, 8), 0, 1),  # both hold every row
  ],
)
def test_part_of_the_batch_of_a_process(monkeypatch, sizes, part, parts):
  monkeypatch.setattr(jax, "process_index", lambda: 1)
  mesh = in_order(chips(1, 2, 4), sizes)
  assert meshes.batch_part(mesh) == (part, parts)


def test_rows_that_processes_share_in_part_are_refused():
  # Three hosts of two chips; tensor=3 lies across one and a half of them.
  mesh = in_order(chips(1, 3, 2), (1, 2, 1, 3))
  with pytest.raises(ValueError, match=r"unevenly; choose a mesh\.tensor"):
    meshes.batch_part(mesh)
