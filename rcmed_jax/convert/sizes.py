"""The release's config.json and our ModelConfig, one from the other.

LLaMA's sizes stand under transformers' names. SAM's stand in a block "vision"
or, where the file lacks it, are read off the shapes of SAM's own tensors. What
the original code cannot know about a model of ours stands in a block "rcmed".
"""

from collections.abc import Mapping
from typing import Any, get_type_hints

import ml_dtypes

from rcmed_jax.convert import names_vision
from rcmed_jax.convert.tensors import Tensor
from rcmed_jax.model.config import (
  CorrelationConfig,
  ImageEncoderConfig,
  LanguageConfig,
  MaskDecoderConfig,
  ModelConfig,
)

EMBEDDING = "model.embed_tokens.weight"
# LLaMA's own; the rotary positions do not depend on it, and the release's text
# with its image has 1,536 positions at most.
MAX_POSITIONS = 2048
# The [SEG] token is the third from the vocabulary's end.
SEG_FROM_END = 3

# Ours -> the release's names in config.json, in its block "vision", where
# `out_dim` and SAM's decoder stand as well.
_LANGUAGE = {
  "vocabulary": "vocab_size",
  "width": "hidden_size",
  "depth": "num_hidden_layers",
  "heads": "num_attention_heads",
  "hidden": "intermediate_size",
  "norm_eps": "rms_norm_eps",
}
_IMAGE = {
  "image_size": "image_size",
  "patch_size": "patch_size",
  "width": "embed_dim",
  "depth": "depth",
  "heads": "num_heads",
  "mlp_ratio": "mlp_ratio",
  "window": "window_size",
  "global_blocks": "global_attn_indexes",
}
_DECODER = {"heads": "decoder_num_heads", "hidden": "decoder_mlp_dim"}
_WIDTH = {"width": "out_dim"}  # of the decoder, outside that block
# Of any size; a larger one is a slip that no memory would hold.
_LARGEST = 100_000_000
# The block of what the original code does not do.
_OWN = ("channel_order", "attention")


def from_release(
  told: Mapping[str, Any], tensors: Mapping[str, Tensor], kind: str
) -> ModelConfig:
  """The sizes of a checkpoint.

  Arithmetic is bfloat16 where the embedding is stored so. Channels are BGR, as
  the released weights saw them, unless the block "rcmed" says otherwise or
  the checkpoint is SAM's own, which saw RGB.

  Args:
    told: its config.json; {} for SAM alone.
    tensors: by the names of its kind, for what config.json leaves out.
    kind: "syre", "sam" or "llama".

  Raises:
    ValueError: config.json lacks a key, contradicts the tensors, or asks for
      what this model does not have; or SAM's sizes cannot be found.
  """
  ours = dict(_block(told, "rcmed"))
  unknown = sorted(ours.keys() - set(_OWN))
  if unknown:
    raise ValueError(
      f"config.json: rcmed.{unknown[0]} is unknown; expected {', '.join(_OWN)}."
    )
  attention = ours.pop("attention", LanguageConfig.attention)
  sections: dict[str, Any] = {
    "channel_order": "bgr" if kind == "syre" else "rgb",
    **ours,
  }
  if kind != "sam":
    sections["language"] = _language(told, tensors, attention)
    if EMBEDDING in tensors and tensors[EMBEDDING].dtype == ml_dtypes.bfloat16:
      sections["dtype"] = "bfloat16"
  if kind != "llama":
    prefix = names_vision.PREFIX if kind == "syre" else ""
    sections["image"], sections["decoder"] = (
      _vision(told) if "vision" in told else _inferred(tensors, prefix)
    )
    # Unused without steps, yet it has to divide the width.
    sections["correlation"] = CorrelationConfig(heads=sections["decoder"].heads)
  return ModelConfig(**sections)


