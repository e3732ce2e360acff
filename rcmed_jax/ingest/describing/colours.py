"""Targets in named colours over their image, for a model that looks at it.

Each target has a translucent fill, so that its texture stays visible, and a
solid outline just outside of it, so that the smallest is seen. Where masks
overlap, the smaller lies on top. Targets that would hide each other, or that
are more than one picture can hold, go to several pictures.

Source: the description step of the paper; colours and rules here are ours.
"""

from collections.abc import Sequence

import cv2
import numpy as np

# Plain names that nobody mistakes for another of them. The first ones are the
# farthest apart; black, white, grey, brown and pink are what images are made of
# themselves. RGB.
PALETTE = {
  "red": (235, 20, 20),
  "green": (0, 175, 40),
  "blue": (20, 110, 255),
  "yellow": (255, 235, 0),
  "magenta": (255, 0, 215),
  "cyan": (0, 235, 235),
  "orange": (255, 135, 0),
  "purple": (120, 0, 150),
}
# So that two colours that the image has itself can be avoided.
MOST_TARGETS = 6
# A pixel is near a colour when its hue is, in degrees in CIELAB: on tissue
# stained purple, red paint makes but another purple. Below this chroma it is
# grey and near none.
NEAR_HUE = 75.0
GREY_CHROMA = 12.0
# Share of the image that may be near a colour before another is preferred.
OWN_SHARE = 0.05

SIDE = 768  # pixels, the longest side of a picture
FILL = 0.3  # opacity
LINE = 3  # pixels, width of an outline
# Share of a target that must show from under the others in its picture.
VISIBLE = 0.25
_GROUP_SIDE = 256  # pixels; enough to see what hides what
_OWN_SIDE = 64  # pixels; enough to see what colours there are


def group(masks_GIJ: np.ndarray) -> list[list[int]]:
  """Which targets go to one picture: lists of places in `masks_GIJ`.

  Each target is in one list, in an order that depends on the masks alone.
  """
  small = [_resized(mask_IJ, _GROUP_SIDE) for mask_IJ in masks_GIJ]
  groups: list[list[int]] = []
  for place in range(len(small)):
    for members in groups:
      grown = [*members, place]
      if len(grown) <= MOST_TARGETS and _all_visible([small[g] for g in grown]):
        members.append(place)
        break
    else:
      groups.append([place])
  return groups


def choose(image_IJC: np.ndarray, count: int) -> list[str]:
  """Names of colours, first those that the image has none of itself.

  Raises:
    ValueError: more are asked for than one picture may hold.
  """
  if count > MOST_TARGETS:
    raise ValueError(
      f"a picture holds {MOST_TARGETS} colours, received {count} targets; "
      "divide them by `group`."
    )
  small_IJC = cv2.resize(
    image_IJC, (_OWN_SIDE, _OWN_SIDE), interpolation=cv2.INTER_AREA
  )
  hue_P, chroma_P = _hues(small_IJC.reshape(-1, 3))

  def is_own(name: str) -> bool:
    hue_1, _ = _hues(np.array([PALETTE[name]], np.uint8))
    apart_P = np.abs((hue_P - hue_1 + 180) % 360 - 180)
    near_P = (apart_P < NEAR_HUE) & (chroma_P > GREY_CHROMA)
    return bool(near_P.mean() > OWN_SHARE)

  # Stable: colours that are alike in this keep the palette's order.
  return sorted(PALETTE, key=is_own)[:count]


