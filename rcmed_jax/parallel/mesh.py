"""The device mesh: four named axes that always exist; their sizes may be 1.

slice   over slices of a pod, across the data-centre network; batch only
data    batch; weights replicated
fsdp    batch and weights
tensor  weights inside a layer
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import jax

MESH_AXES = ("slice", "data", "fsdp", "tensor")
BATCH_AXES = ("slice", "data", "fsdp")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the mesh axes; at most one -1 takes the devices that are left."""

  slice: int = 1
  data: int = -1
  fsdp: int = 1
  tensor: int = 1


def make_mesh(
  config: MeshConfig, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
  """The mesh of `devices`, by default all of them.

  Axes are Auto: the compiler propagates shardings; Explicit axes, JAX's
  default, refuse weights that share an axis with the batch.

  Args:
    config: sizes.
    devices: of JAX.

  Raises:
    ValueError: where the sizes do not multiply to the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  sizes = _sizes(config, len(devices))
  return jax.make_mesh(
    sizes,
    MESH_AXES,
    axis_types=(jax.sharding.AxisType.Auto,) * len(MESH_AXES),
    devices=devices,
  )


def batch_shards(mesh: jax.sharding.Mesh) -> int:
  """Into how many parts the batch is cut."""
  return math.prod(mesh.shape[name] for name in BATCH_AXES)


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
