"""Photographs of the retina."""

import numpy as np

from rcmed_jax.data.phantoms.canvas import Canvas, Point, curve, paint, rgb

DISC = 0.74
CUP_IN_DISC = 0.82  # optic_cup needs a disc: 0.74 * 0.82 = 0.6
HEMORRHAGE = 0.7  # three in ten find no room and are drawn anew

FIELD = 0.475  # radius of the round field of view


def fundus(canvas: Canvas) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Returns a fundus picture. The disc includes cup and vessels on it; a
  hemorrhage lies in front of the vessels.

  Without a disc the camera looks at the macula and the vessels beyond it.
  """
  canvas.settle(rotation=0.15, scale=0.03, shift=0.0, bend=0.012)
  s = canvas.uniform
  x_1J, y_I1 = canvas.axes()
  radius_IJ = np.hypot(x_1J - 0.5, y_I1 - 0.5)
  field_IJ = np.clip((FIELD - radius_IJ) / 0.008, 0, 1).astype(np.float32)
  has_disc = canvas.chance(DISC)
  # A right eye has its disc in the image's right half.
  side = 1 if canvas.chance(0.5) else -1
  reach = s(0.16, 0.27) if has_disc else s(0.62, 0.68)
  disc = (0.5 + side * reach, s(0.45, 0.55))
  macula = (disc[0] - side * 0.42, disc[1] + 0.03)
  pit = canvas.place(np.array([macula]))[0]

  base = np.array([s(0.66, 0.86), s(0.30, 0.42), s(0.09, 0.2)], np.float32)
  light_IJ = 1.05 - 0.9 * radius_IJ**2 + 0.05 * canvas.cloud(0.2)
  image_IJC = base * light_IJ[..., None]
  image_IJC += 0.012 * canvas.noise(0.015)[..., None]
  dark_IJ = np.exp(-((x_1J - pit[0]) ** 2 + (y_I1 - pit[1]) ** 2) / 0.07**2)
  image_IJC *= 1 - np.array([0.35, 0.5, 0.5]) * dark_IJ[..., None]

  targets: dict[str, np.ndarray] = {}
  if has_disc:
    image_IJC, targets = _disc(canvas, image_IJC, disc)
  image_IJC, vessel_IJ = _vessels(canvas, image_IJC, disc, side)
  targets["retinal_vessel"] = vessel_IJ
  if canvas.chance(HEMORRHAGE):
    image_IJC, blood_IJ = _hemorrhage(canvas, image_IJC, disc, macula)
    targets["retinal_vessel"] = vessel_IJ * (1 - blood_IJ)
    targets["hemorrhage"] = blood_IJ
  image_IJC = canvas.soften(image_IJC, 0.003)
  image_IJC += 0.012 * canvas.white()[..., None]
  image_IJC *= field_IJ[..., None]
  return rgb(image_IJC), {k: v * field_IJ for k, v in targets.items()}


def _disc(
  canvas: Canvas, image_IJC: np.ndarray, centre: Point
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Returns the image with a disc, mostly with its cup, and both targets."""
  s = canvas.uniform
  radius = s(0.088, 0.108)
  disc_IJ = canvas.blob(centre, (radius, radius * s(1.0, 1.12)), rough=0.02)
  glow_IJ = canvas.soften(disc_IJ, 0.03)[..., None]
  image_IJC = image_IJC + 0.10 * glow_IJ
  rim = np.array([s(0.92, 1.0), s(0.62, 0.72), s(0.30, 0.42)], np.float32)
  image_IJC = paint(image_IJC, canvas.soften(disc_IJ, 0.004), rim)
  targets = {"optic_disc": disc_IJ}
  if canvas.chance(CUP_IN_DISC):
    ratio = s(0.64, 0.76)
    place = (centre[0] + s(-0.01, 0.01), centre[1] + s(-0.01, 0.01))
    cup_IJ = (
      canvas.blob(place, (radius * ratio, radius * ratio), rough=0.03) * disc_IJ
    )
    pale = np.array([1.0, 0.95, 0.78], np.float32)
    image_IJC = paint(image_IJC, 0.9 * canvas.soften(cup_IJ, 0.006), pale)
    targets["optic_cup"] = cup_IJ
  return image_IJC, targets


