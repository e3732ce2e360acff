"""The assistant: an image and a plain request in; text, masks, boxes out.

A request that names one of its new classes (`new_classes.py`) is answered in
the words of the training's answers, since a model that never saw the class
would not name it; what is then there, the mask alone says.
"""

import collections
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
import dataclasses
import functools
import hashlib
from typing import Any

from flax import nnx
import jax
import numpy as np

from rcmed_jax.data import images, prompts, tokens
from rcmed_jax.model import generate, image_encoder, rcmed
from rcmed_jax.parallel import local
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.serve import batches, new_classes
from rcmed_jax.serve.new_classes import NewClass

# Number of a question and the text of its answer so far.
Told = Callable[[int, str], None]


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How an answer's words are chosen."""

  temperature: float = 0.0  # 0: always the likeliest
  top_p: float = 1.0
  seed: int = 0
  max_new: int | None = None  # tokens; None: as many as the assistant allows
  grammar: bool = False  # only well-formed answers


@dataclasses.dataclass(frozen=True)
class Question:
  """One request. `text` is what the user types, without any template."""

  image_IJC: np.ndarray  # uint8, RGB, any size
  text: str
  describe: bool = False  # the description form: one space before ASSISTANT
  earlier: tuple[tuple[str, str], ...] = ()  # questions and answers before it
  sampling: Sampling = Sampling()


@dataclasses.dataclass(frozen=True)
class Found:
  """One target that the answer speaks of."""

  name: str
  present: bool  # the answer shows it, and so does its mask
  mask_IJ: np.ndarray | None  # bool, on the image's own grid
  box: tuple[int, int, int, int] | None  # x0, y0, x1, y1; x1, y1 exclusive
  confidence: float  # 0..1, that the target is there


@dataclasses.dataclass(frozen=True)
class Answer:
  """What comes back from one call."""

  text: str  # with <p> phrases and [SEG] markers
  modality: str | None
  targets: tuple[Found, ...]
  tokens: tuple[int, int] = (0, 0)  # of the prompt, of the answer
  ended: bool = True  # False: it was cut off at the most tokens


@dataclasses.dataclass(frozen=True)
class _Row:
  """A question as the model reads it."""

  question: Question
  one: NewClass | None  # the new class that is shown; None: the model answers
  said: str  # the given answer
  ids_T: np.ndarray
  labels_T: np.ndarray | None
  width: int  # to which its ids are padded


