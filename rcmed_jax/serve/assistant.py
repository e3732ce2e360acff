"""The assistant: an image and a plain request in; text, masks, boxes out.

  assistant.ask("scan.png", "Where is the liver in this CT image?")
  assistant.segment(image_IJC, ["liver", "spleen"], modality="pet")
  talk = assistant.conversation(image_IJC)
  talk.ask("Is there a tumor?")

A request that names one of its new classes (`new_classes.py`) is answered in
the words of the training's answers, since a model that never saw the class
would not name it; what is then there, the mask alone says.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
import functools
import hashlib
import os

from flax import nnx
import numpy as np

from rcmed_jax.data import images, prompts, tokens
from rcmed_jax.model import rcmed
from rcmed_jax.serve import new_classes, programs, reading, runner, scans
from rcmed_jax.serve.new_classes import NewClass
from rcmed_jax.serve.questions import (
  LIKELIEST,
  Answer,
  Found,
  Question,
  Sampling,
  Timings,
)

__all__ = [
  "Answer",
  "Assistant",
  "Conversation",
  "Found",
  "Question",
  "Sampling",
  "Timings",
]

# uint8[I, J, 3], RGB; or a file of one picture.
Image = np.ndarray | str | os.PathLike[str]


class Assistant:
  """Answers questions in batches of a few static shapes.

  Args:
    model: an `RCMed`.
    tokenizer: the tokenizer it was trained with.
    lengths: the prompt lengths to compile for, ascending.
    rows: requests that a device answers together; a short batch is padded.
      Another number may round differently.
    max_new: longest answer, in tokens.
    max_targets: most masks in one answer.
    present_quality: the decoder's estimate of the IoU from which a target is
      there; it needs a model trained to estimate it (`LossConfig.quality`). 0:
      a target is there if its mask is not empty.
    classes: new classes, known to this assistant by name.
    calibrate: what a confidence is shown as, 0..1 each.
    kept: images that are remembered, so that the next question about one is
      answered sooner. Of the released 7B in bfloat16 each takes 0.56 GB of the
      device, keys and values of some 1,060 positions in 32 layers; a batch has
      them once more for each of its rows. Of models with prefix attention,
      whose image reads the question, features alone are kept. What is
      remembered changes no bit of an answer.

  Attributes:
    rows: requests that all devices answer together.
    max_new: as given.
    max_targets: as given.
    calibrate: as given.

  Raises:
    ValueError: a new class was made with other weights.
  """

  def __init__(
    self,
    model: rcmed.RCMed,
    tokenizer: tokens.Tokenizer,
    *,
    image_size: int,
    lengths: tuple[int, ...],
    rows: int = 1,
    max_new: int = 128,
    max_targets: int = 8,
    present_quality: float = 0.0,
    classes: Sequence[NewClass] = (),
    calibrate: Callable[[float], float] = float,
    kept: int = 2,
  ):
    self._model = model
    self.max_new = max_new
    self.max_targets = max_targets
    self._image_size = image_size
    self.calibrate = calibrate
    self._classes = tuple(classes)
    for one in self._classes:
      self._require_own(one)
    limits = programs.Limits(rows, max_new, max_targets)
    self._programs = programs.Programs(
      model, tokenizer, image_size=image_size, limits=limits, kept=kept
    )
    self._runner = runner.Runner(
      self._programs,
      reading.Reader(tokenizer, image_size, present_quality, calibrate),
      lengths=lengths,
      limits=limits,
    )
    self.rows = self._programs.rows

  @functools.cached_property
  def fingerprint(self) -> str:
    """Of the weights that make pixel features, for files of new classes."""
    neck = nnx.to_pure_dict(nnx.state(self._model.image_encoder.neck))
    digest = hashlib.sha256()
    for path, array in sorted(nnx.traversals.flatten_mapping(neck).items()):
      digest.update(repr(path).encode() + np.asarray(array).tobytes())
    return digest.hexdigest()

  def learn(
    self,
    name: str,
    modality: str,
    examples: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    strengths: new_classes.Strengths = new_classes.RELEASED,
    prior: str = "auto",
  ) -> NewClass:
    """A new class from examples; see `new_classes.learn`.

    Args:
      name: what requests will call it.
      modality: in words, "computed tomography".
      examples: (uint8[I, J, 3] RGB image, bool[I, J] mask), one or more.
    """
    features, masks = [], []
    for image_IJC, mask_IJ in examples:
      features.append(self._programs.features(image_IJC))
      masks.append(images.prepare_mask(mask_IJ, self._image_size))
    return new_classes.learn(
      name,
      modality,
      np.stack(features),
      np.stack(masks),
      fingerprint=self.fingerprint,
      strengths=strengths,
      prior=prior,
    )

  def ask(
    self,
    image: Image,
    text: str,
    *,
    describe: bool = False,
    earlier: Sequence[tuple[str, str]] = (),
    sampling: Sampling = LIKELIEST,
  ) -> Answer:
    """The answer to one request; see `stream`.

    Args:
      image: an array, or a file that holds one picture: PNG, JPEG, TIFF, DICOM
        or NIfTI. The text decides the window of a CT image.
      text, describe, earlier, sampling: see `Question`.

    Raises:
      DataError: the file cannot be read.
      ValueError: as `stream`, or it holds several slices.
    """
    image_IJC = picture(image, text)
    (answer,) = self.ask_many(
      [Question(image_IJC, text, describe, tuple(earlier), sampling)]
    )
    return answer

  def ask_many(self, questions: Iterable[Question]) -> list[Answer]:
    """One answer per question, in order; see `stream`."""
    answers = dict(self.stream(questions))
    return [answers[number] for number in range(len(answers))]

  def segment(
    self,
    image: Image,
    classes: Sequence[str],
    *,
    modality: str | None = None,
    sampling: Sampling = LIKELIEST,
  ) -> Answer:
    """An answer with one target for each class, those that are absent too.

    As many classes as an answer has masks for are asked in one question; a new
    class is asked alone. The text is that of all answers.

    Args:
      image: see `ask`.
      classes: by name; another spelling in the answer than in the question
        counts as absent.
      modality: in words, "computed tomography"; training's questions name it.

    Raises:
      ValueError: no class, or as `ask`.
    """
    if not classes:
      raise ValueError('segment: expected classes, such as ["liver"].')
    called, groups = self.groups(classes)
    image_IJC = picture(image, ", ".join(classes))
    answers = self.ask_many(
      Question(
        image_IJC, prompts.question(group, modality, 0), sampling=sampling
      )
      for group in groups
    )
    return reading.of_classes(answers, called)

  def groups(
    self, classes: Sequence[str]
  ) -> tuple[dict[str, str], list[list[str]]]:
    """What answers call each class, and which are asked in one question.

    An answer has `max_targets` masks at most; a new class is asked alone.
    """
    new = {one.name: one for one in self._classes}
    called = {
      name: next((own for own, one in new.items() if one.named_in(name)), name)
      for name in classes
    }
    asked = [*dict.fromkeys(called.values())]
    known, most = [one for one in asked if one not in new], self.max_targets
    groups = [known[at : at + most] for at in range(0, len(known), most)]
    return called, groups + [[one] for one in asked if one in new]

  def describe(self, image: Image, *, sampling: Sampling = LIKELIEST) -> Answer:
    """All that is there, in words and masks, as `ask` with no class named."""
    text = prompts.description_question(0)
    return self.ask(image, text, describe=True, sampling=sampling)

  def conversation(self, image: Image) -> "Conversation":
    """Questions about one image, each of which knows those before it."""
    return Conversation(self, picture(image, ""))

  def kind(self, question: Question) -> Hashable:
    """Questions of one kind share a batch. Any thread may ask.

    Raises:
      ValueError: it cannot be asked; see `stream`.
    """
    return runner.kind(self._runner.row(question, self._named(question)))

  def stream(
    self,
    questions: Iterable[Question],
    *,
    ahead: int = 1,
    told: runner.Told | None = None,
  ) -> Iterator[tuple[int, Answer]]:
    """(number, answer) of every question, as they are ready.

    An answer depends, to the last bit, on the questions and their order alone,
    not on `ahead`, on `told`, on what was asked before or, where every device
    holds all weights, on their number: see `batches.py` and `programs.py`.

    Args:
      questions: read as devices become free.
      ahead: batches that wait for devices while answers are being read.
      told: called with the number of a question and the text of its answer so
        far, every few tokens; each text begins with the one before, and the
        answer's with all of them. Not for new classes, whose words are given.

    Raises:
      ValueError: a question is empty, longer than the longest length, names
        more than one new class, or asks for what cannot be.
    """
    rows = (
      self._runner.row(question, self._named(question))
      for question in questions
    )
    yield from self._runner.answers(rows, ahead, told)

  def show(self, question: Question, one: NewClass) -> Answer:
    """The answer that shows this class, whatever the question names.

    Raises:
      ValueError: as `stream`, or the class was made with other weights.
    """
    self._require_own(one)
    row = self._runner.row(question, one)
    ((_, answer),) = self._runner.answers([row], 0, None)
    return answer

  def _named(self, question: Question) -> NewClass | None:
    """The new class that a question speaks of."""
    if question.describe:
      return None
    named = [one for one in self._classes if one.named_in(question.text)]
    if len(named) > 1:
      names = ", ".join(one.name for one in named)
      raise ValueError(
        f"{question.text!r} names {len(named)} new classes, {names}; ask for "
        "one at a time: each changes how the whole image is read."
      )
    return named[0] if named else None

  def _require_own(self, one: NewClass) -> None:
    if one.fingerprint != self.fingerprint:
      raise ValueError(
        f"the new class {one.name!r} was made with other weights; make it "
        "again with `rcmed adapt --checkpoint` and these."
      )


class Conversation:
  """Turns about one image.

  Args:
    assistant: which is asked, and which remembers the image.
    image_IJC: uint8[I, J, 3], RGB.

  Attributes:
    turns: questions and the texts of their answers, so far.
  """

  def __init__(self, assistant: Assistant, image_IJC: np.ndarray):
    self._assistant = assistant
    self._image_IJC = image_IJC
    self.turns: list[tuple[str, str]] = []

  def ask(
    self,
    text: str,
    *,
    describe: bool = False,
    sampling: Sampling = LIKELIEST,
  ) -> Answer:
    """The next answer; see `Assistant.ask`."""
    answer = self._assistant.ask(
      self._image_IJC,
      text,
      describe=describe,
      earlier=self.turns,
      sampling=sampling,
    )
    self.turns.append((text, answer.text))
    return answer


def picture(image: Image, text: str) -> np.ndarray:
  """uint8[I, J, 3], RGB: the array itself, or the picture in a file.

  Raises:
    DataError: the file cannot be read.
    ValueError: it holds several slices.
  """
  if isinstance(image, np.ndarray):
    return image
  scan = scans.open_scan(os.fspath(image), text)
  depth = scan.view.shape[0]
  if depth != 1:
    raise ValueError(
      f"{image} holds {depth} slices; `rcmed predict` and "
      "`rcmed_jax.serve.volumes.answer` answer about volumes."
    )
  (image_IJC,) = scan.pictures()
  return image_IJC
