"""Rows of a table that many devices hold in parts.

The compiler would bring the whole table together on every device, and its
gradient as well. Here a device sends its ids to those that hold other columns,
each looks them up in its own part, and the columns come back.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rcmed_jax import axes
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.parallel import rules


def lookup(table_VD: jax.Array, ids: jax.Array, dtype: Any) -> jax.Array:
  """[..., D] of `dtype`: the rows of the table that the ids name.

  The table lies as VOCAB and EMBED do in `rules.RULES`, ids [B, S] as BATCH.
  Of ids in another shape, without a mesh in scope, or where it does not divide
  them, the compiler does it. Gradients of one id's many uses are added in the
  table's own dtype.

  Args:
    table_VD: of which one row an id.
    ids: int32, in range.
    dtype: to which the rows are rounded.
  """
  mesh = jax.sharding.get_abstract_mesh()
  (row_axis,) = rules.mesh_axes_of("lookup", axes.VOCAB)
  (column_axis,) = rules.mesh_axes_of("lookup", axes.EMBED)
  if (
    mesh.empty
    or mesh.size == 1
    or mesh.manual_axes
    or ids.ndim != 2
    or len(ids) % meshes.batch_shards(mesh)
    or table_VD.shape[0] % mesh.shape[row_axis]
    or table_VD.shape[1] % mesh.shape[column_axis]
  ):
    return table_VD[ids].astype(dtype)
  batch = PartitionSpec(rules.RULES[axes.BATCH])
  return jax.shard_map(
    functools.partial(
      _lookup, dtype=dtype, row_axis=row_axis, column_axis=column_axis
    ),
    in_specs=(PartitionSpec(row_axis, column_axis), batch),
    out_specs=batch,
    check_vma=False,
  )(table_VD, ids)


def _lookup(
  table_VD: jax.Array,
  ids_BS: jax.Array,
  *,
  dtype: Any,
  row_axis: str,
  column_axis: str,
) -> jax.Array:
  """On one device, with its part of the table and its own ids."""
  ids_BS = jax.lax.all_gather(ids_BS, column_axis, axis=0, tiled=True)
  ids_BS -= jax.lax.axis_index(row_axis) * len(table_VD)
  here_BS = (ids_BS >= 0) & (ids_BS < len(table_VD))
  found_BSD = table_VD[jnp.where(here_BS, ids_BS, 0)].astype(dtype)
  found_BSD = jnp.where(here_BS[:, :, None], found_BSD, 0)
  # Every id is in one part, so this adds zeros only.
  found_BSD = jax.lax.psum(found_BSD, row_axis)
  return jax.lax.all_to_all(
    found_BSD, column_axis, split_axis=0, concat_axis=2, tiled=True
  )
