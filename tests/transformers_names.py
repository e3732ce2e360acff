"""The original SAM's names as `transformers` writes them.

LLaMA's need no table: the release took transformers' names.
"""

import re

# Pattern -> replacement, applied in this order.
_CHANGES = (
  (r"^image_encoder\.", "vision_encoder."),
  (r"patch_embed\.proj\b", "patch_embed.projection"),
  (r"\bblocks\.", "layers."),
  (r"neck\.0\.", "neck.conv1."),
  (r"neck\.1\.", "neck.layer_norm1."),
  (r"neck\.2\.", "neck.conv2."),
  (r"neck\.3\.", "neck.layer_norm2."),
  (r"\.norm(\d|_final_attn)\.", r".layer_norm\1."),
  (
    r"prompt_encoder\.pe_layer\.positional_encoding_gaussian_matrix",
    "shared_image_embedding.positional_embedding",
  ),
  (r"point_embeddings\.", "point_embed."),
  (r"mask_downscaling\.0\.", "mask_embed.conv1."),
  (r"mask_downscaling\.1\.", "mask_embed.layer_norm1."),
  (r"mask_downscaling\.3\.", "mask_embed.conv2."),
  (r"mask_downscaling\.4\.", "mask_embed.layer_norm2."),
  (r"mask_downscaling\.6\.", "mask_embed.conv3."),
  (r"output_upscaling\.0\.", "upscale_conv1."),
  (r"output_upscaling\.1\.", "upscale_layer_norm."),
  (r"output_upscaling\.3\.", "upscale_conv2."),
  (r"(iou_prediction_head|mlps\.\d)\.layers\.0\.", r"\1.proj_in."),
  (r"(iou_prediction_head|mlps\.\d)\.layers\.1\.", r"\1.layers.0."),
  (r"(iou_prediction_head|mlps\.\d)\.layers\.2\.", r"\1.proj_out."),
)
# They hold the positions' frequencies twice.
FREQUENCIES = "shared_image_embedding.positional_embedding"
AGAIN = "prompt_encoder.shared_embedding.positional_embedding"


def sam(name: str) -> str:
  """transformers' name of a tensor of the original SAM."""
  for pattern, replacement in _CHANGES:
    name = re.sub(pattern, replacement, name)
  return name