def to_release(model: ModelConfig) -> dict[str, Any]:
  """config.json of a model, as the original code reads it.

  Raises:
    ValueError: the original code has no place for the model's own parts.
  """
  if model.correlation.steps:
    raise ValueError(
      f"model.correlation.steps={model.correlation.steps}: the original model "
      "has no correlation steps, so their weights cannot be exported; train "
      "with model.correlation.steps=0."
    )
  language, image, decoder = model.language, model.image, model.decoder
  told: dict[str, Any] = {
    "model_type": "llava",
    **{theirs: getattr(language, ours) for ours, theirs in _LANGUAGE.items()},
    "rope_theta": language.rope_theta,
    "max_position_embeddings": MAX_POSITIONS,
    "out_dim": decoder.width,
    "seg_token_idx": language.vocabulary - SEG_FROM_END,
    "vision": {
      **{theirs: getattr(image, ours) for ours, theirs in _IMAGE.items()},
      **{theirs: getattr(decoder, ours) for ours, theirs in _DECODER.items()},
    },
  }
  if unlike(model):
    told["rcmed"] = unlike(model)
  return told


def unlike(model: ModelConfig) -> dict[str, str]:
  """What a model does otherwise than the release, on the same weights."""
  found = {}
  if model.channel_order != "bgr":
    found["channel_order"] = model.channel_order
  if model.language.attention != LanguageConfig.attention:
    found["attention"] = model.language.attention
  return found


def _language(
  told: Mapping[str, Any], tensors: Mapping[str, Tensor], attention: str
) -> LanguageConfig:
  found = _sizes(told, _LANGUAGE, LanguageConfig)
  # transformers 5 keeps theta in here too; LLaMA's first config.json had none,
  # and it was 10,000.
  rope = _block(told, "rope_parameters") or _block(told, "rope_scaling")
  if rope.get("rope_type", rope.get("type", "default")) != "default":
    raise ValueError(
      f"config.json: scaled rotary positions, {rope}, are not known to this "
      "model; convert a checkpoint without them."
    )
  theta = rope.get("rope_theta", LanguageConfig.rope_theta)
  theta = _size("rope_theta", told.get("rope_theta", theta), float)
  stored = tensors[EMBEDDING].shape[0] if EMBEDDING in tensors else None
  vocabulary = found["vocabulary"]
  if stored not in (None, vocabulary):
    raise ValueError(
      f"config.json: vocab_size={vocabulary}, but {EMBEDDING} holds {stored} "
      "tokens; take the config.json that belongs to these weights, or write "
      f"vocab_size={stored} if the tokenizer has that many."
    )
  seg = told.get("seg_token_idx", vocabulary - SEG_FROM_END)
  if seg != vocabulary - SEG_FROM_END:
    raise ValueError(
      f"config.json: seg_token_idx={seg}, expected "
      f"{vocabulary - SEG_FROM_END}: [SEG] is the fifth of the seven tokens "
      "that end the vocabulary; use a checkpoint with the release's tokens."
    )
  return LanguageConfig(**found, rope_theta=theta, attention=attention)


def _vision(
  told: Mapping[str, Any],
) -> tuple[ImageEncoderConfig, MaskDecoderConfig]:
  vision = _block(told, "vision")
  image = _sizes(vision, _IMAGE, ImageEncoderConfig, "vision.")
  decoder = _sizes(vision, _DECODER, MaskDecoderConfig, "vision.")
  decoder |= _sizes(told, _WIDTH, MaskDecoderConfig)
  return ImageEncoderConfig(**image), MaskDecoderConfig(**decoder)


def _block(told: Mapping[str, Any], name: str) -> Mapping[str, Any]:
  """A block of config.json, {} where it lacks it or says null."""
  found = told.get(name) or {}
  if not isinstance(found, Mapping):
    raise ValueError(f"config.json: {name} is {found!r}, expected a block.")
  return found


