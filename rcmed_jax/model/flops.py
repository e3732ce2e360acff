"""Arithmetic of the model, counted by hand: 2 operations a multiply-add.

Compilers cannot be asked: they count the body of a scan once and a kernel not
at all. Products with weights and between states are counted, window padding as
SAM computes it and scores of causal attention in full; norms and activations,
below 1%, are not. An image of the 7B with 513 tokens of text takes 5.9 TFLOP in
its encoder and 21.5 in its language model.
"""

from collections.abc import Mapping
import math

from rcmed_jax.model.config import ModelConfig

# Which parts have their weights trained, by optimizer.trainable. Frozen ones
# need gradients of their states alone.
_TRAINED = {
  "all": {"encoder", "language", "head", "rest"},
  "all_but_encoder": {"language", "head", "rest"},
  "release": {"encoder", "head", "rest"},
  "release_but_encoder": {"head", "rest"},
  "lora": set[str](),
}
# Low-rank updates make gradients pass the language model, not the encoder,
# where nothing before them trains.
_CROSSED = {
  "all": {"encoder", "language", "head", "rest"},
  "all_but_encoder": {"language", "head", "rest"},
  "release": {"encoder", "language", "head", "rest"},
  "release_but_encoder": {"language", "head", "rest"},
  "lora": {"language", "head", "rest"},
}


def forward(
  config: ModelConfig, text: int, targets: int = 1
) -> dict[str, float]:
  """Operations of one image and its text, by part.

  Args:
    config: of the model.
    text: tokens, padding and the image's placeholder counted.
    targets: masks.

  Returns:
    "encoder", "language" (its layers), "head" (of all text tokens) and "rest":
    projections, correlation loop and mask decoder.
  """
  language = config.language
  length = sequence(config, text)
  return {
    "encoder": _encoder(config),
    "language": language.depth * _layer(config, length, length),
    "head": 2.0 * text * language.width * language.vocabulary,
    "rest": _rest(config, text, targets),
  }


def train(
  config: ModelConfig, text: int, targets: int, trainable: str
) -> tuple[float, float]:
  """Operations of one image in training: (the model's own, those done).

  The first counts forward and backward once; the second adds what `remat` makes
  again, which no measure of utilisation should praise.
  """
  parts = forward(config, text, targets)
  trained, crossed = _TRAINED[trainable], _CROSSED[trainable]
  own = sum(
    flops * (1 + (name in trained) + (name in crossed))
    for name, flops in parts.items()
  )
  again = parts["head"]  # the loss makes its logits twice
  if config.remat != "none":
    scores = {"encoder": _encoder_scores(config), "language": 0.0}
    length = sequence(config, text)
    scores["language"] = config.language.depth * _scores(
      config.language.width, length, length
    )
    for name, own_scores in scores.items():
      if name not in crossed:
        continue
      if config.remat == "full":
        again += parts[name]
      elif config.remat == "attention":
        again += parts[name] - own_scores
      # "dots" makes no product again but in fused attention, counted nowhere.
  return own, own + again


def prefill(config: ModelConfig, text: int) -> float:
  """Operations before the first token of one answer."""
  parts = forward(config, text)
  return parts["encoder"] + parts["language"]


def decode(config: ModelConfig, slots: int) -> float:
  """Operations of one more token that looks back on `slots` others."""
  language = config.language
  head = 2.0 * language.width * language.vocabulary
  return language.depth * _layer(config, 1, slots) + head


def sequence(config: ModelConfig, text: int) -> int:
  """Positions of the language model: the image takes its placeholder's."""
  return config.visual_tokens + text - 1


def by_step(
  config: ModelConfig,
  step: str,
  *,
  text: int,
  targets: int,
  new: int,
  trainable: str,
) -> tuple[float, float]:
  """Operations of one image in one step: (the model's own, those done).

  Args:
    config: of the model.
    step: "train", "evaluate", "prefill" or "decode".
    text: tokens.
    targets: masks.
    new: tokens of an answer.
    trainable: of the optimizer.
  """
  if step == "train":
    return train(config, text, targets, trainable)
  slots = sequence(config, text) + new
  once: Mapping[str, float] = {
    "prefill": prefill(config, text),
    "decode": decode(config, slots),
  }
  if step in once:
    return once[step], once[step]
  rest = _rest(config, text + new, targets)
  whole = once["prefill"] + new * once["decode"] + rest
  return whole, whole


def _encoder(config: ModelConfig) -> float:
  image = config.image
  width, patches = image.width, image.grid**2
  windows = math.ceil(image.grid / image.window) ** 2
  in_windows = windows * image.window**2
  everywhere = len(image.global_blocks)
  attended = (
    image.depth - everywhere
  ) * in_windows + everywhere * patches  # tokens of all blocks
  products = 2 * width * (3 * width) * attended  # q, k, v
  products += 2 * width**2 * attended  # out
  hidden = round(width * image.mlp_ratio)
  products += image.depth * patches * 2 * 2 * width * hidden
  patch = 2 * patches * 3 * image.patch_size**2 * width
  channels = config.decoder.width
  neck = 2 * patches * channels * (width + 9 * channels)
  return float(products + patch + neck) + _encoder_scores(config)


def _encoder_scores(config: ModelConfig) -> float:
  """Of the attention itself, biases of relative positions included."""
  image = config.image
  width, side = image.width, image.window
  windows = math.ceil(image.grid / side) ** 2
  everywhere = len(image.global_blocks)
  inside = windows * _scores(width, side**2, side**2)
  inside += 2.0 * windows * side**2 * 2 * side * width
  outside = _scores(width, image.grid**2, image.grid**2)
  outside += 2.0 * image.grid**2 * 2 * image.grid * width
  return (image.depth - everywhere) * inside + everywhere * outside


def _layer(config: ModelConfig, queries: int, keys: int) -> float:
  """One layer of the language model."""
  language = config.language
  width = language.width
  weights = 4 * width**2 + 3 * width * language.hidden
  weights += 8 * width * config.lora.rank
  return 2.0 * queries * weights + _scores(width, queries, keys)


def _scores(width: int, queries: int, keys: int) -> float:
  return 4.0 * width * queries * keys


def _rest(config: ModelConfig, text: int, targets: int) -> float:
  wide, channels = config.language.width, config.decoder.width
  visual, cells = config.visual_tokens, config.image.grid**2
  projections = 2.0 * visual * (config.image.width * wide + wide * wide)
  projections += 2.0 * (visual + targets) * (wide * wide + wide * channels)
  # The loop: words and pixels, each with two projections in and one out.
  step = 2.0 * (cells + text) * 3 * channels**2
  step += 1.5 * _scores(channels, text, cells)  # affinity, both ways
  loop = config.correlation.steps * step
  if config.correlation.steps:
    loop += 2.0 * text * wide * channels
  decoder = config.decoder
  # Two-way layers: image to tokens and back at half width, a few tokens only.
  tokens = 7
  layer = 2 * cells * 4 * (channels * channels // 2)
  layer += 2 * _scores(channels // 2, tokens, cells)
  upscaling = 2 * cells * 4 * channels * (channels // 4)
  upscaling += 2 * 4 * cells * 4 * (channels // 4) * (channels // 8)
  masks = 2 * 16 * cells * (channels // 8)
  decoding = decoder.depth * layer + layer / 2 + upscaling + masks
  runs = config.correlation.steps + 1
  return projections + loop + float(targets * runs * decoding)
