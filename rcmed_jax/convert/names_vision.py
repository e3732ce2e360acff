"""SAM's names in the release, and where their arrays live here."""

import dataclasses

from rcmed_jax.convert.entry import SAME, TRANSPOSE, Entry, Index, Transform
from rcmed_jax.model.config import ImageEncoderConfig, ModelConfig
from rcmed_jax.model.mask_decoder import MASK_TOKENS
from rcmed_jax.model.prompt_encoder import POINT_KINDS

# Convolutions: [out, in, rows, columns] there, [rows, columns, in, out] here.
CONVOLUTION = Transform(
  lambda t: t.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1)
)
# A convolution of side 1 is a dense layer here.
POINTWISE = Transform(
  lambda t: t[:, :, 0, 0].T, lambda a: a.T[:, :, None, None]
)
# [1, ...] there, without the first axis here.
SQUEEZE = Transform(lambda t: t[0], lambda a: a[None])
# q, k, v follow each other there, and have an axis of their own here.
QKV_KERNEL = Transform(
  lambda t: t.reshape(3, -1, t.shape[-1]).transpose(2, 0, 1),
  lambda a: a.transpose(1, 2, 0).reshape(-1, a.shape[0]),
)
QKV_BIAS = Transform(lambda t: t.reshape(3, -1), lambda a: a.reshape(-1))
# A transposed convolution of side and stride 2: [in, out, 2, 2] there, a dense
# layer [in, 4 * out] to the four children of a pixel here.
CHILDREN = Transform(
  lambda t: t.transpose(0, 2, 3, 1).reshape(t.shape[0], -1),
  lambda a: a.reshape(a.shape[0], 2, 2, -1).transpose(0, 3, 1, 2),
)

PREFIX = "model.grounding_encoder."


def entries(config: ModelConfig) -> list[Entry]:
  """Every tensor of the release's SAM, for a model of these sizes."""
  found = (
    _image_encoder(config.image)
    + _prompt_encoder()
    + _two_way_transformer(config.decoder.depth)
    + _mask_heads()
  )
  return [
    dataclasses.replace(entry, release=PREFIX + entry.release)
    for entry in found
  ]


def _image_encoder(image: ImageEncoderConfig) -> list[Entry]:
  root = "image_encoder"
  patches = _patch_kernel(image.patch_size)
  found = [
    Entry(f"{root}.pos_embed", f"{root}.positions", transform=SQUEEZE),
    *_dense(f"{root}.patch_embed.proj", f"{root}.patches", kernel=patches),
    Entry(
      f"{root}.neck.0.weight",
      f"{root}.neck.project.kernel",
      transform=POINTWISE,
    ),
    *_norm(f"{root}.neck.1", f"{root}.neck.project_norm"),
    Entry(
      f"{root}.neck.2.weight",
      f"{root}.neck.smooth.kernel",
      transform=CONVOLUTION,
    ),
    *_norm(f"{root}.neck.3", f"{root}.neck.smooth_norm"),
  ]
  stage_length = image.depth // len(image.global_blocks)
  for block in range(image.depth):
    stage, place = divmod(block, stage_length)
    if block in image.global_blocks:
      path, index = f"{root}.stages.last", (stage,)
    else:
      path, index = f"{root}.stages.windowed", (stage, place)
    found += _encoder_block(f"{root}.blocks.{block}", path, index)
  return found


def _encoder_block(there: str, here: str, index: Index) -> list[Entry]:
  return [
    *_norm(f"{there}.norm1", f"{here}.attention_norm", index),
    *_dense(
      f"{there}.attn.qkv",
      f"{here}.attention.qkv",
      index,
      kernel=QKV_KERNEL,
      bias=QKV_BIAS,
    ),
    *_dense(f"{there}.attn.proj", f"{here}.attention.out", index),
    Entry(f"{there}.attn.rel_pos_h", f"{here}.attention.rows", index),
    Entry(f"{there}.attn.rel_pos_w", f"{here}.attention.columns", index),
    *_norm(f"{there}.norm2", f"{here}.mlp_norm", index),
    *_dense(f"{there}.mlp.lin1", f"{here}.mlp_in", index),
    *_dense(f"{there}.mlp.lin2", f"{here}.mlp_out", index),
  ]


