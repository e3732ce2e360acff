"""Magnetic resonance of the brain, in tissue signal until coil and noise."""

import math

import numpy as np

from rcmed_jax.data.phantoms.canvas import Canvas, both_sides, gray, paint

CHANCES = {"ventricle": 0.55, "brain_tumor": 0.55}

# Signal of a sequence's tissues. Source: their usual appearance at 1.5 T.
SEQUENCES = (
  # fat, bone, fluid, grey, white matter, tumour's rim, tumour's core
  (0.85, 0.06, 0.12, 0.42, 0.60, 0.98, 0.22),  # T1 with contrast
  (0.65, 0.08, 0.98, 0.58, 0.40, 0.82, 0.95),  # T2
  (0.50, 0.05, 0.10, 0.55, 0.42, 0.98, 0.80),  # FLAIR
)


def mr(canvas: Canvas) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Returns an axial brain slice. The brain includes all that lies in it."""
  canvas.settle(rotation=0.15)
  present = canvas.roll(CHANCES)
  fat, bone, fluid, grey, white, rim, core = SEQUENCES[canvas.rng.integers(3)]
  values_IJ = np.zeros((canvas.size, canvas.size), np.float32)
  width, height = canvas.uniform(0.27, 0.31), canvas.uniform(0.34, 0.38)
  if canvas.chance(0.75):  # the others had their skull stripped
    for margin, level in ((0.085, fat), (0.055, bone), (0.018, fluid)):
      shell_IJ = canvas.blob(
        (0.5, 0.5), (width + margin, height + margin), rough=0.008
      )
      values_IJ = paint(values_IJ, shell_IJ, level + 0.04 * canvas.noise(0.02))
  brain_IJ = canvas.blob((0.5, 0.5), (width, height), rough=0.012)
  values_IJ = paint(
    values_IJ, brain_IJ, _folds(canvas, brain_IJ, fluid, grey, white)
  )

  targets = {"brain": brain_IJ}
  if "ventricle" in present:
    targets["ventricle"] = _ventricles(canvas) * brain_IJ
    values_IJ = paint(values_IJ, targets["ventricle"], fluid)
  if "brain_tumor" in present:
    tumor_IJ = _brain_tumor(canvas, width, height) * brain_IJ
    swelling_IJ = canvas.soften(tumor_IJ, 0.03)
    # Swollen tissue holds water: dark in T1, the one with bright white matter.
    shade = -0.15 if white > grey else 0.3
    values_IJ = values_IJ + shade * swelling_IJ * brain_IJ
    depth_IJ = canvas.depth(tumor_IJ)
    inner_IJ = np.clip((depth_IJ - canvas.uniform(0.015, 0.03)) / 0.01, 0, 1)
    texture_IJ = rim + (core - rim) * inner_IJ + 0.05 * canvas.noise(0.03)
    values_IJ = paint(values_IJ, tumor_IJ, texture_IJ)
    targets["brain_tumor"] = tumor_IJ
    if "ventricle" in targets:
      targets["ventricle"] = targets["ventricle"] * (1 - tumor_IJ)

  bias_IJ = np.exp(canvas.uniform(0.1, 0.3) * canvas.noise(0.6))
  values_IJ = canvas.soften(values_IJ, 0.004) * bias_IJ
  # The magnitude of a complex signal: Rician, so that air is not black.
  level = canvas.uniform(0.015, 0.045)
  values_IJ = np.hypot(
    values_IJ + level * canvas.white(), level * canvas.white()
  )
  return gray(0.85 * values_IJ), targets


def _folds(
  canvas: Canvas,
  brain_IJ: np.ndarray,
  fluid: float,
  grey: float,
  white: float,
) -> np.ndarray:
  """Returns the signal of white matter, folded cortex, sulci and falx."""
  depth_IJ = canvas.depth(brain_IJ)
  noise_IJ = canvas.noise(0.045)
  # The noise's zero lines are the sulci; grey matter lines them.
  valley_IJ = np.abs(noise_IJ) + np.clip(depth_IJ - 0.05, 0, 1) * 9
  white_IJ = np.clip((valley_IJ - 0.5) / 0.2, 0, 1)
  white_IJ = white_IJ * np.clip((depth_IJ - 0.015) / 0.015, 0, 1)
  values_IJ = grey + (white - grey) * white_IJ
  sulcus_IJ = np.clip((0.24 - valley_IJ) / 0.15, 0, 1)
  values_IJ = values_IJ + (fluid - values_IJ) * 0.8 * sulcus_IJ
  # Deep grey matter on both sides of the midline.
  nuclei = [
    canvas.outline((0.5 + side * 0.10, 0.49), (0.035, 0.07), angle=-side * 0.3)
    for side in (-1, 1)
  ]
  nuclei_IJ = canvas.soften(canvas.fill(nuclei), 0.008)
  values_IJ = paint(values_IJ, nuclei_IJ, grey)
  falx = [
    (np.array([[0.5, 0.08], [0.5, 0.36]]), 0.012, 0.008),
    (np.array([[0.5, 0.66], [0.5, 0.92]]), 0.008, 0.012),
  ]
  values_IJ = paint(values_IJ, canvas.tubes(falx), fluid)
  return values_IJ + 0.02 * canvas.noise(0.015)


def _ventricles(canvas: Canvas) -> np.ndarray:
  """Returns the two lateral ventricles: front and back horns, a butterfly."""
  swell = canvas.uniform(0.9, 1.35)
  thin, thick = 0.042 * swell, 0.055 * swell
  middle = (0.034, 0.48)
  front = both_sides([(0.075, 0.35), (0.04, 0.42), middle], thin, thick)
  back = both_sides([middle, (0.045, 0.54), (0.11, 0.65)], thick, thin)
  return canvas.tubes(front + back)


def _brain_tumor(canvas: Canvas, width: float, height: float) -> np.ndarray:
  angle = canvas.uniform(0, 2 * math.pi)
  reach = canvas.uniform(0.35, 0.68)
  centre = (
    0.5 + reach * width * math.cos(angle),
    0.5 + reach * height * math.sin(angle),
  )
  radius = canvas.uniform(0.065, 0.10)
  radii = (radius, radius * canvas.uniform(0.8, 1.2))
  return canvas.blob(centre, radii, rough=0.12)
