"""Changes to image and masks alike that leave every word of a row true.

A mirrored abdomen has its liver on the left, and "the left kidney" is then the
right one: pictures are mirrored or turned only where the modality has no fixed
side up, and never where the row's own words name a side or a place.
"""

import dataclasses
import re

import cv2
import numpy as np

ALL = ("columns", "rows", "turns")
COLUMNS = ("columns",)

# Modality -> how it may be mirrored. Tissue, skin and mucosa lie under a lens
# as chance has it. An eye is mirrored in the other eye, and a probe held the
# other way round mirrors its image, but neither stands on its head. All that is
# not here shows organs that have a side: CT, MR, PET, X-ray.
MIRRORS = {
  "pathology": ALL,
  "microscopy": ALL,
  "dermoscopy": ALL,
  "endoscopy": ALL,
  "fundus": COLUMNS,
  "ultrasound": COLUMNS,
}

# Words that a mirrored or turned image would make untrue.
_PLACES = re.compile(
  r"\b(left|right|upper|lower|uppermost|lowermost|above|below|top|bottom|"
  r"beneath|under|over|underneath|superior|inferior|anterior|posterior|"
  r"lateral|medial|dorsal|ventral|cranial|caudal|nasal|temporal|horizontal|"
  r"vertical|horizontally|vertically|side|leftmost|rightmost|"
  r"leftwards?|rightwards?|upwards?|downwards?|clockwise|counterclockwise|"
  r"lv|rv|o'clock)\b",
  re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
  """How much rows may be changed; as they are where all is 0."""

  mirror: bool = False  # mirror and turn, where MIRRORS and the words allow
  rotation_degrees: float = 0.0  # at most, either way
  scale: float = 0.0  # 0.1: from 0.9 to 1.1 times as large
  brightness: float = 0.0  # 0.1: up to a tenth of white more or less
  contrast: float = 0.0  # 0.2: from 0.8 to 1.2 times
  gamma: float = 0.0  # 0.2: exponents from 1/1.2 to 1.2

  def __post_init__(self) -> None:
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      most = 180 if field.name == "rotation_degrees" else 1
      if not 0 <= value < most and value is not True:
        raise ValueError(
          f"data.augment.{field.name}={value} must lie within 0..{most}."
        )

  @property
  def on(self) -> bool:
    """Whether anything is changed at all."""
    return self != AugmentConfig()


@dataclasses.dataclass(frozen=True)
class Change:
  """What is done to one row."""

  mirror_columns: bool = False  # left becomes right
  mirror_rows: bool = False  # top becomes bottom
  quarter_turns: int = 0  # counterclockwise
  degrees: float = 0.0  # counterclockwise, about the centre
  scale: float = 1.0
  brightness: float = 0.0  # added, of white
  contrast: float = 1.0  # about middle grey
  gamma: float = 1.0


def draw(
  rng: np.random.Generator,
  config: AugmentConfig,
  modality: str,
  words: str,
) -> Change:
  """A row's change.

  Args:
    words: all that the row says of its image: classes and description.
  """
  allowed = MIRRORS.get(modality.lower(), ())
  if not config.mirror or _PLACES.search(words):
    allowed = ()
  # All are drawn always, so that one setting does not move the others' dice.
  columns, rows = rng.random(2) < 0.5
  turns = int(rng.integers(4))
  angle, scale, light, contrast, gamma = rng.uniform(-1, 1, 5)
  return Change(
    mirror_columns=bool(columns) and "columns" in allowed,
    mirror_rows=bool(rows) and "rows" in allowed,
    quarter_turns=turns if "turns" in allowed else 0,
    degrees=float(angle) * config.rotation_degrees,
    scale=1 + float(scale) * config.scale,
    brightness=float(light) * config.brightness,
    contrast=1 + float(contrast) * config.contrast,
    gamma=float((1 + config.gamma) ** gamma),
  )


def apply(
  change: Change, image_IJC: np.ndarray, masks_GIJ: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Image and masks, changed alike; quarter turns swap their sides.

  What comes in from beyond the edge is black and in no mask. Where rotation
  and scale would push a whole mask out, they are left out: every target that
  the row speaks of stays.

  Args:
    image_IJC: uint8, RGB.
    masks_GIJ: bool.
  """
  image_IJC = _mirrored(change, image_IJC, 0)
  masks_GIJ = _mirrored(change, masks_GIJ, 1)
  if change.degrees or change.scale != 1:
    image_IJC, masks_GIJ = _warped(change, image_IJC, masks_GIJ)
  return _toned(change, image_IJC), masks_GIJ


def _mirrored(change: Change, array: np.ndarray, axis: int) -> np.ndarray:
  """The array with its rows at `axis` and columns at `axis + 1` mirrored."""
  if change.mirror_columns:
    array = np.flip(array, axis + 1)
  if change.mirror_rows:
    array = np.flip(array, axis)
  if change.quarter_turns:
    array = np.rot90(array, change.quarter_turns, (axis, axis + 1))
  return np.ascontiguousarray(array)


def _warped(
  change: Change, image_IJC: np.ndarray, masks_GIJ: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  rows, columns = image_IJC.shape[:2]
  centre = (columns - 1) / 2, (rows - 1) / 2
  matrix = cv2.getRotationMatrix2D(centre, change.degrees, change.scale)
  moved = [
    cv2.warpAffine(
      mask_IJ.view(np.uint8), matrix, (columns, rows), flags=cv2.INTER_NEAREST
    ).astype(bool)
    for mask_IJ in masks_GIJ
  ]
  if not all(mask_IJ.any() for mask_IJ in moved):
    return image_IJC, masks_GIJ
  image_IJC = cv2.warpAffine(
    image_IJC, matrix, (columns, rows), flags=cv2.INTER_LINEAR
  )
  return image_IJC, np.array(moved, bool).reshape(masks_GIJ.shape)


def _toned(change: Change, image_IJC: np.ndarray) -> np.ndarray:
  """Gamma, then contrast, then brightness, through one table of 256 values."""
  if (change.brightness, change.contrast, change.gamma) == (0, 1, 1):
    return image_IJC
  values = np.linspace(0, 1, 256) ** change.gamma
  values = (values - 0.5) * change.contrast + 0.5 + change.brightness
  table = np.clip(np.rint(values * 255), 0, 255).astype(np.uint8)
  return cv2.LUT(image_IJC, table)
