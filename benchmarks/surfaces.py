"""Milliseconds of a core for NSD and HD95, against the plain formulation.

  PYTHONPATH=. .venv/bin/python benchmarks/surfaces.py

The plain formulation is what a page of SciPy gives: each mask eroded, a
distance transform of each surface, all over the whole image. Both take turns,
and every pair of results is compared to the bit. Time is that of the process
and not the clock's, so that a busy machine counts less; the smallest of the
rounds, for the same reason.
"""

import argparse
from collections.abc import Callable, Iterator
import platform
import time
from typing import Any

import cv2
import numpy as np
import scipy
import scipy.ndimage

from rcmed_jax.eval import surfaces

SIDE = 1024
SPACING_IJ = (0.5, 0.7)
# Slices of a heart, in the manner of ACDC and M&Ms.
VOLUME = (36, 256, 256)
SPACING_VOLUME = (7.7, 1.54, 1.54)
TOLERANCE = 2.0


def main() -> None:
  """Prints two tables: ours against the plain one, and our two ways."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rounds", type=int, default=7)
  args = parser.parse_args()
  print(
    f"numpy {np.__version__}, scipy {scipy.__version__}, Python "
    f"{platform.python_version()}, {args.rounds} rounds\n"
  )
  print("| masks | surface | plain | ours | plain / ours |")
  print("| --- | --- | --- | --- | --- |")
  for name, pred, ref, spacing in _cases():
    print(_row(name, pred, ref, spacing, args.rounds), flush=True)
  print("\n| elements per surface element | tree | transform |")
  print("| --- | --- | --- |")
  for blur in (1, 1.5, 2, 3, 4, 6):
    print(_ways(blur, args.rounds), flush=True)


def _row(
  name: str,
  pred: np.ndarray,
  ref: np.ndarray,
  spacing: tuple[float, ...],
  rounds: int,
) -> str:
  plain_s, ours_s = [], []
  for _ in range(rounds):
    seconds, expected = _timed(lambda: _plain(pred, ref, spacing))
    plain_s.append(seconds)
    seconds, found = _timed(
      lambda: surfaces.compare(pred, ref, [TOLERANCE], spacing)
    )
    ours_s.append(seconds)
    if (found.hd95, found.within[0]) != expected:
      raise ValueError(f"{name}: {found} differs from {expected}.")
  plain, ours = 1e3 * min(plain_s), 1e3 * min(ours_s)
  return (
    f"| {name} | {found.pred + found.ref:,} | {plain:.1f} ms | {ours:.1f} ms | "
    f"{plain / ours:.1f} |"
  )


def _ways(blur: float, rounds: int) -> str:
  """Both ways over the whole picture; less blur, more surface in it."""
  random = np.random.default_rng(1)
  noise_IJ = cv2.GaussianBlur(random.normal(size=(SIDE, SIDE)), (0, 0), blur)
  masks = noise_IJ > 0, cv2.GaussianBlur(noise_IJ, (0, 0), 3) > 0
  pred_AP, ref_AP = (np.argwhere(surfaces.surface(mask)).T for mask in masks)
  spacing_A = np.array(SPACING_IJ)
  least = {}
  for _ in range(rounds):
    for way in (surfaces._by_tree, surfaces._by_transform):
      seconds, _ = _timed(
        lambda way=way: (
          way(pred_AP, ref_AP, spacing_A),
          way(ref_AP, pred_AP, spacing_A),
        )
      )
      least[way] = min(seconds, least.get(way, seconds))
  elements = SIDE**2 / (pred_AP.shape[1] + ref_AP.shape[1])
  times = " | ".join(f"{1e3 * seconds:.0f} ms" for seconds in least.values())
  return f"| {elements:.1f} | {times} |"


def _plain(
  pred: np.ndarray, ref: np.ndarray, spacing: tuple[float, ...]
) -> tuple[float, int]:
  """HD95, and how many surface elements lie within the tolerance."""
  edges = [
    mask & np.logical_not(scipy.ndimage.binary_erosion(mask))
    for mask in (pred, ref)
  ]
  sides = [
    np.asarray(scipy.ndimage.distance_transform_edt(~theirs, sampling=spacing))[
      ours
    ]
    for ours, theirs in (edges, edges[::-1])
  ]
  hd95 = max(float(np.percentile(side, 95)) for side in sides)
  return hd95, sum(int((side <= TOLERANCE).sum()) for side in sides)


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
  start = time.process_time()
  result = call()
  return time.process_time() - start, result


def _cases() -> Iterator[tuple[str, np.ndarray, np.ndarray, tuple[float, ...]]]:
  """Names, masks and spacings, the easy first."""

  def picture(
    name: str,
    pred: tuple[tuple[int, int], ...],
    ref: tuple[tuple[int, int], ...],
  ):
    return f"{SIDE}²: {name}", _ellipse(*pred), _ellipse(*ref), SPACING_IJ

  yield picture("a lesion", ((500, 500), (25, 18)), ((505, 500), (24, 19)))
  yield picture("an organ", ((500, 500), (250, 180)), ((510, 490), (240, 190)))
  yield picture("all of it", ((512, 512), (500, 500)), ((512, 512), (490, 505)))
  yield picture("far apart", ((60, 60), (50, 50)), ((950, 950), (50, 50)))
  yield picture(
    "ring in ring", ((512, 512), (99, 99)), ((512, 512), (480, 480))
  )
  random = np.random.default_rng(0)
  noise_IJ = random.normal(size=(SIDE, SIDE))
  smooth_IJ = cv2.GaussianBlur(noise_IJ, (0, 0), 6)
  again_IJ = cv2.GaussianBlur(smooth_IJ, (0, 0), 3)
  yield f"{SIDE}²: ragged all over", smooth_IJ > 0, again_IJ > 0, SPACING_IJ
  yield f"{SIDE}²: noise", noise_IJ > 0.5, noise_IJ < -0.5, SPACING_IJ
  left_IJ, right_IJ = noise_IJ > 0.5, noise_IJ > 0.5
  left_IJ[:, SIDE // 2 :], right_IJ[:, : SIDE // 2] = False, False
  yield f"{SIDE}²: noise beside noise", left_IJ, right_IJ, SPACING_IJ
  size = "x".join(map(str, VOLUME))
  for name, pred, ref in (
    ("a heart", ((18, 128, 128), (9, 40, 35)), ((18, 126, 131), (8, 42, 34))),
    ("a liver", ((18, 128, 128), (14, 70, 90)), ((18, 126, 131), (13, 72, 88))),
    (
      "shell in shell",
      ((18, 128, 128), (3, 15, 15)),
      ((18, 128, 128), (17, 120, 120)),
    ),
  ):
    yield f"{size}: {name}", _ball(*pred), _ball(*ref), SPACING_VOLUME


def _ellipse(centre: tuple[int, int], radii: tuple[int, int]) -> np.ndarray:
  mask_IJ = np.zeros((SIDE, SIDE), np.uint8)
  cv2.ellipse(mask_IJ, centre, radii, 20, 0, 360, 1, -1)
  return mask_IJ > 0


def _ball(centre: tuple[int, ...], radii: tuple[int, ...]) -> np.ndarray:
  grid = np.ogrid[tuple(slice(side) for side in VOLUME)]
  squares = np.zeros(VOLUME)
  for place, middle, radius in zip(grid, centre, radii, strict=True):
    squares += ((place - middle) / radius) ** 2
  return squares < 1


if __name__ == "__main__":
  main()
