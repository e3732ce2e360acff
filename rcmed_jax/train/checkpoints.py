"""Checkpoints of a run: one item per concern, written in the background.

  workdir/
    frozen/                 weights that never train, written once
    checkpoints/STEP/
      trainable/            trained weights, float32
      optimizer/            moments of AdamW
      data/                 state of the data iterator (JSON)
      meta/                 step and what the caller adds (JSON)

Arrays are stored as pure dicts by parameter path. `workdir` may lie in a bucket
(gs://). Several processes write one checkpoint together: all must see the same
`workdir`, and all must call what is here together.
"""

import errno
import os
import shutil
from typing import Any

from etils import epath
from flax import nnx
import jax
import orbax.checkpoint as ocp

from rcmed_jax.data import files
from rcmed_jax.parallel import hosts
from rcmed_jax.train import step as steps

# Files beside the arrays: metadata, manifests. Generous for a toy.
OVERHEAD_BYTES = 4 << 20

# What Orbax and TensorStore raise for files that are missing or cut short.
_READ_ERRORS = (OSError, ValueError, KeyError, TypeError)


class Checkpoints:
  """The checkpoints in one working directory; use as a context manager."""

  def __init__(self, workdir: str | os.PathLike[str], *, keep: int = 2):
    """Opens, or makes, `workdir`; the newest `keep` checkpoints survive."""
    self._workdir = files.absolute(workdir)
    self._folder = self._workdir / "checkpoints"
    self._frozen = self._workdir / "frozen"
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep, cleanup_tmp_directories=True
      ),
      item_handlers={
        "trainable": ocp.StandardCheckpointHandler(),
        "optimizer": ocp.StandardCheckpointHandler(),
        "data": ocp.JsonCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
      },
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()

  def latest(self) -> int | None:
    """The step of the newest complete checkpoint."""
    return self._manager.latest_step()

  def save(
    self, state: steps.TrainState, data_state: Any, meta: dict[str, Any]
  ) -> None:
    """Starts writing; returns when the arrays may be overwritten.

    Args:
      state: after `state.step` steps.
      data_state: JSON; where the data iterator stood after that step's batch.
      meta: JSON; kept beside it.

    Raises:
      OSError: where the disk has no room, for this checkpoint or, found
        late, for the one before it.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    frozen_missing = bool(state.frozen) and hosts.first_decides(
      not self._frozen.exists()
    )
    needed = _bytes((state.trainable, state.moments)) + OVERHEAD_BYTES
    if frozen_missing:
      needed += _bytes(state.frozen)
    hosts.first_does(lambda: self._require_space(needed))
    try:
      if frozen_missing:
        with ocp.StandardCheckpointer() as checkpointer:
          checkpointer.save(self._frozen, state.frozen)
      self._manager.save(
        step,
        args=ocp.args.Composite(
          trainable=ocp.args.StandardSave(state.trainable),
          optimizer=ocp.args.StandardSave(state.moments),
          data=ocp.args.JsonSave({"state": data_state}),
          meta=ocp.args.JsonSave({"step": step, **meta}),
        ),
      )
    except (OSError, ValueError, RuntimeError) as error:
      raise self._explained(error, needed) from error

  def wait(self) -> None:
    """Returns when everything is on disk; raises what went wrong there."""
    try:
      self._manager.wait_until_finished()
    except (OSError, ValueError, RuntimeError) as error:
      raise self._explained(error, needed=None) from error

  def restore(self, abstract: steps.TrainState) -> tuple[steps.TrainState, Any]:
    """(state, data iterator's state) of the newest checkpoint.

    Args:
      abstract: shapes, dtypes and shardings to restore to; the mesh may be
        another than the one that saved.

    Raises:
      ValueError: where there is none, or it cannot be read, or it belongs to
        another model or optimizer.
    """
    step = self._newest()
    try:
      self._require_same_model(step, abstract.trainable)
      items = self._manager.restore(
        step,
        args=ocp.args.Composite(
          trainable=ocp.args.StandardRestore(abstract.trainable),
          optimizer=ocp.args.StandardRestore(abstract.moments),
          data=ocp.args.JsonRestore(),
          meta=ocp.args.JsonRestore(),
        ),
      )
      frozen = {}
      if abstract.frozen:
        with ocp.StandardCheckpointer() as checkpointer:
          frozen = checkpointer.restore(self._frozen, abstract.frozen)
    except _READ_ERRORS as error:
      raise self._unreadable(step, error) from error
    state = steps.TrainState(
      step=jax.device_put(items["meta"]["step"], abstract.step.sharding).astype(
        abstract.step.dtype
      ),
      trainable=items["trainable"],
      frozen=frozen,
      moments=items["optimizer"],
    )
    return state, items["data"]["state"]

  def meta(self) -> dict[str, Any]:
    """What `save` was given as meta, and "step", of the newest checkpoint."""
    step = self._newest()
    try:
      items = self._manager.restore(
        step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
      )
    except _READ_ERRORS as error:
      raise self._unreadable(step, error) from error
    return items["meta"]

  def weights(
    self, sharding: jax.sharding.Sharding | None = None
  ) -> dict[str, Any]:
    """Trained and frozen weights as one pure dict, for `nnx.merge`.

    Args:
      sharding: where every array goes; by default this process's first device.
    """
    step = self._newest()
    sharding = sharding or jax.sharding.SingleDeviceSharding(
      jax.local_devices()[0]
    )
    try:
      parts = [
        self._manager.restore(
          step,
          args=ocp.args.Composite(
            trainable=ocp.args.StandardRestore(
              _abstract(self._stored(step), sharding)
            )
          ),
        )["trainable"]
      ]
      if self._frozen.exists():
        with ocp.StandardCheckpointer() as checkpointer:
          stored = checkpointer.metadata(self._frozen).item_metadata
          parts.append(
            checkpointer.restore(self._frozen, _abstract(stored, sharding))
          )
    except _READ_ERRORS as error:
      raise self._unreadable(step, error) from error
    merged = {}
    for part in parts:
      merged |= nnx.traversals.flatten_mapping(part)
    return nnx.restore_int_paths(nnx.traversals.unflatten_mapping(merged))

  def close(self) -> None:
    """Waits for the writing, then lets go."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def _newest(self) -> int:
    step = self.latest()
    if step is None:
      raise ValueError(
        f"{self._folder}: holds no complete checkpoint. Train first, or give "
        "the working directory of a run."
      )
    return step

  def _stored(self, step: int) -> Any:
    """Shapes and dtypes of the trained parameters of a checkpoint."""
    stored = self._manager.item_metadata(step)["trainable"]
    if stored is None:
      raise ValueError("the description of its trained parameters is missing.")
    return stored

  def _require_same_model(self, step: int, trainable: Any) -> None:
    """Names the first parameters that differ; Orbax' own words do not."""
    there, here = _shapes(self._stored(step).tree), _shapes(trainable)
    if there.keys() != here.keys():
      raise ValueError(
        "trained parameters only there: "
        f"{', '.join(sorted(there.keys() - here.keys())[:3]) or 'none'}; "
        "only here: "
        f"{', '.join(sorted(here.keys() - there.keys())[:3]) or 'none'}."
      )
    for name, shape in here.items():
      if there[name] != shape:
        raise ValueError(
          f"{name} has shape {there[name]} there and {shape} here."
        )

  def _require_space(self, needed: int) -> None:
    if files.is_remote(self._workdir):
      return  # buckets do not fill
    free = shutil.disk_usage(self._workdir).free
    if needed > free:
      raise OSError(_no_space(self._folder, needed, free))

  def _explained(self, error: Exception, needed: int | None) -> Exception:
    """A full disk in words; any other error as it is."""
    full = getattr(error, "errno", None) == errno.ENOSPC
    full = full or "No space left" in str(error)
    if not full or files.is_remote(self._workdir):
      return error
    free = shutil.disk_usage(self._workdir).free
    return OSError(_no_space(self._folder, needed, free))

  def _unreadable(self, step: int, error: Exception) -> ValueError:
    path = self._folder / str(step)
    others = [s for s in self._manager.all_steps() if s != step]
    return ValueError(
      f"{path}: the checkpoint cannot be restored: {error}\nIf it is damaged, "
      f"delete that folder to go on from "
      + (f"step {max(others)}" if others else "the start")
      + "; if model or optimizer settings changed, use another workdir."
    )


def _abstract(metadata: Any, sharding: jax.sharding.Sharding) -> Any:
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    metadata.tree,
  )


def _shapes(arrays: Any) -> dict[str, tuple[int, ...]]:
  """Shapes by dotted name."""
  return {
    jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape
    for path, leaf in jax.tree.leaves_with_path(arrays)
  }


def _bytes(arrays: Any) -> int:
  return sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))


def _no_space(folder: epath.Path, needed: int | None, free: int) -> str:
  wanted = "more" if needed is None else f"{needed:,} bytes"
  return (
    f"{folder}: no space for a checkpoint: it needs {wanted}, {free:,} bytes "
    "are free. Free disk space, lower train.keep, or choose a workdir on "
    "another disk; the checkpoints before this one are whole."
  )
