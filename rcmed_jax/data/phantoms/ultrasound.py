"""Ultrasound of the liver with gallbladder and kidney, from a convex probe.

The scene's echo strength is sampled along the beams, loses energy with depth,
is multiplied by Rayleigh speckle, compressed by a logarithm and scanned back
into the sector, as a machine does it. That is why fluid brightens what lies
behind it and speckle grows wider with depth.
"""

import dataclasses
import math

import cv2
import numpy as np

from rcmed_jax.data.phantoms.canvas import Canvas, Point, curve, gray, paint

CHANCES = {"gallbladder": 0.68, "kidney": 0.68, "liver_lesion": 0.68}

BEAMS = 160
SAMPLES = 256  # along one beam


def ultrasound(canvas: Canvas) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Returns a sector scan of the upper abdomen."""
  present = canvas.roll(CHANCES)
  s = canvas.uniform
  sector = _Sector(
    apex=(0.5, s(-0.22, -0.14)),
    near=s(0.24, 0.28),
    far=s(1.08, 1.14),
    half_angle=s(0.56, 0.68),
  )
  echo_IJ = _tissue(canvas)
  loss_IJ = np.full_like(echo_IJ, s(0.9, 1.5))
  # Each target has a home; which side is which changes with the view.
  homes = [(0.33, 0.44), (0.66, 0.44), (0.5, 0.70)]
  canvas.rng.shuffle(homes)
  field_IJ = sector.field(canvas)
  targets: dict[str, np.ndarray] = {}
  for (x, y), name in zip(homes, CHANCES, strict=True):
    if name not in present:
      continue
    place = (x + s(-0.04, 0.04), y + s(-0.05, 0.05))
    draw = {
      "gallbladder": _gallbladder,
      "kidney": _kidney,
      "liver_lesion": _lesion,
    }[name]
    coverage_IJ, echo_IJ, loss_IJ = draw(canvas, place, echo_IJ, loss_IJ)
    targets[name] = coverage_IJ * field_IJ
  picture_IJ = sector.scan(canvas, echo_IJ, loss_IJ)
  return gray(picture_IJ * field_IJ + _scale_marks(canvas)), targets


@dataclasses.dataclass(frozen=True)
class _Sector:
  """The fan that the beams sweep, in fractions of the image's side."""

  apex: Point  # where all beams would meet, above the image
  near: float  # distance from the apex at which they start
  far: float  # and end
  half_angle: float  # radians

  def _polar(self, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    x_1J, y_I1 = canvas.axes()
    dx_1J, dy_I1 = x_1J - self.apex[0], y_I1 - self.apex[1]
    return np.hypot(dx_1J, dy_I1), np.arctan2(dx_1J, dy_I1)

  def field(self, canvas: Canvas) -> np.ndarray:
    """Returns float32[I, J], 1 inside the fan."""
    range_IJ, angle_IJ = self._polar(canvas)
    inside_IJ = (range_IJ > self.near) & (range_IJ < self.far)
    inside_IJ &= np.abs(angle_IJ) < self.half_angle
    return inside_IJ.astype(np.float32)

  def scan(
    self, canvas: Canvas, echo_IJ: np.ndarray, loss_IJ: np.ndarray
  ) -> np.ndarray:
    """Returns grey values float32[I, J] of the scene as the machine sees it."""
    reach_S1 = np.linspace(self.near, self.far, SAMPLES)[:, None]
    turn_1B = np.linspace(-self.half_angle, self.half_angle, BEAMS)[None]
    x_SB = (self.apex[0] + reach_S1 * np.sin(turn_1B)) * canvas.size - 0.5
    y_SB = (self.apex[1] + reach_S1 * np.cos(turn_1B)) * canvas.size - 0.5
    x_SB, y_SB = x_SB.astype(np.float32), y_SB.astype(np.float32)

    def beams(image_IJ: np.ndarray) -> np.ndarray:
      return cv2.remap(
        image_IJ, x_SB, y_SB, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
      )

    step = (self.far - self.near) / SAMPLES
    decay_SB = np.exp(-np.cumsum(beams(loss_IJ), axis=0) * step)
    gain_S1 = np.exp(1.15 * (reach_S1 - self.near))  # time-gain compensation
    # Fully developed speckle: magnitude of a blurred complex Gaussian field.
    real_SB, imaginary_SB = (
      cv2.GaussianBlur(
        canvas.rng.standard_normal((SAMPLES, BEAMS), np.float32),
        (0, 0),
        sigmaX=1.5,
        sigmaY=1.0,
      )
      for _ in range(2)
    )
    speckle_SB = np.hypot(real_SB, imaginary_SB)
    speckle_SB /= speckle_SB.mean()
    signal_SB = beams(echo_IJ) * decay_SB * gain_S1 * speckle_SB
    grey_SB = np.log1p(40 * signal_SB) / math.log(41)

    range_IJ, angle_IJ = self._polar(canvas)
    s_IJ = (range_IJ - self.near) / (self.far - self.near) * (SAMPLES - 1)
    b_IJ = (angle_IJ + self.half_angle) / (2 * self.half_angle) * (BEAMS - 1)
    return cv2.remap(
      grey_SB.astype(np.float32),
      b_IJ.astype(np.float32),
      s_IJ.astype(np.float32),
      cv2.INTER_LINEAR,
    )


def _tissue(canvas: Canvas) -> np.ndarray:
  """Returns the echo strength of skin, muscle, liver, vessels, diaphragm."""
  s = canvas.uniform
  liver = s(0.10, 0.2)
  echo_IJ = liver * np.exp(0.18 * canvas.cloud(0.08))
  _, y_I1 = canvas.axes()
  ripple_IJ = 0.012 * canvas.noise(0.25)
  for depth, width, level in (
    (0.06, 0.03, 0.5),
    (0.12, 0.02, 0.35),
    (0.17, 0.014, 0.7),
  ):
    band_IJ = np.exp(-(((y_I1 - depth + ripple_IJ) / width) ** 2))
    echo_IJ = echo_IJ + (level - 0.2) * band_IJ
  vessels = []
  for _ in range(5):
    x, y = s(0.15, 0.85), s(0.3, 0.8)
    angle, reach = s(0, math.pi), s(0.04, 0.09)
    dx, dy = reach * math.cos(angle), reach * math.sin(angle)
    bend = (x + s(-0.02, 0.02), y + s(-0.02, 0.02))
    path = curve([(x - dx, y - dy), bend, (x + dx, y + dy)])
    vessels.append((path, 0.018, 0.012))
  echo_IJ = paint(echo_IJ, canvas.soften(canvas.tubes(vessels), 0.003), 0.015)
  tilt = s(-0.06, 0.06)
  arch = curve(
    [(-0.1, 0.80 + tilt), (0.3, 0.93), (0.7, 0.93), (1.1, 0.80 - tilt)]
  )
  diaphragm_IJ = canvas.soften(canvas.tubes([(arch, 0.016, 0.016)]), 0.004)
  return paint(echo_IJ, diaphragm_IJ, 1.0)


def _gallbladder(
  canvas: Canvas, place: Point, echo_IJ: np.ndarray, loss_IJ: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Fluid: no echo, a bright wall, no loss, so what lies behind is bright."""
  s = canvas.uniform
  radii = (s(0.11, 0.14), s(0.065, 0.085))
  angle = s(-0.7, 0.7)
  outline_P2 = canvas.outline(place, radii, angle=angle, rough=0.05)
  coverage_IJ = canvas.fill([outline_P2])
  wall = np.concatenate([outline_P2, outline_P2[:1]])
  echo_IJ = paint(echo_IJ, canvas.tubes([(wall, 0.02, 0.02)]), 0.4)
  echo_IJ = paint(echo_IJ, coverage_IJ, 0.004)
  return coverage_IJ, echo_IJ, loss_IJ - 5.0 * coverage_IJ


def _kidney(
  canvas: Canvas, place: Point, echo_IJ: np.ndarray, loss_IJ: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Dark cortex around the bright fat of the sinus, a bright capsule."""
  s = canvas.uniform
  radii = (s(0.15, 0.175), s(0.085, 0.1))
  angle = s(-0.5, 0.5)
  outline_P2 = canvas.outline(place, radii, angle=angle, rough=0.03)
  coverage_IJ = canvas.fill([outline_P2])
  capsule = np.concatenate([outline_P2, outline_P2[:1]])
  echo_IJ = paint(echo_IJ, canvas.tubes([(capsule, 0.014, 0.014)]), 0.45)
  depth_IJ = canvas.depth(coverage_IJ) + 0.008 * canvas.noise(0.03)
  sinus_IJ = np.clip((depth_IJ - 0.045) / 0.015, 0, 1)
  inside_IJ = 0.04 + sinus_IJ * (0.5 - 0.04)
  return coverage_IJ, paint(echo_IJ, coverage_IJ, inside_IJ), loss_IJ


def _lesion(
  canvas: Canvas, place: Point, echo_IJ: np.ndarray, loss_IJ: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """A bright haemangioma-like focus with a dark halo."""
  s = canvas.uniform
  radius = s(0.075, 0.10)
  radii = (radius, radius * s(0.85, 1.1))
  outline_P2 = canvas.outline(place, radii, rough=0.08)
  coverage_IJ = canvas.fill([outline_P2])
  halo = np.concatenate([outline_P2, outline_P2[:1]])
  echo_IJ = paint(echo_IJ, canvas.tubes([(halo, 0.03, 0.03)]), 0.05)
  texture_IJ = s(0.34, 0.55) * np.exp(0.25 * canvas.noise(0.03))
  return coverage_IJ, paint(echo_IJ, coverage_IJ, texture_IJ), loss_IJ


def _scale_marks(canvas: Canvas) -> np.ndarray:
  """Returns the depth marks that the machine draws beside the sector."""
  marks = [
    (np.array([[0.965, y], [0.985 if k % 5 else 0.975, y]]), 0.008, 0.008)
    for k, y in enumerate(np.arange(0.08, 0.97, 0.09))
  ]
  return 0.7 * canvas.tubes(marks)
