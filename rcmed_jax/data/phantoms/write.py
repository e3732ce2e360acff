"""Phantoms on disk, in the public index format that real data comes in."""

import concurrent.futures
import functools
import json
import multiprocessing
import pathlib

import cv2

from rcmed_jax.data import describe
from rcmed_jax.data.phantoms import scenes, sheet

# Numbers of held-out images start here, so that no file name meets another
# whatever the number of training images.
HELD_OUT_START = 500_000
MAX_IMAGES = HELD_OUT_START
# Third word of a sample's seed.
SPLITS = {"train": 0, "test": 1}


def write(
  out_dir: pathlib.Path | str,
  images: int,
  *,
  seed: int = 0,
  held_out: int = 0,
  size: int = 192,
  processes: int = 1,
  detail: bool = False,
) -> None:
  """Draws images and masks into `out_dir` with indexes and a contact sheet.

  Sample i of a split depends on (seed, split, i) only: more images keep the
  first ones, and the number of processes changes nothing.

  Writes images/<modality>--phantom--<number>.png, masks/…--<class>.png (0 and
  255), image2label_<split>.json {image: [{mask: class}]},
  descriptions_<split>.json {image: text} and contact_sheet.png; paths in the
  indexes are relative to `out_dir`, the splits are train and test.

  Args:
    images: number of training images, modalities in turn.
    held_out: number of test images.
    size: pixels a side.
    processes: how many to draw with.
    detail: long descriptions rather than one sentence a target.

  Raises:
    ValueError: for counts that are negative, zero in sum or too large.
  """
  counts = {"train": images, "test": held_out}
  for name, count in counts.items():
    if not 0 <= count <= MAX_IMAGES:
      raise ValueError(
        f"Expected 0 to {MAX_IMAGES} {name} images, received {count}."
      )
  if not images + held_out:
    raise ValueError("Expected at least one image to draw, received none.")
  out_dir = pathlib.Path(out_dir)
  for folder in ("images", "masks"):
    (out_dir / folder).mkdir(parents=True, exist_ok=True)
  for split, count in counts.items():
    one = functools.partial(_write_one, out_dir, seed, split, size, detail)
    index, descriptions = {}, {}
    for image, masks, text in _map(one, count, processes):
      index[image] = masks
      descriptions[image] = text
    _write_json(out_dir / f"image2label_{split}.json", index)
    _write_json(out_dir / f"descriptions_{split}.json", descriptions)
  shown = "train" if images else "test"
  phantoms = [
    sample(seed, shown, i, size)
    for i in range(min(counts[shown], sheet.SAMPLES * len(scenes.MODALITIES)))
  ]
  _write_png(out_dir / "contact_sheet.png", sheet.contact_sheet(phantoms))


def sample(seed: int, split: str, i: int, size: int = 192) -> scenes.Phantom:
  """Returns sample i of a split, "train" or "test"."""
  modality = scenes.MODALITIES[i % len(scenes.MODALITIES)]
  return scenes.draw(modality, (seed, SPLITS[split], i), size)


def _write_one(
  out_dir: pathlib.Path, seed: int, split: str, size: int, detail: bool, i: int
) -> tuple[str, list[dict[str, str]], str]:
  """Returns (image path, its entry in the index, its description)."""
  phantom = sample(seed, split, i, size)
  number = i + (HELD_OUT_START if split == "test" else 0)
  stem = f"{phantom.modality}--phantom--{number:06d}"
  image = f"images/{stem}.png"
  _write_png(out_dir / image, phantom.image_IJC)
  entry = []
  for name, mask_IJ in phantom.masks.items():
    path = f"masks/{stem}--{name}.png"
    _write_png(out_dir / path, mask_IJ.astype("uint8") * 255)
    entry.append({path: name})
  classes = [name.replace("_", " ") for name in phantom.masks]
  text = describe.describe(
    phantom.image_IJC, list(phantom.masks.values()), classes, detail=detail
  )
  return image, entry, text


def _map(function, count: int, processes: int):
  """Yields function(0), …, function(count - 1) in order."""
  if processes <= 1 or count < 2:
    yield from map(function, range(count))
    return
  # Spawned, not forked: the caller may already run JAX's threads.
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(
    processes, context, initializer=cv2.setNumThreads, initargs=(1,)
  ) as pool:
    yield from pool.map(function, range(count), chunksize=8)


def _write_json(path: pathlib.Path, value: dict) -> None:
  path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def _write_png(path: pathlib.Path, image) -> None:
  if image.ndim == 3:
    image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
  if not cv2.imwrite(str(path), image):
    raise OSError(f"{path} could not be written; is the disk full?")
