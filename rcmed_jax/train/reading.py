"""Parts of a checkpoint, which each process reads for itself.

Orbax waits for all processes after it has read, and for ever where one of them
could not. Nobody waits here: `together` has them agree on what became of it.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import json
import logging
import time
from typing import Any

from etils import epath
from flax import nnx
import jax
import numpy as np
import orbax.checkpoint as ocp

from rcmed_jax.parallel import faults, hosts
from rcmed_jax.train import fingerprints

# What Orbax and TensorStore raise for files that are missing or cut short.
READ_ERRORS = (OSError, ValueError, KeyError, TypeError)

# Seconds before what a bucket did not give is asked for again. Its client has
# tried for a while by then.
PAUSES_S = (2.0, 10.0)


@contextlib.contextmanager
def unwarned() -> Iterator[None]:
  """Orbax does not warn that it only reads, which is what was asked for."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)


class OtherModelError(ValueError):
  """A whole checkpoint of another model: no older one would do."""


# What one process found, where it counts for all: the last of these that any
# of them found.
_DAMAGED, _UNREACHED, _OTHER_MODEL, _FAULT = range(1, 5)
_RAISED: dict[int, Callable[[str], Exception]] = {
  _DAMAGED: ValueError,
  _UNREACHED: ConnectionError,
  _OTHER_MODEL: OtherModelError,
  _FAULT: RuntimeError,
}


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Where it fails in one process, it fails in all, each with an error.

  Raises:
    ConnectionError: a bucket did not answer one of them; files may be whole.
  """
  failure: Exception | None = None
  try:
    yield
  except Exception as error:
    if hosts.are_gone(error):  # who is gone says nothing
      raise
    failure = error
  said = hosts.said_by_all(json.dumps([_rank(failure), str(failure)]))
  found = [json.loads(text) for text in said]
  worst = max(rank for rank, _ in found)
  if failure is not None and _rank(failure) == worst:
    if worst == _UNREACHED and not isinstance(failure, ConnectionError):
      raise ConnectionError(str(failure)) from failure
    raise failure
  for process, (rank, text) in enumerate(found):
    if worst and rank == worst:
      raise _RAISED[rank](f"process {process}: {text}") from failure


def _rank(error: Exception | None) -> int:
  if error is None:
    return 0
  if isinstance(error, OtherModelError):
    return _OTHER_MODEL
  if faults.is_passing(error):
    return _UNREACHED
  return _DAMAGED if isinstance(error, READ_ERRORS) else _FAULT


def arrays(folder: epath.Path, wanted: Any) -> Any:
  """A folder's arrays, as `wanted` describes them and where it says.

  Args:
    folder: of an item of a checkpoint.
    wanted: jax.ShapeDtypeStruct with shardings.

  Raises:
    ValueError: they cannot be read.
  """
  args = ocp.args.StandardRestore(wanted)
  return _again(
    lambda: ocp.StandardCheckpointHandler().restore(folder, args=args)
  )


def shapes(folder: epath.Path) -> Any:
  """Descriptions of a folder's arrays, nested as they are."""
  return _again(lambda: ocp.StandardCheckpointHandler().metadata(folder).tree)


def require_same(folder: epath.Path, held: Any) -> None:
  """Nothing, where a folder holds arrays of these names and shapes.

  Raises:
    OtherModelError: names the first that differ; Orbax' own words do not.
  """
  there, here = _sizes(shapes(folder)), _sizes(held)
  if there.keys() != here.keys():
    raise OtherModelError(
      "trained parameters only there: "
      f"{', '.join(sorted(there.keys() - here.keys())[:3]) or 'none'}; "
      "only here: "
      f"{', '.join(sorted(here.keys() - there.keys())[:3]) or 'none'}."
    )
  for name, size in here.items():
    if there[name] != size:
      raise OtherModelError(
        f"{name} has shape {there[name]} there and {size} here."
      )


