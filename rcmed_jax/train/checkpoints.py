"""Checkpoints of a run: one item per concern, written in the background.

  workdir/
    frozen/                 weights that never train, written once
    checkpoints/STEP/
      trainable/            trained weights, float32
      optimizer/            moments of AdamW
      average/              averaged weights, where optimizer.average keeps any
      data/                 state of the data iterator (JSON)
      meta/                 step, what the caller adds, fingerprints (JSON)
  damaged/STEP/             what could not be restored, set aside

Arrays are stored as pure dicts by parameter path. `workdir` may lie in a bucket
(gs://). Several processes write one checkpoint together: all must see the same
`workdir`, and all must call what is here together.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import shutil
from typing import Any
import zlib

from etils import epath
from flax import nnx
import jax
import orbax.checkpoint as ocp

from rcmed_jax.data import files
from rcmed_jax.parallel import hosts
from rcmed_jax.train import averages, fingerprints, scores
from rcmed_jax.train import step as steps

# A full disk, a quota that is used up, a limit on a file's size.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

# How long Orbax lets a checkpoint take. It goes by the wall clock, and one that
# jumps ahead must fail none; what hangs is the watchdog's to end.
_LONGEST_S = 10 * 24 * 3600

# Files beside the arrays: metadata, manifests. Generous for a toy.
OVERHEAD_BYTES = 4 << 20

# What Orbax and TensorStore raise for files that are missing or cut short.
_READ_ERRORS = (OSError, ValueError, KeyError, TypeError)

# Characters of such an error that a person is shown.
_LONGEST = 400

# Where meta holds the fingerprints of its checkpoint.
_CHECK = "check"


@dataclasses.dataclass(frozen=True)
class Restored:
  """What a run goes on from."""

  state: steps.TrainState
  meta: dict[str, Any]
  data_state: Any  # of the data iterator
  damaged: tuple[str, ...]  # sentences: newer checkpoints, set aside


class _OtherModelError(ValueError):
  """A whole checkpoint of another model: no older one would do."""


class _Kept(ocp.checkpoint_managers.PreservationPolicy):
  """The newest few, and the steps that are given."""

  def __init__(self, newest: int):
    self._newest = newest
    self.steps: Collection[int] = ()

  def should_preserve(
    self, checkpoints: Sequence[Any], *, context: Any
  ) -> list[bool]:
    del context
    steps = [checkpoint.step for checkpoint in checkpoints]
    kept = {*sorted(steps)[-self._newest :], *self.steps}
    return [step in kept for step in steps]


class Checkpoints:
  """The checkpoints in one working directory; use as a context manager."""

  def __init__(self, workdir: str | os.PathLike[str], *, keep: int = 2):
    """Opens, or makes, `workdir`; the newest `keep` checkpoints survive."""
    self._kept = _Kept(keep)
    self._workdir = files.absolute(workdir)
    self._folder = self._workdir / "checkpoints"
    self._frozen = self._workdir / "frozen"
    self._damaged = self._workdir / "damaged"
    self._frozen_prints: dict[str, int] | None = None
    self._manager = ocp.CheckpointManager(
      self._folder,
      options=ocp.CheckpointManagerOptions(
        preservation_policy=self._kept,
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(timeout_secs=_LONGEST_S),
      ),
      item_handlers={
        "trainable": ocp.StandardCheckpointHandler(),
        "optimizer": ocp.StandardCheckpointHandler(),
        "average": ocp.StandardCheckpointHandler(),
        "data": ocp.JsonCheckpointHandler(),
        "meta": ocp.JsonCheckpointHandler(),
      },
    )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, _: object, error: Any, *rest: object) -> None:
    if not hosts.are_gone(error):  # what is half written waits for them
      self.close()

  def latest(self) -> int | None:
    """The step of the newest complete checkpoint."""
    return self._manager.latest_step()

  def all_steps(self) -> list[int]:
    """The steps of all complete checkpoints."""
    return sorted(self._manager.all_steps())

  def save(
    self,
    state: steps.TrainState,
    data_state: Any,
    meta: dict[str, Any],
    *,
    kept: Collection[int] = (),
  ) -> None:
    """Starts writing; returns when the arrays may be overwritten.

    Args:
      state: after `state.step` steps.
      data_state: JSON; where the data iterator stood after that step's batch.
      meta: JSON; kept beside it.
      kept: steps whose checkpoints survive this one, new or not.

    Raises:
      OSError: where the disk has no room, for this checkpoint or, found
        late, for the one before it.
    """
    step = int(state.step)
    self._kept.steps = kept
    if step in self._manager.all_steps():
      return
    frozen_missing = bool(state.frozen) and hosts.first_decides(
      not self._frozen.exists()
    )
    average = averages.of(state.moments)
    needed = _bytes((state.trainable, state.moments, average)) + OVERHEAD_BYTES
    if frozen_missing:
      needed += _bytes(state.frozen)
    hosts.first_does(lambda: self._require_space(needed))
    try:
      if frozen_missing:
        with ocp.StandardCheckpointer() as checkpointer:
          checkpointer.save(self._frozen, state.frozen)
      meta = {"step": step, **meta}
      check = self._prints(state, data_state, meta)
      items = {
        "trainable": ocp.args.StandardSave(state.trainable),
        "optimizer": ocp.args.StandardSave(state.moments),
        "data": ocp.args.JsonSave({"state": data_state}),
      }
      if average is not None:
        check["average"] = fingerprints.of(average)
        items["average"] = ocp.args.StandardSave(average)
      items["meta"] = ocp.args.JsonSave({**meta, _CHECK: check})
      self._manager.save(step, args=ocp.args.Composite(**items))
    except (OSError, ValueError, RuntimeError) as error:
      raise self._explained(error, needed) from error

  def wait(self) -> None:
    """Returns when everything is on disk; raises what went wrong there."""
    try:
      self._manager.wait_until_finished()
    except (OSError, ValueError, RuntimeError) as error:
      raise self._explained(error, needed=None) from error

  def restore(
    self, abstract: steps.TrainState, *, before: int | None = None
  ) -> Restored:
    """The newest checkpoint that is whole.

    Newer ones that are damaged are set aside, once an older one was found to be
    whole: where none is, settings are as likely to be wrong as files.

    Args:
      abstract: shapes, dtypes and shardings to restore to; the mesh may be
        another than the one that saved.
      before: only checkpoints of fewer steps; damaged ones stay where they are.

    Raises:
      ValueError: where there is none, or none can be read, or the newest
        belongs to another model or optimizer.
    """
    self._newest()
    newest_first = sorted(self._manager.all_steps(), reverse=True)
    tried = [s for s in newest_first if before is None or s < before]
    damage: dict[int, Exception] = {}
    for step in tried:
      try:
        state, data_state, meta = self._read(step, abstract)
      except _OtherModelError as error:
        raise self._unreadable(step, error) from error
      except _READ_ERRORS as error:
        damage[step] = error
        continue
      sentences = tuple(
        f"{self._folder / str(bad)}: the checkpoint is damaged, set aside in "
        f"{self._damaged}; going back to step {step}. {_short(error)}"
        for bad, error in damage.items()
      )
      if damage and before is None:
        hosts.first_does(lambda: self._set_aside(list(damage)))
        self._manager.reload()
      return Restored(state, meta, data_state, sentences)
    if not damage:
      raise ValueError(f"{self._folder} holds no checkpoint before {before}.")
    step, error = next(iter(damage.items()))
    raise self._unreadable(step, error) from error

  def meta(self) -> dict[str, Any]:
    """What `save` was given as meta, and "step", of the newest checkpoint."""
    step = self._newest()
    try:
      return self._meta(step)[0]
    except _READ_ERRORS as error:
      raise self._unreadable(step, error) from error

  def digest(self, step: int | None = None) -> str:
    """What a checkpoint of other weights has not; no array is read for it.

    Of one from before there were fingerprints, it tells the meta alone.

    Args:
      step: of the checkpoint; None: the newest.

    Raises:
      ValueError: there is no checkpoint, or its meta is damaged.
    """
    step = self._newest() if step is None else step
    try:
      meta, check = self._meta(step)
    except _READ_ERRORS as error:
      raise self._unreadable(step, error) from error
    held = {
      name: check[name]
      for name in ("trainable", "average", "frozen")
      if name in check
    }
    text = json.dumps([step, held or meta], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

  def best(self) -> int:
    """The step that did best on the held-out set, as the newest tells.

    Raises:
      ValueError: none was kept.
    """
    found = scores.best(self.meta())
    if found is None or found not in self._manager.all_steps():
      raise ValueError(
        f"{self._folder}: no checkpoint is known to be the best; train with "
        "data.validation, train.eval_every and train.keep_best."
      )
    return found

  def weights(
    self,
    sharding: jax.sharding.Sharding | None = None,
    *,
    averaged: bool = False,
    step: int | None = None,
  ) -> dict[str, Any]:
    """Trained and frozen weights as one pure dict, for `nnx.merge`.

    Args:
      sharding: where every array goes; by default this process's first device.
      averaged: of the trained ones their average, where it was kept.
      step: of the checkpoint, as `best` tells it; None: the newest.

    Raises:
      ValueError: there is no checkpoint, or the newest is damaged (who asks a
        model is not to be answered by an older one), or it has no average.
    """
    step = self._newest() if step is None else step
    item = "average" if averaged else "trainable"
    if not (self._folder / str(step) / item).exists() and averaged:
      raise ValueError(
        f"{self._folder / str(step)} holds no averaged weights; train with "
        "optimizer.average=0.999, or ask for the weights themselves."
      )
    sharding = sharding or jax.sharding.SingleDeviceSharding(
      jax.local_devices()[0]
    )
    try:
      _, check = self._meta(step)
      parts = self._weights(step, item, sharding)
      for name, part in zip((item, "frozen"), parts, strict=False):
        if check:
          fingerprints.require(part, check[name])
    except _READ_ERRORS as error:
      raise self._unreadable(step, error) from error
    merged = {}
    for part in parts:
      merged |= nnx.traversals.flatten_mapping(part)
    return nnx.restore_int_paths(nnx.traversals.unflatten_mapping(merged))

  def _weights(
    self, step: int, item: str, sharding: jax.sharding.Sharding
  ) -> list[Any]:
    """An item's arrays, and the frozen ones, if there are any."""
    wanted = _abstract(self._stored(step, item), sharding)
    with _reading_arrays():
      args = ocp.args.Composite(**{item: ocp.args.StandardRestore(wanted)})
      parts = [self._manager.restore(step, args=args)[item]]
      if self._frozen.exists():
        with ocp.StandardCheckpointer() as checkpointer:
          stored = checkpointer.metadata(self._frozen).item_metadata
          parts.append(
            checkpointer.restore(self._frozen, _abstract(stored, sharding))
          )
    return parts

  def close(self) -> None:
    """Waits for the writing, then lets go."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def _read(
    self, step: int, abstract: steps.TrainState
  ) -> tuple[steps.TrainState, Any, dict[str, Any]]:
    """(state, data iterator's state, meta) of a checkpoint that is whole."""
    meta, check = self._meta(step)
    self._require_same_model(step, abstract.trainable)
    frozen = {}
    with _reading_arrays():
      items = self._manager.restore(
        step,
        args=ocp.args.Composite(
          trainable=ocp.args.StandardRestore(abstract.trainable),
          optimizer=ocp.args.StandardRestore(abstract.moments),
          data=ocp.args.JsonRestore(),
        ),
      )
      if abstract.frozen:
        with ocp.StandardCheckpointer() as checkpointer:
          frozen = checkpointer.restore(self._frozen, abstract.frozen)
    data_state = items["data"]["state"]
    if check:
      fingerprints.require(items["trainable"], check["trainable"])
      fingerprints.require(items["optimizer"], check["optimizer"])
      fingerprints.require(frozen, check["frozen"])
      if _sum(data_state) != check["data"]:
        raise ValueError("the data iterator's state is not what was saved.")
    state = steps.TrainState(
      step=jax.device_put(meta["step"], abstract.step.sharding).astype(
        abstract.step.dtype
      ),
      trainable=items["trainable"],
      frozen=frozen,
      moments=items["optimizer"],
    )
    return state, data_state, meta

  def _meta(self, step: int) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """(meta, fingerprints); none of a checkpoint from before there were any."""
    items = self._manager.restore(
      step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
    )
    meta = dict(items["meta"])
    check = meta.pop(_CHECK, {})
    if meta["step"] != step or (check and _sum(meta) != check["meta"]):
      raise ValueError("its meta is not what was saved.")
    return meta, check

  def _prints(
    self, state: steps.TrainState, data_state: Any, meta: Mapping[str, Any]
  ) -> dict[str, Any]:
    if self._frozen_prints is None:  # they never change
      self._frozen_prints = fingerprints.of(state.frozen)
    return {
      "trainable": fingerprints.of(state.trainable),
      "optimizer": fingerprints.of(state.moments),
      "frozen": self._frozen_prints,
      "data": _sum(data_state),
      "meta": _sum(meta),
    }

  def _set_aside(self, damaged: list[int]) -> None:
    self._damaged.mkdir(exist_ok=True)
    for step in damaged:
      target = self._damaged / str(step)
      if target.exists():
        target.rmtree()
      (self._folder / str(step)).rename(target)

  def _newest(self) -> int:
    step = self.latest()
    if step is None:
      raise ValueError(
        f"{self._folder}: holds no complete checkpoint. Train first, or give "
        "the working directory of a run."
      )
    return step

  def _stored(self, step: int, item: str = "trainable") -> Any:
    """Shapes and dtypes of the trained parameters of a checkpoint."""
    stored = self._manager.item_metadata(step)[item]
    if stored is None:
      raise ValueError("the description of its trained parameters is missing.")
    return stored

  def _require_same_model(self, step: int, trainable: Any) -> None:
    """Names the first parameters that differ; Orbax' own words do not."""
    there, here = _shapes(self._stored(step).tree), _shapes(trainable)
    if there.keys() != here.keys():
      raise _OtherModelError(
        "trained parameters only there: "
        f"{', '.join(sorted(there.keys() - here.keys())[:3]) or 'none'}; "
        "only here: "
        f"{', '.join(sorted(here.keys() - there.keys())[:3]) or 'none'}."
      )
    for name, shape in here.items():
      if there[name] != shape:
        raise _OtherModelError(
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
    words = [os.strerror(code) for code in _FULL]
    said = next((one for one in words if one in str(error)), None)
    if said is None or files.is_remote(self._workdir):
      return error
    free = shutil.disk_usage(self._workdir).free
    return OSError(f"{said}. {_no_space(self._folder, needed, free)}")

  def _unreadable(self, step: int, error: Exception) -> ValueError:
    path = self._folder / str(step)
    others = [s for s in self._manager.all_steps() if s != step]
    return ValueError(
      f"{path}: the checkpoint cannot be restored: {error}\nIf it is damaged, "
      f"delete that folder to go on from "
      + (f"step {max(others)}" if others else "the start")
      + "; if model or optimizer settings changed, use another workdir."
    )


@contextlib.contextmanager
def _reading_arrays() -> Iterator[None]:
  """Gives what Orbax raises for a lost part of an array, Exception, a name."""
  try:
    yield
  except Exception as error:
    if type(error) is not Exception:
      raise
    raise ValueError(str(error.__cause__ or error)) from error


def _abstract(metadata: Any, sharding: jax.sharding.Sharding) -> Any:
  return jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    metadata.tree,
  )


def _short(error: Exception) -> str:
  """An error's beginning; TensorStore adds all its settings to it."""
  return str(error).partition("[tensorstore_spec")[0][:_LONGEST]


def _sum(value: Any) -> int:
  """Checksum of a JSON value."""
  return zlib.crc32(json.dumps(value, sort_keys=True).encode())


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
