"""A model of a few thousand parameters and data to train it on."""

import itertools
from typing import Any

import jax
import numpy as np

from rcmed_jax.data.tokens import IGNORE_LABEL, IMAGE_TOKEN
from rcmed_jax.model import config as configs

IMAGE_SIZE = 64
MASK_SIZE = 32
VOCABULARY = 48
TOKENS = 12
TARGETS = 2
IMAGE_AT = 2  # index of the placeholder
ANSWER_AT = 5  # index of the first labelled token
SEG = 40  # its id


def model_config(
  *,
  correlation_steps: int = 0,
  deep_supervision: bool = False,
  lora_rank: int = 0,
  dropout: float = 0.0,
  dtype: str = "float32",
) -> configs.ModelConfig:
  """Every organ at its smallest."""
  return configs.ModelConfig(
    image=configs.ImageEncoderConfig(
      image_size=IMAGE_SIZE,
      patch_size=16,
      width=16,
      depth=2,
      heads=2,
      mlp_ratio=2.0,
      window=2,
      global_blocks=(1,),
    ),
    language=configs.LanguageConfig(
      vocabulary=VOCABULARY, width=16, depth=2, heads=2, hidden=32
    ),
    correlation=configs.CorrelationConfig(
      steps=correlation_steps, heads=2, deep_supervision=deep_supervision
    ),
    decoder=configs.MaskDecoderConfig(width=16, heads=2, hidden=32),
    lora=configs.LoraConfig(rank=lora_rank, dropout=dropout),
    dropout=dropout,
    dtype=dtype,
    remat="none",
  )


def batch(size: int = 4, seed: int = 0) -> dict[str, np.ndarray]:
  """A batch with bright squares as targets; some rows padded, some targets
  missing. Every row has as many labelled tokens as every other."""
  rng = np.random.default_rng(seed)
  pixels = rng.integers(0, 90, (size, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
  extent = np.full((size, 2), IMAGE_SIZE, np.int32)
  extent[1::2, 0] = 48
  tokens = rng.integers(1, SEG, (size, TOKENS), np.int32)
  tokens[:, IMAGE_AT] = IMAGE_TOKEN
  seg = np.tile(np.int32([7, 9]), (size, 1))
  np.put_along_axis(tokens, seg, SEG, axis=1)
  labels = tokens.copy()
  labels[:, :ANSWER_AT] = IGNORE_LABEL
  masks = np.zeros((size, TARGETS, MASK_SIZE, MASK_SIZE), np.uint8)
  scale = IMAGE_SIZE // MASK_SIZE
  for row, target in itertools.product(range(size), range(TARGETS)):
    top, left = rng.integers(0, 14, 2)
    square = slice(top, top + 8), slice(left, left + 8)
    masks[row, target][square] = 1
    big = tuple(slice(s.start * scale, s.stop * scale) for s in square)
    pixels[row][big] += np.uint8(80 * (target + 1))
  valid = np.ones((size, TARGETS), bool)
  valid[0, 1] = False
  for row, (rows, columns) in enumerate(extent):
    pixels[row, rows:] = 0
    pixels[row, :, columns:] = 0
  return {
    "pixels_BIJC": pixels,
    "extent_B2": extent,
    "tokens_BT": tokens,
    "length_B": np.full(size, TOKENS, np.int32),
    "labels_BT": labels,
    "seg_BG": seg,
    "valid_BG": valid,
    "masks_BGIJ": masks,
    "record_B": rng.integers(0, 1000, size),
  }


class Data:
  """An endless iterator of toy batches whose state is one number."""

  def __init__(self, size: int = 4, distinct: int = 3):
    self._size = size
    self._distinct = distinct
    self._next = 0
    self.seen: list[int] = []  # seeds of the batches that were taken

  def __next__(self) -> dict[str, np.ndarray]:
    seed = self._next % self._distinct
    self.seen.append(self._next)
    self._next += 1
    return batch(self._size, seed)

  def get_state(self) -> dict[str, Any]:
    return {"next": self._next}

  def set_state(self, state: dict[str, Any]) -> None:
    self._next = state["next"]


def assert_same_weights(found, wanted):
  """Each weight of two models within 1e-5 of its norm."""
  for (path, one), other in zip(
    jax.tree.leaves_with_path(found), jax.tree.leaves(wanted), strict=True
  ):
    np.testing.assert_allclose(
      np.linalg.norm(one - other),
      0,
      atol=1e-5 * max(np.linalg.norm(other), 1e-2),
      err_msg=jax.tree_util.keystr(path),
    )
