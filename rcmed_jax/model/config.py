"""What a model is: frozen settings, complete in themselves.

Full size and toy size differ in these numbers only; the classes that read them
are the same. Source of every released number: the paper's public release.
"""

import dataclasses

# SAM's pixel statistics, in the order in which a checkpoint's channels come.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

CHANNEL_ORDERS = ("rgb", "bgr")
ATTENTIONS = ("causal", "prefix")
DTYPES = ("float32", "bfloat16")
IMAGE_ATTENTIONS = ("auto", "reference", "blocks", "pallas", "cudnn")
REMAT = ("none", "full", "attention", "dots")


@dataclasses.dataclass(frozen=True)
class ImageEncoderConfig:
  """SAM's ViT. Global blocks must be evenly spaced and end each stage."""

  image_size: int = 1024  # pixels a side, after resize and padding
  patch_size: int = 16
  width: int = 1280
  depth: int = 32
  heads: int = 16
  mlp_ratio: float = 4.0
  window: int = 14
  global_blocks: tuple[int, ...] = (7, 15, 23, 31)
  # How attention runs: "auto" takes the fastest that the device has.
  attention: str = "auto"

  @property
  def grid(self) -> int:
    return self.image_size // self.patch_size


@dataclasses.dataclass(frozen=True)
class LanguageConfig:
  """LLaMA, decoder only."""

  vocabulary: int = 32007
  width: int = 4096
  depth: int = 32
  heads: int = 32
  hidden: int = 11008
  norm_eps: float = 1e-5
  rope_theta: float = 10000.0
  attention: str = "causal"  # or "prefix": image and question see each other
  # Heads of the first layer that begin by looking 1, 2, ... tokens back, where
  # nothing is loaded: `local_heads.py`.
  local_heads: int = 0


@dataclasses.dataclass(frozen=True)
class CorrelationConfig:
  """The closed loop. steps = 0 is the release, without new parameters."""

  steps: int = 0
  heads: int = 8
  deep_supervision: bool = False
  vision_to_language: bool = True
  language_to_vision: bool = True
  # Words from which a kernel runs where there is one; None: where it pays.
  kernel_from: int | None = None


@dataclasses.dataclass(frozen=True)
class MaskDecoderConfig:
  """SAM's two-way transformer and upscaling."""

  width: int = 256  # C, also the width of the encoder's neck
  depth: int = 2
  heads: int = 8
  hidden: int = 2048


@dataclasses.dataclass(frozen=True)
class LoraConfig:
  """Low-rank updates of the language model's q, k, v, o. rank = 0: none."""

  rank: int = 0
  alpha: float = 16.0
  dropout: float = 0.05


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """The whole model. The defaults are the released 7B."""

  image: ImageEncoderConfig = ImageEncoderConfig()
  language: LanguageConfig = LanguageConfig()
  correlation: CorrelationConfig = CorrelationConfig()
  decoder: MaskDecoderConfig = MaskDecoderConfig()
  lora: LoraConfig = LoraConfig()
  channel_order: str = "rgb"  # a checkpoint's property; the release is "bgr"
  dropout: float = 0.1  # of the two language-to-pixel projections
  dtype: str = "float32"  # of the arithmetic; norms and softmax stay float32
  # What the backward pass makes again: "none", or by layer "full", "attention",
  # "dots" (`layers.REMAT`). Records of earlier versions say True or False.
  remat: str | bool = "full"

  @property
  def visual_tokens(self) -> int:
    return (self.image.grid // 2) ** 2

  @property
  def mask_size(self) -> int:
    """Side of the low-resolution mask logits, 4 g."""
    return 4 * self.image.grid

  def __post_init__(self) -> None:
    if isinstance(self.remat, bool):
      object.__setattr__(self, "remat", "full" if self.remat else "none")
    image = self.image
    if image.image_size % image.patch_size:
      raise ValueError(
        f"model.image.image_size={image.image_size} is not a multiple of "
        f"model.image.patch_size={image.patch_size}; choose one that is."
      )
    if image.grid % 2:
      raise ValueError(
        f"model.image: the grid image_size/patch_size={image.grid} must be "
        "even, because visual tokens are its 2x2 means."
      )
    for name, value, allowed in (
      ("channel_order", self.channel_order, CHANNEL_ORDERS),
      ("language.attention", self.language.attention, ATTENTIONS),
      ("dtype", self.dtype, DTYPES),
      ("image.attention", image.attention, IMAGE_ATTENTIONS),
      ("remat", self.remat, REMAT),
    ):
      if value not in allowed:
        raise ValueError(
          f"model.{name}={value!r} is unknown; choose one of {allowed}."
        )
    if not 0 <= self.language.local_heads <= self.language.heads:
      raise ValueError(
        f"model.language.local_heads={self.language.local_heads} must lie in "
        f"0..{self.language.heads}, the number of heads."
      )
    for name, width, heads in (
      ("image", image.width, image.heads),
      ("language", self.language.width, self.language.heads),
      ("correlation", self.decoder.width, self.correlation.heads),
      ("decoder", self.decoder.width, self.decoder.heads),
    ):
      if width % heads:
        raise ValueError(
          f"model.{name}: width {width} is not a multiple of heads {heads}."
        )
