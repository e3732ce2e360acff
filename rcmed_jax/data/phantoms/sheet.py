"""The contact sheet: every modality at a glance, targets outlined."""

from collections.abc import Sequence

import cv2
import numpy as np

from rcmed_jax.data.phantoms import scenes

SAMPLES = 4  # of each modality
TILE = 200  # pixels a side of one picture
LINE = 16  # pixels of height for one line of text
FONT = cv2.FONT_HERSHEY_SIMPLEX
BACKGROUND = (24, 24, 28)
WHITE = (240, 240, 240)

# Told apart on grey and on red tissue alike; the first goes to a scene's first
# target.
COLOURS = (
  (0, 230, 118),
  (64, 160, 255),
  (255, 214, 0),
  (255, 64, 129),
  (0, 229, 255),
  (255, 145, 0),
)


def contact_sheet(
  phantoms: Sequence[scenes.Phantom], tile: int = TILE
) -> np.ndarray:
  """Returns uint8[I, J, 3]: a row of pairs for each modality.

  A pair is the image and, beside it, the image with every target's contour;
  the classes stand below in the colour of their contour.
  """
  groups = [
    [phantom for phantom in phantoms if phantom.modality == modality]
    for modality in scenes.MODALITIES
  ]
  groups = [group for group in groups if group]
  columns = max(len(group) for group in groups)
  strips = []
  for group in groups:
    cells = [_pair(phantom, tile) for phantom in group]
    blank = np.full_like(cells[0], BACKGROUND)
    cells += [blank] * (columns - len(cells))
    strips.append(np.concatenate(cells, axis=1))
  return np.concatenate(strips, axis=0)


def _pair(phantom: scenes.Phantom, tile: int) -> np.ndarray:
  """Returns uint8[tile + 3 lines, 2 tile + gap, 3]."""
  side = (tile, tile)
  image_IJC = cv2.resize(phantom.image_IJC, side, interpolation=cv2.INTER_CUBIC)
  drawn_IJC = image_IJC.copy()
  cell = np.full((tile + 3 * LINE, 2 * tile + 8, 3), BACKGROUND, np.uint8)
  cv2.putText(
    cell, phantom.modality, (3, 12), FONT, 0.45, WHITE, 1, cv2.LINE_AA
  )
  for k, (name, mask_IJ) in enumerate(phantom.masks.items()):
    colour = COLOURS[k % len(COLOURS)]
    mask_u8 = cv2.resize(
      mask_IJ.astype(np.uint8), side, interpolation=cv2.INTER_NEAREST
    )
    contours, _ = cv2.findContours(
      mask_u8, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
    )
    cv2.drawContours(drawn_IJC, contours, -1, colour, 1, cv2.LINE_AA)
    column, line = k % 3, k // 3
    at = (3 + column * (2 * tile // 3), LINE + tile + 12 + line * (LINE - 2))
    cv2.putText(cell, name, at, FONT, 0.42, colour, 1, cv2.LINE_AA)
  cell[LINE : LINE + tile, :tile] = image_IJC
  cell[LINE : LINE + tile, tile + 2 : 2 * tile + 2] = drawn_IJC
  return cell
