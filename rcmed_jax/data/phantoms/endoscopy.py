"""The view of an endoscope into the colon."""

import math

import numpy as np

from rcmed_jax.data.phantoms.canvas import Canvas, Point, paint, rgb

CHANCES = {"polyp": 0.66, "instrument": 0.62, "lumen": 0.6}


def endoscopy(canvas: Canvas) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Returns the view into a colon. What lies in front hides what is behind."""
  present = canvas.roll(CHANCES)
  s = canvas.uniform
  deep = (s(0.32, 0.68), s(0.32, 0.68))
  image_IJC, lumen_IJ = _wall(canvas, deep, "lumen" in present)
  targets: dict[str, np.ndarray] = {}
  if "lumen" in present:
    targets["lumen"] = lumen_IJ
  gloss_IJ = _gloss(canvas) * (1 - canvas.soften(lumen_IJ, 0.02))
  image_IJC = paint(image_IJC, gloss_IJ, np.ones(3, np.float32))
  if "polyp" in present:
    image_IJC, polyp_IJ = _polyp(canvas, image_IJC, deep)
    targets = {k: v * (1 - polyp_IJ) for k, v in targets.items()}
    targets["polyp"] = polyp_IJ
  if "instrument" in present:
    image_IJC, tool_IJ = _instrument(canvas, image_IJC)
    targets = {k: v * (1 - tool_IJ) for k, v in targets.items()}
    targets["instrument"] = tool_IJ
  frame_IJ = _frame(canvas)
  image_IJC = canvas.soften(image_IJC, 0.003) * frame_IJ[..., None]
  image_IJC += 0.012 * canvas.white()[..., None]
  return rgb(image_IJC), {k: v * frame_IJ for k, v in targets.items()}


def _wall(
  canvas: Canvas, deep: Point, is_open: bool
) -> tuple[np.ndarray, np.ndarray]:
  """Returns mucosa with folds around the way ahead, and the dark lumen."""
  s = canvas.uniform
  x_1J, y_I1 = canvas.axes()
  wobble_IJ = 0.045 * canvas.noise(0.3)
  range_IJ = np.hypot(x_1J - deep[0], y_I1 - deep[1]) + wobble_IJ
  rose = np.array([s(0.78, 0.92), s(0.42, 0.56), s(0.34, 0.46)], np.float32)
  # Folds follow the tube, nearer to each other the deeper they lie.
  phase_IJ = s(7, 11) * np.log(np.maximum(range_IJ, 0.03)) + s(0, 6)
  fold_IJ = np.clip(np.sin(phase_IJ), -0.2, 1) ** 3
  fold_IJ = fold_IJ * np.clip((range_IJ - 0.1) / 0.1, 0, 1)
  light_IJ = 0.62 + 0.55 * np.clip(range_IJ / 0.6, 0, 1) + 0.11 * fold_IJ
  light_IJ = light_IJ + 0.05 * canvas.cloud(0.12)
  image_IJC = rose * light_IJ[..., None]
  veins_IJ = np.exp(-((canvas.noise(0.07) / 0.12) ** 2)) * 0.05
  image_IJC -= np.array([0.3, 1.0, 0.9], np.float32) * veins_IJ[..., None]
  lumen_IJ = np.zeros_like(light_IJ)
  if is_open:
    radii = (s(0.09, 0.15), s(0.08, 0.13))
    lumen_IJ = canvas.blob(deep, radii, angle=s(0, 3), rough=0.09)
    far_IJ = canvas.soften(lumen_IJ, 0.014)
    dark = np.array([0.13, 0.045, 0.035], np.float32)
    image_IJC = paint(image_IJC, 0.97 * far_IJ, dark)
  return image_IJC.astype(np.float32), lumen_IJ


def _away(canvas: Canvas, deep: Point, reach: float) -> Point:
  """Returns a place on the picture's other side than the lumen's."""
  angle = math.atan2(0.5 - deep[1], 0.5 - deep[0]) + canvas.uniform(-1.2, 1.2)
  return (
    deep[0] + reach * math.cos(angle),
    deep[1] + reach * math.sin(angle),
  )


def _polyp(
  canvas: Canvas, image_IJC: np.ndarray, deep: Point
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the image with a dome lit from the camera, and its target."""
  s = canvas.uniform
  place = _away(canvas, deep, s(0.22, 0.34))
  radius = s(0.10, 0.16)
  radii = (radius, radius * s(0.75, 1.05))
  outline_P2 = canvas.outline(place, radii, angle=s(0, 3), rough=0.05)
  polyp_IJ = canvas.fill([outline_P2])
  shadow_IJ = canvas.soften(
    canvas.fill([outline_P2 + np.array([0.012, 0.022])]), 0.02
  )
  image_IJC = image_IJC * (1 - 0.42 * shadow_IJ[..., None])
  dome_IJ = np.clip(canvas.depth(polyp_IJ) / radius, 0, 1) ** 0.5
  light_IJ = 0.70 + 0.42 * dome_IJ + 0.05 * canvas.cloud(0.05)
  flesh = np.array([s(0.84, 0.95), s(0.36, 0.5), s(0.32, 0.42)], np.float32)
  image_IJC = paint(image_IJC, polyp_IJ, flesh * light_IJ[..., None])
  spot = (place[0] - 0.3 * radius, place[1] - 0.35 * radius)
  shine = (s(0.015, 0.03), s(0.01, 0.018))
  shine_IJ = canvas.blob(spot, shine, angle=s(0, 3), rough=0.2)
  shine_IJ = canvas.soften(shine_IJ, 0.003) * polyp_IJ
  return paint(image_IJC, shine_IJ, np.ones(3, np.float32)), polyp_IJ


