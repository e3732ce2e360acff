"""How arrays of a checkpoint are written."""

from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp

# Devices that hold the same array write a part of it each, if parts are this
# large. Smaller ones cost more than they save: each is a program to compile, at
# the first checkpoint, which may be that of a run told to stop. A toy's 428
# programs took 11 seconds on 8 CPU devices.
_PART_BYTES = 1 << 20


def handler() -> ocp.PyTreeCheckpointHandler:
  """Writes trees of `jax.Array`; what it wrote, any handler of trees reads."""
  types = ocp.type_handlers
  arrays = types.ArrayHandler(min_slice_bytes_for_replica_parallel=_PART_BYTES)
  return ocp.PyTreeCheckpointHandler(
    type_handler_registry=types.create_type_handler_registry(
      (jax.Array, arrays)
    )
  )


def alone(folder: epath.Path, arrays: Any) -> None:
  """Writes a tree of arrays that is no part of a checkpoint."""
  with ocp.Checkpointer(handler()) as checkpointer:
    checkpointer.save(folder, args=ocp.args.PyTreeSave(arrays), force=True)