def _prompt_encoder() -> list[Entry]:
  there, here = "prompt_encoder", "mask_decoder.prompts"
  downscaling, mask = f"{there}.mask_downscaling", f"{here}.mask"
  points = [
    Entry(
      f"{there}.point_embeddings.{kind}.weight",
      f"{here}.points",
      (kind,),
      SQUEEZE,
    )
    for kind in range(POINT_KINDS)
  ]
  return [
    Entry(
      f"{there}.pe_layer.positional_encoding_gaussian_matrix",
      f"{here}.frequencies",
    ),
    Entry(
      f"{there}.no_mask_embed.weight", f"{here}.no_mask", transform=SQUEEZE
    ),
    Entry(
      f"{there}.not_a_point_embed.weight",
      f"{here}.not_a_point",
      transform=SQUEEZE,
    ),
    *points,
    *_dense(f"{downscaling}.0", f"{mask}.halve", kernel=CONVOLUTION),
    *_norm(f"{downscaling}.1", f"{mask}.halve_norm"),
    *_dense(f"{downscaling}.3", f"{mask}.quarter", kernel=CONVOLUTION),
    *_norm(f"{downscaling}.4", f"{mask}.quarter_norm"),
    *_dense(f"{downscaling}.6", f"{mask}.project", kernel=CONVOLUTION),
  ]


def _two_way_transformer(depth: int) -> list[Entry]:
  root = "mask_decoder.transformer"
  found = [
    *_attention(f"{root}.final_attn_token_to_image", f"{root}.last"),
    *_norm(f"{root}.norm_final_attn", f"{root}.last_norm"),
  ]
  parts = (
    (_attention, "self_attn", "self_attention"),
    (_norm, "norm1", "self_norm"),
    (_attention, "cross_attn_token_to_image", "token_to_pixel"),
    (_norm, "norm2", "token_norm"),
    (_dense, "mlp.lin1", "mlp_in"),
    (_dense, "mlp.lin2", "mlp_out"),
    (_norm, "norm3", "mlp_norm"),
    (_attention, "cross_attn_image_to_token", "pixel_to_token"),
    (_norm, "norm4", "pixel_norm"),
  )
  for layer in range(depth):
    for part, their_name, our_name in parts:
      found += part(
        f"{root}.layers.{layer}.{their_name}",
        f"{root}.layers.{our_name}",
        (layer,),
      )
  return found


def _mask_heads() -> list[Entry]:
  root = "mask_decoder"
  upscaling, upscale = f"{root}.output_upscaling", f"{root}.upscale"
  found = [
    Entry(f"{root}.iou_token.weight", f"{root}.quality_token"),
    Entry(f"{root}.mask_tokens.weight", f"{root}.mask_tokens"),
    *_doubling(f"{upscaling}.0", f"{upscale}.first"),
    *_norm(f"{upscaling}.1", f"{upscale}.first_norm"),
    *_doubling(f"{upscaling}.3", f"{upscale}.second"),
    *_mlp(f"{root}.iou_prediction_head", f"{root}.quality"),
  ]
  for mask in range(MASK_TOKENS):
    found += _mlp(
      f"{root}.output_hypernetworks_mlps.{mask}",
      f"{root}.hypernetworks",
      (mask,),
    )
  return found


def _dense(
  there: str,
  here: str,
  index: Index = (),
  *,
  kernel: Transform = TRANSPOSE,
  bias: Transform = SAME,
) -> list[Entry]:
  return [
    Entry(f"{there}.weight", f"{here}.kernel", index, kernel),
    Entry(f"{there}.bias", f"{here}.bias", index, bias),
  ]


def _norm(there: str, here: str, index: Index = ()) -> list[Entry]:
  return [
    Entry(f"{there}.weight", f"{here}.scale", index),
    Entry(f"{there}.bias", f"{here}.bias", index),
  ]


def _attention(there: str, here: str, index: Index = ()) -> list[Entry]:
  found = []
  for name in ("q", "k", "v", "out"):
    found += _dense(f"{there}.{name}_proj", f"{here}.{name}", index)
  return found


def _mlp(there: str, here: str, index: Index = ()) -> list[Entry]:
  found = []
  for layer, name in enumerate(("first", "second", "third")):
    found += _dense(f"{there}.layers.{layer}", f"{here}.{name}", index)
  return found


def _doubling(there: str, here: str) -> list[Entry]:
  return [
    Entry(f"{there}.weight", f"{here}.children.kernel", transform=CHILDREN),
    Entry(f"{there}.bias", f"{here}.bias"),
  ]


def _patch_kernel(size: int) -> Transform:
  """[D, 3, size, size] there, dense from size * size * 3 values here."""
  return Transform(
    lambda t: t.transpose(2, 3, 1, 0).reshape(-1, t.shape[0]),
    lambda a: a.reshape(size, size, 3, -1).transpose(3, 2, 0, 1),
  )
