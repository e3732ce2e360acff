"""Skin through a dermatoscope."""

import math

import numpy as np

from rcmed_jax.data.phantoms.canvas import Canvas, Point, curve, paint, rgb

CHANCES = {"skin_lesion": 0.62, "ulcer": 0.62}
VEIL_IN_LESION = 0.85  # the veil needs a lesion


def dermoscopy(canvas: Canvas) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Returns skin through a dermatoscope. The lesion includes its veil.

  An ulcer lies beside or in the lesion and is cut out of its mask.
  """
  present = canvas.roll(CHANCES)
  s = canvas.uniform
  tone = np.array([s(0.80, 0.94), s(0.60, 0.74), s(0.50, 0.64)], np.float32)
  image_IJC = tone * (1 + 0.03 * canvas.cloud(0.25))[..., None]
  image_IJC += 0.018 * canvas.noise(0.012)[..., None]
  image_IJC += np.array([0.0, -0.02, -0.015]) * canvas.noise(0.08)[..., None]
  targets: dict[str, np.ndarray] = {}
  centre = (s(0.40, 0.6), s(0.40, 0.6))
  if "skin_lesion" in present:
    image_IJC, targets = _lesion(canvas, image_IJC, centre)
  if "ulcer" in present:
    angle = s(0, 2 * math.pi)
    reach = s(0.12, 0.24)
    place = (
      centre[0] + reach * math.cos(angle),
      centre[1] + reach * math.sin(angle),
    )
    image_IJC, ulcer_IJ = _ulcer(canvas, image_IJC, place)
    targets = {k: v * (1 - ulcer_IJ) for k, v in targets.items()}
    targets["ulcer"] = ulcer_IJ
  image_IJC = _hairs(canvas, image_IJC)
  image_IJC = canvas.soften(image_IJC, 0.003)
  x_1J, y_I1 = canvas.axes()
  radius_IJ = np.hypot(x_1J - 0.5, y_I1 - 0.5)
  image_IJC *= (1 - 0.45 * radius_IJ**2 * s(0.5, 1.5))[..., None]
  if canvas.chance(0.35):  # the round end of the instrument is in view
    image_IJC *= np.clip((s(0.56, 0.62) - radius_IJ) / 0.03, 0, 1)[..., None]
  image_IJC += 0.012 * canvas.white()[..., None]
  return rgb(image_IJC), targets


def _lesion(
  canvas: Canvas, image_IJC: np.ndarray, centre: Point
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Returns the image with a pigmented lesion, and its targets."""
  s = canvas.uniform
  radii = (s(0.19, 0.29), s(0.17, 0.24))
  outline_P2 = canvas.outline(
    centre, radii, angle=s(0, math.pi), rough=s(0.05, 0.11), harmonics=14
  )
  lesion_IJ = canvas.fill([outline_P2])
  red = s(0.36, 0.60)
  brown = red * np.array([1, s(0.52, 0.66), s(0.32, 0.46)], np.float32)
  patches_IJ = canvas.cloud(0.14)
  # A net of pigment: dark along the zero lines of a fine noise.
  net_IJ = np.exp(-((canvas.noise(0.022) / 0.4) ** 2))
  shade_IJ = 1 + 0.16 * patches_IJ - 0.22 * net_IJ
  colour_IJC = brown * shade_IJ[..., None] + 0.05
  edge_IJ = canvas.soften(lesion_IJ, s(0.004, 0.012))
  image_IJC = paint(image_IJC, 0.95 * edge_IJ, colour_IJC)
  dots = [
    canvas.outline(place, (s(0.008, 0.014), s(0.008, 0.014)))
    for place in canvas.spots(16, 0.05, low=(0.2, 0.2), high=(0.8, 0.8))
  ]
  image_IJC = paint(
    image_IJC, 0.6 * canvas.fill(dots) * lesion_IJ, brown * 0.45
  )
  targets = {"skin_lesion": lesion_IJ}
  if canvas.chance(VEIL_IN_LESION):
    place = (centre[0] + s(-0.06, 0.06), centre[1] + s(-0.06, 0.06))
    veil_IJ = canvas.blob(place, (s(0.09, 0.125), s(0.075, 0.1)), rough=0.12)
    veil_IJ = veil_IJ * lesion_IJ
    blue = np.array([s(0.44, 0.54), s(0.50, 0.60), s(0.60, 0.70)], np.float32)
    milk_IJC = blue * (0.97 + 0.10 * canvas.cloud(0.05))[..., None]
    image_IJC = paint(image_IJC, 0.85 * canvas.soften(veil_IJ, 0.016), milk_IJC)
    targets["veil"] = veil_IJ
  return image_IJC, targets


def _ulcer(
  canvas: Canvas, image_IJC: np.ndarray, place: Point
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the image with a raw patch under yellow crust, and its target."""
  s = canvas.uniform
  radii = (s(0.085, 0.125), s(0.075, 0.105))
  ulcer_IJ = canvas.blob(place, radii, angle=s(0, 3), rough=0.07, harmonics=8)
  flush_IJ = canvas.soften(ulcer_IJ, 0.035)
  image_IJC = image_IJC - np.array([0.02, 0.14, 0.12]) * flush_IJ[..., None]
  raw = np.array([s(0.52, 0.68), s(0.10, 0.18), s(0.10, 0.16)], np.float32)
  wet_IJC = raw * (1 + 0.16 * canvas.cloud(0.03))[..., None]
  image_IJC = paint(image_IJC, canvas.soften(ulcer_IJ, 0.004), wet_IJC)
  crust_IJ = np.clip((canvas.cloud(0.05) - 0.7) / 0.6, 0, 1) * ulcer_IJ
  yellow = np.array([0.80, 0.60, 0.32], np.float32)
  return paint(image_IJC, 0.6 * crust_IJ, yellow), ulcer_IJ


def _hairs(canvas: Canvas, image_IJC: np.ndarray) -> np.ndarray:
  """Returns the image with up to eight dark hairs, mostly of one lean."""
  count = int(canvas.rng.integers(0, 9))
  lean = canvas.uniform(0, math.pi)
  paths = []
  for _ in range(count):
    x, y = canvas.uniform(0, 1), canvas.uniform(0, 1)
    angle = lean + canvas.uniform(-0.5, 0.5)
    dx, dy = 0.35 * math.cos(angle), 0.35 * math.sin(angle)
    bend = (x + canvas.uniform(-0.08, 0.08), y + canvas.uniform(-0.08, 0.08))
    path = curve([(x - dx, y - dy), bend, (x + dx, y + dy)])
    paths.append((path, 0.008, 0.004))
  dark = np.array([0.12, 0.08, 0.07], np.float32)
  return paint(image_IJC, 0.85 * canvas.tubes(paths), dark)
