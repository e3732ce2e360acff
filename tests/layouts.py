"""Small data sets in several layouts, for the tests of sources."""

from collections.abc import Mapping
import json
import pathlib

import cv2
import numpy as np
import PIL.Image

SHAPE = (40, 30)

# A rectangle: its first and last row, first and last column.
Rectangle = tuple[int, int, int, int]


def picture(seed: int, shape: tuple[int, int] = SHAPE) -> np.ndarray:
  """uint8[I, J, 3] of a few soft blobs, other ones for each seed."""
  rng = np.random.default_rng(seed)
  coarse = rng.integers(0, 256, (7, 6, 3), np.uint8)
  return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def mask(where: Rectangle, shape: tuple[int, int] = SHAPE) -> np.ndarray:
  """bool[I, J], the rectangle set."""
  mask_IJ = np.zeros(shape, bool)
  mask_IJ[where[0] : where[1], where[2] : where[3]] = True
  return mask_IJ


def save(path: pathlib.Path, values: np.ndarray) -> pathlib.Path:
  """Writes a picture, or a mask as 0 and 255; makes folders."""
  path.parent.mkdir(parents=True, exist_ok=True)
  values = values * np.uint8(255) if values.dtype == bool else values
  PIL.Image.fromarray(values).save(path)
  return path


def index(
  folder: pathlib.Path,
  layout: Mapping[str, Mapping[str, Rectangle]],
  name: str = "image2label_train.json",
) -> pathlib.Path:
  """An index of pictures, image file -> class -> where; returns its path."""
  entries = {}
  for seed, (image, targets) in enumerate(layout.items()):
    save(folder / image, picture(seed))
    entries[image] = []
    for number, (target, where) in enumerate(targets.items()):
      file = f"masks/{pathlib.Path(image).stem}--{number}.png"
      save(folder / file, mask(where))
      entries[image].append({file: target})
  path = folder / name
  path.write_text(json.dumps(entries))
  return path
