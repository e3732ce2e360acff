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

from collections.abc import Callable, Collection, Mapping
import dataclasses
import hashlib
import json
import os
from typing import Any
import zlib

from etils import epath
from flax import nnx
import jax
import orbax.checkpoint as ocp

from rcmed_jax.data import files
from rcmed_jax.parallel import faults, hosts
from rcmed_jax.train import (
  averages,
  fingerprints,
  reading,
  room,
  scores,
  survivors,
  writing,
)
from rcmed_jax.train import step as steps

# How long Orbax lets a checkpoint take. It goes by the wall clock, and one that
# jumps ahead must fail none; what hangs is the watchdog's to end.
_LONGEST_S = 10 * 24 * 3600

# Files beside the arrays: metadata, manifests. Generous for a toy.
OVERHEAD_BYTES = 4 << 20

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


class Checkpoints:
  """The checkpoints in one working directory; use as a context manager."""

  def __init__(self, workdir: str | os.PathLike[str], *, keep: int = 0):
    """Opens the working directory of a run.

    Args:
      workdir: made, where there is something to keep.
      keep: of what is saved here, the newest checkpoints that survive; 0: only
        reads, and leaves alone what another process is writing.
    """
    self._writes = keep > 0
    self._kept = survivors.Survivors(keep)
    self._workdir = files.absolute(workdir)
    self._folder = self._workdir / "checkpoints"
    self._frozen = self._workdir / "frozen"
    self._damaged = self._workdir / "damaged"
    self._frozen_prints: dict[str, int] | None = None
    self._frozen_written = False
    with reading.unwarned():
      self._manager = ocp.CheckpointManager(
        self._folder,
        options=ocp.CheckpointManagerOptions(
          preservation_policy=self._kept if self._writes else None,
          cleanup_tmp_directories=self._writes,
          read_only=not self._writes,
          create=self._writes,
          async_options=ocp.AsyncOptions(timeout_secs=_LONGEST_S),
        ),
        item_handlers={
          "trainable": writing.handler(),
          "optimizer": writing.handler(),
          "average": writing.handler(),
          "data": ocp.JsonCheckpointHandler(),
          "meta": ocp.JsonCheckpointHandler(),
        },
      )

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, _: object, error: Any, *rest: object) -> None:
    if hosts.are_gone(error):  # what is half written waits for them
      return
    if error is None or isinstance(error, SystemExit):  # all have come here
      self._drop()
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
      ValueError: they were opened to be read.
    """
    if not self._writes:
      raise ValueError(f"{self._folder} was opened to be read; tell `keep`.")
    step = int(state.step)
    self._kept.steps = kept
    if step in self._manager.all_steps():
      return
    frozen_missing = bool(state.frozen) and not self._has_frozen()
    average = averages.of(state.moments)
    needed = _bytes((state.trainable, state.moments, average)) + OVERHEAD_BYTES
    if frozen_missing:
      needed += _bytes(state.frozen)
    hosts.first_does(lambda: room.require(self._folder, needed))
    try:
      if frozen_missing:
        writing.alone(self._frozen, state.frozen)
        self._frozen_written = True
      meta = {"step": step, **meta}
      check = self._prints(state, data_state, meta)
      items = {
        "trainable": ocp.args.PyTreeSave(state.trainable),
        "optimizer": ocp.args.PyTreeSave(state.moments),
        "data": ocp.args.JsonSave({"state": data_state}),
      }
      if average is not None:
        check["average"] = fingerprints.of(average)
        items["average"] = ocp.args.PyTreeSave(average)
      items["meta"] = ocp.args.JsonSave({**meta, _CHECK: check})
      self._manager.save(step, args=ocp.args.Composite(**items))
    except (OSError, ValueError, RuntimeError) as error:
      raise room.explained(self._folder, error, needed) from error

  def _has_frozen(self) -> bool:
    """Whether what lies in frozen/ is whole, and of this run.

    A kill before the first checkpoint may leave a part of it, which a bucket
    shows like the whole, or that of a run that began with other weights. What a
    checkpoint stands beside was read, and compared with its fingerprints.
    """
    return self._frozen_written or hosts.first_decides(
      bool(self._manager.all_steps()) and reading.is_whole(self._frozen)
    )

  def wait(self) -> None:
    """Returns when everything is on disk; raises what went wrong there."""
    try:
      self._manager.wait_until_finished()
    except (OSError, ValueError, RuntimeError) as error:
      raise room.explained(self._folder, error) from error

  def restore(
    self,
    abstract: steps.TrainState,
    *,
    before: int | None = None,
    alive: Callable[[], None] = lambda: None,
  ) -> Restored:
    """The newest checkpoint that is whole, the same in all processes.

    What one of them cannot read counts as damaged for all. Newer ones that are
    damaged are set aside, once an older one was found to be whole: where none
    is, settings are as likely to be wrong as files.

    Args:
      abstract: shapes, dtypes and shardings to restore to; the mesh may be
        another than the one that saved.
      before: only checkpoints of fewer steps; damaged ones stay where they are.
      alive: called before each part that is read.

    Raises:
      ConnectionError: a bucket does not answer.
      ValueError: where there is none, or none can be read, or the newest
        belongs to another model or optimizer.
    """
    # A folder of a network may list others here than there.
    first, *_ = hosts.said_by_all(json.dumps(list(self._manager.all_steps())))
    newest_first = sorted(json.loads(first) or [self._newest()], reverse=True)
    tried = [s for s in newest_first if before is None or s < before]
    damage: dict[int, Exception] = {}
    for step in tried:
      try:
        state, data_state, meta = self._read(step, abstract, alive)
      except (reading.OtherModelError, ConnectionError) as error:
        raise self._unreadable(step, error) from error
      except reading.READ_ERRORS as error:
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
    except reading.READ_ERRORS as error:
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
    except reading.READ_ERRORS as error:
      raise self._unreadable(step, error) from error
    held = [check.get(name) for name in ("trainable", "average", "frozen")]
    text = json.dumps([step, held if check else meta], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

  def told(self) -> list[dict[str, Any]]:
    """What the run's file of scores tells, the same in all processes."""
    with reading.together():
      told = json.dumps(scores.read(self._workdir))
    return json.loads(hosts.said_by_all(told)[0])

  def best(self) -> int:
    """The step that did best on the held-out set, as the newest tells.

    Raises:
      ValueError: none was kept.
    """
    found = scores.best(self.meta(), scores.read(self._workdir))
    if found is None or found not in self._manager.all_steps():
      raise ValueError(
        f"{self._folder}: no checkpoint is known to be the best; train with "
        "data.validation, train.eval_every and train.keep_best."
      )
    return found

  def chosen(self, *, best: bool) -> int | None:
    """The step of the best checkpoint, else of the newest; raises as `best`."""
    return self.best() if best else self.latest()

  def weights(
    self,
    places: jax.sharding.Sharding
    | Mapping[str, jax.sharding.Sharding]
    | None = None,
    *,
    averaged: bool = False,
    step: int | None = None,
  ) -> dict[str, Any]:
    """Trained and frozen weights as one pure dict, for `nnx.merge`.

    Each process reads them for itself.

    Args:
      places: where every array goes, or each by its dotted path, where it is
        read to; by default this process's first device.
      averaged: of the trained ones their average, where it was kept.
      step: of the checkpoint, as `best` tells it; None: the newest.

    Raises:
      ConnectionError: a bucket does not answer.
      ValueError: there is no checkpoint, or the newest is damaged (who asks a
        model is not to be answered by an older one), or it has no average.
    """
    step = self._newest() if step is None else step
    folders = self._weight_folders(step, averaged)
    places = places or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    merged = {}
    try:
      _, check = self._meta(step)
      for folder, name in folders:
        wanted = reading.abstract(reading.shapes(folder), places)
        part = reading.arrays(folder, wanted)
        if check:
          fingerprints.require(part, check[name])
        merged |= nnx.traversals.flatten_mapping(part)
    except reading.READ_ERRORS as error:
      raise self._unreadable(step, error) from error
    return nnx.restore_int_paths(nnx.traversals.unflatten_mapping(merged))

  def stored(
    self, *, averaged: bool = False, step: int | None = None
  ) -> dict[str, reading.Stored]:
    """The weights of a checkpoint by dotted path; none is read yet.

    Args and errors: as of `weights`.
    """
    step = self._newest() if step is None else step
    folders = self._weight_folders(step, averaged)
    found = {}
    try:
      _, check = self._meta(step)
      for folder, name in folders:
        found |= reading.stored(folder, check.get(name, {}))
    except reading.READ_ERRORS as error:
      raise self._unreadable(step, error) from error
    return found

  def _weight_folders(
    self, step: int, averaged: bool
  ) -> list[tuple[epath.Path, str]]:
    """Where trained weights or their average lie, and frozen ones; its name."""
    item = "average" if averaged else "trainable"
    folders = [(self._folder / str(step) / item, item)]
    if averaged and not folders[0][0].exists():
      raise ValueError(
        f"{self._folder / str(step)} holds no averaged weights; train with "
        "optimizer.average=0.999, or ask for the weights themselves."
      )
    if self._frozen.exists():
      folders.append((self._frozen, "frozen"))
    return folders

  def close(self) -> None:
    """Waits for the writing, then lets go."""
    try:
      self.wait()
    finally:
      self._manager.close()

  def _read(
    self,
    step: int,
    abstract: steps.TrainState,
    alive: Callable[[], None],
  ) -> tuple[steps.TrainState, Any, dict[str, Any]]:
    """(state, data iterator's state, meta) of a checkpoint that is whole.

    After each part all processes agree whether all could read it.
    """
    folder = self._folder / str(step)
    alive()
    with reading.together():
      meta, check = self._meta(step)
      reading.require_same(folder / "trainable", abstract.trainable)
      data_state = reading.numbers(folder / "data")["state"]
      if check and _sum(data_state) != check["data"]:
        raise ValueError("the data iterator's state is not what was saved.")
    parts = {}
    for name, place, wanted in (
      ("trainable", folder / "trainable", abstract.trainable),
      ("optimizer", folder / "optimizer", abstract.moments),
      ("frozen", self._frozen, abstract.frozen),
    ):
      alive()
      with reading.together():
        parts[name] = reading.arrays(place, wanted) if wanted else {}
    alive()
    with reading.together():
      if check:
        fingerprints.require(
          parts,
          {
            f"{part}.{name}": number
            for part in parts
            for name, number in check[part].items()
          },
        )
    state = steps.TrainState(
      step=jax.device_put(meta["step"], abstract.step.sharding).astype(
        abstract.step.dtype
      ),
      trainable=parts["trainable"],
      frozen=parts["frozen"],
      moments=parts["optimizer"],
    )
    return state, data_state, meta

  def _meta(self, step: int) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """(meta, fingerprints); none of a checkpoint from before there were any."""
    meta = dict(reading.numbers(self._folder / str(step) / "meta"))
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

  def _drop(self) -> None:
    """Drops what an evaluation after the last save keeps no longer."""
    self.wait()
    steps = self._manager.all_steps()
    for step in sorted({*steps} - self._kept.among(steps)):
      self._manager.delete(step)

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

  def _unreadable(self, step: int, error: Exception) -> Exception:
    path = self._folder / str(step)
    if faults.is_passing(error):
      return ConnectionError(
        f"{path}: could not be read now: {_short(error)}\nNothing says that it "
        "is damaged; the same command tries again."
      )
    others = [s for s in self._manager.all_steps() if s != step]
    return ValueError(
      f"{path}: the checkpoint cannot be restored: {error}\nIf it is damaged, "
      f"delete that folder to go on from "
      + (f"step {max(others)}" if others else "the start")
      + "; if model or optimizer settings changed, use another workdir."
    )


def _short(error: Exception) -> str:
  """An error's beginning; TensorStore adds all its settings to it."""
  return str(error).partition("[tensorstore_spec")[0][:_LONGEST]


def _sum(value: Any) -> int:
  """Checksum of a JSON value."""
  return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _bytes(arrays: Any) -> int:
  return sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
