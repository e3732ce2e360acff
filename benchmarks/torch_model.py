"""The whole model in PyTorch: transformers' SAM and LLaMA, and what joins them.

What `gpu.py` and `step_vs_torch.py` compare with. The modules of transformers
are used as they come, with PyTorch's fused attention; projections, low-rank
updates, correlation loop and losses are written here after the same sentences
as ours in `rcmed_jax/model` and `rcmed_jax/train/losses.py`.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import torch
from torch import nn
from torch.nn import functional
import transformers

from rcmed_jax.model import config as configs

IMAGE_TOKEN = -200  # of data/tokens.py
IGNORE_LABEL = -100

Batch = Mapping[str, Any]  # tensors by the names of data/pipeline.py


@dataclasses.dataclass(frozen=True)
class Prediction:
  """What `rcmed_jax.model.rcmed.Prediction` holds."""

  states: torch.Tensor  # [B, T, D]; [:, t] predicts token t
  masks: list[torch.Tensor]  # [B, G, 4g, 4g] before the loop and a step each
  quality: torch.Tensor  # [B, G]


class RCMed(nn.Module):
  """Sizes as in our config; weights are fresh."""

  def __init__(self, config: configs.ModelConfig):
    super().__init__()
    self.config = config
    wide, channels = config.language.width, config.decoder.width
    self.sam = sam(config)
    self.llama = llama(config.language)
    self.projector = nn.Sequential(
      nn.Linear(config.image.width, wide), nn.GELU(), nn.Linear(wide, wide)
    )
    self.feedback, self.query = (
      nn.Sequential(
        nn.Linear(wide, wide),
        nn.ReLU(),
        nn.Linear(wide, channels),
        nn.Dropout(config.dropout),
      )
      for _ in range(2)
    )
    self.words, self.steps = None, nn.ModuleList()
    if config.correlation.steps:
      self.words = nn.Linear(wide, channels)
      self.steps.extend(Step(config) for _ in range(config.correlation.steps))
    if config.lora.rank:
      for layer in self.llama.model.layers:
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
          held = getattr(layer.self_attn, name)
          setattr(layer.self_attn, name, Lora(held, config.lora))

  def forward(self, batch: Batch) -> Prediction:
    """States and masks of a batch whose answers are given."""
    image = (batch["tokens_BT"] == IMAGE_TOKEN).int().argmax(1).tolist()
    visual, pixels = self.encode_image(batch["pixels_BIJC"], batch["extent_B2"])
    hidden = self.llama.model(
      inputs_embeds=self.embed(batch["tokens_BT"], visual, image),
      attention_mask=self.prefix(batch, image),
      use_cache=False,
    ).last_hidden_state
    count = self.config.visual_tokens
    text = torch.stack(
      [
        torch.cat([row[:at], row[at + count - 1 :]])
        for row, at in zip(hidden, image, strict=True)
      ]
    )
    visual = torch.stack(
      [row[at : at + count] for row, at in zip(hidden, image, strict=True)]
    )
    masks, quality = self.segment(
      self.guide(pixels, visual),
      text,
      torch.tensor(image, device=text.device),
      batch["seg_BG"],
      batch["valid_BG"],
    )
    return Prediction(torch.cat([text[:, :1], text[:, :-1]], 1), masks, quality)

  def encode_image(
    self, pixels: torch.Tensor, extent: torch.Tensor
  ) -> tuple[torch.Tensor, torch.Tensor]:
    """Visual tokens [B, E, D], pixel features [B, C, g, g]."""
    encoder = self.sam.vision_encoder
    dtype = encoder.pos_embed.dtype
    if self.config.channel_order == "bgr":
      pixels = pixels.flip(-1)
    mean = torch.tensor(configs.PIXEL_MEAN, device=pixels.device)
    std = torch.tensor(configs.PIXEL_STD, device=pixels.device)
    places = torch.arange(pixels.shape[1], device=pixels.device)
    rows, columns = (places < extent[:, axis, None] for axis in range(2))
    inside = (rows[:, :, None] & columns[:, None])[..., None]
    values = ((pixels.float() - mean) / std * inside).permute(0, 3, 1, 2)
    tokens = encoder.patch_embed(values.to(dtype)) + encoder.pos_embed
    for layer in encoder.layers:
      tokens = layer(tokens)
    halved = functional.avg_pool2d(tokens.permute(0, 3, 1, 2).float(), 2)
    visual = self.projector(halved.flatten(2).transpose(1, 2).to(dtype))
    return visual, encoder.neck(tokens)

  def embed(
    self, tokens: torch.Tensor, visual: torch.Tensor, image: list[int]
  ) -> torch.Tensor:
    """[B, S, D]: the text's states, the image's in the placeholder's stead."""
    text = self.llama.model.embed_tokens(tokens.clamp(min=0))
    return torch.stack(
      [
        torch.cat([row[:at], mine, row[at + 1 :]])
        for row, mine, at in zip(text, visual, image, strict=True)
      ]
    )

  def prefix(self, batch: Batch, image: list[int]) -> torch.Tensor | None:
    """bool[B, 1, S, S] of what sees what; None where attention is causal."""
    if self.config.language.attention == "causal":
      return None
    labelled = batch["labels_BT"] != IGNORE_LABEL
    question = torch.where(
      labelled.any(1), labelled.int().argmax(1), batch["length_B"]
    )
    extra = self.config.visual_tokens - 1
    at = torch.tensor(image, device=question.device)
    question = torch.where(question > at, question + extra, question)
    slots = torch.arange(labelled.shape[1] + extra, device=question.device)
    seen = (slots <= slots[:, None]) | (slots < question[:, None, None])
    return seen[:, None]

  def guide(self, pixels: torch.Tensor, visual: torch.Tensor) -> torch.Tensor:
    """Pixel features plus the feedback of the states at visual positions."""
    side = self.config.image.grid // 2
    feedback = self.feedback(visual).transpose(1, 2).unflatten(2, (side, side))
    return pixels + _resize(feedback, 2 * side).to(pixels.dtype)

  def segment(
    self,
    pixels: torch.Tensor,
    text: torch.Tensor,
    image: torch.Tensor,
    seg: torch.Tensor,
    valid: torch.Tensor,
  ) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Masks after each step, and the decoder's estimate of the last ones."""
    state = (seg.long() - 1).clamp(min=0)
    query = self.query(_take(text, state))
    mask, quality = self.decode(pixels, query)
    masks = [mask]
    if self.words is None:
      return masks, quality
    last = torch.where(valid, state, -1).amax(1)
    places = torch.arange(text.shape[1], device=text.device)
    is_word = (places <= last[:, None]) & (places != image[:, None])
    words = self.words(text)
    for target in range(seg.shape[1]):
      here = valid[:, target, None] & (places == state[:, target, None])
      words = torch.where(here[..., None], query[:, target, None], words)
    for step in self.steps:
      soft = torch.sigmoid(_resize(masks[-1], self.config.image.grid))
      gate = (soft * valid[:, :, None, None]).amax(1)
      pixels, words = step(pixels, words, is_word, gate)
      query = torch.where(valid[:, :, None], _take(words, state), query)
      mask, quality = self.decode(pixels, query)
      masks.append(mask)
    return masks, quality

  def decode(
    self, pixels: torch.Tensor, query: torch.Tensor
  ) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 logits of the first mask [B, G, 4g, 4g], quality [B, G]."""
    none = self.sam.prompt_encoder.no_mask_embed.weight[..., None, None]
    positions = self.sam.get_image_wide_positional_embeddings()
    masks, quality = self.sam.mask_decoder(
      image_embeddings=pixels,
      image_positional_embeddings=positions.expand(len(pixels), -1, -1, -1),
      sparse_prompt_embeddings=query[:, :, None],
      dense_prompt_embeddings=none.expand(*pixels.shape),
      multimask_output=False,
    )
    return masks[:, :, 0].float(), quality[:, :, 0].float()


class Step(nn.Module):
  """One turn of the loop: correlation attention, both sides updated."""

  def __init__(self, config: configs.ModelConfig):
    super().__init__()
    width = config.decoder.width
    self.heads = config.correlation.heads
    self.pixel_query, self.pixel_value, self.word_key, self.word_value = (
      nn.Linear(width, width, bias=False) for _ in range(4)
    )
    self.pixel_out, self.word_out = (
      nn.Linear(width, width, bias=False) for _ in range(2)
    )
    nn.init.zeros_(self.pixel_out.weight)
    nn.init.zeros_(self.word_out.weight)
    self.gate = nn.Parameter(torch.zeros(1))

  def forward(
    self,
    pixels: torch.Tensor,
    words: torch.Tensor,
    is_word: torch.Tensor,
    soft: torch.Tensor,
  ) -> tuple[torch.Tensor, torch.Tensor]:
    """Refined pixels [B, C, g, g] and words [B, T, C]."""
    flat = pixels.flatten(2).transpose(1, 2)
    query, value_p = map(
      self._split, (self.pixel_query(flat), self.pixel_value(flat))
    )
    key, value_t = map(
      self._split, (self.word_key(words), self.word_value(words))
    )
    # Two fused attentions: their scores would be shared, but not their softmax.
    from_words = functional.scaled_dot_product_attention(
      query, key, value_t, attn_mask=is_word[:, None, None]
    )
    gate = (self.gate * soft.flatten(1)).to(query.dtype)
    from_pixels = functional.scaled_dot_product_attention(
      key,
      query,
      value_p,
      attn_mask=gate[:, None, None].expand(-1, -1, words.shape[1], -1),
    )
    change = self.pixel_out(_join(from_words)).transpose(1, 2)
    read = _join(from_pixels) * is_word[..., None]
    return pixels + change.reshape(pixels.shape), words + self.word_out(read)

  def _split(self, values: torch.Tensor) -> torch.Tensor:
    return values.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Lora(nn.Module):
  """A linear layer that stays, and its low-rank update."""

  def __init__(self, held: nn.Linear, config: configs.LoraConfig):
    super().__init__()
    self.held = held
    self.down = nn.Linear(held.in_features, config.rank, bias=False)
    self.up = nn.Linear(config.rank, held.out_features, bias=False)
    nn.init.zeros_(self.up.weight)
    self.dropout = nn.Dropout(config.dropout)
    self.scale = config.alpha / config.rank

  def forward(self, values: torch.Tensor) -> torch.Tensor:
    low = self.up(self.down(self.dropout(values)))
    return self.held(values) + low * self.scale


def sam(config: configs.ModelConfig) -> Any:
  """transformers.SamModel of these sizes, fused attention."""
  image, decoder = config.image, config.decoder
  shared = dict(image_size=image.image_size, patch_size=image.patch_size)
  return transformers.SamModel(
    transformers.SamConfig(
      vision_config=dict(
        hidden_size=image.width,
        output_channels=decoder.width,
        num_hidden_layers=image.depth,
        num_attention_heads=image.heads,
        mlp_ratio=image.mlp_ratio,
        window_size=image.window,
        global_attn_indexes=image.global_blocks,
        num_pos_feats=decoder.width // 2,
        mlp_dim=round(image.width * image.mlp_ratio),
        **shared,
      ),
      prompt_encoder_config=dict(hidden_size=decoder.width, **shared),
      mask_decoder_config=dict(
        hidden_size=decoder.width,
        mlp_dim=decoder.hidden,
        num_hidden_layers=decoder.depth,
        num_attention_heads=decoder.heads,
        iou_head_hidden_dim=decoder.width,
        layer_norm_eps=1e-5,  # the original's; transformers' default is not
      ),
      attn_implementation="sdpa",
    )
  )


def llama(language: configs.LanguageConfig) -> Any:
  """transformers.LlamaForCausalLM of these sizes, fused attention."""
  return transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      vocab_size=language.vocabulary,
      hidden_size=language.width,
      num_hidden_layers=language.depth,
      num_attention_heads=language.heads,
      intermediate_size=language.hidden,
      rms_norm_eps=language.norm_eps,
      attn_implementation="sdpa",
    )
  )


def _take(values: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
  """[B, G, C]: rows [B, G] of [B, T, C]."""
  return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def _join(values: torch.Tensor) -> torch.Tensor:
  return values.transpose(1, 2).flatten(2)


def _resize(values: torch.Tensor, side: int) -> torch.Tensor:
  return functional.interpolate(values.float(), (side, side), mode="bilinear")
