"""One phantom from one seed: which modalities there are and how to draw one."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from rcmed_jax.data.phantoms import (
  ct,
  dermoscopy,
  endoscopy,
  fundus,
  mr,
  pathology,
  pet,
  ultrasound,
  xray,
)
from rcmed_jax.data.phantoms.canvas import Canvas

# File-name key of each modality (x is X-ray) and the function that draws it.
SCENES = {
  "ct": ct.ct,
  "mr": mr.mr,
  "x": xray.xray,
  "ultrasound": ultrasound.ultrasound,
  "pet": pet.pet,
  "pathology": pathology.pathology,
  "dermoscopy": dermoscopy.dermoscopy,
  "endoscopy": endoscopy.endoscopy,
  "fundus": fundus.fundus,
}
MODALITIES = tuple(SCENES)

# A target smaller than this share of the image was hidden by chance; the scene
# is drawn again, so that what is named is also to be seen.
SMALLEST_SHARE = 0.006


@dataclasses.dataclass(frozen=True)
class Phantom:
  """A drawn image with everything there is to know about it."""

  image_IJC: np.ndarray  # uint8 RGB
  masks: dict[str, np.ndarray]  # class name with underscores -> bool[I, J]
  modality: str  # one of MODALITIES


def draw(
  modality: str,
  seed: int | Sequence[int] | np.random.Generator,
  size: int = 192,
) -> Phantom:
  """Returns a phantom that depends on nothing but its arguments.

  Args:
    modality: one of MODALITIES.
    seed: anything that numpy's default_rng takes.
    size: pixels a side.

  Raises:
    ValueError: for an unknown modality or a size under 32.
  """
  if modality not in SCENES:
    raise ValueError(
      f"Unknown modality {modality!r}; expected one of {', '.join(MODALITIES)}."
    )
  if size < 32:
    raise ValueError(f"A phantom needs a size of at least 32, received {size}.")
  rng = np.random.default_rng(seed)
  while True:
    image_IJC, coverages = SCENES[modality](Canvas(rng, size))
    masks = {name: c_IJ > 0.5 for name, c_IJ in coverages.items()}
    if min(mask_IJ.mean() for mask_IJ in masks.values()) >= SMALLEST_SHARE:
      return Phantom(image_IJC, masks, modality)
