"""Which tokens may follow in a well-formed answer, as a table.

An answer is well-formed if `prompts.parse_answer` reads from it what its
markers say: a modality first, in a phrase; then phrases that each hold a name,
followed by [SEG], or after the word "no" and without one; </s> outside all of
them. The words between are free:

  This is a <p> pet </p> image. The image contains <p> liver </p> [SEG] ... </s>

A piece of a tokenizer may hold any letters, so that "no" can be spelt in many
ways. The states therefore read letters, and each piece leads from a state to
where its letters lead. What no training text holds is never said: markers
spelt in letters ("<" and "[" are left out altogether), other added tokens, and
the bytes of letters that the tokenizer has no piece for.
"""

import dataclasses
import functools

import numpy as np

from rcmed_jax.data import tokens


@dataclasses.dataclass(frozen=True)
class _Outside:
  """Between phrases."""

  named: bool  # whether the modality was
  # The letters just said: "" at a word's edge, "n" or "no" at the begin of a
  # word, "no " after that word, "x" in any other.
  word: str

  def letter(self, letter: str) -> "_State | None":
    if letter in "<[":
      return None
    begun = self.word + letter
    if letter.isspace():
      word = "no " if self.word.startswith("no") else ""
    elif not (letter.isalnum() or letter == "_"):
      word = ""
    elif begun in ("n", "no"):
      word = begun
    else:
      word = "n" if begun == "no n" else "x"
    return _Outside(self.named, word)

  def marker(self, marker: str) -> "_State | None":
    absent = self.word.startswith("no")
    if marker == "<p>" and not self.named:
      return None if absent else _Phrase("modality", False)
    if marker == "<p>":
      return _Phrase("absent" if absent else "present", False)
    return _ENDED if marker == "</s>" and self.named else None


@dataclasses.dataclass(frozen=True)
class _Phrase:
  """Behind <p>."""

  kind: str
  filled: bool  # whether it holds more than white space

  def letter(self, letter: str) -> "_State | None":
    if letter in "<[\n":
      return None
    return _Phrase(self.kind, self.filled or not letter.isspace())

  def marker(self, marker: str) -> "_State | None":
    if marker != "</p>" or not self.filled:
      return None
    return _CLOSED if self.kind == "present" else _Outside(True, "")


@dataclasses.dataclass(frozen=True)
class _Between:
  """Behind the </p> of what is present; or behind </s>."""

  ended: bool

  def letter(self, letter: str) -> "_State | None":
    del letter

  def marker(self, marker: str) -> "_State | None":
    if self.ended or marker != "[SEG]":
      return None
    return _Outside(True, "")


_State = _Outside | _Phrase | _Between
_CLOSED, _ENDED = _Between(False), _Between(True)
_STATES: tuple[_State, ...] = (
  *(
    _Outside(named, word)
    for named in (False, True)
    for word in ("", "n", "no", "no ", "x")
  ),
  *(
    _Phrase(kind, filled)
    for kind in ("modality", "present", "absent")
    for filled in (False, True)
  ),
  _CLOSED,
  _ENDED,
)
_NUMBERS = {state: number for number, state in enumerate(_STATES)}


def table(tokenizer: tokens.Tokenizer) -> tuple[np.ndarray, np.ndarray]:
  """The states of answers; the first begins one.

  Returns:
    (int8[U, V], the state after each token, -1 where it may not come;
    int32[U], fewest tokens from there to the end, </s> included).
  """
  next_UV = np.full((len(_STATES), tokenizer.vocabulary), -1, np.int8)
  for marker in ("<p>", "</p>", "[SEG]"):
    next_UV[:, tokenizer.id_of(marker)] = _after_marker(marker)
  next_UV[:, tokenizer.end_id] = _after_marker("</s>")
  for id, letters in tokenizer.pieces():
    next_UV[:, id] = _after(letters)
  return next_UV, _left(next_UV)


def _after_marker(marker: str) -> list[int]:
  return [_number(state.marker(marker)) for state in _STATES]


@functools.cache
def _letter(letter: str) -> list[int]:
  return [_number(state.letter(letter)) for state in _STATES]


def _after(letters: str) -> list[int]:
  """Where each state is led by a piece."""
  reached = [*range(len(_STATES))]
  for letter in letters:
    steps = _letter(letter)
    reached = [-1 if number < 0 else steps[number] for number in reached]
  return reached


def _number(state: _State | None) -> int:
  return -1 if state is None else _NUMBERS[state]


def _left(next_UV: np.ndarray) -> np.ndarray:
  """Fewest tokens to the end, by as many rounds as there are states."""
  far = len(next_UV) + 1
  left_U = np.full(len(next_UV), far, np.int32)
  left_U[_NUMBERS[_ENDED]] = 0
  for _ in _STATES:
    after_UV = np.where(next_UV < 0, far, left_U[next_UV])
    left_U = np.minimum(left_U, after_UV.min(axis=1) + 1).astype(np.int32)
  return left_U