def _hemorrhage(
  canvas: Canvas, image_IJC: np.ndarray, disc: Point, macula: Point
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the image with one or two dark red blots, and their mask."""
  s = canvas.uniform
  places = canvas.spots(
    int(canvas.rng.integers(1, 3)),
    0.2,
    low=(0.25, 0.25),
    high=(0.75, 0.75),
    avoid=[(disc, 0.22), (macula, 0.15)],
  )
  blots = [
    canvas.outline(p, (s(0.068, 0.09), s(0.06, 0.08)), rough=0.10, harmonics=8)
    for p in places
  ]
  blood_IJ = canvas.fill(blots)
  blood = np.array([0.36, 0.06, 0.04], np.float32)
  colour_IJC = blood * (1 + 0.12 * canvas.noise(0.05))[..., None]
  return paint(
    image_IJC, 0.9 * canvas.soften(blood_IJ, 0.005), colour_IJC
  ), blood_IJ


def _vessels(
  canvas: Canvas, image_IJC: np.ndarray, disc: Point, side: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the image with arteries and veins, and the mask of the thick ones.

  Main arcades leave the disc upwards and downwards and bend around the macula;
  fine twigs are drawn but are no part of the target.
  """
  s = canvas.uniform
  x, y = disc
  veins, arteries, twigs = [], [], []
  # Seen from beyond, the arcades must still cross the field of view.
  length = 0.85 if abs(x - 0.5) < 0.4 else 1.25
  for sign in (-1, 1):
    for group, rise, width in ((veins, 0.31, 0.052), (arteries, 0.20, 0.042)):
      rise = sign * (rise + s(-0.03, 0.03))
      arcade = [
        (x, y),
        (x - side * s(0.0, 0.05), y + rise * 0.6),
        (x - side * 0.22, y + rise + sign * s(0.0, 0.05)),
        (x - side * 0.38, y + rise * s(0.85, 1.1)),
        (x - side * 0.55, y + rise * s(0.75, 1.0)),
        (x - side * length, y + rise * s(0.3, 0.6)),
      ]
      path_P2 = curve(arcade)
      group.append((path_P2, width, 0.55 * width))
      for point in path_P2[8:-4:5].tolist():
        out = sign * s(-0.06, 0.2)
        end = (point[0] - side * s(0.08, 0.2), point[1] + out)
        bend = ((point[0] + end[0]) / 2, point[1] + out * s(0.1, 0.4))
        twigs.append((curve([point, bend, end]), 0.014, 0.006))
    nasal = curve(
      [
        (x, y),
        (x + side * 0.10, y + sign * 0.12),
        (x + side * 0.35, y + sign * s(0.2, 0.3)),
      ]
    )
    veins.append((nasal, 0.04, 0.028))
  dark = np.array([0.42, 0.09, 0.06], np.float32)
  bright = np.array([0.58, 0.13, 0.08], np.float32)
  twigs_IJ = canvas.soften(canvas.tubes(twigs), 0.002)
  image_IJC = paint(image_IJC, 0.6 * twigs_IJ, bright)
  veins_IJ, arteries_IJ = canvas.tubes(veins), canvas.tubes(arteries)
  image_IJC = paint(image_IJC, 0.85 * veins_IJ, dark)
  image_IJC = paint(image_IJC, 0.8 * arteries_IJ, bright)
  # Light reflex along arteries.
  reflex_IJ = np.clip((canvas.depth(arteries_IJ) - 0.012) / 0.006, 0, 1)
  image_IJC = image_IJC + 0.10 * reflex_IJ[..., None]
  return image_IJC, np.maximum(veins_IJ, arteries_IJ)
