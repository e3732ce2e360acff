"""One thread that owns the assistant; many that ask it.

Requests wait in one bounded queue. Whenever the devices are free, the next
batch is formed from what waits: the oldest request, and with it the oldest of
its kind, which share its compiled program. So nobody is passed over for long,
whatever others ask. A second batch is put together while the first is answered,
if there are enough of a kind to fill it. A request alone waits a few
milliseconds for others and no longer. What an answer says does not depend on
who shares its batch: see `batches.py`.
"""

import collections
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
import concurrent.futures
import dataclasses
import threading
import time
from typing import Protocol

import numpy as np

from rcmed_jax.serve.questions import Answer, Question
from rcmed_jax.serve.runner import Told

# Of a request alone, how long it waits for others. A batch takes a hundred
# times as long even on a fast device.
FILL_S = 0.004
# Batches that are taken from the queue at once; see `Assistant.stream`, ahead.
AHEAD = 2
# Of images that wait; a queue of the largest would take more than a host has.
MOST_BYTES = 2 * 10**9
# Sides of the image with which programs are compiled before the first request.
_WARM_SIDE = 64
# Between two tries for a place in a full queue.
_RETRY_S = 0.05
# Words of the longest question that warm-up tries.
_MOST_WORDS = 4096
# Weight of the newest batch in what a batch is thought to take.
_NEWEST = 0.2

Batched = Callable[[int], None]
# Takes the text of an answer as it grows, in the engine's thread.
Said = Callable[[str], None]


class Answers(Protocol):
  """What the engine needs of an assistant."""

  rows: int
  max_new: int  # tokens of an answer, at most
  max_targets: int  # masks of an answer, at most

  def groups(
    self, classes: Sequence[str]
  ) -> tuple[dict[str, str], list[list[str]]]:
    """See `Assistant.groups`. It is called by any thread."""
    ...

  def kind(self, question: Question) -> Hashable:
    """See `Assistant.kind`. It is called by any thread."""
    ...

  def stream(
    self,
    questions: Iterable[Question],
    *,
    ahead: int = 1,
    told: Told | None = None,
  ) -> Iterator[tuple[int, Answer]]:
    """See `Assistant.stream`."""
    ...


class QueueFullError(RuntimeError):
  """As many requests wait as may.

  Args:
    wait_s: by when those that wait may be answered.
  """

  def __init__(self, waiting: int, wait_s: float):
    super().__init__(f"{waiting} requests wait already")
    self.wait_s = wait_s


class NotReadyError(RuntimeError):
  """Weights are still read, programs compiled, or the engine was stopped."""


@dataclasses.dataclass(frozen=True)
class Answered:
  """An answer and where its time went."""

  answer: Answer
  queue_s: float  # until its batch was put together
  answer_s: float  # from then on
  shared: int  # requests that were answered together, this one included


@dataclasses.dataclass(frozen=True, eq=False)
class _Waiting:
  question: Question
  kind: Hashable
  future: "concurrent.futures.Future[Answered]"
  since: float
  until: float  # then nobody waits for it any more
  said: Said | None


