"""Several processes as one run: start, agree, write once, stop together.

With one process everything here is free, and does nothing that is not needed.
"""

import atexit
from collections.abc import Callable, Iterator
import contextlib
import itertools
import os
import signal
import sys
import threading
from typing import Any

import jax
from jax._src import distributed
from jax.experimental import multihost_utils
import numpy as np

from rcmed_jax.parallel import faults, places

# Where a run stopped by SIGTERM, and where another process of it is gone.
STOPPED, LOST = faults.STOPPED, faults.LOST

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

# How long the others' words are waited for: a hang is the watchdog's to end.
_LONGEST_MS = 10 * 24 * 3600 * 1000

# Which time it is that all speak, or vote; the same in every process.
_rounds = itertools.count()
_ballots = itertools.count()

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


def said_by_all(text: str) -> list[str]:
  """What each process says, in all of them, in their order.

  It goes through the service that the processes met by: devices have no part in
  it, nor are their limits of time kept, however long one takes to come here.
  """
  if jax.process_count() == 1:
    return [text]
  client, number = _client(), next(_rounds)
  mine, count = jax.process_index(), jax.process_count()
  client.key_value_set(f"rcmed/said/{number}/{mine}", text)
  said = [
    client.blocking_key_value_get(f"rcmed/said/{number}/{process}", _LONGEST_MS)
    for process in range(count)
  ]
  # All have come here, so all have read what was said the time before.
  if number:
    client.key_value_delete(f"rcmed/said/{number - 1}/{mine}")
  return said


class Vote:
  """At which of their casts all stop, once any process is told to.

  A process that is told to stop must not stop alone: the others would wait for
  it for ever. Whoever is told says so to all. Each then tells, by a thread of
  its own, how many casts it has made, and makes no other until all have told:
  all stop at the first that none has made. No device has a part in it, so that
  it does not wait for steps in flight. One process has nobody to ask.
  """

  def __init__(self) -> None:
    self._ballot = next(_ballots)
    self._lock = threading.Lock()
    self._casts = 0  # that did not stop
    self._told = 0
    self._last: int | None = None  # the cast at which all stop
    self._alone = jax.process_count() == 1
    if not self._alone:
      threading.Thread(target=self._agree, daemon=True).start()

  @property
  def told(self) -> int:
    """The number that was told; 0: none that this process knows of."""
    return self._told

  def tell(self, number: int) -> None:
    """All are to stop, and to know the number: the first that any tells."""
    if self._alone:
      self._told = self._told or number
      return
    try:
      _client().key_value_set(self._key("told"), str(number))
    except jax.errors.JaxRuntimeError as error:
      if "ALREADY_EXISTS" not in str(error):
        raise

  def cast(self) -> int:
    """0: go on; or the number that was told, in all processes alike.

    All cast equally often, at the same places of what they do together.
    """
    if self._alone:
      return self._told
    with self._lock:
      if self._last is not None and self._casts + 1 >= self._last:
        return self._told
      self._casts += 1
      return 0

  def _agree(self) -> None:
    client, count = _client(), jax.process_count()
    try:
      told = client.blocking_key_value_get(self._key("told"), _LONGEST_MS)
      with self._lock:
        mine = self._key(f"casts/{jax.process_index()}")
        client.key_value_set(mine, str(self._casts))
        casts = [
          client.blocking_key_value_get(
            self._key(f"casts/{process}"), _LONGEST_MS
          )
          for process in range(count)
        ]
        self._told = int(told)
        self._last = max(map(int, casts)) + 1
    except jax.errors.JaxRuntimeError:
      return  # nobody told before the run ended, or the others are gone

  def _key(self, name: str) -> str:
    return f"rcmed/vote/{self._ballot}/{name}"


def _client() -> Any:
  """Of the service that the processes met by; JAX names no other way to it."""
  client = distributed.global_state.client
  assert client is not None, "call it within `started`"
  return client


def _exit_code(error: BaseException) -> int:
  """The code with which `cli.main` or Python leaves after an error."""
  if isinstance(error, KeyboardInterrupt):
    return 128 + signal.SIGINT
  if are_gone(error):
    return LOST
  if faults.is_passing(error):
    return faults.UNREACHED
  bad_input = ValueError, OSError, FloatingPointError
  return 2 if isinstance(error, bad_input) else 1


def _first_line(error: BaseException) -> str:
  return (str(error).splitlines() or [""])[0][:_MESSAGE_BYTES]


def _leave(code: int) -> None:
  """Ends the process where jax would wait for others that will not come."""
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)
