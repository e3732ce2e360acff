"""Positron emission tomography: uptake of the tracer, seen from the front."""

import numpy as np

from rcmed_jax.data.phantoms.canvas import Canvas, both_sides, curve, gray, rgb

CHANCES = {"brain": 0.66, "heart": 0.66, "bladder": 0.66, "lesion": 0.66}


def pet(canvas: Canvas) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Returns a coronal projection of tracer uptake, head to thighs."""
  canvas.settle(rotation=0.04, bend=0.006)
  present = canvas.roll(CHANCES)
  s = canvas.uniform
  hot: dict[str, np.ndarray] = {}
  if "brain" in present:
    hot["brain"] = canvas.blob((0.5, 0.10), (s(0.07, 0.085), s(0.062, 0.075)))
  if "heart" in present:
    wall_IJ = canvas.blob(
      (0.56, 0.37), (s(0.07, 0.082), s(0.062, 0.075)), angle=0.6
    )
    hot["heart"] = wall_IJ
  if "bladder" in present:
    hot["bladder"] = canvas.blob((0.5, 0.86), (s(0.07, 0.085), s(0.058, 0.07)))
  if "lesion" in present:
    hot["lesion"] = _lesions(canvas)

  uptake_IJ = _faint_uptake(canvas)
  for name, coverage_IJ in hot.items():
    level = s(0.75, 1.15) if name != "heart" else s(0.6, 0.9)
    texture_IJ = level * (1 + 0.12 * canvas.noise(0.03))
    if name == "heart":
      # The left ventricle: a ring of muscle around its cavity.
      cavity_IJ = np.clip((canvas.depth(coverage_IJ) - 0.03) / 0.03, 0, 1)
      texture_IJ = texture_IJ * (1 - 0.6 * cavity_IJ)
    uptake_IJ = np.maximum(uptake_IJ, texture_IJ * coverage_IJ)
  uptake_IJ = canvas.soften(uptake_IJ, s(0.009, 0.014))
  counts = s(150, 500)  # photons of a pixel at full uptake
  uptake_IJ = canvas.rng.poisson(uptake_IJ * counts).astype(np.float32) / counts
  uptake_IJ = np.clip(canvas.soften(uptake_IJ, 0.004), 0, 1)
  return _tint(canvas, uptake_IJ), hot


def _lesions(canvas: Canvas) -> np.ndarray:
  """Returns one to three foci away from the organs that are always hot."""
  organs = [((0.5, 0.10), 0.17), ((0.56, 0.37), 0.16), ((0.5, 0.86), 0.16)]
  count = int(canvas.rng.integers(1, 4))
  places = canvas.spots(
    count, 0.17, low=(0.33, 0.24), high=(0.67, 0.74), avoid=organs
  )
  largest = 0.068 if len(places) < 2 else 0.056
  return canvas.fill(
    canvas.outline(
      place,
      (
        canvas.uniform(largest - 0.008, largest),
        canvas.uniform(largest - 0.012, largest),
      ),
      rough=0.1,
    )
    for place in places
  )


def _faint_uptake(canvas: Canvas) -> np.ndarray:
  """Returns the background: body, liver, kidneys, marrow, throat, lungs."""
  half = [
    (0.5, 0.02),
    (0.58, 0.05),
    (0.59, 0.13),
    (0.55, 0.19),
    (0.70, 0.23),
    (0.78, 0.30),
    (0.72, 0.45),
    (0.70, 0.60),
    (0.73, 0.78),
    (0.72, 1.05),
    (0.5, 1.05),
  ]
  mirrored = [(1 - x, y) for x, y in reversed(half[1:-1])]
  body_IJ = canvas.fill([curve(half + mirrored, closed=True)])
  arms = both_sides([(0.25, 0.28), (0.31, 0.5), (0.33, 0.75)], 0.075, 0.05)
  uptake_IJ = 0.10 * body_IJ * (1 + 0.25 * canvas.noise(0.05))
  uptake_IJ = np.maximum(uptake_IJ, 0.08 * canvas.tubes(arms))
  lungs = [
    canvas.outline((0.5 + side * 0.10, 0.36), (0.075, 0.11)) for side in (-1, 1)
  ]
  uptake_IJ = uptake_IJ - 0.05 * canvas.fill(lungs)
  liver = canvas.outline((0.42, 0.50), (0.14, 0.065), angle=-0.2)
  kidneys = [
    canvas.outline((0.5 + side * 0.11, 0.60), (0.03, 0.05)) for side in (-1, 1)
  ]
  uptake_IJ = uptake_IJ + canvas.uniform(0.10, 0.17) * canvas.fill([liver])
  uptake_IJ = uptake_IJ + canvas.uniform(0.06, 0.14) * canvas.fill(kidneys)
  spine = [(np.array([[0.5, 0.2], [0.5, 0.78]]), 0.03, 0.04)]
  uptake_IJ = uptake_IJ + 0.05 * canvas.tubes(spine)
  return np.maximum(uptake_IJ, 0.0)


def _tint(canvas: Canvas, uptake_IJ: np.ndarray) -> np.ndarray:
  """Returns the picture in one of the three usual displays."""
  style = canvas.rng.integers(3)
  if style == 0:
    return gray(1 - uptake_IJ)
  if style == 1:
    return gray(uptake_IJ)
  # "Hot iron": red comes first, then green, then blue.
  levels = [uptake_IJ * 2.4, uptake_IJ * 2.4 - 0.8, uptake_IJ * 3 - 2]
  return rgb(np.stack(levels, axis=2))
