"""The released vectors: a small checkpoint under the original names, a case."""

import functools
import json
import pathlib
from typing import Any

import cv2
import numpy as np

from rcmed_jax.convert import torch_io
from rcmed_jax.model import config as configs
from rcmed_jax.model.rcmed import RCMed


def model_config(shared: pathlib.Path) -> configs.ModelConfig:
  """The sizes of the vectors' checkpoint."""
  sizes = json.loads((shared / "vectors/a/config.json").read_text())
  vision = sizes["vision"]
  return configs.ModelConfig(
    image=configs.ImageEncoderConfig(
      image_size=vision["image_size"],
      patch_size=vision["patch_size"],
      width=vision["embed_dim"],
      depth=vision["depth"],
      heads=vision["num_heads"],
      mlp_ratio=vision["mlp_ratio"],
      window=vision["window_size"],
      global_blocks=tuple(vision["global_attn_indexes"]),
    ),
    language=configs.LanguageConfig(
      vocabulary=sizes["vocab_size"],
      width=sizes["hidden_size"],
      depth=sizes["num_hidden_layers"],
      heads=sizes["num_attention_heads"],
      hidden=sizes["intermediate_size"],
      norm_eps=sizes["rms_norm_eps"],
      rope_theta=sizes["rope_theta"],
    ),
    decoder=configs.MaskDecoderConfig(
      width=sizes["out_dim"],
      heads=vision["decoder_num_heads"],
      hidden=vision["decoder_mlp_dim"],
    ),
    channel_order="bgr",
  )


@functools.cache
def model(shared: pathlib.Path) -> RCMed:
  """The checkpoint in our model; do not change it."""
  config = model_config(shared)
  path = shared / "vectors/a/model.safetensors"
  arrays = torch_io.load_into(config, torch_io.read(path))
  return torch_io.build(config, arrays)


@functools.cache
def case(shared: pathlib.Path) -> dict[str, np.ndarray]:
  """Inputs, intermediates, losses and gradients by the vectors' names."""
  with np.load(shared / "vectors/a/case.npz") as arrays:
    return dict(arrays)


def batch(shared: pathlib.Path) -> dict[str, Any]:
  """The case's inputs as a batch, from its images on."""
  arrays = case(shared)
  sizes = json.loads((shared / "vectors/a/config.json").read_text())
  size = sizes["vision"]["image_size"]
  rows, columns = arrays["resized_hw"]
  images_BIJC = arrays["images_bgr_u8"][..., ::-1]
  tokens_BT = arrays["input_ids"].astype(np.int32)
  count = len(tokens_BT)
  pixels_BIJC = np.zeros((count, size, size, 3), np.uint8)
  for row, image_IJC in enumerate(images_BIJC):
    pixels_BIJC[row, :rows, :columns] = cv2.resize(image_IJC, (columns, rows))
  is_seg_BT = tokens_BT == sizes["seg_token_idx"]
  seg_BG = np.stack([np.flatnonzero(is_seg_T) for is_seg_T in is_seg_BT])
  return {
    "pixels_BIJC": pixels_BIJC,
    "extent_B2": np.tile(np.int32([rows, columns]), (count, 1)),
    "tokens_BT": tokens_BT,
    "length_B": np.full(count, tokens_BT.shape[1], np.int32),
    "labels_BT": arrays["labels"].astype(np.int32),
    "seg_BG": seg_BG.astype(np.int32),
    "valid_BG": np.ones(seg_BG.shape, bool),
  }
