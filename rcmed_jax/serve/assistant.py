"""The assistant: an image and a plain request in; text, masks, boxes out."""

from collections.abc import Callable, Sequence
import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from rcmed_jax.data import images, prompts, tokens
from rcmed_jax.model import generate, rcmed
from rcmed_jax.parallel import local


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
  ):
    self._tokenizer = tokenizer
    self._image_size = image_size
    self._lengths = lengths
    self._batch_size = batch_size
    self._present_quality = present_quality
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

    self._answer = functools.partial(answer, self._weights)

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
      ValueError: a question is empty or longer than the longest length.
    """
    answers = []
    for start in range(0, len(questions), self._batch_size):
      batch = questions[start : start + self._batch_size]
      answers += self._ask_batch(batch)
      progress(len(batch))
    return answers

  def _ask_batch(self, questions: Sequence[Question]) -> list[Answer]:
    """Pads the batch with copies of its last row, which are dropped again."""
    fill = self._batch_size - len(questions)
    rows = [*questions, *[questions[-1]] * fill]
    tokens_BT, length_B = tokens.pad(
      [
        self._tokenizer.encode_prompt(
          prompts.conversation(row.text, describe=row.describe)
        )
        for row in rows
      ],
      self._lengths,
    )
    prepared = [images.prepare(row.image_IJC, self._image_size) for row in rows]
    found = jax.device_get(
      self._answer(
        jnp.stack([pixels for pixels, _ in prepared]),
        jnp.stack([extent for _, extent in prepared]),
        tokens_BT,
        length_B,
      )
    )
    return [
      self._read(found, index, row, prepared[index][1])
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
      logits_IJ = images.restore_logits(
        np.asarray(found.masks_BGYX[index, g]),
        extent_2,
        self._image_size,
        question.image_IJC.shape[:2],
      )
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