def _sizes(
  told: Mapping[str, Any], table: Mapping[str, str], kind: type, block: str = ""
) -> dict[str, Any]:
  """What `table` names, by our names, each of the type that `kind` gives it."""
  lacking = [block + theirs for theirs in table.values() if theirs not in told]
  if lacking:
    raise ValueError(
      f"config.json lacks {', '.join(lacking)}; copy it again from where the "
      'weights came from. Without a block "vision", sizes of SAM are read off '
      "the tensors."
    )
  types = get_type_hints(kind)
  return {
    ours: _size(block + theirs, told[theirs], types[ours])
    for ours, theirs in table.items()
  }


def _size(name: str, value: Any, kind: Any) -> Any:
  """The value, if it is of that type; where a float is asked for, 4 is 4.0."""
  if kind not in (int, float):  # places of blocks
    if not isinstance(value, list | tuple) or {*map(type, value)} != {int}:
      raise ValueError(
        f"config.json: {name}={value!r}, expected a list of whole numbers."
      )
    return tuple(value)
  numbers = (int,) if kind is int else (int, float)
  if type(value) not in numbers or not 0 < value <= _LARGEST:
    raise ValueError(
      f"config.json: {name}={value!r}, expected a "
      f"{'whole ' if kind is int else ''}number above 0, at most {_LARGEST:,}."
    )
  return kind(value)


def _inferred(
  tensors: Mapping[str, Tensor], prefix: str
) -> tuple[ImageEncoderConfig, MaskDecoderConfig]:
  """SAM's sizes from its shapes; its decoder always has eight heads.

  A block's table of relative positions has 2 side - 1 rows, side being the
  window or, of a global block, the grid; its columns are one head.
  """
  encoder, decoder = f"{prefix}image_encoder", f"{prefix}mask_decoder"
  layers = f"{decoder}.transformer.layers"

  def shape(name: str, axes: int) -> tuple[int, ...]:
    if name not in tensors:
      raise ValueError(
        f"{name} is missing, so SAM's sizes cannot be read off its tensors; "
        "give a checkpoint that holds SAM, under its original names."
      )
    found = tensors[name].shape
    if len(found) != axes or 0 in found:
      raise ValueError(
        f"{name} has the shape {found}, expected {axes} axes; give a "
        "checkpoint of SAM."
      )
    return found

  _, grid, _, width = shape(f"{encoder}.pos_embed", 4)
  patch = shape(f"{encoder}.patch_embed.proj.weight", 4)[-1]
  depth = _count(tensors, f"{encoder}.blocks")
  tables = [
    shape(f"{encoder}.blocks.{block}.attn.rel_pos_h", 2)
    for block in range(depth)
  ]
  sides = [(rows + 1) // 2 for rows, _ in tables]
  windows = {side for side in sides if side != grid}
  if len(windows) != 1:
    raise ValueError(
      f"SAM's blocks attend over sides {sorted(set(sides))} on a grid of "
      f"{grid}; expected the grid and one window, so give the sizes in a block "
      '"vision" of config.json.'
    )
  image = ImageEncoderConfig(
    image_size=grid * patch,
    patch_size=patch,
    width=width,
    depth=depth,
    heads=width // tables[0][1],
    mlp_ratio=shape(f"{encoder}.blocks.0.mlp.lin1.weight", 2)[0] / width,
    window=windows.pop(),
    global_blocks=tuple(b for b, side in enumerate(sides) if side == grid),
  )
  return image, MaskDecoderConfig(
    width=shape(f"{encoder}.neck.0.weight", 4)[0],
    depth=_count(tensors, layers),
    hidden=shape(f"{layers}.0.mlp.lin1.weight", 2)[0],
  )


def _count(tensors: Mapping[str, Tensor], root: str) -> int:
  """How many layers stand under a name."""
  begin = root + "."
  under = (n.removeprefix(begin) for n in tensors if n.startswith(begin))
  return len({rest.split(".")[0] for rest in under})
