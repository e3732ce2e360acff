"""What a model is asked about an image: pictures, words, and nothing else."""

import base64
import dataclasses
import hashlib
import json

import numpy as np

from rcmed_jax.data.records import Triplet
from rcmed_jax.ingest.describing import colours, endpoint, wording
from rcmed_jax.ingest.describing.vlm import Message

# Part of every key in the cache: another, when pictures are painted otherwise.
PAINTING = 1
# Tokens to a word of the answer.
TOKENS_PER_WORD = 1.4


@dataclasses.dataclass(frozen=True)
class Part:
  """Targets of an image that one picture holds."""

  places: tuple[int, ...]  # in the triplet
  colours: dict[str, str]  # colour -> class
  prompt: str
  key: str  # of the reply
  tokens_in: int
  tokens_out: int


def parts(triplet: Triplet, model: str, detail: bool) -> list[Part]:
  """What is asked about an image."""
  result = []
  for places in colours.group(triplet.masks_GIJ):
    names = colours.choose(triplet.image_IJC, len(places))
    chosen = dict(
      zip(names, (triplet.classes[place] for place in places), strict=True)
    )
    prompt = wording.prompt(chosen, detail)
    masks_GIJ = triplet.masks_GIJ[places]
    words = wording.DETAIL_WORDS if detail else wording.WORDS
    shape = colours.picture_shape(triplet.image_IJC.shape)
    result.append(
      Part(
        places=tuple(places),
        colours=chosen,
        prompt=prompt,
        key=_key(triplet.image_IJC, masks_GIJ, prompt, model),
        tokens_in=endpoint.image_tokens(shape) + endpoint.text_tokens(prompt),
        tokens_out=round(words * len(places) * TOKENS_PER_WORD),
      )
    )
  return result


def message(triplet: Triplet, part: Part) -> Message:
  """The message with the picture."""
  picture_IJC = colours.paint(
    triplet.image_IJC, triplet.masks_GIJ[[*part.places]], [*part.colours]
  )
  data = base64.b64encode(colours.encode(picture_IJC)).decode("ascii")
  image = {"url": f"data:image/jpeg;base64,{data}", "detail": "high"}
  return {
    "role": "user",
    "content": [
      {"type": "text", "text": part.prompt},
      {"type": "image_url", "image_url": image},
    ],
  }


def _key(
  image_IJC: np.ndarray, masks_GIJ: np.ndarray, prompt: str, model: str
) -> str:
  """Of all that decides a reply: pixels, masks, words, model."""
  told = [PAINTING, model, prompt, colours.SIDE, image_IJC.shape]
  digest = hashlib.blake2b(json.dumps(told).encode(), digest_size=16)
  digest.update(np.ascontiguousarray(image_IJC).tobytes())
  digest.update(np.packbits(masks_GIJ).tobytes())
  return digest.hexdigest()
