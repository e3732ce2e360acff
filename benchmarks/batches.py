"""Batches of noise and squares, of any size, for benchmarks."""

import numpy as np

from rcmed_jax.data.tokens import IGNORE_LABEL, IMAGE_TOKEN
from rcmed_jax.model.config import ModelConfig

IMAGE_AT = 2  # index of the placeholder


def make(
  config: ModelConfig,
  rows: int,
  text: int,
  *,
  targets: int = 2,
  mask_size: int = 256,
  seed: int = 0,
) -> dict[str, np.ndarray]:
  """What `data/pipeline.py` makes for training; the answer is the last half.

  Args:
    config: of the model.
    rows: in the batch.
    text: tokens a row, the placeholder counted, no padding.
    targets: masks a row.
    mask_size: side of a mask.
    seed: of all that is random.
  """
  rng = np.random.default_rng(seed)
  size, vocabulary = config.image.image_size, config.language.vocabulary
  tokens_BT = rng.integers(3, vocabulary, (rows, text), np.int32)
  tokens_BT[:, IMAGE_AT] = IMAGE_TOKEN
  labels_BT = tokens_BT.copy()
  labels_BT[:, : text // 2] = IGNORE_LABEL
  seg_1G = np.linspace(text // 2 + 1, text - 1, targets, dtype=np.int32)[None]
  masks_BGIJ = np.zeros((rows, targets, mask_size, mask_size), np.uint8)
  for row in range(rows):
    for target in range(targets):
      top, left = rng.integers(0, mask_size // 2, 2)
      side = mask_size // 3
      masks_BGIJ[row, target, top : top + side, left : left + side] = 1
  return {
    "pixels_BIJC": rng.integers(0, 256, (rows, size, size, 3), np.uint8),
    "extent_B2": np.full((rows, 2), size, np.int32),
    "tokens_BT": tokens_BT,
    "length_B": np.full(rows, text, np.int32),
    "labels_BT": labels_BT,
    "seg_BG": np.repeat(seg_1G, rows, axis=0),
    "valid_BG": np.ones((rows, targets), bool),
    "masks_BGIJ": masks_BGIJ,
  }
