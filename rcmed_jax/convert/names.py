"""The whole two-way table between the release's tensors and our arrays.

Each part is a list of `Entry` (`convert/entry.py`): `names_vision.py` for SAM,
`names_language.py` for the rest.
"""

import dataclasses

from rcmed_jax.convert import names_language, names_vision
from rcmed_jax.convert.entry import Entry
from rcmed_jax.model.config import ModelConfig

# Kind of checkpoint -> the attributes of `RCMed` that it fills.
PARTS = {
  "syre": (
    "image_encoder",
    "projector",
    "language",
    "feedback",
    "query",
    "mask_decoder",
  ),
  "sam": ("image_encoder", "mask_decoder"),
  "llama": ("language",),
}


def entries(config: ModelConfig, kind: str = "syre") -> list[Entry]:
  """Every tensor of a kind of checkpoint, for a model of these sizes.

  The original SAM has the release's names without the prefix that they bear
  there.
  """
  found = names_vision.entries(config) + names_language.entries(config)
  found = [entry for entry in found if entry.part in PARTS[kind]]
  if kind != "sam":
    return found
  return [
    dataclasses.replace(
      entry, release=entry.release.removeprefix(names_vision.PREFIX)
    )
    for entry in found
  ]
