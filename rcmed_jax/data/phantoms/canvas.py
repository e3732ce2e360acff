"""What every phantom is drawn with: shapes, textures, paint.

Places and lengths are fractions of the image's side, x to the right and y
down, so that a drawing has no size of its own. A shape comes back as its
coverage, float32[I, J] in 0..1, anti-aliased; the target's mask is where the
coverage exceeds one half.
"""

from collections.abc import Iterable, Mapping, Sequence
import math

import cv2
import numpy as np

# Shapes are drawn this many times finer and averaged, which anti-aliases them.
SUPERSAMPLING = 4
OUTLINE_POINTS = 64

Point = tuple[float, float]
# Points [P, 2] along the middle, width at the start, width at the end.
Tube = tuple[np.ndarray, float, float]


class Canvas:
  """One image's random numbers, size and pose of everything drawn on it."""

  def __init__(self, rng: np.random.Generator, size: int):
    self.rng = rng
    self.size = size
    self._matrix_22 = np.eye(2)
    self._shift_2 = np.zeros(2)
    self._waves_W4 = np.zeros((0, 4))

  def uniform(self, low: float, high: float) -> float:
    return float(self.rng.uniform(low, high))

  def chance(self, probability: float) -> bool:
    return bool(self.rng.random() < probability)

  def roll(self, chances: Mapping[str, float]) -> set[str]:
    """Returns the names whose chance came up, never the empty set."""
    while True:
      names = {name for name, p in chances.items() if self.chance(p)}
      if names:
        return names

  def settle(
    self,
    *,
    rotation: float = 0.08,
    scale: float = 0.07,
    shift: float = 0.03,
    bend: float = 0.008,
  ) -> None:
    """Draws the pose of this image's subject; all later shapes follow it.

    Args:
      rotation: largest angle in radians, about the image's centre.
      scale: largest change of width and of height, drawn separately.
      shift: largest offset.
      bend: amplitude of the long waves that make two subjects differ in form.
    """
    angle = self.uniform(-rotation, rotation)
    stretch_2 = self.rng.uniform(1 - scale, 1 + scale, 2)
    self._matrix_22 = _rotation(angle) * stretch_2
    self._shift_2 = self.rng.uniform(-shift, shift, 2)
    # Each wave: frequency along x, along y, phase, direction of the offset.
    frequency_W2 = self.rng.uniform(-9, 9, (3, 2))
    phase_W2 = self.rng.uniform(0, 2 * math.pi, (3, 2))
    self._waves_W4 = np.concatenate([frequency_W2, phase_W2], axis=1)
    self._bend = bend

  def place(self, points_P2: np.ndarray) -> np.ndarray:
    """Returns float64[P, 2], the points after this image's pose."""
    placed_P2 = (points_P2 - 0.5) @ self._matrix_22.T + 0.5 + self._shift_2
    for fx, fy, phase, direction in self._waves_W4:
      wave_P = self._bend * np.sin(points_P2 @ np.array([fx, fy]) + phase)
      offset_2 = np.array([math.cos(direction), math.sin(direction)])
      placed_P2 = placed_P2 + wave_P[:, None] * offset_2
    return placed_P2

  def outline(
    self,
    centre: Point,
    radii: Point,
    *,
    angle: float = 0.0,
    rough: float = 0.06,
    harmonics: int = 5,
  ) -> np.ndarray:
    """Returns float64[P, 2]: an ellipse whose radius varies by about `rough`.

    Harmonic k has amplitude 2 rough / k: few harmonics give a smooth
    organ, many a frayed border.
    """
    theta_P = np.linspace(0, 2 * math.pi, OUTLINE_POINTS, endpoint=False)
    k_H = np.arange(2, 2 + harmonics)
    amplitude_H = 2 * rough * self.rng.normal(size=harmonics) / k_H
    phase_H = self.rng.uniform(0, 2 * math.pi, harmonics)
    ripple_P = np.cos(theta_P[:, None] * k_H + phase_H) @ amplitude_H
    radius_P = np.maximum(1 + ripple_P, 0.4)
    ellipse_P2 = np.stack([np.cos(theta_P), np.sin(theta_P)], axis=1)
    ellipse_P2 *= radius_P[:, None] * np.array(radii)
    return ellipse_P2 @ _rotation(angle).T + np.array(centre)

  def blob(self, centre: Point, radii: Point, **form) -> np.ndarray:
    """Returns the coverage of one `outline`."""
    return self.fill([self.outline(centre, radii, **form)])

  def fill(self, outlines: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the coverage of the union of closed outlines [P, 2]."""
    fine_IJ = self._fine()
    for outline_P2 in outlines:
      cv2.fillPoly(fine_IJ, [self._pixels(outline_P2)], 255)
    return self._average(fine_IJ)

  def tubes(self, paths: Iterable[Tube]) -> np.ndarray:
    """Returns the coverage of the union of round tubes."""
    fine_IJ = self._fine()
    for points_P2, start, end in paths:
      pixels_P2 = self._pixels(points_P2)
      widths_P = np.linspace(start, end, len(pixels_P2)) * len(fine_IJ)
      for k, width in enumerate(widths_P[:-1].tolist()):
        a, b = pixels_P2[k : k + 2].tolist()
        cv2.line(fine_IJ, a, b, 255, max(round(width), 1))
    return self._average(fine_IJ)

  def noise(self, grain: float, *, stretch: float = 1.0) -> np.ndarray:
    """Returns smooth float32[I, J] noise of mean 0 and deviation 1.

    Args:
      grain: size of its features.
      stretch: how many times longer they are along x than along y.
    """
    rows = max(math.ceil(1 / grain), 2) + 1
    columns = max(math.ceil(1 / (grain * stretch)), 2) + 1
    coarse = self.rng.normal(size=(rows, columns)).astype(np.float32)
    side = (self.size, self.size)
    noise_IJ = cv2.resize(coarse, side, interpolation=cv2.INTER_CUBIC)
    return (noise_IJ - noise_IJ.mean()) / (noise_IJ.std() + 1e-6)

  def cloud(self, grain: float, octaves: int = 3) -> np.ndarray:
    """Returns noise of several grains, each half as coarse and as strong."""
    layers = [self.noise(grain / 2**k) / 2**k for k in range(octaves)]
    return np.stack(layers).sum(axis=0)

  def white(self) -> np.ndarray:
    """Returns float32[I, J], independent normal values."""
    return self.rng.standard_normal((self.size, self.size), np.float32)

  def axes(self) -> tuple[np.ndarray, np.ndarray]:
    """Returns x float32[1, J] and y float32[I, 1] of the pixel centres."""
    ticks = (np.arange(self.size, dtype=np.float32) + 0.5) / self.size
    return ticks[None, :], ticks[:, None]

  def spots(
    self,
    count: int,
    distance: float,
    *,
    low: Point = (0.1, 0.1),
    high: Point = (0.9, 0.9),
    avoid: Sequence[tuple[Point, float]] = (),
  ) -> list[Point]:
    """Returns up to `count` places at least `distance` from each other.

    Args:
      avoid: (place, radius) of what is already there.
    """
    found: list[Point] = []
    for x, y in self.rng.uniform(low, high, (count * 12, 2)).tolist():
      taken = [(p, distance) for p in found] + list(avoid)
      if all(math.dist((x, y), p) >= r for p, r in taken):
        found.append((x, y))
      if len(found) == count:
        break
    return found

  def soften(self, image: np.ndarray, sigma: float) -> np.ndarray:
    """Returns the image after a Gaussian blur of deviation `sigma`."""
    return cv2.GaussianBlur(image, (0, 0), sigma * self.size)

  def depth(self, coverage_IJ: np.ndarray) -> np.ndarray:
    """Returns float32[I, J], how far inside the shape each pixel lies."""
    inside_IJ = (coverage_IJ > 0.5).astype(np.uint8)
    return cv2.distanceTransform(inside_IJ, cv2.DIST_L2, 5) / self.size

  def _fine(self) -> np.ndarray:
    side = self.size * SUPERSAMPLING
    return np.zeros((side, side), np.uint8)

  def _pixels(self, points_P2: np.ndarray) -> np.ndarray:
    fine_P2 = self.place(points_P2) * self.size * SUPERSAMPLING
    return np.round(fine_P2).astype(np.int32)

  def _average(self, fine_IJ: np.ndarray) -> np.ndarray:
    side = (self.size, self.size)
    mean_IJ = cv2.resize(fine_IJ, side, interpolation=cv2.INTER_AREA)
    return mean_IJ.astype(np.float32) / 255


def curve(points: Sequence[Point], *, closed: bool = False) -> np.ndarray:
  """Returns float64[P, 2], a smooth curve near the given corners (Chaikin)."""
  points_P2 = np.array(points, float)
  for _ in range(3):
    after_P2 = np.roll(points_P2, -1, axis=0)
    quarters = 0.75 * points_P2 + 0.25 * after_P2
    halves = 0.25 * points_P2 + 0.75 * after_P2
    cut_P2 = np.stack([quarters, halves], axis=1).reshape(-1, 2)
    if not closed:
      ends = points_P2[:1], points_P2[-1:]
      cut_P2 = np.concatenate([ends[0], cut_P2[:-2], ends[1]])
    points_P2 = cut_P2
  return points_P2


def both_sides(
  corners: Sequence[Point], start: float, end: float
) -> list[Tube]:
  """Returns a curved tube and its mirror image about the midline x = 0.5.

  Args:
    corners: (distance from the midline, y) each.
    start: width at the first corner.
    end: width at the last.
  """
  return [
    (curve([(0.5 + side * x, y) for x, y in corners]), start, end)
    for side in (-1, 1)
  ]


def paint(
  base: np.ndarray, coverage_IJ: np.ndarray, value: float | np.ndarray
) -> np.ndarray:
  """Returns `base` [I, J] or [I, J, C] with `value` laid over it."""
  if base.ndim == 3:
    coverage_IJ = coverage_IJ[..., None]
  return base + coverage_IJ * (value - base)


def gray(values_IJ: np.ndarray) -> np.ndarray:
  """Returns uint8[I, J, 3] from grey values in 0..1."""
  return rgb(np.repeat(values_IJ[..., None], 3, axis=2))


def rgb(values_IJC: np.ndarray) -> np.ndarray:
  """Returns uint8[I, J, 3] from colours in 0..1."""
  return np.round(np.clip(values_IJC, 0, 1) * 255).astype(np.uint8)


def _rotation(angle: float) -> np.ndarray:
  cos, sin = math.cos(angle), math.sin(angle)
  return np.array([[cos, -sin], [sin, cos]])
