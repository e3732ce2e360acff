"""Questions through the model's programs, batch by batch, and back as answers.

Devices start on a batch while the answers of the one before are read.
"""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import functools
import time
from typing import Any

import jax
import numpy as np

from rcmed_jax.data import prompts, tokens
from rcmed_jax.serve import batches, new_classes, programs
from rcmed_jax.serve.new_classes import NewClass
from rcmed_jax.serve.questions import (
  Answer,
  Question,
  Sampling,
  Timings,
  Tokens,
)
from rcmed_jax.serve.reading import Reader

# Of a text that grows, tokens from one look at it to the next.
EVERY = 4
# A conversation may be longer than the questions of training: to how many times
# their longest it is padded.
LONGER = (2, 4)

Told = Callable[[int, str], None]


@dataclasses.dataclass(frozen=True)
class Row:
  """A question as the model reads it."""

  question: Question
  one: NewClass | None  # the new class that is shown; None: the model answers
  said: str  # the given answer
  ids_T: np.ndarray
  labels_T: np.ndarray | None
  width: int  # to which its ids are padded


_Batch = Sequence[tuple[int, Row]]


def kind(row: Row) -> tuple[int, bool]:
  """Its width and whether its words are given: who may share a batch."""
  return row.width, row.one is not None


class Runner:
  """Runs an assistant's programs.

  Args:
    run: the programs.
    reader: of what they give.
    lengths: the prompt lengths that they are compiled for.
    limits: those of the programs.
  """

  def __init__(
    self,
    run: programs.Programs,
    reader: Reader,
    *,
    lengths: tuple[int, ...],
    limits: programs.Limits,
  ):
    self._programs = run
    self._reader = reader
    self._tokenizer = reader.tokenizer
    self._lengths = lengths
    self._limits = limits
    self._rows = run.rows

  def row(self, question: Question, one: NewClass | None) -> Row:
    """The question as ids, with its answer where its class is a new one.

    Raises:
      ValueError: as `Assistant.stream`.
    """
    _check(question.image_IJC)
    prompt = prompts.conversation(
      question.text, describe=question.describe, earlier=question.earlier
    )
    if one is None:
      said, labels_T = "", None
      self._require_room(question.sampling)
      ids_T = self._tokenizer.encode_prompt(prompt)
    else:
      said = prompts.answer(one.modality, (one.name,))
      ids_T, labels_T = self._tokenizer.encode_answer(prompt, said)
    longest = max(self._lengths)
    more = tuple(longest * times for times in LONGER if question.earlier)
    width = tokens.fit(len(ids_T), (*self._lengths, *more))
    return Row(question, one, said, ids_T, labels_T, width)

  def answers(
    self, rows: Iterable[Row], ahead: int, told: Told | None
  ) -> Iterator[tuple[int, Answer]]:
    """(number, answer) of each; see `Assistant.stream`."""
    running: collections.deque[Iterator[tuple[int, Answer]]] = (
      collections.deque()
    )
    for (_, known), batch in batches.batches(rows, kind, self._rows):
      running.append(self._show(batch) if known else self._say(batch, told))
      next(running[-1])  # starts the devices, and does not wait for them
      if len(running) > ahead:
        yield from running.popleft()
    for answers in running:
      yield from answers

  def _require_room(self, sampling: Sampling) -> None:
    """Refuses an answer longer than any, or shorter than the grammar knows."""
    most = self._limits.max_new
    asked = sampling.max_new or most
    if asked > most:
      raise ValueError(
        f"max_new={asked}: this assistant's answers have {most} tokens at "
        "most; ask for fewer, or load it with a larger eval.max_new."
      )
    if sampling.grammar and asked < self._programs.shortest:
      raise ValueError(
        f"max_new={asked}: a well-formed answer has at least "
        f"{self._programs.shortest} tokens."
      )

  def _filled(self, batch: _Batch) -> list[Row]:
    """A full batch: copies of its last row, whose answers are dropped."""
    rows = [row for _, row in batch]
    return [*rows, *[rows[-1]] * (self._rows - len(rows))]

  def _say(self, batch: _Batch, told: Told | None) -> Iterator[Any]:
    """Nothing, once the devices work; then the model's own answers."""
    start = time.perf_counter()
    rows = self._filled(batch)
    most = self._limits.max_new
    asked, extent_B2 = self._programs.begin(
      [row.question.image_IJC for row in rows],
      *tokens.pad([row.ids_T for row in rows], (rows[0].width,)),
      programs.choice([row.question.sampling for row in rows], most),
    )
    if told is None:
      asked = self._programs.decode(asked, most)
      said = self._programs.finish(asked)
    begun = time.perf_counter()
    yield None
    if told is not None:
      said = self._programs.finish(self._tell(batch, asked, told))
    del asked  # and with it the caches
    said = jax.device_get(said)
    timings = Timings(begun - start, time.perf_counter() - begun)
    for index, (number, row) in enumerate(batch):
      yield (
        number,
        _timed(
          timings,
          lambda index=index, row=row: self._reader.answer(
            said,
            index,
            extent_B2[index],
            row.question.image_IJC.shape,
            len(row.ids_T),
          ),
        ),
      )

  def _tell(
    self, batch: _Batch, asked: programs.Asked, told: Told
  ) -> programs.Asked:
    """The answers at their ends; their texts were told as they grew."""
    texts = [""] * len(batch)
    for until in range(EVERY, self._limits.max_new + EVERY, EVERY):
      asked = self._programs.decode(asked, until)
      progress = asked.progress
      tokens_BT, length_B, done_B = jax.device_get(
        (progress.tokens_BT, progress.length_B, progress.done_B)
      )
      for index, (number, _) in enumerate(batch):
        text = self._reader.text(tokens_BT[index, : length_B[index]])
        if text != texts[index]:
          texts[index] = text
          told(number, text)
      if done_B.all():
        break
    return asked

  def _show(self, batch: _Batch) -> Iterator[Any]:
    """Nothing, once the devices work; then new classes, in given words."""
    start = time.perf_counter()
    rows = self._filled(batch)
    width = rows[0].width
    pixels_BIJC, extent_B2 = self._programs.prepare(
      [row.question.image_IJC for row in rows]
    )
    tokens_BT, length_B = tokens.pad([row.ids_T for row in rows], (width,))
    labels_BT, _ = tokens.pad(
      [row.labels_T for row in rows if row.labels_T is not None],
      (width,),
      fill=tokens.IGNORE_LABEL,
    )
    seg_B = [_last(row.ids_T == self._tokenizer.seg_id) for row in rows]
    inputs = {
      "pixels_BIJC": pixels_BIJC,
      "extent_B2": extent_B2,
      "tokens_BT": tokens_BT,
      "length_B": length_B,
      "labels_BT": labels_BT,
      "seg_BG": np.array(seg_B, np.int32)[:, None],
      "valid_BG": np.ones((len(rows), 1), bool),
    }
    classes = new_classes.batch([row.one for row in rows if row.one])
    running = self._programs.segment(inputs, classes)
    begun = time.perf_counter()
    yield None
    logits_BYX, quality_B = jax.device_get(running)
    timings = Timings(begun - start, time.perf_counter() - begun)

    def answer(index: int, row: Row) -> Answer:
      assert row.one is not None
      found = self._reader.found(
        row.one.name,
        logits_BYX[index],
        extent_B2[index],
        row.question.image_IJC.shape,
        1.0,
        float(quality_B[index]),
      )
      assert row.labels_T is not None
      answer = int((row.labels_T != tokens.IGNORE_LABEL).sum())
      return Answer(
        row.said.removesuffix("</s>"),
        row.one.modality,
        (found,),
        tokens=Tokens(len(row.ids_T) - answer, answer),
      )

    for index, (number, row) in enumerate(batch):
      yield number, _timed(timings, functools.partial(answer, index, row))


def _check(image_IJC: np.ndarray) -> None:
  if image_IJC.dtype != np.uint8 or image_IJC.shape[2:] != (3,):
    raise ValueError(
      "image: expected uint8[rows, columns, 3] in RGB, received "
      f"{image_IJC.dtype}{list(image_IJC.shape)}; give the path of its file, "
      "or scale it to 0..255 and repeat grey three times."
    )


def _timed(timings: Timings, make: Callable[[], Answer]) -> Answer:
  start = time.perf_counter()
  answer = make()
  took = time.perf_counter() - start
  return dataclasses.replace(
    answer, timings=dataclasses.replace(timings, masks_s=took)
  )


def _last(true_T: np.ndarray) -> int:
  """Index of the last that is true."""
  return int(np.flatnonzero(true_T)[-1])