def numbers(folder: epath.Path) -> Any:
  """What a folder's JSON holds."""
  return _again(lambda: ocp.JsonCheckpointHandler().restore(folder))


def is_whole(folder: epath.Path) -> bool:
  """Whether its writing was finished; a bucket shows what was not, too."""
  return folder.exists() and ocp.utils.is_checkpoint_finalized(folder)


def _again(read: Callable[[], Any]) -> Any:
  """What it reads, tried again where a bucket did not answer."""
  for pause_s in PAUSES_S:
    try:
      return _named(read)
    except (OSError, ValueError) as error:
      if not faults.is_passing(error):
        raise
    time.sleep(pause_s)
  return _named(read)


def _named(read: Callable[[], Any]) -> Any:
  """What it reads; what Orbax does not expect is a ValueError as well.

  A lost part of an array is an Exception to it, a flipped bit in the names of
  fields an AttributeError, in the name of a sharding a NotImplementedError.
  """
  try:
    return read()
  except (AttributeError, NotImplementedError) as error:
    raise ValueError(f"a description cannot be read: {error}") from error
  except Exception as error:
    if type(error) is not Exception:
      raise
    raise ValueError(str(error.__cause__ or error)) from error


@dataclasses.dataclass(frozen=True)
class Stored:
  """An array of a checkpoint, not read yet."""

  folder: epath.Path  # of the item that holds it
  name: str  # its dotted path
  print: int | None  # its fingerprint; None: from before there were any
  shape: tuple[int, ...]
  dtype: Any

  def placed(self, sharding: jax.sharding.Sharding) -> jax.Array:
    """The array, each part of it read by the process that holds it.

    Raises:
      ValueError: it cannot be read, or is not what was saved.
    """
    keys = tuple(self.name.split("."))
    wanted = nnx.traversals.unflatten_mapping(
      {keys: _described(self, sharding)}
    )
    args = ocp.args.PyTreeRestore(
      wanted,
      restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
      partial_restore=True,
    )
    try:
      held = _again(
        lambda: ocp.PyTreeCheckpointHandler().restore(self.folder, args=args)
      )
      array = nnx.traversals.flatten_mapping(held)[keys]
      if self.print is not None:
        fingerprints.require({self.name: array}, {self.name: self.print})
    except READ_ERRORS as error:
      if faults.is_passing(error):
        raise
      raise ValueError(
        f"{self.folder} cannot be read: {error}\nIf it is damaged, get it "
        "again, or delete its checkpoint and take the one before."
      ) from error
    return array

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
    del copy
    whole = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return np.asarray(self.placed(whole), dtype)


def stored(folder: epath.Path, prints: Mapping[str, int]) -> dict[str, Stored]:
  """The arrays of a folder by dotted path; none is read.

  Raises:
    ValueError: they are others than have fingerprints, where any has one.
  """
  found = {
    _name(path): Stored(
      folder, _name(path), prints.get(_name(path)), leaf.shape, leaf.dtype
    )
    for path, leaf in jax.tree.leaves_with_path(shapes(folder))
  }
  odd = sorted(found.keys() ^ prints.keys()) if prints else []
  if odd:
    raise ValueError(f"{odd[0]} is not what was saved.")
  return found


def abstract(
  tree: Any,
  places: jax.sharding.Sharding | Mapping[str, jax.sharding.Sharding],
) -> Any:
  """What `arrays` wants, of descriptions: all in one place, or each its own."""
  return jax.tree.map_with_path(
    lambda path, leaf: _described(
      leaf,
      places
      if isinstance(places, jax.sharding.Sharding)
      else places[_name(path)],
    ),
    tree,
  )


def _sizes(tree: Any) -> dict[str, tuple[int, ...]]:
  """Shapes by dotted path."""
  return {
    _name(path): leaf.shape for path, leaf in jax.tree.leaves_with_path(tree)
  }


def _described(leaf: Any, sharding: jax.sharding.Sharding) -> Any:
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _name(path: Any) -> str:
  return jax.tree_util.keystr(path, simple=True, separator=".")