_Batch = Sequence[tuple[int, _Row]]


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

  Attributes:
    rows: requests that all devices answer together.
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
  ):
    self._model = model
    self._tokenizer = tokenizer
    self._image_size = image_size
    self._lengths = lengths
    self._present_quality = present_quality
    self.calibrate = calibrate
    self._classes = tuple(classes)
    for one in self._classes:
      self._require_own(one)
    graphdef, weights = nnx.split(model)
    mesh = local.mesh_of(weights)
    self.rows = rows * (meshes.batch_shards(mesh) if mesh else 1)

    def answer(weights, pixels_BIJC, extent_B2, tokens_BT, length_B):
      return generate.generate(
        nnx.merge(graphdef, weights),
        pixels_BIJC,
        extent_B2,
        tokens_BT,
        length_B,
        seg_id=tokenizer.seg_id,
        end_id=tokenizer.end_id,
        max_new=max_new,
        max_targets=max_targets,
      )

    def segment(weights, batch, adaptation):
      model = nnx.merge(graphdef, weights)
      said = model(batch, adaptation=adaptation)
      return said.masks_KBGYX[-1, :, 0], said.quality_BG[:, 0]

    def features(weights, pixels_BIJC, extent_B2):
      model = nnx.merge(graphdef, weights)
      order = model.config.channel_order
      pixels_BIJC = image_encoder.normalize(pixels_BIJC, extent_B2, order)
      return model.image_encoder(pixels_BIJC)[1]

    self._answer, self._segment, self._features = (
      functools.partial(jax.jit(local.rows_apart(one, weights)), weights)
      for one in (answer, segment, features)
    )

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
      pixels_IJC, extent_2 = images.prepare(image_IJC, self._image_size)
      features.append(self._features(pixels_IJC[None], extent_2[None])[0])
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
    self, image_IJC: np.ndarray, text: str, *, describe: bool = False
  ) -> Answer:
    """The answer to one request; see `stream`."""
    (answer,) = self.ask_many([Question(image_IJC, text, describe)])
    return answer

  def ask_many(self, questions: Iterable[Question]) -> list[Answer]:
    """One answer per question, in order; see `stream`."""
    answers = dict(self.stream(questions))
    return [answers[number] for number in range(len(answers))]

  def kind(self, question: Question) -> Hashable:
    """Questions of one kind can share a batch.

    Raises:
      ValueError: it cannot be asked; see `stream`.
    """
    row = self._row(question, self._named(question))
    return row.width, row.one is not None

  def stream(
    self,
    questions: Iterable[Question],
    *,
    ahead: int = 1,
    told: Told | None = None,
  ) -> Iterator[tuple[int, Answer]]:
    """(number, answer) of every question, as they are ready.

    An answer depends, to the last bit, on the questions and their order alone,
    not on `ahead` or, where every device holds all weights, on their number:
    see `batches.py`.

    Args:
      questions: read as devices become free.
      ahead: batches that wait for devices while answers are being read.

    Raises:
      ValueError: a question is empty, longer than the longest length, or names
        more than one new class.
    """
    for number, answer in self._stream(
      (self._row(question, self._named(question)) for question in questions),
      ahead,
    ):
      if told is not None:
        told(number, answer.text)
      yield number, answer

  def segment(self, question: Question, one: NewClass) -> Answer:
    """The answer that shows this class, whatever the question names.

    Raises:
      ValueError: as `stream`, or the class was made with other weights.
    """
    self._require_own(one)
    ((_, answer),) = self._stream([self._row(question, one)], 0)
    return answer

  def _row(self, question: Question, one: NewClass | None) -> _Row:
    """The question as ids, with its answer where its class is a new one."""
    prompt = prompts.conversation(question.text, describe=question.describe)
    if one is None:
      said, labels_T = "", None
      ids_T = self._tokenizer.encode_prompt(prompt)
    else:
      said = prompts.answer(one.modality, (one.name,))
      ids_T, labels_T = self._tokenizer.encode_answer(prompt, said)
    width = tokens.fit(len(ids_T), self._lengths)
    return _Row(question, one, said, ids_T, labels_T, width)

  def _stream(
    self, rows: Iterable[_Row], ahead: int
  ) -> Iterator[tuple[int, Answer]]:
    running: collections.deque[Iterator[tuple[int, Answer]]] = (
      collections.deque()
    )
    kinds = batches.batches(
      rows, lambda row: (row.width, row.one is not None), self.rows
    )
    for (_, known), batch in kinds:
      run = self._show if known else self._say
      running.append(run(batch))
      next(running[-1])  # starts the devices, and does not wait for them
      if len(running) > ahead:
        yield from running.popleft()
    for answers in running:
      yield from answers

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

  def _inputs(self, rows: Sequence[_Row]) -> tuple[np.ndarray, ...]:
    """Pixels in the model's frame, extents, ids and lengths."""
    prepared = [
      images.prepare(row.question.image_IJC, self._image_size) for row in rows
    ]
    tokens_BT, length_B = tokens.pad(
      [row.ids_T for row in rows], (rows[0].width,)
    )
    return (
      np.stack([pixels for pixels, _ in prepared]),
      np.stack([extent for _, extent in prepared]),
      tokens_BT,
      length_B,
    )

  def _filled(self, batch: _Batch) -> list[_Row]:
    """A full batch: copies of its last row, whose answers are dropped."""
    rows = [row for _, row in batch]
    return [*rows, *[rows[-1]] * (self.rows - len(rows))]

  def _say(self, batch: _Batch) -> Iterator[Any]:
    """Nothing, once the devices work; then the model's own answers."""
    inputs = self._inputs(self._filled(batch))
    running = self._answer(*inputs)
    yield None
    found, extent_B2 = jax.device_get(running), inputs[1]
    for index, (number, row) in enumerate(batch):
      yield number, self._read(found, index, row, extent_B2[index])

  def _show(self, batch: _Batch) -> Iterator[Any]:
    """Nothing, once the devices work; then new classes, in given words."""
    rows = self._filled(batch)
    pixels_BIJC, extent_B2, tokens_BT, length_B = self._inputs(rows)
    labels_BT, _ = tokens.pad(
      [row.labels_T for row in rows if row.labels_T is not None],
      (rows[0].width,),
      fill=tokens.IGNORE_LABEL,
    )
    seg_B = np.argmax(tokens_BT == self._tokenizer.seg_id, axis=1)
    inputs = {
      "pixels_BIJC": pixels_BIJC,
      "extent_B2": extent_B2,
      "tokens_BT": tokens_BT,
      "length_B": length_B,
      "labels_BT": labels_BT,
      "seg_BG": seg_B[:, None].astype(np.int32),
      "valid_BG": np.ones((len(rows), 1), bool),
    }
    classes = new_classes.batch([row.one for row in rows if row.one])
    running = self._segment(inputs, classes)
    yield None
    logits_BYX, quality_B = jax.device_get(running)
    for index, (number, row) in enumerate(batch):
      assert row.one is not None and row.labels_T is not None
      logits_IJ = self._restore(
        logits_BYX[index], extent_B2[index], row.question
      )
      quality = float(quality_B[index])
      found = self._found(row.one.name, logits_IJ, 1.0, quality)
      text = row.said.removesuffix("</s>")
      counts = (len(row.ids_T), int((row.labels_T >= 0).sum()))
      yield number, Answer(text, row.one.modality, (found,), counts)

  def _restore(
    self, logits_YX: np.ndarray, extent_2: np.ndarray, question: Question
  ) -> np.ndarray:
    """Logits on the image's own grid."""
    return images.restore_logits(
      logits_YX, extent_2, self._image_size, question.image_IJC.shape[:2]
    )

  def _read(
    self,
    found: generate.Generation,
    index: int,
    row: _Row,
    extent_2: np.ndarray,
  ) -> Answer:
    """Turns one row of arrays into an answer on the image's own grid."""
    question = row.question
    ids_T = found.tokens_BT[index, : found.length_B[index]]
    text = self._tokenizer.decode(ids_T)
    parsed = prompts.parse_answer(text)
    targets = []
    for g, name in enumerate(parsed.present):
      if g >= found.seg_valid_BG.shape[1]:
        break
      logits_YX = np.asarray(found.masks_BGYX[index, g])
      logits_IJ = self._restore(logits_YX, extent_2, question)
      spoken = float(np.exp(found.seg_log_prob_BG[index, g]))
      quality = float(found.quality_BG[index, g])
      targets.append(self._found(name, logits_IJ, spoken, quality))
    targets += [Found(name, False, None, None, 0.0) for name in parsed.absent]
    return Answer(
      text,
      parsed.modality,
      tuple(targets),
      (len(row.ids_T), len(ids_T)),
      bool(self._tokenizer.end_id in ids_T),
    )

  def _found(
    self, name: str, logits_IJ: np.ndarray, spoken: float, quality: float
  ) -> Found:
    """Confidence = P([SEG]) times how good the mask is held to be.

    That is the decoder's estimate of the IoU where it was trained, and else
    the mean probability of the mask's pixels.
    """
    mask_IJ = logits_IJ > 0
    estimated = self._present_quality > 0
    if not mask_IJ.any() or (estimated and quality < self._present_quality):
      return Found(name, False, None, None, 0.0)
    if estimated:
      held = min(quality, 1.0)
    else:
      held = (1 / (1 + np.exp(-logits_IJ[mask_IJ].astype(np.float64)))).mean()
    box = images.box(mask_IJ)
    confidence = self.calibrate(spoken * float(held))
    return Found(name, True, mask_IJ, box, confidence)
