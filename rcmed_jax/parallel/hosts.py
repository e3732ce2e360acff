"""Several processes as one run: start, agree, write once, stop together.

With one process everything here is free, and does nothing that is not needed.
"""

import atexit
from collections.abc import Callable, Iterator
import contextlib
import os
import signal
import sys
from typing import Any

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import numpy as np

from rcmed_jax.parallel import places, rules

# Exit code of a run that SIGTERM stopped and that saved first: start it again.
# 128 + 15 would not tell it from a process that SIGTERM killed. Source:
# EX_TEMPFAIL of sysexits.h, "the user is invited to retry".
STOPPED = 75

# Exit code where another process of the run is gone. No 75: that would let a
# run whose process dies each time start again for ever. Source: EX_PROTOCOL of
# sysexits.h, "remote error in protocol".
LOST = 76

# What a collective, or JAX's service, says of it. Source: the transports of
# gloo and NCCL, and the coordination service of XLA.
_GONE = (
  "Connection closed by peer",
  "Connection reset by peer",
  "remote process exited",
  "heartbeat timeout",
  "Socket closed",
)

# How long the others are waited for at the start: hosts boot, images load.
START_TIMEOUT_S = 600

# Bytes of an error's text that the others are told.
_MESSAGE_BYTES = 4096


@contextlib.contextmanager
def started(place: places.Place) -> Iterator[None]:
  """Within it the processes of a run know each other; enter before any array.

  At its end all wait for all. After an error nobody waits: the process leaves
  at once, so that whoever started the run can see it and end the others. Where
  another is gone, it leaves with `LOST`.

  Raises:
    RuntimeError: the others did not come in time.
  """
  if place.processes == 1:
    yield
    return
  # Its handler of SIGTERM would take the signal before anything can be saved.
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(
    place.coordinator,
    place.processes,
    place.process,
    local_device_ids=place.devices,
    cluster_detection_method="deactivate",  # `places` has looked already
    initialization_timeout=START_TIMEOUT_S,
  )
  try:
    yield
  except SystemExit:  # all leave, each with the same code
    barrier("stopped")
    jax.distributed.shutdown()
    raise
  except BaseException as error:
    atexit.register(_leave, _exit_code(error))
    if not are_gone(error):
      raise
    print(
      f"process {place.process}: another process of this run is gone, and its "
      "own log says why. The same command, given to all, goes on from the last "
      f"checkpoint. ({_first_line(error)})",
      file=sys.stderr,
    )
    _leave(LOST)  # at once: a checkpoint's thread may wait for it for ever
  barrier("done")
  jax.distributed.shutdown()


def are_gone(error: BaseException | None) -> bool:
  """Whether an error says that another process of the run is gone."""
  return (
    isinstance(error, Exception)
    and not isinstance(error, OSError)  # of a bucket or a pipe
    and jax.process_count() > 1
    and any(words in str(error) for words in _GONE)
  )


def is_first() -> bool:
  """Whether this process writes what is written once."""
  return jax.process_index() == 0


def barrier(name: str) -> None:
  """Returns when every process has come here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def first_decides(answer: bool) -> bool:
  """What process 0 answers, in all processes."""
  if jax.process_count() == 1:
    return answer
  return bool(multihost_utils.broadcast_one_to_all(np.int32(answer)))


def first_does(action: Callable[[], Any]) -> None:
  """Process 0 does it while the others wait; where it fails, it fails for all.

  Raises:
    ValueError: in the others, whatever process 0 raised.
  """
  if jax.process_count() == 1:
    action()
    return
  failure: Exception | None = None
  if is_first():
    try:
      action()
    except Exception as error:
      failure = error
  text = f"process 0: {failure}".encode()[:_MESSAGE_BYTES] if failure else b""
  told = np.zeros(_MESSAGE_BYTES, np.uint8)
  told[: len(text)] = np.frombuffer(text, np.uint8)
  told = np.asarray(multihost_utils.broadcast_one_to_all(told))
  if failure is not None:
    raise failure
  if told.any():
    raise ValueError(told.tobytes().rstrip(b"\0").decode(errors="replace"))


def all_of(rows: np.ndarray) -> np.ndarray:
  """The rows of all processes, one after the other, in all of them."""
  if jax.process_count() == 1:
    return rows
  return np.asarray(multihost_utils.process_allgather(rows, tiled=True))


class Vote:
  """The largest number that any process has cast, known to all alike.

  A process that is told to stop must not stop alone: the others would wait for
  it for ever. Every process casts once a step and learns the outcome of the
  step before, so that devices never wait for hosts. One process, which has
  nobody to ask, learns its own number at once.
  """

  def __init__(self, mesh: jax.sharding.Mesh):
    self._alone = jax.process_count() == 1
    self._sharding = jax.sharding.NamedSharding(
      mesh, jax.sharding.PartitionSpec(mesh.axis_names)
    )
    self._largest = jax.jit(jnp.max, out_shardings=rules.replicated(mesh))
    self._before: jax.Array | None = None

  def cast(self, number: int) -> int:
    """Casts a number >= 0; the outcome of the cast before, 0 at the first."""
    if self._alone:
      return number
    before = self._before
    size = self._sharding.mesh.size
    numbers = jax.make_array_from_callback(
      (size,), self._sharding, lambda _: np.full(1, number, np.int32)
    )
    self._before = self._largest(numbers)
    return 0 if before is None else int(before)


def _exit_code(error: BaseException) -> int:
  """The code with which `cli.main` or Python leaves after an error."""
  if isinstance(error, KeyboardInterrupt):
    return 128 + signal.SIGINT
  if are_gone(error):
    return LOST
  bad_input = ValueError, OSError, FloatingPointError
  return 2 if isinstance(error, bad_input) else 1


def _first_line(error: BaseException) -> str:
  return (str(error).splitlines() or [""])[0][:_MESSAGE_BYTES]


def _leave(code: int) -> None:
  """Ends the process where jax would wait for others that will not come."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