def paint(
  image_IJC: np.ndarray, masks_GIJ: np.ndarray, colours: Sequence[str]
) -> np.ndarray:
  """uint8[I, J, 3]: the picture, its longest side `SIDE`.

  Args:
    image_IJC: uint8, RGB.
    masks_GIJ: bool, none empty.
    colours: G names of the palette.
  """
  picture_IJC = _scaled(image_IJC)
  masks = [_resized(mask_IJ, SIDE) for mask_IJ in masks_GIJ]
  order = sorted(range(len(masks)), key=lambda g: -int(masks[g].sum()))
  top_IJ = np.full(picture_IJC.shape[:2], -1)
  for g in order:
    top_IJ[masks[g]] = g
  for g in order:
    seen_IJ = top_IJ == g
    paint_C = np.array(PALETTE[colours[g]])
    mixed_PC = (1 - FILL) * picture_IJC[seen_IJ] + FILL * paint_C[None]
    picture_IJC[seen_IJ] = mixed_PC.round().astype(np.uint8)
  for g in order:
    ring_IJ = _dilated(masks[g], LINE) & ~masks[g]
    picture_IJC[ring_IJ] = PALETTE[colours[g]]
  return picture_IJC


def encode(picture_IJC: np.ndarray) -> bytes:
  """The picture as JPEG, of which nothing but pixels can be read.

  Colours are not halved in resolution as in most JPEG: outlines are thin.
  """
  settings = [
    cv2.IMWRITE_JPEG_QUALITY,
    90,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
    cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
  ]
  done, data = cv2.imencode(
    ".jpg", np.ascontiguousarray(picture_IJC[..., ::-1]), settings
  )
  if not done:
    raise ValueError(
      f"OpenCV cannot write an image of shape {picture_IJC.shape} as JPEG."
    )
  return data.tobytes()


def picture_shape(shape: tuple[int, ...]) -> tuple[int, int]:
  """Rows and columns of the picture of an image of this shape."""
  return _fitted(shape, SIDE)


def lab(rgb_PC: np.ndarray) -> np.ndarray:
  """float32[P, 3]: uint8 RGB in CIELAB, where distance is what eyes see."""
  unit_1PC = rgb_PC[None].astype(np.float32) / 255
  return cv2.cvtColor(unit_1PC, cv2.COLOR_RGB2LAB)[0]


def _hues(rgb_PC: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Hue in degrees and chroma, float32[P] each."""
  _, red_green_P, yellow_blue_P = lab(rgb_PC).T
  hue_P = np.degrees(np.arctan2(yellow_blue_P, red_green_P)) % 360
  return hue_P, np.hypot(red_green_P, yellow_blue_P)


def _all_visible(masks: Sequence[np.ndarray]) -> bool:
  """Whether enough of each shows, the smaller ones being on top."""
  covered_IJ = np.zeros(masks[0].shape, bool)
  for mask_IJ in sorted(masks, key=lambda mask_IJ: int(mask_IJ.sum())):
    if (mask_IJ & ~covered_IJ).sum() < VISIBLE * mask_IJ.sum():
      return False
    # What lies around a small target is under its outline.
    covered_IJ |= mask_IJ
  return True


def _fitted(shape: tuple[int, ...], side: int) -> tuple[int, int]:
  scale = side / max(shape[:2])
  return max(round(shape[0] * scale), 1), max(round(shape[1] * scale), 1)


def _scaled(image_IJC: np.ndarray) -> np.ndarray:
  rows, columns = picture_shape(image_IJC.shape)
  return cv2.resize(
    image_IJC,
    (columns, rows),
    interpolation=cv2.INTER_AREA
    if rows < image_IJC.shape[0]
    else cv2.INTER_CUBIC,
  )


def _resized(mask_IJ: np.ndarray, side: int) -> np.ndarray:
  """bool: the mask at a side; what is thin keeps the pixel it covers most."""
  rows, columns = _fitted(mask_IJ.shape, side)
  covered_IJ = cv2.resize(
    mask_IJ.astype(np.float32),
    (columns, rows),
    interpolation=cv2.INTER_AREA
    if rows < mask_IJ.shape[0]
    else cv2.INTER_LINEAR,
  )
  return (covered_IJ >= min(0.5, float(covered_IJ.max()))) & (covered_IJ > 0)


def _dilated(mask_IJ: np.ndarray, width: int) -> np.ndarray:
  disc_IJ = cv2.getStructuringElement(
    cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1)
  )
  return cv2.dilate(mask_IJ.astype(np.uint8), disc_IJ) > 0
