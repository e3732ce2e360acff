"""From a model's arrays to answers on the grids of their images."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses

import numpy as np

from rcmed_jax.data import images, prompts, tokens
from rcmed_jax.model.generate import Generation
from rcmed_jax.serve.questions import Answer, Found, Timings, Tokens


@dataclasses.dataclass(frozen=True)
class Reader:
  """Reads rows of arrays."""

  tokenizer: tokens.Tokenizer
  image_size: int
  # The decoder's estimate of the IoU from which a target is there. 0: a target
  # is there if its mask is not empty.
  present_quality: float = 0.0
  calibrate: Callable[[float], float] = float

  def text(self, ids_T: np.ndarray) -> str:
    """What was said so far: the begin of all that will have been said.

    Without spaces at its end, which a full stop may close up, and without a
    letter of which some bytes are still to come.
    """
    return self.tokenizer.decode(ids_T).rstrip("\ufffd").rstrip()

  def answer(
    self,
    said: Generation,
    row: int,
    extent_2: np.ndarray,
    shape: tuple[int, ...],
    prompt: int = 0,
  ) -> Answer:
    """One row of arrays as an answer.

    Args:
      said: arrays of NumPy.
      extent_2: rows and columns of the model's frame that are not padding.
      shape: of the image.
      prompt: tokens of the question.
    """
    ids_T = said.tokens_BT[row, : said.length_B[row]]
    text = self.tokenizer.decode(ids_T)
    parsed = prompts.parse_answer(text)
    targets = []
    for g, name in enumerate(parsed.present):
      if g >= said.seg_valid_BG.shape[1]:
        break
      spoken = float(np.exp(said.seg_log_prob_BG[row, g]))
      quality = float(said.quality_BG[row, g])
      logits_YX = np.asarray(said.masks_BGYX[row, g])
      targets.append(
        self.found(name, logits_YX, extent_2, shape, spoken, quality)
      )
    targets += [Found(name, False, None, None, 0.0) for name in parsed.absent]
    ended = bool((ids_T == self.tokenizer.end_id).any())
    length = Tokens(prompt, len(ids_T), ended)
    return Answer(text, parsed.modality, tuple(targets), tokens=length)

  def found(
    self,
    name: str,
    logits_YX: np.ndarray,
    extent_2: np.ndarray,
    shape: tuple[int, ...],
    spoken: float,
    quality: float,
  ) -> Found:
    """A target by its mask.

    Confidence = P([SEG]) times how good the mask is held to be: that is the
    decoder's estimate of the IoU where it was trained, and else the mean
    probability of the mask's pixels.

    Args:
      extent_2, shape: as in `answer`.
      spoken: P([SEG]).
      quality: the decoder's estimate.
    """
    logits_IJ = images.restore_logits(
      logits_YX, extent_2, self.image_size, shape[:2]
    )
    mask_IJ = logits_IJ > 0
    estimated = self.present_quality > 0
    if not mask_IJ.any() or (estimated and quality < self.present_quality):
      return Found(name, False, None, None, 0.0)
    if estimated:
      held = min(quality, 1.0)
    else:
      held = (1 / (1 + np.exp(-logits_IJ[mask_IJ].astype(np.float64)))).mean()
    confidence = self.calibrate(spoken * float(held))
    return Found(name, True, mask_IJ, images.box(mask_IJ), confidence)


def of_classes(answers: Sequence[Answer], classes: Mapping[str, str]) -> Answer:
  """One target for each class, from answers that speak of some each.

  What was said of a class several times is joined: all masks, and the highest
  confidence. A class of which nothing was said is absent.

  Args:
    classes: by the name to give them, the name that answers have for them.
  """
  said: dict[str, list[Found]] = {}
  for found in (one for answer in answers for one in answer.targets):
    said.setdefault(_key(found.name), []).append(found)
  # Answers of one batch share these.
  batches = {(one.timings.prepare_s, one.timings.model_s) for one in answers}
  return Answer(
    " ".join(one.text for one in answers),
    next((one.modality for one in answers if one.modality), None),
    tuple(
      _joined(name, said.get(_key(called), []))
      for name, called in classes.items()
    ),
    Timings(
      sum(prepare_s for prepare_s, _ in batches),
      sum(model_s for _, model_s in batches),
      sum(one.timings.masks_s for one in answers),
    ),
    Tokens(
      sum(one.tokens.prompt for one in answers),
      sum(one.tokens.answer for one in answers),
      all(one.tokens.ended for one in answers),
    ),
  )


def _key(name: str) -> str:
  return " ".join(name.lower().split())


def _joined(name: str, parts: list[Found]) -> Found:
  masks = [one.mask_IJ for one in parts if one.mask_IJ is not None]
  if not masks:
    return Found(name, False, None, None, 0.0)
  mask_IJ = np.logical_or.reduce(masks)
  confidence = max(one.confidence for one in parts)
  return Found(name, True, mask_IJ, images.box(mask_IJ), confidence)
