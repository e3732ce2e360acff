"""Colour region description without a network: words from mask geometry.

Each target gets its size, form, place and relation to its nearest neighbour;
in detail also its border and contrast. Left and right are the picture's, and
no colour is ever named, as the colours of a painted mask must not be either.

Source: the description step of the paper, whose describer is a vision-language
model that sees each mask painted; the measures here are ours.
"""

from collections.abc import Sequence
import dataclasses
import math

import cv2
import numpy as np

# Shares of the image: below the first small, above the second large.
SMALL, LARGE = 0.025, 0.08
ELONGATED = 1.8  # ratio of the axes
ROUND = 1.3
COMPACT = 0.6  # a disc has 1, a square 0.79, a ring of half its radius 0.33
SCATTERED = 3  # pieces
PIECE_SHARE = 0.05  # of the target; smaller pieces are not counted
SHARP = 0.55  # share of the contrast that one step across the border shows
CONTRAST = 0.35  # in deviations of the image's brightness
INSIDE = 0.9  # share of a target within another's outline

# Names whose ending says the other number.
SINGULAR = ("pancreas", "lens", "pons", "atlas", "ascites", "caries", "biceps")
PLURAL = ("teeth", "bacteria", "mitochondria", "ganglia", "bronchi", "thrombi")

ROWS = ("upper", "", "lower")
COLUMNS = ("left", "", "right")
# A centre within the middle fifth counts as neither left nor right.
MIDDLE = (0.4, 0.6)


@dataclasses.dataclass(frozen=True)
class Region:
  """What can be measured of one target."""

  x: float  # centroid, fraction of the image's width
  y: float  # centroid, fraction of the image's height
  share: float  # area over the image's area
  elongation: float  # long axis over short axis, at least 1
  compactness: float  # 4 pi area / perimeter^2, inner borders included
  pieces: int
  sharpness: float  # 1: the whole contrast lies within one step
  contrast: float  # inside minus outside brightness, in deviations


