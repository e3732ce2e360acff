"""Chest X-ray: densities add up along the beam, the patient faces the reader.

The patient's right is the image's left.
"""

import math

import cv2
import numpy as np

from rcmed_jax.data.phantoms.canvas import (
  Canvas,
  both_sides,
  curve,
  gray,
  paint,
)

# One lung at most is opaque (collapsed, fluid or removed).
OPAQUE_LUNG = 0.27
PNEUMOTHORAX = 0.62

# The image's half in which a patient's side lies, as the sign of x - 0.5.
SIDES = {"right": -1, "left": 1}


def xray(canvas: Canvas) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Returns a frontal chest film.

  A lung's mask is its whole field, air outside the collapsed lung included,
  less the heart in front of it. An opaque left side hides the heart.
  """
  canvas.settle(rotation=0.04, bend=0.006)
  opaque = canvas.rng.choice(
    ["left", "right", "none"], p=[OPAQUE_LUNG, OPAQUE_LUNG, 1 - 2 * OPAQUE_LUNG]
  )
  outlines = {side: _lung(canvas, sign) for side, sign in SIDES.items()}
  fields = {side: canvas.fill([line]) for side, line in outlines.items()}
  heart_IJ = _heart(canvas)
  density_IJ, body_IJ = _chest_wall(canvas)

  targets: dict[str, np.ndarray] = {}
  open_IJ = np.zeros_like(body_IJ)
  bones_IJ = _bones(canvas) * body_IJ
  for side, field_IJ in fields.items():
    if side == opaque:
      haze_IJ = canvas.soften(field_IJ, 0.02) * (1 + 0.1 * canvas.noise(0.08))
      density_IJ = density_IJ + 0.2 * haze_IJ
      bones_IJ = bones_IJ * (1 - 0.6 * haze_IJ)  # nothing to stand out from
    else:
      targets[f"{side}_lung"] = field_IJ * (1 - heart_IJ)
      open_IJ = np.maximum(open_IJ, field_IJ)
  air_IJ = canvas.soften(open_IJ, 0.005)
  density_IJ = density_IJ - canvas.uniform(0.28, 0.36) * air_IJ
  density_IJ = density_IJ + _markings(canvas) * air_IJ
  if canvas.chance(PNEUMOTHORAX):
    side = canvas.rng.choice([s for s in fields if s != opaque])
    free_IJ, edge_IJ = _pneumothorax(
      canvas, SIDES[side], outlines[side], targets[f"{side}_lung"]
    )
    # Blacker than lung and without its vessels.
    density_IJ = paint(density_IJ, canvas.soften(free_IJ, 0.004), 0.04)
    density_IJ = density_IJ + 0.25 * edge_IJ
    targets["pneumothorax"] = free_IJ
  if opaque != "left":
    # Thickest in the middle, as a projection through a round body is.
    thick_IJ = np.clip(canvas.depth(heart_IJ) / 0.06, 0, 1) * 0.12 + 0.38
    solid_IJ = np.maximum(density_IJ, 0.24 + thick_IJ)
    density_IJ = paint(density_IJ, canvas.soften(heart_IJ, 0.006), solid_IJ)
    targets["heart"] = heart_IJ
  density_IJ = density_IJ + bones_IJ
  grey_IJ = canvas.soften(density_IJ, 0.004)
  grey_IJ = grey_IJ + canvas.uniform(0.012, 0.03) * canvas.white()
  gain = canvas.uniform(0.85, 1.1)
  return gray(gain * grey_IJ), targets


def _lung(canvas: Canvas, side: int) -> np.ndarray:
  """Returns a lung's outline; side -1 is the image's left half."""
  s = canvas.uniform
  base = s(0.70, 0.78)
  corners = [
    (0.13, s(0.10, 0.13)),
    (0.24, 0.13),
    (0.33, 0.28),
    (0.385, 0.50),
    (0.39, base + 0.10),
    (0.30, base + 0.01),
    (0.20, base - 0.05),
    (0.08, base),
    (0.075, 0.55),
    (0.065, 0.30),
  ]
  return curve([(0.5 + side * x, y) for x, y in corners], closed=True)


def _heart(canvas: Canvas) -> np.ndarray:
  s = canvas.uniform
  wide = s(0.0, 0.05)
  corners = [
    (0.45, 0.40),
    (0.55, 0.38),
    (0.60, 0.47),
    (0.68 + wide, 0.60),
    (0.71 + wide, 0.72),
    (0.60, 0.76),
    (0.46, 0.75),
    (0.41 - wide / 3, 0.66),
    (0.43, 0.52),
  ]
  return canvas.fill([curve(corners, closed=True)])


def _chest_wall(canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
  """Returns the density of soft tissue and mediastinum; the body."""
  corners = [
    (0.40, -0.1),
    (0.40, 0.06),
    (0.22, 0.09),
    (0.03, 0.17),
    (-0.03, 0.34),
    (0.01, 0.6),
    (0.03, 1.1),
  ]
  mirrored = [(1 - x, y) for x, y in reversed(corners)]
  body_IJ = canvas.fill([curve(corners + mirrored, closed=True)])
  _, y_I1 = canvas.axes()
  thick_IJ = np.clip(canvas.depth(body_IJ) / 0.18, 0, 1) ** 0.5
  density_IJ = 0.02 + thick_IJ * (0.46 + 0.12 * y_I1)
  middle_IJ = canvas.fill(
    [
      curve(
        [
          (0.44, -0.1),
          (0.56, -0.1),
          (0.56, 0.4),
          (0.60, 0.9),
          (0.40, 0.9),
          (0.44, 0.4),
        ],
        closed=True,
      )
    ]
  )
  density_IJ = density_IJ + 0.20 * canvas.soften(middle_IJ, 0.012)
  airway = [(np.array([[0.5, -0.05], [0.495, 0.3]]), 0.035, 0.035)]
  density_IJ = density_IJ - 0.10 * canvas.soften(canvas.tubes(airway), 0.006)
  belly_IJ = np.clip((y_I1 - 0.74) / 0.06, 0, 1) * body_IJ
  return density_IJ + 0.08 * belly_IJ, body_IJ


def _markings(canvas: Canvas) -> np.ndarray:
  """Returns the density of lung vessels, fanning out from both hila."""
  paths = []
  for side in (-1, 1):
    for _ in range(13):
      angle = canvas.uniform(-1.3, 1.3)
      reach = canvas.uniform(0.15, 0.30)
      start = (0.5 + side * 0.11, 0.45)
      end = (
        start[0] + side * reach * math.cos(angle),
        start[1] + reach * 1.1 * math.sin(angle),
      )
      bend = (
        (start[0] + end[0]) / 2 + canvas.uniform(-0.03, 0.03),
        (start[1] + end[1]) / 2 + canvas.uniform(-0.03, 0.03),
      )
      paths.append((curve([start, bend, end]), 0.022, 0.004))
  tree_IJ = canvas.soften(canvas.tubes(paths), 0.004)
  return 0.13 * tree_IJ + 0.015 * canvas.noise(0.02)


def _bones(canvas: Canvas) -> np.ndarray:
  """Returns the added density of ribs, collar bones and spine."""
  back, front = [], []
  for k in range(9):
    y = 0.13 + 0.082 * k
    reach = 0.30 + 0.15 * min(k / 4, 1)
    arch = [(0.04, y), (0.5 * reach, y - 0.035), (0.98 * reach, y + 0.03)]
    back += both_sides([*arch, (reach, y + 0.11)], 0.026, 0.022)
    arch = [(reach, y + 0.06), (0.8 * reach, y + 0.13), (0.4 * reach, y + 0.18)]
    front += both_sides(arch, 0.024, 0.026)
  collar = both_sides([(0.05, 0.17), (0.2, 0.12), (0.42, 0.07)], 0.034, 0.026)
  spine = [
    (np.array([[0.46, y], [0.54, y]]), 0.05, 0.05)
    for y in np.arange(0.02, 1.0, 0.075)
  ]
  strength = canvas.uniform(0.8, 1.2)
  density_IJ = np.zeros((canvas.size, canvas.size), np.float32)
  for paths, level in (
    (back, 0.10),
    (front, 0.05),
    (collar, 0.12),
    (spine, 0.05),
  ):
    bone_IJ = canvas.tubes(paths)
    # Cortical edges stand out on film.
    edge_IJ = np.clip(1 - canvas.depth(bone_IJ) / 0.012, 0, 1) * bone_IJ
    density_IJ += strength * level * (0.75 * bone_IJ + 0.35 * edge_IJ)
  return density_IJ


def _pneumothorax(
  canvas: Canvas, sign: int, outline_P2: np.ndarray, field_IJ: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the free air beside a collapsed lung, and the lung's edge."""
  shrink_2 = canvas.rng.uniform((0.55, 0.70), (0.76, 0.86))
  # The lung hangs at its root: air gathers outside and above it, so it shrinks
  # towards the inner end of its base.
  root_2 = np.array([0.5 + sign * 0.05, 0.80])
  lung_P2 = root_2 + (outline_P2 - root_2) * shrink_2
  lung_IJ = canvas.fill([lung_P2])
  # What is left below and beside the heart is too thin to be seen on film.
  side_px = max(round(0.03 * canvas.size), 2)
  free_IJ = cv2.morphologyEx(
    field_IJ * (1 - lung_IJ),
    cv2.MORPH_OPEN,
    cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side_px, side_px)),
  )
  ring_P2 = np.concatenate([lung_P2, lung_P2[:1]])
  edge_IJ = canvas.tubes([(ring_P2, 0.01, 0.01)])
  return free_IJ, edge_IJ * canvas.soften(free_IJ, 0.008)
