"""Regions of COCO's annotations as masks: polygons, and runs in two forms."""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np

from rcmed_jax.data import extras
from rcmed_jax.ingest.pictures import rle

# A polygon may reach this far beyond the image, in sides of it: tools draw over
# the edge. Further out is an accident, and takes memory to draw.
BEYOND = 1.0


def decode(region: Any, shape: tuple[int, int]) -> np.ndarray:
  """bool[I, J], not empty, of a `segmentation`.

  Args:
    region: [[x0, y0, x1, y1, ...], ...], in pixels from the image's corner; or
      {"size": [rows, columns], "counts": [...] or text}.
    shape: rows and columns of the image.

  Raises:
    ValueError: it is none of these, or empty.
    ImportError: it is polygons, and pycocotools is not installed.
  """
  if isinstance(region, dict):
    mask_IJ = _runs(region, shape)
  elif isinstance(region, list) and region:
    mask_IJ = _polygons([_polygon(one, shape) for one in region], shape)
  else:
    raise ValueError("it has neither polygons nor runs")
  if not mask_IJ.any():
    raise ValueError("it is empty")
  return mask_IJ


def _runs(region: dict[str, Any], shape: tuple[int, int]) -> np.ndarray:
  counts = region.get("counts")
  if region.get("size") != list(shape):
    raise ValueError(
      f"its runs are of an image of {region.get('size')!r}, not {list(shape)}"
    )
  if not isinstance(counts, str | list):
    raise ValueError("its runs are neither a list nor a text")
  runs = rle.runs_of(counts) if isinstance(counts, str) else counts
  return rle.decode(runs, shape)


def _polygon(one: Any, shape: tuple[int, int]) -> list[float]:
  if not isinstance(one, list) or len(one) < 6 or len(one) % 2:
    raise ValueError("a polygon has less than three corners, or half a one")
  for index, value in enumerate(one):
    side = shape[1 - index % 2]
    if type(value) not in (int, float) or not math.isfinite(value):
      raise ValueError(f"a corner lies at {value!r}")
    if not -BEYOND * side <= value <= (1 + BEYOND) * side:
      raise ValueError(f"a corner lies at {value}, far outside the image")
  return [float(value) for value in one]


def _polygons(
  polygons: Sequence[list[float]], shape: tuple[int, int]
) -> np.ndarray:
  # By COCO's own library: where an edge falls on a pixel is its to say.
  drawn = extras.load("pycocotools.mask", "Polygons of COCO", "dicom")
  runs = drawn.merge(drawn.frPyObjects(list(polygons), *shape))
  return rle.decode(rle.runs_of(runs["counts"].decode("ascii")), shape)