class Engine:
  """Answers questions of many threads.

  Args:
    assistant: answers in the engine's thread alone, from `start` on; or what
      reads it from disk, there.
    most: requests that may wait.
    fill_s: how long a request waits for others to share its batch.
    batched: told of the number of requests of every batch.
    warm: see `warm_up`.
  """

  def __init__(
    self,
    assistant: Answers | Callable[[], Answers],
    *,
    most: int = 64,
    fill_s: float = FILL_S,
    batched: Batched = lambda count: None,
    warm: Sequence[str] = (),
  ):
    self.ready = False
    self._load = assistant if callable(assistant) else lambda: assistant
    self._loaded = None if callable(assistant) else assistant
    self._most = most
    self._fill_s = fill_s
    self._batched = batched
    self._warm = tuple(warm)
    self._queue: collections.deque[_Waiting] = collections.deque()
    self._changed = threading.Condition()
    self._stopped = False
    self._failed: Exception | None = None
    self._batch_s = 0.0  # what a batch is thought to take
    self._thread = threading.Thread(
      target=self._run, name="engine", daemon=True
    )

  @property
  def loaded(self) -> bool:
    """Whether the assistant is there; without it, `rows` and such are not."""
    return self._loaded is not None

  @property
  def rows(self) -> int:
    """Requests that are answered together.

    Raises:
      NotReadyError: this, as all that asks the assistant, before it is loaded.
    """
    return self._assistant.rows

  @property
  def max_new(self) -> int:
    """Tokens of an answer, at most."""
    return self._assistant.max_new

  @property
  def max_targets(self) -> int:
    """Masks of an answer, at most."""
    return self._assistant.max_targets

  def groups(
    self, classes: Sequence[str]
  ) -> tuple[dict[str, str], list[list[str]]]:
    """See `Assistant.groups`."""
    return self._assistant.groups(classes)

  @property
  def waiting(self) -> int:
    """Requests in the queue."""
    return len(self._queue)

  @property
  def failed(self) -> Exception | None:
    """Why loading or warm-up failed, if it did: it will never be ready."""
    return self._failed

  def start(self) -> None:
    """Begins to load and compile; `ready` once that is done."""
    self._thread.start()

  def stop(self) -> None:
    """Returns when all that waited is answered; new requests are refused."""
    with self._changed:
      self._stopped = True
      self._changed.notify_all()
    if self._thread.is_alive():
      self._thread.join()

  def require_room(self) -> None:
    """Raises what `submit` would, of a small image: before it is decoded."""
    with self._changed:
      self._require_room()

  def submit(
    self, question: Question, timeout_s: float, said: Said | None = None
  ) -> "concurrent.futures.Future[Answered]":
    """The answer to come. Cancelling it takes it out of the queue.

    It ends in TimeoutError where its batch does not begin in time.

    Args:
      said: told of the text as it grows.

    Raises:
      NotReadyError: it is not ready yet, or was stopped.
      QueueFullError: too many wait.
      ValueError: the assistant cannot be asked so.
    """
    kind = self._assistant.kind(question)
    now = time.monotonic()
    future: concurrent.futures.Future[Answered] = concurrent.futures.Future()
    with self._changed:
      self._require_room()
      if self._is_heavy(question):
        raise QueueFullError(len(self._queue), self._wait_s())
      self._queue.append(
        _Waiting(question, kind, future, now, now + timeout_s, said)
      )
      self._changed.notify()
    return future

  def stream(
    self,
    questions: Iterable[Question],
    *,
    ahead: int = 1,
    timeout_s: float = 600.0,
  ) -> Iterator[tuple[int, Answer]]:
    """(number, answer) of many questions in order, such as a volume's slices.

    As an assistant's, so that one can stand in the other's place. Few of them
    wait at a time, so that other requests come in between.

    Args:
      ahead: batches that wait beside the one that is answered.
      timeout_s: for each of them.

    Raises:
      As `submit`, with patience while the queue is full, and what an answer
      ends in.
    """
    running: collections.deque[concurrent.futures.Future[Answered]] = (
      collections.deque()
    )
    number = 0
    try:
      for question in questions:
        if len(running) >= (1 + ahead) * self.rows:
          yield number, running.popleft().result().answer
          number += 1
        running.append(self._submit_patiently(question, timeout_s))
      while running:
        yield number, running.popleft().result().answer
        number += 1
    finally:
      for future in running:
        future.cancel()

  def _submit_patiently(
    self, question: Question, timeout_s: float
  ) -> "concurrent.futures.Future[Answered]":
    """As `submit`, but waits for a place: a volume is not asked for twice."""
    until = time.monotonic() + timeout_s
    while True:
      try:
        return self.submit(question, timeout_s)
      except QueueFullError:
        if time.monotonic() > until:
          raise
      time.sleep(_RETRY_S)

  @property
  def _assistant(self) -> Answers:
    if self._loaded is None:
      raise NotReadyError("the model is still being loaded; try again later")
    return self._loaded

  def _require_room(self) -> None:
    """Under the lock."""
    if self._stopped or not self.ready:
      raise NotReadyError("no requests are taken now; try again later")
    if len(self._queue) >= self._most:
      self._leave_out()
    if len(self._queue) >= self._most:
      raise QueueFullError(len(self._queue), self._wait_s())

  def _is_heavy(self, question: Question) -> bool:
    """Whether its image is too much beside those that wait."""
    held = sum(one.question.image_IJC.nbytes for one in self._queue)
    return bool(held) and held + question.image_IJC.nbytes > MOST_BYTES

  def _wait_s(self) -> float:
    """When a queue as long as this one will be answered."""
    return self._batch_s * (1 + len(self._queue) / self.rows)

  def _run(self) -> None:
    try:
      self._loaded = self._load()
      warm_up(self._loaded, self._warm)
    except Exception as error:  # of any library; the server must say so
      self._failed = error
      return
    self.ready = True
    while taken := self._take():
      began = time.monotonic()
      self._answer(taken)
      batches = -(-len(taken) // self.rows)
      took = (time.monotonic() - began) / batches
      self._batch_s += _NEWEST * (took - self._batch_s)

  def _take(self) -> list[_Waiting]:
    """Requests to answer now; none once the engine stops."""
    with self._changed:
      while True:
        while not self._queue and not self._stopped:
          self._changed.wait()
        if not self._queue:
          return []
        full = lambda: len(self._queue) >= self.rows or self._stopped  # noqa: E731
        self._changed.wait_for(full, self._fill_s)
        taken = [
          one
          for one in self._next_batches()
          if one.future.set_running_or_notify_cancel()
        ]
        if taken:
          return taken

  def _next_batches(self) -> list[_Waiting]:
    """Takes the next batch out of the queue, and full ones behind a full one.

    Under the lock.
    """
    self._leave_out()
    taken: list[_Waiting] = []
    while self._queue and len(taken) < AHEAD * self.rows:
      kind = self._queue[0].kind
      alike = [one for one in self._queue if one.kind == kind]
      batch = alike[: self.rows]
      if taken and len(batch) < self.rows:
        break
      for one in batch:
        self._queue.remove(one)
      taken += batch
      if len(batch) < self.rows:
        break
    return taken

  def _leave_out(self) -> None:
    """Takes those out for whom nobody waits. Under the lock."""
    now = time.monotonic()
    kept: collections.deque[_Waiting] = collections.deque()
    for one in self._queue:
      if one.future.cancelled():
        continue
      if now <= one.until:
        kept.append(one)
      elif one.future.set_running_or_notify_cancel():
        one.future.set_exception(TimeoutError("it waited too long"))
    self._queue = kept

  def _answer(self, taken: Sequence[_Waiting]) -> None:
    """Answers each, or says why not; one bad question spoils no other."""
    began = time.monotonic()
    for first in range(0, len(taken), self.rows):
      self._batched(len(taken[first : first + self.rows]))
    try:
      self._answer_all(taken, began)
    except Exception:  # of any library, and of any of the questions
      for one in taken:
        if one.future.done():
          continue
        try:
          self._answer_all([one], began)
        except Exception as error:  # this one's own
          one.future.set_exception(error)

  def _answer_all(self, taken: Sequence[_Waiting], began: float) -> None:
    def told(number: int, text: str) -> None:
      said = taken[number].said
      if said is not None:
        said(text)

    heard = any(one.said is not None for one in taken)
    for number, answer in self._assistant.stream(
      [one.question for one in taken], told=told if heard else None
    ):
      one = taken[number]
      took = time.monotonic() - began
      one.future.set_result(
        Answered(answer, began - one.since, took, len(taken))
      )


def warm_up(assistant: Answers, names: Sequence[str] = ()) -> None:
  """Compiles the programs of all lengths, so that no request waits for it.

  Questions of twice as many words each, until one is too long; then likewise
  questions after another one, since a conversation may be longer.

  Args:
    names: words that are answered by a program of their own, such as the name
      of a new class.
  """
  image_IJC = np.zeros((_WARM_SIDE, _WARM_SIDE, 3), np.uint8)
  for name in ("a", *names):
    _ask_longer(assistant, lambda text: Question(image_IJC, text), name)
  _ask_longer(
    assistant,
    lambda text: Question(image_IJC, "a", earlier=((text, "a"),)),
    "a",
  )


def _ask_longer(
  assistant: Answers, make: Callable[[str], Question], name: str
) -> None:
  words = 1
  while words <= _MOST_WORDS:
    try:
      list(assistant.stream([make(name + " a" * (words - 1))]))
    except ValueError:
      if words == 1:
        raise
      return
    words *= 2
