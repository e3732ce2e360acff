"""Where every array lies: one total table from logical axes to the mesh."""

import math
from typing import Any

from flax import nnx
import jax
from jax.sharding import NamedSharding, PartitionSpec

from rcmed_jax import axes
from rcmed_jax.parallel import mesh as meshes

# Every name of `axes.LOGICAL_AXES`, each once. A parameter that names a mesh
# axis twice (embed to embed) keeps it on the first of the two.
RULES: dict[str, str | tuple[str, ...] | None] = {
  axes.BATCH: meshes.BATCH_AXES,
  axes.LAYERS: None,  # scanned: every device needs every layer in turn
  axes.STAGES: None,
  axes.EMBED: "fsdp",
  axes.HEADS: "tensor",
  axes.MLP: "tensor",
  axes.VOCAB: "tensor",
  axes.RANK: None,  # too small to cut
  axes.CHANNELS: None,
  axes.SPACE: None,
  axes.TOKENS: None,
  axes.VECTOR: None,
}


def param_shardings(
  state: nnx.State, mesh: jax.sharding.Mesh
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """The sharding of every parameter, and what could not be cut.

  A dimension that its mesh axis does not divide is replicated, because a
  vocabulary of 32007 must not stop a run; each case is reported.

  Args:
    state: parameters, abstract or real, whose variables carry logical axis
      names (`model.layers.named`).
    mesh: of `make_mesh`.

  Returns:
    (a pure dict like `nnx.to_pure_dict(state)` of NamedShardings,
    one sentence for each dimension that had to stay whole).

  Raises:
    ValueError: for a parameter without names, with the wrong number of them,
      or with a name that the table does not know.
  """
  whole: list[str] = []
  shardings = {}
  for path, variable in nnx.to_flat_state(state):
    name = ".".join(map(str, path))
    spec = _spec(name, variable, mesh, whole)
    shardings[path] = NamedSharding(mesh, spec)
  return nnx.traversals.unflatten_mapping(shardings), tuple(whole)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
  """First axis over slice, data and fsdp; the others whole."""
  return NamedSharding(mesh, PartitionSpec(RULES[axes.BATCH]))


def replicated(mesh: jax.sharding.Mesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def _spec(
  name: str,
  variable: nnx.Variable,
  mesh: jax.sharding.Mesh,
  whole: list[str],
) -> PartitionSpec:
  """The partition of one parameter; appends to `whole` what stays whole."""
  shape = variable.shape
  logical = variable.get_metadata().get("out_sharding") or ()
  if len(logical) != len(shape):
    raise ValueError(
      f"{name}: shape {shape} has {len(shape)} axes, but its logical names "
      f"are {tuple(logical)}. Name every axis with model.layers.named."
    )
  taken: set[str] = set()
  spec = []
  for index, (axis, size) in enumerate(zip(logical, shape, strict=True)):
    mesh_axes = mesh_axes_of(name, axis)
    ways = math.prod(mesh.shape[mesh_axis] for mesh_axis in mesh_axes)
    if ways == 1 or taken.intersection(mesh_axes):
      spec.append(None)
    elif size % ways:
      whole.append(
        f"{name}: axis {index} ({axis}, {size}) does not divide by "
        f"{'*'.join(mesh_axes)} = {ways} and is replicated."
      )
      spec.append(None)
    else:
      taken.update(mesh_axes)
      spec.append(mesh_axes)
  return PartitionSpec(*spec)


def mesh_axes_of(name: str, axis: str) -> tuple[str, ...]:
  """The mesh axes that cut a logical one; none where it stays whole.

  Args:
    name: whose axis it is, for the error.
    axis: one of `axes.LOGICAL_AXES`.

  Raises:
    ValueError: the table does not know the axis.
  """
  if axis not in RULES:
    raise ValueError(
      f"{name}: logical axis {axis!r} is unknown; choose one of "
      f"{axes.LOGICAL_AXES} or add it to axes.py and parallel/rules.py."
    )
  rule = RULES[axis]
  if rule is None:
    return ()
  return (rule,) if isinstance(rule, str) else rule
