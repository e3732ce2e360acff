"""The device mesh: four named axes that always exist; their sizes may be 1.

slice   over slices, across the data-centre network; batch only
data    batch; weights replicated
fsdp    batch and weights
tensor  weights inside a layer
"""

from collections.abc import Sequence
import dataclasses
import math
import re
from typing import Any

import jax
from jax.experimental import mesh_utils
import numpy as np

MESH_AXES = ("slice", "data", "fsdp", "tensor")
BATCH_AXES = ("slice", "data", "fsdp")

# An abstract one has no devices: enough to place shapes by.
AnyMesh = jax.sharding.Mesh | jax.sharding.AbstractMesh

_AUTO = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the mesh axes; at most one -1 takes the devices that are left."""

  slice: int = 1
  data: int = -1
  fsdp: int = 1
  tensor: int = 1


def parse(text: str) -> MeshConfig:
  """The sizes that "data=4,fsdp=2" names; the others are 1.

  Raises:
    ValueError: an axis that does not exist, or a size that is no number.
  """
  sizes = dict.fromkeys(MESH_AXES, 1)
  for part in text.split(","):
    name, _, size = part.strip().partition("=")
    if name not in sizes or not re.fullmatch(r"-1|[1-9]\d*", size):
      raise ValueError(
        f"mesh {text!r}: expected sizes of {', '.join(MESH_AXES)}, as in "
        "data=4,fsdp=2; -1 takes the devices that are left."
      )
    sizes[name] = int(size)
  return MeshConfig(**sizes)


def make_mesh(
  config: MeshConfig, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
  """The mesh of `devices`, by default all of them.

  Axes are Auto: the compiler propagates shardings; Explicit axes, JAX's
  default, refuse weights that share an axis with the batch.

  Devices of several slices (their `slice_index`) are arranged so that only the
  axis `slice` crosses from one to another. GPUs, of which every machine counts
  as one, may be arranged as one slice too.

  Args:
    config: sizes.
    devices: of JAX.

  Raises:
    ValueError: where the sizes do not multiply to the number of devices, or
      `slice` is not the number of slices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = _sizes(config, len(devices))
  slices = {getattr(device, "slice_index", 0) for device in devices}
  if len(slices) > 1:
    arranged = _across_slices(sizes, len(slices), devices)
    return jax.sharding.Mesh(arranged, MESH_AXES, axis_types=_AUTO)
  try:
    return jax.make_mesh(sizes, MESH_AXES, axis_types=_AUTO, devices=devices)
  except NotImplementedError:
    # No sides of the torus multiply to such a size, as 16 on 8 x 8 x 8: one of
    # them is cut.
    arranged = mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
    return jax.sharding.Mesh(arranged, MESH_AXES, axis_types=_AUTO)


def abstract_mesh(
  config: MeshConfig, devices: int
) -> jax.sharding.AbstractMesh:
  """The mesh of that many devices, which need not exist.

  Raises:
    ValueError: where the sizes do not multiply to `devices`.
  """
  return jax.sharding.AbstractMesh(
    _sizes(config, devices), MESH_AXES, axis_types=_AUTO
  )


def batch_shards(mesh: AnyMesh) -> int:
  """Into how many parts the batch is cut."""
  return math.prod(mesh.shape[name] for name in BATCH_AXES)


def batch_part(mesh: jax.sharding.Mesh) -> tuple[int, int]:
  """(i, n): this process loads the i-th of n parts of every batch.

  There are as many parts as processes, unless some hold the same rows because
  the tensor axis lies across them.

  Raises:
    ValueError: processes share rows in part.
  """
  held: dict[int, set[int]] = {}  # process -> its shards of the batch
  shards = mesh.devices.reshape(batch_shards(mesh), -1)
  for (shard, _), device in np.ndenumerate(shards):
    held.setdefault(device.process_index, set()).add(shard)
  parts = sorted({tuple(sorted(rows)) for rows in held.values()})
  if sum(map(len, parts)) != len(shards) or len({*map(len, parts)}) > 1:
    raise ValueError(
      f"mesh {dict(mesh.shape)}: processes share parts of the batch unevenly; "
      "choose a mesh.tensor that divides the devices of a process, or is "
      "divided by them."
    )
  return parts.index(tuple(sorted(held[jax.process_index()]))), len(parts)


def _across_slices(
  sizes: tuple[int, ...], slices: int, devices: Sequence[Any]
) -> np.ndarray:
  if sizes[0] == slices:
    return mesh_utils.create_hybrid_device_mesh(
      (1, *sizes[1:]),
      (slices, *(1 for _ in sizes[1:])),
      devices,
      allow_split_physical_axes=True,
    )
  if sizes[0] == 1 and devices[0].platform != "tpu":
    return mesh_utils.create_device_mesh(sizes, devices)
  raise ValueError(
    f"mesh.slice={sizes[0]}, but the devices lie in {slices} slices; set "
    f"mesh.slice={slices}, so that only the batch is cut between them."
  )


def _sizes(config: MeshConfig, devices: int) -> tuple[int, ...]:
  sizes = dataclasses.astuple(config)
  told = ", ".join(f"{n}={s}" for n, s in zip(MESH_AXES, sizes, strict=True))
  if any(size < 1 and size != -1 for size in sizes) or sizes.count(-1) > 1:
    raise ValueError(
      f"mesh: sizes must be positive, at most one of them -1; got {told}."
    )
  known = math.prod(size for size in sizes if size != -1)
  filled = tuple(devices // known if size == -1 else size for size in sizes)
  if math.prod(filled) != devices:
    raise ValueError(
      f"mesh: {told} makes {known} devices"
      + (" times any number" if -1 in sizes else "")
      + f", but there are {devices}. Choose sizes whose product is {devices}, "
      "or set one of them to -1."
    )
  return filled
