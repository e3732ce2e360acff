"""The whole two-way table between the release's tensors and our arrays.

Each part is a list of `Entry` (`convert/entry.py`): `names_vision.py` for SAM,
`names_language.py` for the rest.
"""

from rcmed_jax.convert import names_language, names_vision
from rcmed_jax.convert.entry import Entry
from rcmed_jax.model.config import ModelConfig


def entries(config: ModelConfig) -> list[Entry]:
  """Every tensor of the release, for a model of these sizes."""
  return names_vision.entries(config) + names_language.entries(config)
