"""An assistant that answers from the brightness of pixels, for tests."""

import numpy as np

from rcmed_jax.data import images
from rcmed_jax.serve.assistant import Answer, Found

# Class -> the grey values that are it. The body overlaps the others.
GREYS = {"kidney": (90, 199), "spleen": (200, 255)}
BODY = (90, 255)


class Fake:
  """Says that a heart is absent, and shows what `greys` tells."""

  def __init__(self, greys=None):
    self.greys = greys or GREYS
    self.asked = []
    self.rows = 1

  def ask(self, image_IJC, text, *, describe=False):
    if not text.strip():
      raise ValueError("the prompt has no text")
    self.asked.append((text, describe))
    targets = []
    for name, (low, high) in self.greys.items():
      mask_IJ = (image_IJC[..., 0] >= low) & (image_IJC[..., 0] <= high)
      if mask_IJ.any():
        targets.append(Found(name, True, mask_IJ, images.box(mask_IJ), 0.5))
    said = " and ".join(target.name for target in targets) or "nothing"
    heart = Found("heart", False, None, None, 0.0)
    return Answer(said, "magnetic resonance", (*targets, heart))

  def answer(self, question):
    return self.ask(
      question.image_IJC, question.text, describe=question.describe
    )

  def ask_many(self, questions):
    answers = dict(self.stream(questions))
    return [answers[number] for number in range(len(answers))]

  def stream(self, questions, *, ahead=1):
    del ahead
    answers = [
      (number, self.ask(one.image_IJC, one.text, describe=one.describe))
      for number, one in enumerate(questions)
    ]
    # As batches of several shapes would come.
    yield from answers[::2] + answers[1::2]


def picture(side=32):
  """uint8[side, side, 3] with a spleen in its middle."""
  image_IJC = np.full((side, side, 3), 40, np.uint8)
  image_IJC[8:16, 10:20] = 250
  return image_IJC
