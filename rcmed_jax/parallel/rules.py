"""Where every array lies: one total table from logical axes to the mesh."""

import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from rcmed_jax import axes
from rcmed_jax.parallel import mesh as meshes

# Every name of `axes.LOGICAL_AXES`, each once. An array that names a mesh axis
# twice (embed to embed) keeps it on the first of the two.
RULES: dict[str, str | tuple[str, ...] | None] = {
  axes.BATCH: meshes.BATCH_AXES,
  axes.LENGTH: None,
  axes.WIDTH: None,  # fsdp, which cuts weights here, cuts the batch already
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

LANES = 128  # of a TPU
# Parameters are held with these axes filled up by zeros to a multiple: 32007
# ids, which no mesh divides, take 32128 places.
MULTIPLES = {axes.VOCAB: LANES}


def param_shardings(
  state: nnx.State,
  mesh: meshes.AnyMesh,
  *,
  whole_over: frozenset[str] = frozenset(),
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """The sharding of every parameter, and what could not be cut.

  A dimension that its mesh axis does not divide is replicated, because an odd
  width must not stop a run; each case is reported.

  Args:
    state: parameters, abstract or real, before or after `padded`, whose
      variables carry logical axis names (`model.layers.named`).
    mesh: of `make_mesh`.
    whole_over: mesh axes that cut nothing here.

  Returns:
    (a pure dict like `nnx.to_pure_dict(padded(state))` of NamedShardings,
    one sentence for each dimension that had to stay whole).

  Raises:
    ValueError: for a parameter without names, with the wrong number of them,
      or with a name that the table does not know.
  """
  whole: list[str] = []
  shardings = {}
  for path, variable in nnx.to_flat_state(state):
    name = ".".join(map(str, path))
    names = _names(name, variable)
    shape = _padded_shape(variable.shape, names)
    spec = _partition(name, names, shape, mesh, whole, whole_over)
    shardings[path] = NamedSharding(mesh, spec)
  return nnx.traversals.unflatten_mapping(shardings), tuple(whole)


def padded(state: nnx.State) -> nnx.State:
  """The parameters with the axes of `MULTIPLES` filled up by zeros.

  The model masks what stands beyond its vocabulary, so the zeros get no
  gradient and stay.
  """
  return nnx.from_flat_state(
    (path, variable.replace(_filled(".".join(map(str, path)), variable)))
    for path, variable in nnx.to_flat_state(state)
  )


def _filled(name: str, variable: nnx.Variable) -> jax.Array:
  shape = _padded_shape(variable.shape, _names(name, variable))
  more = [(0, m - n) for n, m in zip(variable.shape, shape, strict=True)]
  return jnp.pad(variable[...], more)


def constrain(values: jax.Array, *names: str) -> jax.Array:
  """The same values, placed by the table if a mesh is in scope.

  Where devices already work apart, each on its own values, they stay there. An
  axis that the mesh does not divide, such as a batch of one, stays whole.

  Args:
    values: an activation.
    names: logical, one an axis.

  Raises:
    ValueError: wrong number of names, or one that the table does not know.
  """
  if len(names) != values.ndim:
    raise ValueError(
      f"constrain: shape {values.shape} has {values.ndim} axes, but the names "
      f"are {names}; give one an axis."
    )
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.manual_axes:
    return values
  spec = _partition("activation", names, values.shape, mesh, [])
  return jax.lax.with_sharding_constraint(values, spec)


def batch_sharding(mesh: meshes.AnyMesh) -> NamedSharding:
  """First axis over slice, data and fsdp; the others whole."""
  return NamedSharding(mesh, PartitionSpec(RULES[axes.BATCH]))


def replicated(mesh: meshes.AnyMesh) -> NamedSharding:
  """The whole array on every device."""
  return NamedSharding(mesh, PartitionSpec())


def _names(name: str, variable: nnx.Variable) -> tuple[str, ...]:
  """The logical axes of a parameter, one an axis."""
  names = tuple(variable.get_metadata().get("out_sharding") or ())
  if len(names) != len(variable.shape):
    raise ValueError(
      f"{name}: shape {variable.shape} has {len(variable.shape)} axes, but its "
      f"logical names are {names}. Name every axis with model.layers.named."
    )
  return names


def _padded_shape(
  shape: tuple[int, ...], names: tuple[str, ...]
) -> tuple[int, ...]:
  return tuple(
    size + -size % MULTIPLES.get(axis, 1)
    for size, axis in zip(shape, names, strict=True)
  )


def _partition(
  name: str,
  names: tuple[str, ...],
  shape: tuple[int, ...],
  mesh: meshes.AnyMesh,
  whole: list[str],
  whole_over: frozenset[str] = frozenset(),
) -> PartitionSpec:
  """The partition of one array; appends to `whole` what stays whole."""
  taken: set[str] = set(whole_over)
  spec = []
  for index, (axis, size) in enumerate(zip(names, shape, strict=True)):
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