def _instrument(
  canvas: Canvas, image_IJC: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the image with a metal shaft from the rim, and its target."""
  s = canvas.uniform
  angle = s(0, 2 * math.pi)
  rim_2 = np.array([0.5 + 0.8 * math.cos(angle), 0.5 + 0.8 * math.sin(angle)])
  tip_2 = np.array([0.5 + s(-0.1, 0.1), 0.5 + s(-0.1, 0.1)])
  width = s(0.075, 0.10)
  along_2 = (tip_2 - rim_2) / np.hypot(*(tip_2 - rim_2))
  jaws = []
  for turn in (-0.5, 0.5):
    cos, sin = math.cos(turn), math.sin(turn)
    way_2 = np.array([[cos, -sin], [sin, cos]]) @ along_2
    jaws.append((np.stack([tip_2, tip_2 + 0.09 * way_2]), width * 0.6, 0.03))
  shaft = [(np.stack([rim_2, tip_2]), width, width)]
  tool_IJ = canvas.tubes(shaft + jaws)
  x_1J, y_I1 = canvas.axes()
  across_IJ = (x_1J - tip_2[0]) * -along_2[1] + (y_I1 - tip_2[1]) * along_2[0]
  reach_IJ = (x_1J - tip_2[0]) * along_2[0] + (y_I1 - tip_2[1]) * along_2[1]
  # A cylinder: a bright line of light along it, dark at both edges.
  sheen_IJ = np.exp(-(((across_IJ / width + 0.12) / 0.16) ** 2))
  light_IJ = 0.36 + 0.5 * sheen_IJ - 0.5 * (across_IJ / width) ** 2
  light_IJ = light_IJ + 0.06 * np.sign(np.sin(reach_IJ * 180))
  steel = np.array([0.92, 0.97, 1.0], np.float32)
  shadow_IJ = canvas.soften(tool_IJ, 0.02)[..., None]
  image_IJC = image_IJC * (1 - 0.3 * shadow_IJ)
  return paint(image_IJC, tool_IJ, steel * light_IJ[..., None]), tool_IJ


def _gloss(canvas: Canvas) -> np.ndarray:
  """Returns the coverage of small saturated reflections on wet mucosa."""
  s = canvas.uniform
  glints = [
    canvas.outline(
      place, (s(0.008, 0.03), s(0.005, 0.011)), angle=s(0, 3), rough=0.25
    )
    for place in canvas.spots(int(s(4, 12)), 0.08)
  ]
  return canvas.soften(canvas.fill(glints), 0.003)


def _frame(canvas: Canvas) -> np.ndarray:
  """Returns the video frame's clear part: its corners are cut or round."""
  x_1J, y_I1 = canvas.axes()
  if canvas.chance(0.5):
    corner_IJ = np.abs(x_1J - 0.5) + np.abs(y_I1 - 0.5)
    edge_IJ = (0.82 - corner_IJ) / 0.01
  else:
    edge_IJ = (0.58 - np.hypot(x_1J - 0.5, y_I1 - 0.5)) / 0.01
  return np.clip(edge_IJ, 0, 1).astype(np.float32)
