"""From what a scanner measured to the grey values of a picture.

Computed tomography measures Hounsfield units, of which a picture shows a
window: all below it is black, all above it white. Which window, the targets of
the slice decide. All other values have no scale of their own: they go by the
percentiles of the whole volume, so that slices stay comparable.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import re
from typing import Any

import numpy as np

from rcmed_jax.ingest.volumes import geometry

# A scan of a body holds air, at -1000 HU, or at least fat and lung. A volume
# that starts above this has been rescaled, whatever its modality says.
HIGHEST_AIR_HU = -200

# Percent of voxels that may be darker than black, and brighter than white. As
# in the preprocessing of MedSAM (Ma et al., Nature Communications 2024).
DARK, BRIGHT = 0.5, 99.5

# Voxels that percentiles are taken from: all, or every n-th, evenly. At this
# many, the percentiles of a volume are off by less than a grey value.
MOST_SAMPLES = 4_000_000


@dataclasses.dataclass(frozen=True)
class Window:
  """Hounsfield units that a picture shows, and the words that ask for them."""

  level: float  # the middle
  width: float
  words: tuple[str, ...] = ()  # beginnings of words in class names


# Widths and levels: Radiopaedia, "Windowing (CT)". The level of the vessels is
# ours: contrast fills them to 200 to 400 HU, which soft tissue shows as white.
CT = {
  # First: pulmonary veins and hepatic arteries are no lung and no liver.
  "vessels": Window(
    250, 700, ("aort", "arter", "vein", "vena", "vessel", "aneurysm")
  ),
  "lung": Window(
    -600,
    1500,
    (
      "lung",
      "pulmon",
      "airway",
      "trachea",
      "bronch",
      "covid",
      "pneumo",
      "emphysem",
      "ground glass",
    ),
  ),
  "mediastinum": Window(
    50,
    350,
    (
      "mediastin",
      "heart",
      "atri",
      "ventricle of the heart",
      "myocard",
      "esophag",
      "oesophag",
      "thymus",
      "pericard",
      "lymph",
    ),
  ),
  "brain": Window(
    40,
    80,
    (
      "brain",
      "cereb",
      "hemorrhage",
      "haemorrhage",
      "hematoma",
      "haematoma",
      "ischemi",
      "ischaemi",
      "stroke",
      "hippocamp",
      "thalam",
    ),
  ),
  "liver": Window(30, 150, ("liver", "hepat", "hcc")),
  "bone": Window(
    400,
    1800,
    (
      "bone",
      "rib",
      "vertebra",
      "spine",
      "femur",
      "hip",
      "pelvis",
      "skull",
      "sacr",
      "clavic",
      "scapul",
      "humer",
      "stern",
      "mandib",
      "fractur",
      "teeth",
      "tooth",
      "crani",
      "iliac bone",
      "maxill",
    ),
  ),
  # Also where no word is known, or words ask for several windows.
  "soft tissue": Window(50, 400),
}
WIDEST = "soft tissue"


def check(name: str) -> None:
  """Raises ValueError unless it is one of `CT` or empty."""
  if name and name not in CT:
    raise ValueError(f"window={name!r} is none of {', '.join(CT)}.")


def choose(classes: Iterable[str]) -> str:
  """The window, one of `CT`, that shows the classes of a slice.

  Classes that want different windows get the one for soft tissue, in which
  each of them can be told from what is around it.
  """
  wanted = {_of_class(name) for name in classes}
  return wanted.pop() if len(wanted) == 1 else WIDEST


def apply(hounsfield_IJ: np.ndarray, window: Window) -> np.ndarray:
  """uint8[I, J]: the window from black to white, rounded."""
  low = window.level - window.width / 2
  return _stretch(hounsfield_IJ, low, low + window.width)


def colours(picture: np.ndarray) -> np.ndarray:
  """uint8[I, J, 3], RGB: a grey picture's three equal channels."""
  return np.repeat(picture[..., None], 3, axis=2)


def scale(
  voxels: Any, view: geometry.View, *, hounsfield: bool, window: str = ""
) -> Callable[[np.ndarray, Sequence[str]], np.ndarray]:
  """What makes uint8[I, J, 3] of a slice of these voxels and its classes.

  Where values are no Hounsfield units, black and white are percentiles of the
  voxels that are not 0: the air around a patient is 0 in most of what is not
  tomography, and how much of it there is says nothing of the contrast inside.

  Args:
    voxels: the whole volume, an array or what reads its slices.
    view: of its slices.
    hounsfield: whether values are Hounsfield units if they look like it; see
      `HIGHEST_AIR_HU`.
    window: one of `CT`; "": by the classes.
  """
  sample, lowest = _sample(voxels, view)
  if hounsfield and lowest <= HIGHEST_AIR_HU:
    return lambda values_IJ, classes: colours(
      apply(values_IJ, CT[window or choose(classes)])
    )
  low, high = _span(sample)
  return lambda values_IJ, classes: colours(_stretch(values_IJ, low, high))


def _stretch(values_IJ: np.ndarray, low: float, high: float) -> np.ndarray:
  """Black at `low`, white at `high`; what is no number is black."""
  with np.errstate(all="ignore"):  # of infinite values, and infinite spans
    share_IJ = (np.asarray(values_IJ, np.float64) - low) / (high - low)
  share_IJ = np.nan_to_num(share_IJ, nan=0.0, posinf=1.0, neginf=0.0)
  return np.rint(np.clip(share_IJ, 0, 1) * 255).astype(np.uint8)


def _span(values: np.ndarray) -> tuple[float, float]:
  """Black and white of values without a scale: `DARK` and `BRIGHT` percent.

  Of those that are finite and not 0; of a picture of one value, that and 1
  more.
  """
  told = values[np.isfinite(values) & (values != 0)]
  if not told.size:
    return 0.0, 1.0
  low, high = np.percentile(told, (DARK, BRIGHT))
  return float(low), float(high if high > low else low + 1)


def _sample(voxels: Any, view: geometry.View) -> tuple[np.ndarray, float]:
  """Evenly spread values of a volume, and its lowest."""
  step = -(-int(np.prod(view.shape)) // MOST_SAMPLES)
  parts, lowest = [], np.inf
  for z in range(view.shape[0]):
    values = view.picture(voxels, z).ravel()
    finite = values[np.isfinite(values)]
    if finite.size:
      lowest = min(lowest, float(finite.min()))
    # Another start in each slice, so that no column is seen alone.
    parts.append(values[z % step :: step])
  return np.concatenate(parts), lowest


def _of_class(name: str) -> str:
  words = name.lower().replace("_", " ")
  for window, meant in CT.items():
    if any(re.search(rf"\b{word}", words) for word in meant.words):
      return window
  return WIDEST
