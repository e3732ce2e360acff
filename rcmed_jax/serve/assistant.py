"""The assistant: an image and a plain request in; text, masks, boxes out.

A request that names one of its new classes (`new_classes.py`) is answered in
the words of the training's answers, since a model that never saw the class
would not name it; what is then there, the mask alone says.
"""

from collections.abc import Callable, Sequence
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
from rcmed_jax.serve import new_classes
from rcmed_jax.serve.new_classes import NewClass


@dataclasses.dataclass(frozen=True)
class Question:
  """One request. `text` is what the user types, without any template."""

  image_IJC: np.ndarray  # uint8, RGB, any size
  text: str
  describe: bool = False  # the description form: one space before ASSISTANT


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


class Assistant:
  """Answers questions in batches of one static shape.

  Args:
    model: an `RCMed`.
    tokenizer: the tokenizer it was trained with.
    lengths: the prompt lengths to compile for, ascending.
    batch_size: requests answered together; a short batch is padded.
    max_new: longest answer, in tokens.
    max_targets: most masks in one answer.
    present_quality: the decoder's estimate of the IoU from which a target is
      there; it needs a model trained to estimate it (`LossConfig.quality`). 0:
      a target is there if its mask is not empty.
    classes: new classes, known to this assistant by name.

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
    batch_size: int = 1,
    max_new: int = 128,
    max_targets: int = 8,
    present_quality: float = 0.0,
    classes: Sequence[NewClass] = (),
  ):
    self._model = model
    self._tokenizer = tokenizer
    self._image_size = image_size
    self._lengths = lengths
    self._batch_size = batch_size
    self._present_quality = present_quality
    self._classes = tuple(classes)
    for one in self._classes:
      self._require_own(one)
    graphdef, self._weights = nnx.split(model)

    @jax.jit
    def answer(weights, pixels_BIJC, extent_B2, tokens_BT, length_B):
      with local.where_it_lies(self._weights):
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

    @jax.jit
    def segment(weights, batch, adaptation):
      with local.where_it_lies(self._weights):
        model = nnx.merge(graphdef, weights)
        said = model(batch, adaptation=adaptation)
      return said.masks_KBGYX[-1, :, 0], said.quality_BG[:, 0]

    @jax.jit
    def features(weights, pixels_BIJC, extent_B2):
      with local.where_it_lies(self._weights):
        model = nnx.merge(graphdef, weights)
        order = model.config.channel_order
        pixels_BIJC = image_encoder.normalize(pixels_BIJC, extent_B2, order)
        return model.image_encoder(pixels_BIJC)[1]

    self._answer = functools.partial(answer, self._weights)
    self._segment = functools.partial(segment, self._weights)
    self._features = functools.partial(features, self._weights)

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
    """The answer to one request; see `ask_many`."""
    return self.ask_many([Question(image_IJC, text, describe)])[0]

  def ask_many(
    self,
    questions: Sequence[Question],
    *,
    progress: Callable[[int], None] = lambda count: None,
  ) -> list[Answer]:
    """One answer per question, in order.

    Raises:
      ValueError: a question is empty, longer than the longest length, or names
        more than one new class.
    """
    known: dict[int, NewClass] = {}
    for index, question in enumerate(questions):
      named = self._named(question)
      if named:
        known[index] = named
    answers: dict[int, Answer] = {}
    others = [index for index in range(len(questions)) if index not in known]
    for indices in (others, list(known)):
      for start in range(0, len(indices), self._batch_size):
        batch = indices[start : start + self._batch_size]
        rows = [questions[index] for index in batch]
        if indices is others:
          found = self._ask_batch(rows)
        else:
          found = self.segment(rows, [known[index] for index in batch])
        answers |= zip(batch, found, strict=True)
        progress(len(batch))
    return [answers[index] for index in range(len(questions))]

  def segment(
    self, questions: Sequence[Question], classes: Sequence[NewClass]
  ) -> list[Answer]:
    """One answer per question, which shows its class: one batch at most.

    Raises:
      ValueError: as `ask_many`, or a class was made with other weights.
    """
    for one in classes:
      self._require_own(one)
    rows = self._filled(questions)
    classes_B = self._filled(classes)
    said = [prompts.answer(one.modality, (one.name,)) for one in classes_B]
    encoded = [
      self._tokenizer.encode_answer(prompts.conversation(row.text), text)
      for row, text in zip(rows, said, strict=True)
    ]
    tokens_BT, length_B = tokens.pad([ids for ids, _ in encoded], self._lengths)
    labels_BT, _ = tokens.pad(
      [labels for _, labels in encoded],
      [tokens_BT.shape[1]],
      fill=tokens.IGNORE_LABEL,
    )
    pixels_BIJC, extent_B2 = self._prepared(rows)
    seg_B = np.argmax(tokens_BT == self._tokenizer.seg_id, axis=1)
    batch = {
      "pixels_BIJC": pixels_BIJC,
      "extent_B2": extent_B2,
      "tokens_BT": tokens_BT,
      "length_B": length_B,
      "labels_BT": labels_BT,
      "seg_BG": seg_B[:, None].astype(np.int32),
      "valid_BG": np.ones((len(rows), 1), bool),
    }
    logits_BYX, quality_B = jax.device_get(
      self._segment(batch, new_classes.batch(classes_B))
    )
    answers = []
    for index, (row, one) in enumerate(zip(questions, classes, strict=True)):
      logits_IJ = self._restore(logits_BYX[index], extent_B2[index], row)
      quality = float(quality_B[index])
      found = self._found(one.name, logits_IJ, 1.0, quality)
      text = said[index].removesuffix("</s>")
      answers.append(Answer(text, one.modality, (found,)))
    return answers

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

  def _filled(self, rows: Sequence[Any]) -> list[Any]:
    """A full batch: copies of its last row, whose answers are dropped."""
    return [*rows, *[rows[-1]] * (self._batch_size - len(rows))]

  def _prepared(
    self, rows: Sequence[Question]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Images in the model's frame, and their extents."""
    prepared = [images.prepare(row.image_IJC, self._image_size) for row in rows]
    return (
      np.stack([pixels for pixels, _ in prepared]),
      np.stack([extent for _, extent in prepared]),
    )

  def _restore(
    self, logits_YX: np.ndarray, extent_2: np.ndarray, question: Question
  ) -> np.ndarray:
    """Logits on the image's own grid."""
    return images.restore_logits(
      logits_YX, extent_2, self._image_size, question.image_IJC.shape[:2]
    )

  def _ask_batch(self, questions: Sequence[Question]) -> list[Answer]:
    """The model's own answers to a batch."""
    rows = self._filled(questions)
    tokens_BT, length_B = tokens.pad(
      [
        self._tokenizer.encode_prompt(
          prompts.conversation(row.text, describe=row.describe)
        )
        for row in rows
      ],
      self._lengths,
    )
    pixels_BIJC, extent_B2 = self._prepared(rows)
    found = jax.device_get(
      self._answer(pixels_BIJC, extent_B2, tokens_BT, length_B)
    )
    return [
      self._read(found, index, row, extent_B2[index])
      for index, row in enumerate(questions)
    ]

  def _read(
    self,
    found: generate.Generation,
    index: int,
    question: Question,
    extent_2: np.ndarray,
  ) -> Answer:
    """Turns one row of arrays into an answer on the image's own grid."""
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
    return Answer(text, parsed.modality, tuple(targets))

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
    return Found(name, True, mask_IJ, box, spoken * float(held))
