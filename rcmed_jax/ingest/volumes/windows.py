"""From what a scanner measured to the grey values of a picture.

Computed tomography measures Hounsfield units, of which a picture shows a
window: all below it is black, all above it white. All other values have no
scale of their own: they go by the percentiles of the whole volume, so that
slices stay comparable.

Which window is decided once for a volume, by `decide`, for training as for
answers: by the classes that its labels may hold, whether a slice shows them or
not. Were it by what a slice shows, its contrast would tell what is in it.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import re
from typing import Any

import numpy as np

from rcmed_jax.data import modalities
from rcmed_jax.ingest.volumes import geometry

# A scan of a body holds air, at -1000 HU, or at least fat and lung. A volume
# that starts above this has been rescaled, whatever its modality says.
HIGHEST_AIR_HU = -200
# What nothing but computed tomography goes down to: air is -1000 HU.
SURE_AIR_HU = -900

# Percent of voxels that may be darker than black, and brighter than white. As
# in the preprocessing of MedSAM (Ma et al., Nature Communications 2024).
DARK, BRIGHT = 0.5, 99.5

# Voxels that percentiles are taken from: all, or every n-th, evenly. At this
# many, the percentiles of a volume are off by less than a grey value.
MOST_SAMPLES = 4_000_000


# Uint8[I, J, 3] of the values of a slice.
Paint = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Window:
  """Hounsfield units that a picture shows, and the words that ask for them."""

  level: float  # the middle
  width: float
  words: str  # words and phrases of class names, between commas


# Widths and levels: Radiopaedia, "Windowing (CT)". The level of the vessels is
# ours: contrast fills them to 200 to 400 HU, which soft tissue shows as white.
# Where a name holds words of several, the first of these is meant.
CT = {
  # First: pulmonary veins and hepatic arteries are no lung and no liver.
  "vessels": Window(
    250,
    700,
    "aorta, aortic, artery, arteries, arterial, vein, veins, venous, vena, "
    "venae, vessel, vessels, aneurysm, aneurysms",
  ),
  "lung": Window(
    -600,
    1500,
    "lung, lungs, pulmonary, airway, airways, trachea, tracheal, bronchus, "
    "bronchi, bronchial, bronchiole, bronchioles, covid, covid19, pneumonia, "
    "pneumothorax, emphysema, ground glass",
  ),
  "mediastinum": Window(
    50,
    350,
    "mediastinum, mediastinal, heart, atrium, atria, atrial, "
    "ventricle of the heart, myocardium, myocardial, esophagus, esophageal, "
    "oesophagus, oesophageal, thymus, pericardium, pericardial, lymph, "
    "lymphoma, lymphomas, lymphocyte, lymphocytes",
  ),
  "brain": Window(
    40,
    80,
    "brain, brainstem, cerebrum, cerebral, cerebellum, cerebellar, "
    "cerebrospinal, intracerebral, intracranial, craniopharyngioma, "
    "hemorrhage, haemorrhage, hemorrhages, haemorrhages, hematoma, haematoma, "
    "hematomas, haematomas, ischemia, ischaemia, ischemic, ischaemic, stroke, "
    "hippocampus, hippocampi, hippocampal, thalamus, thalami",
  ),
  "liver": Window(30, 150, "liver, hepatic, hcc, hepatocellular"),
  "bone": Window(
    400,
    1800,
    "bone, bones, rib, ribs, vertebra, vertebrae, vertebral, spine, femur, "
    "femurs, hip, hips, pelvis, skull, sacrum, sacral, sacroiliac, clavicle, "
    "clavicles, clavicula, scapula, scapulae, humerus, sternum, sternal, "
    "mandible, mandibular, fracture, fractures, teeth, tooth, cranium, "
    "cranial, maxilla, maxillary",
  ),
  # Also where no word is known, or words ask for several windows.
  "soft tissue": Window(
    50,
    400,
    "soft tissue, spleen, splenic, kidney, kidneys, renal, renal pelvis, "
    "pancreas, pancreatic, gallbladder, stomach, gastric, duodenum, bowel, "
    "colon, rectum, intestine, bladder, prostate, uterus, ovary, ovaries, "
    "adrenal, adrenals, muscle, muscles, fat, thyroid, parotid, cranial nerve",
  ),
}
WIDEST = "soft tissue"

# Not a window: values go by percentiles, whatever they are.
PERCENTILES = "percentiles"
CHOICES = (*CT, PERCENTILES)
# Nor is this: colours, and pictures of eight bits, are shown as they are.
AS_STORED = "as stored"

_WORDS = {
  word: name for name, window in CT.items() for word in window.words.split(", ")
}
# The longest first: a renal pelvis is no pelvis.
_WORD = re.compile(
  rf"(?<![^\W_])(?:{'|'.join(sorted(_WORDS, key=len, reverse=True))})(?![^\W_])"
)
# Between these, a request names one thing after another.
_BETWEEN = re.compile(r"[,;&/]|\b(?:and|or|with|near)\b")


@dataclasses.dataclass(frozen=True)
class Shown:
  """How grey values of a volume are shown, and why so."""

  modality: str  # in words; `modalities.UNKNOWN`
  window: str  # one of CT, `PERCENTILES` or `AS_STORED`
  why: str
  # The values look like Hounsfield units, and nothing says what they are.
  doubtful: bool = False

  def json(self) -> dict[str, str]:
    """As answers tell it."""
    return {"modality": self.modality, "window": self.window, "why": self.why}


def check(name: str) -> None:
  """Raises ValueError unless it is one of `CHOICES` or empty."""
  if name and name not in CHOICES:
    raise ValueError(f"window={name!r} is none of {', '.join(CHOICES)}.")


def choose(classes: Iterable[str]) -> str:
  """The window, one of `CT`, that shows all of these classes.

  Classes that want different windows get the one for soft tissue, in which
  each of them can be told from what is around it. So does one that no word is
  known of.
  """
  wanted = {_of_class(name) or WIDEST for name in classes}
  return wanted.pop() if len(wanted) == 1 else WIDEST


def named(text: str) -> list[str]:
  """The parts of a request that name what a window is known for.

  "Please, where is the liver?" asks for no other window than without "please".
  """
  parts = (part.strip() for part in _BETWEEN.split(text))
  return [part for part in parts if _of_class(part)]


def decide(
  *,
  modality: str,
  window: str = "",
  classes: Sequence[str] = (),
  trained: Sequence[str] = (),
  lowest: float,
) -> Shown:
  """How a volume is shown: the one place where that is decided.

  Args:
    modality: of `modalities.normal`, or `modalities.UNKNOWN`.
    window: one of `CHOICES` that was asked for; "": by the classes. A window
      of CT says that the values are Hounsfield units, where nothing else does.
    classes: that the labels may hold, or that a request names.
    trained: windows of CT in which a model learnt, if they are known: it is
      asked in no other, unless `window` says so.
    lowest: of all values.
  """
  if window == PERCENTILES:
    return Shown(modality, PERCENTILES, "asked for")
  if window and modality == modalities.UNKNOWN:
    modality = modalities.CT
  if modality == modalities.CT:
    if lowest > HIGHEST_AIR_HU:
      why = f"the lowest value, {lowest:g}, is no air in Hounsfield units"
      return Shown(modality, PERCENTILES, why)
    if window:
      return Shown(modality, window, "asked for")
    chosen = choose(classes)
    if trained and chosen not in trained:
      chosen = WIDEST if WIDEST in trained else trained[0]
      return Shown(modality, chosen, "the model was trained in it")
    why = f"of {', '.join(classes)}" if classes else "nothing is named"
    return Shown(modality, chosen, why)
  if modality == modalities.UNKNOWN:
    if lowest > SURE_AIR_HU:
      return Shown(modality, PERCENTILES, "nothing says what was measured")
    why = (
      f"nothing says what was measured, but the lowest value, {lowest:g}, "
      "looks like Hounsfield units"
    )
    return Shown(modality, PERCENTILES, why, doubtful=True)
  return Shown(modality, PERCENTILES, f"{modality} has no Hounsfield units")


def apply(hounsfield_IJ: np.ndarray, window: Window) -> np.ndarray:
  """uint8[I, J]: the window from black to white, rounded."""
  low = window.level - window.width / 2
  return _stretch(hounsfield_IJ, low, low + window.width)


def colours(picture: np.ndarray) -> np.ndarray:
  """uint8[I, J, 3], RGB: a grey picture's three equal channels."""
  return np.repeat(picture[..., None], 3, axis=2)


def scale(
  voxels: Any,
  view: geometry.View,
  *,
  modality: str,
  window: str = "",
  classes: Sequence[str] = (),
  trained: Sequence[str] = (),
) -> tuple[Shown, Paint]:
  """How the slices of a volume are shown, and what makes pictures of them.

  Where values are no Hounsfield units, black and white are percentiles of the
  voxels that are not 0: the air around a patient is 0 in most of what is not
  tomography, and how much of it there is says nothing of the contrast inside.

  Args:
    voxels: the whole volume, an array or what reads its slices.
    view: of its slices.
    modality: and what follows, see `decide`.
  """
  sample, lowest = _sample(voxels, view)
  shown = decide(
    modality=modality,
    window=window,
    classes=classes,
    trained=trained,
    lowest=lowest,
  )
  if shown.window in CT:
    chosen = CT[shown.window]
    return shown, lambda values_IJ: colours(apply(values_IJ, chosen))
  low, high = _span(sample)
  return shown, lambda values_IJ: colours(_stretch(values_IJ, low, high))


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
  """The window of a class; "" where no word is known."""
  found = {
    _WORDS[word] for word in _WORD.findall(name.lower().replace("-", " "))
  }
  return next((window for window in CT if window in found), "")
