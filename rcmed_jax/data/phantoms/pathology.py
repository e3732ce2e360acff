"""Haematoxylin-eosin stained tissue under the microscope.

Drawn as amounts of the two stains; light is absorbed by Beer-Lambert's law, so
that colours mix as on a slide.
"""

from collections.abc import Sequence
import math

import numpy as np

from rcmed_jax.data.phantoms.canvas import Canvas, Point, paint, rgb

CHANCES = {"gland": 0.68, "vessel": 0.65, "tumor_nuclei": 0.66}

# Optical density per unit of stain, (red, green, blue).
# Source: Ruifrok and Johnston 2001, colour deconvolution.
HEMATOXYLIN = np.array([0.65, 0.70, 0.29], np.float32)
EOSIN = np.array([0.07, 0.99, 0.11], np.float32)
# Red cells hold no stain but haemoglobin and eosin: more orange than eosin.
RED_CELLS = np.array([0.08, 0.85, 0.62], np.float32)


def pathology(canvas: Canvas) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Returns a slide. Gland and vessel include their hollow."""
  present = canvas.roll(CHANCES)
  s = canvas.uniform
  homes = [(0.27, 0.28), (0.73, 0.28), (0.27, 0.73), (0.73, 0.73)]
  homes = [(x + s(-0.04, 0.04), y + s(-0.04, 0.04)) for x, y in homes]
  canvas.rng.shuffle(homes)
  stains = _stroma(canvas)
  targets: dict[str, np.ndarray] = {}
  if "gland" in present:
    places = homes[:1] if canvas.chance(0.5) else homes[:2]
    targets["gland"], stains = _glands(canvas, places, stains)
  if "vessel" in present:
    targets["vessel"], stains = _vessel(canvas, homes[2], stains)
  if "tumor_nuclei" in present:
    taken = sum(targets.values(), np.zeros_like(stains[0]))
    targets["tumor_nuclei"], stains = _nuclei(canvas, homes[3], taken, stains)
  density_IJC = sum(
    np.maximum(amount_IJ, 0)[..., None] * colour_C
    for amount_IJ, colour_C in zip(
      stains, (HEMATOXYLIN, EOSIN, RED_CELLS), strict=True
    )
  )
  strength = s(0.85, 1.2)
  light_IJC = np.exp(-strength * density_IJC) * s(0.94, 0.99)
  light_IJC = canvas.soften(light_IJC, 0.0025)
  light_IJC = light_IJC + 0.012 * canvas.white()[..., None]
  return rgb(light_IJC), targets


def _stroma(canvas: Canvas) -> list[np.ndarray]:
  """Returns [hematoxylin, eosin, red cells] of fibres and thin nuclei."""
  s = canvas.uniform
  # Noise read along wavy lines looks like bundles of collagen.
  fibre_IJ = canvas.noise(0.012, stretch=9)
  angle = s(0, math.pi)
  x_1J, y_I1 = canvas.axes()
  wave_IJ = 0.05 * canvas.noise(0.3)
  along_IJ = x_1J * math.cos(angle) + y_I1 * math.sin(angle) + wave_IJ
  across_IJ = -x_1J * math.sin(angle) + y_I1 * math.cos(angle) + wave_IJ
  rows_IJ = (np.abs(across_IJ) * 0.9 % 1 * (canvas.size - 1)).astype(int)
  columns_IJ = (np.abs(along_IJ) * 0.9 % 1 * (canvas.size - 1)).astype(int)
  fibre_IJ = canvas.soften(fibre_IJ[rows_IJ, columns_IJ], 0.003)
  eosin_IJ = s(0.40, 0.52) + 0.13 * fibre_IJ + 0.05 * canvas.noise(0.1)
  clefts_IJ = np.clip((fibre_IJ - 1.1) / 0.5, 0, 1)
  eosin_IJ = eosin_IJ * (1 - 0.85 * clefts_IJ)
  spindles = [
    canvas.outline(
      place, (s(0.014, 0.02), 0.0055), angle=angle + s(-0.3, 0.3), rough=0.05
    )
    for place in canvas.spots(34, 0.07, low=(0, 0), high=(1, 1))
  ]
  hematoxylin_IJ = 0.06 + 0.02 * canvas.noise(0.02)
  hematoxylin_IJ = paint(hematoxylin_IJ, canvas.fill(spindles), 0.85)
  return [hematoxylin_IJ, eosin_IJ, np.zeros_like(eosin_IJ)]


def _glands(
  canvas: Canvas, places: Sequence[Point], stains: list[np.ndarray]
) -> tuple[np.ndarray, list[np.ndarray]]:
  """Tall cells around a hollow, their nuclei in a row along the base."""
  s = canvas.uniform
  hematoxylin_IJ, eosin_IJ, red_IJ = stains
  all_IJ = np.zeros_like(eosin_IJ)
  for place in places:
    radii = (s(0.13, 0.185), s(0.12, 0.16))
    outline_P2 = canvas.outline(place, radii, angle=s(0, math.pi), rough=0.09)
    gland_IJ = canvas.fill([outline_P2])
    depth_IJ = canvas.depth(gland_IJ) + 0.006 * canvas.noise(0.02)
    cells_IJ = 0.30 + 0.05 * canvas.noise(0.012)
    eosin_IJ = paint(eosin_IJ, gland_IJ, cells_IJ)
    hematoxylin_IJ = paint(
      hematoxylin_IJ, gland_IJ, 0.20 + 0.4 * (cells_IJ - 0.3)
    )
    # One nucleus every few pixels, a little inside the border.
    centre_2 = np.array(place)
    nuclei = []
    for point_2 in outline_P2[::2]:
      inward_2 = centre_2 - point_2
      reach = float(np.hypot(*inward_2))
      seat_2 = point_2 + inward_2 * (s(0.018, 0.03) / reach)
      angle = math.atan2(inward_2[1], inward_2[0])
      nuclei.append(canvas.outline(tuple(seat_2), (0.016, 0.009), angle=angle))
    hematoxylin_IJ = paint(hematoxylin_IJ, canvas.fill(nuclei), s(0.95, 1.15))
    hollow_IJ = np.clip((depth_IJ - s(0.062, 0.078)) / 0.008, 0, 1)
    eosin_IJ = paint(eosin_IJ, hollow_IJ, 0.03)
    hematoxylin_IJ = paint(hematoxylin_IJ, hollow_IJ, 0.02)
    all_IJ = np.maximum(all_IJ, gland_IJ)
  return all_IJ, [hematoxylin_IJ, eosin_IJ, red_IJ]


def _vessel(
  canvas: Canvas, place: Point, stains: list[np.ndarray]
) -> tuple[np.ndarray, list[np.ndarray]]:
  """A muscular wall around packed red cells."""
  s = canvas.uniform
  hematoxylin_IJ, eosin_IJ, red_IJ = stains
  radii = (s(0.10, 0.14), s(0.085, 0.11))
  angle = s(0, math.pi)
  vessel_IJ = canvas.blob(place, radii, angle=angle, rough=0.06)
  depth_IJ = canvas.depth(vessel_IJ)
  layers_IJ = 0.75 + 0.12 * np.sin(depth_IJ * 700) + 0.05 * canvas.noise(0.02)
  eosin_IJ = paint(eosin_IJ, vessel_IJ, layers_IJ)
  hematoxylin_IJ = paint(hematoxylin_IJ, vessel_IJ, 0.16)
  lumen_IJ = np.clip((depth_IJ - s(0.022, 0.032)) / 0.006, 0, 1)
  eosin_IJ = paint(eosin_IJ, lumen_IJ, 0.05)
  hematoxylin_IJ = paint(hematoxylin_IJ, lumen_IJ, 0.02)
  x, y = place
  cells = [
    canvas.outline(spot, (0.013, 0.012), rough=0.04)
    for spot in canvas.spots(
      90, 0.022, low=(x - 0.14, y - 0.14), high=(x + 0.14, y + 0.14)
    )
  ]
  red_IJ = red_IJ + canvas.fill(cells) * lumen_IJ * s(0.75, 0.95)
  return vessel_IJ, [hematoxylin_IJ, eosin_IJ, red_IJ]


def _nuclei(
  canvas: Canvas, place: Point, taken_IJ: np.ndarray, stains: list[np.ndarray]
) -> tuple[np.ndarray, list[np.ndarray]]:
  """A nest of tumour cells: large dark nuclei of unequal size and form."""
  s = canvas.uniform
  hematoxylin_IJ, eosin_IJ, red_IJ = stains
  x, y = place
  spread = s(0.17, 0.22)
  nuclei, nucleoli = [], []
  for spot in canvas.spots(
    22,
    0.085,
    low=(max(x - spread, 0.05), max(y - spread, 0.05)),
    high=(min(x + spread, 0.95), min(y + spread, 0.95)),
  ):
    column, row = (min(int(v * canvas.size), canvas.size - 1) for v in spot)
    if taken_IJ[row, column] < 0.5:
      radii = (s(0.030, 0.043), s(0.026, 0.034))
      angle = s(0, math.pi)
      nuclei.append(canvas.outline(spot, radii, angle=angle, rough=0.08))
      nucleoli.append(canvas.outline(spot, (0.008, 0.008)))
  free_IJ = 1 - np.clip(taken_IJ, 0, 1)
  nuclei_IJ = canvas.fill(nuclei) * free_IJ
  cells_IJ = canvas.soften(nuclei_IJ, 0.02)
  cells_IJ = np.clip(cells_IJ * 2.2, 0, 1) * free_IJ
  eosin_IJ = paint(eosin_IJ, cells_IJ, 0.38 + 0.04 * canvas.noise(0.02))
  hematoxylin_IJ = paint(hematoxylin_IJ, cells_IJ, 0.24)
  chromatin_IJ = s(0.9, 1.15) + 0.16 * canvas.noise(0.012)
  hematoxylin_IJ = paint(hematoxylin_IJ, nuclei_IJ, chromatin_IJ)
  hematoxylin_IJ = paint(hematoxylin_IJ, canvas.fill(nucleoli) * nuclei_IJ, 1.7)
  return nuclei_IJ, [hematoxylin_IJ, eosin_IJ, red_IJ]
