"""Computed tomography of the abdomen, in Hounsfield units until the window.

Axial slices are seen from the feet: the patient's right is the image's left.
"""

import math

import numpy as np

from rcmed_jax.data.phantoms.canvas import Canvas, curve, gray, paint

CHANCES = {
  "liver": 0.70,
  "spleen": 0.66,
  "left_kidney": 0.66,
  "right_kidney": 0.66,
  "aorta": 0.68,
}
TUMOR_IN_LIVER = 0.85  # the tumour needs a liver

# Centre and width in Hounsfield units: soft tissue, liver, wide, angiography.
WINDOWS = ((40, 400), (80, 240), (60, 700), (120, 500))


def ct(canvas: Canvas) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Returns an axial abdominal slice. The liver includes its tumour."""
  canvas.settle()
  present = canvas.roll(CHANCES)
  organs: dict[str, np.ndarray] = {}
  for name, outline_P2 in _abdomen(canvas).items():
    if name in present:
      organ_IJ = canvas.fill([outline_P2])
      organs = {k: v * (1 - organ_IJ) for k, v in organs.items()}
      organs[name] = organ_IJ

  values_IJ, cavity_IJ = _body(canvas)
  values_IJ = _bowel(canvas, values_IJ, cavity_IJ)
  values_IJ = _spine(canvas, values_IJ)
  parenchyma = {
    "liver": canvas.uniform(95, 125),
    "spleen": canvas.uniform(115, 150),
    "left_kidney": canvas.uniform(170, 215),
    "aorta": canvas.uniform(200, 320),
  }
  parenchyma["right_kidney"] = parenchyma["left_kidney"]
  for name, coverage_IJ in organs.items():
    level = parenchyma[name]
    texture_IJ = level + 6 * canvas.noise(0.02)
    if name.endswith("kidney"):
      # Cortex brightest, then medulla, and fat in the sinus.
      depth_IJ = canvas.depth(coverage_IJ)
      texture_IJ -= 45 * np.clip((depth_IJ - 0.02) / 0.02, 0, 1)
      texture_IJ -= 110 * np.clip((depth_IJ - 0.047) / 0.012, 0, 1)
    values_IJ = paint(values_IJ, coverage_IJ, texture_IJ)
  if "liver" in organs:
    values_IJ = _liver_vessels(canvas, values_IJ, organs["liver"])
    if canvas.chance(TUMOR_IN_LIVER):
      tumor_IJ = _liver_tumor(canvas) * organs["liver"]
      level = 35 + 10 * canvas.noise(0.04)
      values_IJ = paint(values_IJ, canvas.soften(tumor_IJ, 0.004), level)
      organs["liver_tumor"] = tumor_IJ

  quantum = canvas.uniform(8, 18)
  noise_IJ = canvas.soften(canvas.white(), 0.004) * 3 * quantum
  values_IJ = canvas.soften(values_IJ, 0.0035) + noise_IJ
  centre, width = WINDOWS[canvas.rng.integers(len(WINDOWS))]
  return gray((values_IJ - centre) / width + 0.5), organs


def _abdomen(canvas: Canvas) -> dict[str, np.ndarray]:
  """Returns each organ's outline; where two meet, the later one is in front."""
  s = canvas.uniform
  liver = curve(
    [
      (0.13, 0.45),
      (0.17, 0.30),
      (0.32, 0.20),
      (0.50 + s(-0.03, 0.08), 0.21),
      (0.52 + s(-0.03, 0.06), 0.32),
      (0.42, 0.40 + s(-0.03, 0.03)),
      (0.36, 0.50),
      (0.27, 0.62 + s(-0.05, 0.03)),
      (0.16, 0.63),
    ],
    closed=True,
  )
  top = s(0.33, 0.42)
  spleen = curve(
    [
      (0.80, top),
      (0.88, top + 0.12),
      (0.85, top + 0.26),
      (0.74, top + 0.33 + s(-0.03, 0.02)),
      (0.72, top + 0.24),
      (0.76, top + 0.12),
    ],
    closed=True,
  )
  kidneys = []
  for side in (-1, 1):
    centre = (0.5 + side * s(0.165, 0.185), s(0.61, 0.66))
    radii = (s(0.058, 0.072), s(0.075, 0.095))
    kidneys.append(canvas.outline(centre, radii, angle=-side * 0.4))
  width = s(0.059, 0.07)
  aorta = canvas.outline(
    (s(0.53, 0.56), s(0.505, 0.525)), (width, width), rough=0.02
  )
  return {
    "liver": liver,
    "spleen": spleen,
    "right_kidney": kidneys[0],
    "left_kidney": kidneys[1],
    "aorta": aorta,
  }


