"""What is asked and what comes back: plain values, no arrays of a device."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How an answer's words are chosen."""

  temperature: float = 0.0  # 0: the likeliest, whatever the rest says
  top_p: float = 1.0  # draws among the likeliest that hold this probability
  seed: int = 0  # the same draw again, whoever else is answered beside it
  max_new: int | None = None  # most tokens; None: as the assistant was made
  # Only well-formed answers: every <p> closed, each name with its [SEG] or its
  # "no", a modality first (`data/grammar.py`).
  grammar: bool = False

  def __post_init__(self) -> None:
    for name, fits, expected in (
      ("temperature", 0 <= self.temperature <= 100, "0 to 100"),
      ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
      ("max_new", self.max_new is None or self.max_new > 0, "1 or more"),
    ):
      if not fits:
        raise ValueError(
          f"{name}: expected {expected}, received {getattr(self, name)}."
        )


LIKELIEST = Sampling()


@dataclasses.dataclass(frozen=True)
class Question:
  """One request. `text` is what the user types, without any template."""

  image_IJC: np.ndarray  # uint8, RGB, any size
  text: str
  describe: bool = False  # the description form: one space before ASSISTANT
  # Turns about the same image before it, (question, answer) each.
  earlier: tuple[tuple[str, str], ...] = ()
  sampling: Sampling = LIKELIEST


@dataclasses.dataclass(frozen=True)
class Found:
  """One target that the answer speaks of."""

  name: str
  present: bool  # the answer shows it, and so does its mask
  mask_IJ: np.ndarray | None  # bool, on the image's own grid
  box: tuple[int, int, int, int] | None  # x0, y0, x1, y1; x1, y1 exclusive
  confidence: float  # 0..1, that the target is there


@dataclasses.dataclass(frozen=True)
class Timings:
  """Where an answer's time went, in seconds.

  The first two are those of its whole batch. Devices may have been at work for
  another batch meanwhile.
  """

  prepare_s: float = 0.0  # pixels and ids, until the devices had them
  model_s: float = 0.0  # from then until all numbers had come back
  masks_s: float = 0.0  # its masks on the image's own grid


@dataclasses.dataclass(frozen=True)
class Tokens:
  """How long question and answer are, as the model counts."""

  prompt: int = 0  # the whole conversation, the image as one
  answer: int = 0  # its end included
  ended: bool = True  # False: it was cut off, it had as many as it may


@dataclasses.dataclass(frozen=True)
class Answer:
  """What comes back from one call."""

  text: str  # with <p> phrases and [SEG] markers
  modality: str | None
  targets: tuple[Found, ...]
  timings: Timings = dataclasses.field(default=Timings(), compare=False)
  tokens: Tokens = dataclasses.field(default=Tokens(), compare=False)
