"""Ops that the compiler cannot cut, run by each device on its own part.

The compiler propagates shardings through plain XLA, but a kernel is a closed
box to it: it would refuse it, or gather all operands on every device. An
attention is independent in every row and every head, so each device can call
it on the rows and heads that it holds.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.parallel import rules


def local(
  op: Callable[..., Any], in_axes: Sequence[PartitionSpec], out_axes: Any
) -> Callable[..., Any]:
  """`op` with the same arguments and results, cut along named axes.

    P = jax.sharding.PartitionSpec
    rows_and_heads = P(axes.BATCH, None, axes.HEADS, None)
    attend = local(attention, (rows_and_heads,) * 3, rows_and_heads)

  The mesh is the one in scope while `attend` is traced (`jax.set_mesh`).
  Without one, on a mesh of one device, or where the devices already work
  apart, it is `op` itself. An axis that the mesh does not divide, such as a
  batch of one on eight devices, stays whole: every device computes all of it.

  It serves every implementation of an op, plain XLA too: the program stays
  the same whichever runs, and rows and heads that are cut already cost no
  communication.

  Args:
    op: independent along every named axis; takes arrays, or None where
      nothing is given, by position.
    in_axes: for each argument the logical name (`axes.py`) of every dimension
      that may be cut, None for the others.
    out_axes: the same for the result, or a tree of them like the result.

  Raises:
    ValueError: when called, for names that `rules.RULES` does not know.
  """

  def run(*args: Any) -> Any:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or mesh.manual_axes:
      return op(*args)
    cuts = _cuts(mesh, in_axes, args)

    def place(logical: PartitionSpec) -> PartitionSpec:
      return PartitionSpec(*(name and cuts[name] for name in logical))

    return jax.shard_map(
      op,
      in_specs=tuple(map(place, in_axes)),
      out_specs=jax.tree.map(place, out_axes),
      check_vma=False,  # kernels do not say along what their results vary
    )(*args)

  return run


def rows_apart(function: Callable[..., Any], arrays: Any) -> Callable[..., Any]:
  """`function(arrays, *rows)` on the mesh on which the arrays lie, if on one.

  Where every device holds all of them, each calls the function by itself on its
  own rows, so that what it computes does not depend on how many others there
  are. Elsewhere, and for rows that the devices do not divide, the compiler cuts
  it. For functions that are traced with sharded arrays and know no mesh
  otherwise.

  Args:
    function: of the arrays and of trees whose leaves begin with the rows;
      independent in every row.
    arrays: a tree, all on one mesh; real, or shapes with shardings.
  """
  mesh = mesh_of(arrays)
  if mesh is None:
    return function
  shards = meshes.batch_shards(mesh)
  whole = shards == mesh.size and all(
    leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(arrays)
  )

  def run(arrays: Any, *rows: Any) -> Any:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      if not whole or len(jax.tree.leaves(rows)[0]) % shards:
        return function(arrays, *rows)
      own = PartitionSpec(meshes.BATCH_AXES)
      return jax.shard_map(
        function,
        in_specs=(PartitionSpec(), *(own for _ in rows)),
        out_specs=own,
        check_vma=False,  # as above
      )(arrays, *rows)

  return run


def mesh_of(arrays: Any) -> meshes.AnyMesh | None:
  """The mesh on which a tree of arrays lies; None where it lies on none."""
  sharding = jax.tree.leaves(arrays)[0].sharding
  return sharding.mesh if isinstance(sharding, NamedSharding) else None


def _cuts(
  mesh: jax.sharding.AbstractMesh,
  in_axes: Sequence[PartitionSpec],
  args: Sequence[Any],
) -> dict[str, tuple[str, ...] | None]:
  """The mesh axes of every logical one; None where a size does not divide."""
  cuts: dict[str, tuple[str, ...] | None] = {}
  for logical, arg in zip(in_axes, args, strict=True):
    for name, size in zip(
      logical, () if arg is None else arg.shape, strict=False
    ):
      if name is None:
        continue
      mesh_axes = rules.mesh_axes_of("local", name)
      ways = math.prod(mesh.shape[axis] for axis in mesh_axes)
      cuts.setdefault(name, mesh_axes)
      if size % ways:
        cuts[name] = None
  return cuts
