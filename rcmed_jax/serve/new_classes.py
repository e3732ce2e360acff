"""A class that the model never saw, learnt from examples and kept in a file.

Its name, modality, prototype and prior (`model/adapt.py`), with the strengths
at which they act. A file belongs to the weights it was made with: it holds
their fingerprint and is refused elsewhere.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rcmed_jax.data import npz
from rcmed_jax.model import adapt

FORMAT = 1
PRIORS = ("auto", "on", "off")
# Mean IoU of the supports' masks, pair by pair, from which the class is held
# to lie in one place. Masks of one outline drawn twice reach 0.7 and more.
AGREEMENT = 0.5


@dataclasses.dataclass(frozen=True)
class Strengths:
  """How much a new class changes; 0: nothing. The release's numbers."""

  pixels: float = 0.3
  tokens: float = 0.5
  logits: float = 0.5

  def __post_init__(self) -> None:
    for name, value in dataclasses.asdict(self).items():
      if not 0 <= value <= 10:
        raise ValueError(
          f"strength of {name}: {value} must lie in 0..10; the release's are "
          f"{Strengths.pixels}, {Strengths.tokens}, {Strengths.logits}."
        )


RELEASED = Strengths()


@dataclasses.dataclass(frozen=True)
class NewClass:
  """What a class file holds."""

  name: str
  modality: str
  prototype_C: np.ndarray  # float32, of length 1
  prior_YX: np.ndarray  # float32[4g, 4g], the mean of the supports' masks
  strengths: Strengths  # of tokens and logits 0 where the prior is off
  supports: int  # examples that it was made of
  agreement: float  # of the masks' places, 0..1; 1 for a single support
  fingerprint: str  # of the weights

  def named_in(self, text: str) -> bool:
    """Whether a request speaks of it, in whole words, upper case or lower."""
    return bool(
      re.search(rf"(?<!\w){re.escape(self.name)}(?!\w)", text, re.IGNORECASE)
    )

  def without_effect(self) -> "NewClass":
    """The same class at strength 0: what the model does by itself."""
    return dataclasses.replace(self, strengths=Strengths(0.0, 0.0, 0.0))

  def save(self, path: str | pathlib.Path) -> None:
    """Writes the class file, an .npz without pickles."""
    values: dict[str, Any] = dict(vars(self), format=FORMAT)
    values["strengths"] = dataclasses.astuple(self.strengths)
    with pathlib.Path(path).open("wb") as file:  # savez would add a suffix
      np.savez(file, **values)


def load(path: str | pathlib.Path) -> NewClass:
  """A class from its file.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: it is no class file, or of another format.
  """
  if not pathlib.Path(path).is_file():
    raise FileNotFoundError(
      f"{path} is missing; make it with `rcmed adapt --out={path} ...`."
    )
  try:
    held = npz.read(path)
    if int(held.pop("format")) != FORMAT:
      raise ValueError("another format")
    values: dict[str, Any] = {
      name: array if array.ndim else array.item()
      for name, array in held.items()
    }
    strengths = Strengths(*map(float, values.pop("strengths")))
    return NewClass(strengths=strengths, **values)
  except (ValueError, TypeError, KeyError) as error:
    raise ValueError(
      f"{path} is no class file of this version ({error}); make it again with "
      "`rcmed adapt`."
    ) from error


def learn(
  name: str,
  modality: str,
  features_SYXC: np.ndarray,
  masks_SIJ: np.ndarray,
  *,
  fingerprint: str,
  strengths: Strengths = RELEASED,
  prior: str = "auto",
) -> NewClass:
  """The class that S examples show.

  Args:
    features_SYXC: of the examples' images, after the encoder's neck.
    masks_SIJ: 0 or 1, in the model's square frame.
    fingerprint: of the weights that made the features.
    prior: "on"; "off"; or "auto", on where two or more masks lie in one place:
      where a single one lies says nothing of the next.

  Raises:
    ValueError: no mask covers a cell of the feature grid.
  """
  grid = features_SYXC.shape[1]
  masks = jnp.asarray(masks_SIJ, jnp.float32)
  prototypes_SC, usable_S = jax.device_get(
    adapt.prototypes(jnp.asarray(features_SYXC), masks)
  )
  if not usable_S.any():
    raise ValueError(
      f"{name}: no mask covers a cell of the {grid} x {grid} feature grid; "
      "give examples in which the class is larger, or cut the images to its "
      "surroundings."
    )
  mean_C = prototypes_SC[usable_S].mean(axis=0)
  agreement = _agreement(masks_SIJ > 0)
  placed = prior == "on" or (
    prior == "auto" and len(masks_SIJ) > 1 and agreement >= AGREEMENT
  )
  if not placed:
    strengths = dataclasses.replace(strengths, tokens=0.0, logits=0.0)
  return NewClass(
    name=name,
    modality=modality,
    prototype_C=mean_C / np.linalg.norm(mean_C),
    prior_YX=np.asarray(adapt.prior(masks, 4 * grid)),
    strengths=strengths,
    supports=int(usable_S.sum()),
    agreement=agreement,
    fingerprint=fingerprint,
  )


def batch(classes: Sequence[NewClass]) -> adapt.Adaptation:
  """What the model reads of one class a row."""
  strengths_B3 = np.array(
    [dataclasses.astuple(one.strengths) for one in classes]
  )
  return adapt.Adaptation(
    prototype_BC=jnp.stack([jnp.asarray(one.prototype_C) for one in classes]),
    prior_BYX=jnp.stack([jnp.asarray(one.prior_YX) for one in classes]),
    pixel_strength_B=jnp.asarray(strengths_B3[:, 0], jnp.float32),
    token_strength_B=jnp.asarray(strengths_B3[:, 1], jnp.float32),
    logit_strength_B=jnp.asarray(strengths_B3[:, 2], jnp.float32),
  )


def _agreement(masks_SIJ: np.ndarray) -> float:
  """Mean IoU over all pairs of masks; 1 for a single one."""
  flat = masks_SIJ.reshape(len(masks_SIJ), -1).astype(np.float32)
  both = flat @ flat.T
  area = flat.sum(1)
  either = area[:, None] + area[None] - both
  pairs = np.triu_indices(len(flat), 1)
  if not len(pairs[0]):
    return 1.0
  return float((both[pairs] / np.maximum(either[pairs], 1)).mean())
