"""How fast a chip sends to others: which of its links lead there.

A chip of a TPU has two links along each side of its slice's torus. One that
sends along a mesh axis uses those of the sides on which the axis lies: 16 parts
on v5e:16x16 are one side, two links of four.
"""

from collections.abc import Iterable
import dataclasses

import jax
import numpy as np

from rcmed_jax.parallel import chips
from rcmed_jax.parallel import mesh as meshes


@dataclasses.dataclass(frozen=True)
class Road:
  """What a chip sends over."""

  gbs: float  # GB/s of one chip
  network: bool  # the data centre's, not the chip's own links


def road(
  chip: chips.Chip, mesh: meshes.AnyMesh, over: Iterable[str] = ()
) -> Road:
  """The way to all chips that differ along some mesh axes alone.

  A side that a group fills counts two links where it closes to a ring, and one
  elsewhere: the chips at the ends of a row have no more. Without devices, which
  tell where they lie, an axis is taken to lie on a side of its own.

  Args:
    chip: of which kind.
    mesh: of all chips.
    over: mesh axes; none: all.

  Returns:
    The slowest part of the way: the network where a group leaves its slice, or
    the GPUs that links join.
  """
  over = {axis for axis in over or mesh.shape if mesh.shape[axis] > 1}
  if chip.domain is not None:
    servers = _groups(mesh, over) // chip.domain
    network = bool((servers != servers[:, :1]).any())
    return Road(chip.network_gbs if network else chip.link_gbs, network)
  if "slice" in over:
    return Road(chip.network_gbs, True)
  if isinstance(mesh, jax.sharding.Mesh) and hasattr(
    mesh.devices.flat[0], "coords"
  ):
    count = _links(chip, mesh, over)
  else:
    count = 2 * min(len(over), chip.sides)
  # The two devices of a tpu7x chip have no link of the torus between them.
  count = count or 2 * chip.sides
  return Road(chip.link_gbs * count / (2 * chip.sides), False)


def _links(chip: chips.Chip, mesh: jax.sharding.Mesh, over: set[str]) -> int:
  """Links of a chip that lead to its group, of the first group."""
  own = mesh.devices[0]
  group = own[
    tuple(slice(None) if axis in over else 0 for axis in meshes.MESH_AXES[1:])
  ]
  spanned = _extents(group)
  return sum(
    0 if parts == 1 else 2 if parts == whole and whole % chip.ring == 0 else 1
    for parts, whole in zip(spanned, _extents(own), strict=True)
  )


def _extents(devices: np.ndarray) -> list[int]:
  """How many places devices take along each side of the torus."""
  places = np.array([device.coords for device in np.asarray(devices).flat])
  return [len(set(side.tolist())) for side in places.T]


def _groups(mesh: meshes.AnyMesh, over: set[str]) -> np.ndarray:
  """[groups, members] of device numbers, in the mesh's order."""
  ids = np.arange(mesh.size).reshape(tuple(mesh.shape.values()))
  inside = [i for i, axis in enumerate(mesh.shape) if axis in over]
  ids = np.moveaxis(ids, inside, range(-len(inside), 0)) if inside else ids
  members = int(np.prod([mesh.shape[axis] for axis in over]))
  return ids.reshape(-1, members)