def measure(image_IJC: np.ndarray, mask_IJ: np.ndarray) -> Region:
  """Returns the region's measures.

  Args:
    image_IJC: uint8[I, J, 3].
    mask_IJ: bool[I, J], not empty.

  Raises:
    ValueError: for an empty mask or one of another size than the image.
  """
  if mask_IJ.shape != image_IJC.shape[:2]:
    raise ValueError(
      f"Expected a mask of {image_IJC.shape[:2]}, received {mask_IJ.shape}; "
      "resize the mask to its image."
    )
  if not mask_IJ.any():
    raise ValueError(
      "Expected a mask with a foreground, received an empty one."
    )
  height, width = mask_IJ.shape
  mask_u8 = np.ascontiguousarray(mask_IJ, np.uint8)
  rows_P, columns_P = np.nonzero(mask_u8)
  axes_2 = np.zeros(2)
  if len(rows_P) > 1:
    axes_2 = np.linalg.eigvalsh(np.cov(np.stack([rows_P, columns_P])))
  # 1/12 is the variance of a pixel itself; it keeps thin lines finite.
  short, long = np.maximum(axes_2, 0) + 1 / 12
  contours, _ = cv2.findContours(mask_u8, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
  perimeter = sum(cv2.arcLength(contour, True) for contour in contours)
  compactness = 4 * math.pi * len(rows_P) / max(perimeter, 1) ** 2
  sizes = cv2.connectedComponentsWithStats(mask_u8)[2][1:, cv2.CC_STAT_AREA]
  sharpness, contrast = _border(image_IJC, mask_u8)
  return Region(
    x=(columns_P.mean() + 0.5) / width,
    y=(rows_P.mean() + 0.5) / height,
    share=len(rows_P) / mask_IJ.size,
    elongation=math.sqrt(long / short),
    compactness=min(compactness, 1.0),
    pieces=int((sizes >= PIECE_SHARE * sizes.sum()).sum()),
    sharpness=sharpness,
    contrast=contrast,
  )


def describe(
  image_IJC: np.ndarray,
  masks_GIJ: np.ndarray | Sequence[np.ndarray],
  classes: Sequence[str],
  *,
  detail: bool = False,
) -> str:
  """Returns one sentence for each target, three in detail.

  "The spleen is large and elongated, right, above the left kidney."

  Args:
    image_IJC: uint8[I, J, 3].
    masks_GIJ: bool[G, I, J].
    classes: name of each mask, with spaces.
    detail: adds share, axes, compactness, border, contrast, all neighbours.

  Raises:
    ValueError: for masks and classes of unequal number, or an unfit mask.
  """
  if len(masks_GIJ) != len(classes):
    raise ValueError(
      f"Expected one class for each mask, received {len(masks_GIJ)} masks and "
      f"{len(classes)} classes."
    )
  regions = [measure(image_IJC, mask_IJ) for mask_IJ in masks_GIJ]
  hulls = [_filled(mask_IJ) for mask_IJ in masks_GIJ]
  sentences = []
  for g, (name, region) in enumerate(zip(classes, regions, strict=True)):
    others = [other for other in range(len(classes)) if other != g]
    others.sort(key=lambda other: _distance(region, regions[other]))
    relations = [
      f"{_relation(g, other, regions, masks_GIJ, hulls)} the {classes[other]}"
      for other in (others if detail else others[:1])
    ]
    lead = f"The {name} {verb(name)} {_size(region)} and {_form(region)}"
    if detail:
      sentences.append(_detailed(lead, region, relations))
    else:
      sentences.append(", ".join([lead, _place(region), *relations]) + ".")
  return " ".join(sentences)


def verb(name: str) -> str:
  """Returns "are" for a plural: nuclei, lungs; not mass, uterus, pancreas."""
  last = name.lower().split()[-1] if name.split() else ""
  if last in SINGULAR or last.endswith(("ss", "us", "is")):
    return "is"
  plural = last in PLURAL or last.endswith(("s", "lei", "li", "ae"))
  return "are" if plural else "is"


def _detailed(lead: str, region: Region, relations: list[str]) -> str:
  border = "sharp" if region.sharpness > SHARP else "blurred"
  if abs(region.contrast) < CONTRAST:
    contrast = "about as bright as"
  else:
    contrast = "brighter than" if region.contrast > 0 else "darker than"
  sentences = [
    f"{lead}, {_place(region)}, and covers {region.share:.1%} of the image.",
    f"Axes {region.elongation:.1f} to 1, compactness {region.compactness:.2f}, "
    f"{border} border, {contrast} its surroundings.",
  ]
  if relations:
    sentences.append(f"Position: {', '.join(relations)}.")
  return " ".join(sentences)


def _border(image_IJC: np.ndarray, mask_u8: np.ndarray) -> tuple[float, float]:
  """Returns (sharpness, contrast) of the brightness across the border."""
  grey_IJ = cv2.cvtColor(image_IJC, cv2.COLOR_RGB2GRAY).astype(np.float32)
  step = max(min(mask_u8.shape) / 150, 1.0)
  # A frame of zeros, so that a mask that fills the image has an outside too.
  framed_u8 = np.pad(mask_u8, 1)
  inner_IJ = cv2.distanceTransform(framed_u8, cv2.DIST_L2, 3)[1:-1, 1:-1]
  outer_IJ = cv2.distanceTransform(1 - mask_u8, cv2.DIST_L2, 3)

  def difference(low: float, high: float) -> float:
    inside_IJ = (inner_IJ > low) & (inner_IJ <= high)
    outside_IJ = (outer_IJ > low) & (outer_IJ <= high)
    if not (inside_IJ.any() and outside_IJ.any()):
      return 0.0
    return float(grey_IJ[inside_IJ].mean() - grey_IJ[outside_IJ].mean())

  near, far = difference(0, step), difference(0, 6 * step)
  beyond = difference(2 * step, 6 * step) or far
  sharpness = min(abs(near) / (abs(beyond) + 1e-6), 1.0) if beyond else 0.0
  return sharpness, far / (float(grey_IJ.std()) + 1e-6)


def _filled(mask_IJ: np.ndarray) -> np.ndarray:
  """Returns bool[I, J], the mask with its holes."""
  mask_u8 = np.ascontiguousarray(mask_IJ, np.uint8)
  contours, _ = cv2.findContours(
    mask_u8, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
  )
  return cv2.drawContours(mask_u8.copy(), contours, -1, 1, cv2.FILLED) > 0


def _distance(a: Region, b: Region) -> float:
  return math.hypot(a.x - b.x, a.y - b.y)


def _relation(
  g: int,
  other: int,
  regions: Sequence[Region],
  masks_GIJ: np.ndarray | Sequence[np.ndarray],
  hulls: Sequence[np.ndarray],
) -> str:
  if hulls[other][masks_GIJ[g] > 0].mean() >= INSIDE:
    return "inside"
  if hulls[g][masks_GIJ[other] > 0].mean() >= INSIDE:
    return "around"
  dx = regions[g].x - regions[other].x
  dy = regions[g].y - regions[other].y
  if abs(dx) >= abs(dy):
    return "left of" if dx < 0 else "right of"
  return "above" if dy < 0 else "below"


def _place(region: Region) -> str:
  column = COLUMNS[np.digitize(region.x, MIDDLE)]
  row = ROWS[np.digitize(region.y, MIDDLE)]
  if row and not column:
    return f"{row} middle"
  return f"{row} {column}".strip() or "centre"


def _size(region: Region) -> str:
  if region.share < SMALL:
    return "small"
  return "large" if region.share > LARGE else "medium"


def _form(region: Region) -> str:
  if region.pieces >= SCATTERED:
    return "scattered"
  if region.elongation > ELONGATED:
    return "elongated"
  if region.compactness < COMPACT:
    return "irregular"
  return "round" if region.elongation < ROUND else "oval"