def _body(canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
  """Returns Hounsfield units of body, wall, ribs and table; the cavity."""
  fat = canvas.uniform(0.0, 0.03)
  skin = canvas.outline((0.5, 0.5), (0.47, 0.37), rough=0.012)
  wall = canvas.outline((0.5, 0.5), (0.45 - fat, 0.345 - fat), rough=0.01)
  cavity_IJ = canvas.blob((0.5, 0.48), (0.41 - fat, 0.295 - fat), rough=0.01)
  values_IJ = np.full((canvas.size, canvas.size), -1000, np.float32)
  table = curve([(0.05, 0.90), (0.3, 0.95), (0.7, 0.95), (0.95, 0.90)])
  values_IJ = paint(values_IJ, canvas.tubes([(table, 0.012, 0.012)]), -150)
  skin_IJ = canvas.fill([skin])
  values_IJ = paint(values_IJ, skin_IJ, 20)
  rim_IJ = np.clip((canvas.depth(skin_IJ) - 0.008) / 0.005, 0, 1)
  values_IJ = paint(values_IJ, rim_IJ, -100 + 8 * canvas.noise(0.03))
  muscle_IJ = 55 + 12 * canvas.noise(0.02)
  values_IJ = paint(values_IJ, canvas.fill([wall]), muscle_IJ)
  values_IJ = paint(values_IJ, cavity_IJ, -90 + 14 * canvas.cloud(0.04))
  ribs = []
  for t in canvas.uniform(0, 0.4) + np.arange(0, 2 * math.pi, 0.55):
    if math.sin(t) < 0.72:
      centre = (0.5 + (0.428 - fat) * math.cos(t), 0.485 + 0.315 * math.sin(t))
      tangent = math.atan2(0.315 * math.cos(t), -0.428 * math.sin(t))
      ribs.append(canvas.outline(centre, (0.034, 0.011), angle=tangent))
  return paint(values_IJ, canvas.fill(ribs), 420), cavity_IJ


def _bowel(
  canvas: Canvas, values_IJ: np.ndarray, cavity_IJ: np.ndarray
) -> np.ndarray:
  """Returns the values with loops of bowel: wall, content, gas on top."""
  for x, y in canvas.spots(12, 0.13, low=(0.14, 0.24), high=(0.86, 0.68)):
    radii = (canvas.uniform(0.045, 0.085), canvas.uniform(0.04, 0.06))
    angle = canvas.uniform(0, math.pi)
    loop_IJ = canvas.blob((x, y), radii, angle=angle) * cavity_IJ
    values_IJ = paint(values_IJ, loop_IJ, 45)
    content = canvas.rng.choice([15, 25, 30])
    inner_IJ = np.clip((canvas.depth(loop_IJ) - 0.01) / 0.006, 0, 1)
    values_IJ = paint(values_IJ, inner_IJ, content)
    if canvas.chance(0.3):
      # A patient on the back: gas rises to the front, the image's top.
      gas_IJ = canvas.blob((x, y - 0.012), (0.03, 0.018), angle=0.0)
      values_IJ = paint(values_IJ, gas_IJ * inner_IJ, -800)
  return values_IJ


def _spine(canvas: Canvas, values_IJ: np.ndarray) -> np.ndarray:
  """Returns the values with vertebra, muscles of the back and psoas."""
  back = [
    canvas.outline(
      (0.5 + side * 0.11, 0.765), (0.095, 0.055), angle=-side * 0.2
    )
    for side in (-1, 1)
  ]
  psoas = [
    canvas.outline((0.5 + side * 0.10, 0.665), (0.035, 0.05))
    for side in (-1, 1)
  ]
  values_IJ = paint(values_IJ, canvas.fill(back + psoas), 60.0)
  processes_IJ = canvas.tubes(
    [
      (np.array([[0.5, 0.74], [0.5, 0.83]]), 0.04, 0.02),
      (np.array([[0.46, 0.73], [0.37, 0.72]]), 0.035, 0.02),
      (np.array([[0.54, 0.73], [0.63, 0.72]]), 0.035, 0.02),
    ]
  )
  body_IJ = canvas.blob((0.5, 0.645), (0.078, 0.062), rough=0.02)
  arch_IJ = canvas.blob((0.5, 0.72), (0.055, 0.045), rough=0.02)
  bone_IJ = np.maximum(np.maximum(body_IJ, arch_IJ), processes_IJ)
  trabecular_IJ = 210 + 35 * canvas.noise(0.012)
  cortical_IJ = np.clip(canvas.depth(bone_IJ) / 0.012, 0, 1)
  values_IJ = paint(
    values_IJ, bone_IJ, 560 + (trabecular_IJ - 560) * cortical_IJ
  )
  return paint(values_IJ, canvas.blob((0.5, 0.722), (0.034, 0.026)), 25.0)


def _liver_vessels(
  canvas: Canvas, values_IJ: np.ndarray, liver_IJ: np.ndarray
) -> np.ndarray:
  paths = []
  for _ in range(4):
    x, y = canvas.uniform(0.17, 0.30), canvas.uniform(0.27, 0.55)
    bend = (canvas.uniform(0.25, 0.35), canvas.uniform(0.33, 0.45))
    paths.append((curve([(0.40, 0.40), bend, (x, y)]), 0.02, 0.006))
  return values_IJ + 40 * canvas.soften(canvas.tubes(paths), 0.003) * liver_IJ


def _liver_tumor(canvas: Canvas) -> np.ndarray:
  centre = (canvas.uniform(0.23, 0.33), canvas.uniform(0.30, 0.46))
  radius = canvas.uniform(0.062, 0.085)
  radii = (radius, radius * canvas.uniform(0.85, 1.15))
  return canvas.blob(centre, radii, rough=0.09)
