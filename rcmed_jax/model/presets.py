"""Known sizes by name: the release's, and smaller ones for smaller machines.

  config = dataclasses.replace(SYRE_7B, image=VIT_B, language=LLAMA_1B)

Sources: "Segment Anything", arXiv 2304.02643, for the encoders; "LLaMA", arXiv
2302.13971, and "Sheared LLaMA", arXiv 2310.06694, for the language models, each
with the release's seven added tokens.
"""

from rcmed_jax.model.config import (
  ImageEncoderConfig,
  LanguageConfig,
  LoraConfig,
  ModelConfig,
)

VIT_H = ImageEncoderConfig()
VIT_L = ImageEncoderConfig(
  width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23)
)
VIT_B = ImageEncoderConfig(
  width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11)
)

LLAMA_7B = LanguageConfig()
LLAMA_3B = LanguageConfig(width=2560, depth=32, heads=20, hidden=6912)
LLAMA_1B = LanguageConfig(width=2048, depth=24, heads=16, hidden=5504)

# As the release trained it: 7,454,029,360 parameters, 977,757,744 trained.
SYRE_7B = ModelConfig(
  image=VIT_H,
  language=LLAMA_7B,
  lora=LoraConfig(rank=16),
  channel_order="bgr",
  dtype="bfloat16",
)
