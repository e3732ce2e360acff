"""Correlation attention on TPU: both directions in one pass over the pixels.

A pixel's softmax over the words is whole within its block. A word's softmax
over the pixels is kept up to date from block to block: its largest score, the
sum of its exponentials and of its values, all relative to that score.
Layout: `correlation_attention_tpu_layout.py`.
"""

import functools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from rcmed_jax.kernels import correlation_attention_tpu_layout as layout
from rcmed_jax.kernels.correlation_attention_tpu_layout import (
  COLUMNS,
  LANES,
  LOG2_E,
  LOWEST,
  PRODUCT,
  across,
  dot,
)


def forward(
  query_BPC: jax.Array,
  value_BPC: jax.Array,
  key_BTC: jax.Array,
  value_BTC: jax.Array,
  mask_BT: jax.Array,
  gate_BP: jax.Array,
  *,
  heads: int,
  interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """What `correlation_attention` returns, and the logsumexps for `backward`.

  Returns:
    (pixels [B, P, C], words float32[B, T, C] whatever the operands' dtype,
    float32 logsumexp over words of each pixel [B, groups, heads, P], and over
    pixels of each word [B, groups, heads, T]); the last two in base 2, padded
    as `tiling` says.
  """
  cut = layout.tiling(query_BPC, key_BTC, heads)
  mask_B1T, gate_B1P = layout.rows(mask_BT, gate_BP, cut)
  dtype, stat = query_BPC.dtype, (cut.heads, cut.words, LANES)
  lse = (cut.rows, cut.groups, cut.heads)
  pixels_BPC, words_BTC, lse_BMNP, lse_BMNT = pl.pallas_call(
    functools.partial(_kernel, width=cut.width),
    grid=cut.grid,
    in_specs=[
      *(cut.of_pixels(),) * 2,
      *(cut.of_words(),) * 2,
      cut.mask(),
      cut.gate(),
    ],
    out_specs=[
      cut.of_pixels(),
      cut.of_words(),
      cut.per_pixel(cut.heads),
      cut.per_word(),
    ],
    out_shape=[
      jax.ShapeDtypeStruct((cut.rows, cut.pixels, cut.channels), dtype),
      jax.ShapeDtypeStruct((cut.rows, cut.words, cut.channels), jnp.float32),
      jax.ShapeDtypeStruct((*lse, cut.pixels), jnp.float32),
      jax.ShapeDtypeStruct((*lse, cut.words), jnp.float32),
    ],
    scratch_shapes=[
      pltpu.VMEM((cut.heads, cut.words, cut.lanes), dtype),
      pltpu.VMEM((cut.lanes, cut.words), dtype),
      pltpu.VMEM((cut.words, LANES), jnp.float32),
      pltpu.VMEM(stat, jnp.float32),
      pltpu.VMEM(stat, jnp.float32),
      pltpu.VMEM((cut.heads, cut.words, cut.lanes), jnp.float32),
    ],
    compiler_params=layout.PARAMETERS,
    interpret=interpret,
    name="correlation_forward",
  )(
    layout.padded(query_BPC, cut.pixels),
    layout.padded(value_BPC, cut.pixels),
    layout.padded(key_BTC, cut.words),
    layout.padded(value_BTC, cut.words),
    mask_B1T,
    gate_B1P,
  )
  return (
    pixels_BPC[:, : query_BPC.shape[1]],
    words_BTC[:, : key_BTC.shape[1]],
    lse_BMNP,
    lse_BMNT,
  )


def _kernel(
  query_ref,
  value_ref,
  key_ref,
  word_value_ref,
  mask_ref,
  gate_ref,
  pixels_ref,
  words_ref,
  pixel_lse_ref,
  word_lse_ref,
  keys_ref,  # [N, T, C], each head's lanes of the keys, other lanes zero
  values_ref,  # [C, T], the words' values
  bias_ref,  # [T, LANES], MASKED where there is no word
  most_ref,  # [N, T, LANES], largest score of each word so far
  sum_ref,  # [N, T, LANES], its exponentials so far, by lane
  total_ref,  # [N, T, C], its values so far; only the head's lanes count
  *,
  width: int,
):
  """One block of pixels and all words of one group of heads."""

  @pl.when(pl.program_id(2) == 0)
  def _():
    _begin(key_ref, word_value_ref, mask_ref, keys_ref, values_ref, bias_ref)
    most_ref[...] = jnp.full_like(most_ref, LOWEST)
    sum_ref[...] = jnp.zeros_like(sum_ref)
    total_ref[...] = jnp.zeros_like(total_ref)

  query_PC, value_PC, gate_1P = query_ref[0], value_ref[0], gate_ref[0] * LOG2_E
  heads, words, _ = keys_ref.shape
  scale = width**-0.5 * LOG2_E
  tiles = layout.tiles(words)

  def scores(head):
    return [
      dot(keys_ref[head, tile], query_PC, COLUMNS) * scale for tile in tiles
    ]

  for head, now in enumerate(layout.one_ahead(scores, range(heads))):
    own = slice(head * width, (head + 1) * width)
    mixed_HP, lse_1P = _read(now, bias_ref, values_ref.at[own])
    pixels_ref[0, :, own] = mixed_HP.T.astype(pixels_ref.dtype)
    pixel_lse_ref[0, 0, head : head + 1] = lse_1P
    for tile, scores_TP in zip(tiles, now, strict=True):
      _look(
        scores_TP + gate_1P,
        value_PC,
        most_ref.at[head, tile],
        sum_ref.at[head, tile],
        total_ref.at[head, tile],
      )

  @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
  def _():
    _end(mask_ref, most_ref, sum_ref, total_ref, words_ref, word_lse_ref, width)


def _begin(
  key_ref, word_value_ref, mask_ref, keys_ref, values_ref, bias_ref
) -> None:
  """Writes what every block needs of the words."""
  kept_TL = layout.spread(mask_ref[0])
  layout.keep(key_ref[0], kept_TL, keys_ref)
  values_TC = jnp.where(
    across(kept_TL, word_value_ref.shape[2]) > 0,
    word_value_ref[0].astype(jnp.float32),
    0,
  )
  values_ref[...] = values_TC.T.astype(values_ref.dtype)
  bias_ref[...] = (1 - kept_TL) * layout.MASKED


def _read(tiles, bias_ref, values_ref) -> tuple[jax.Array, jax.Array]:
  """What a block of pixels reads from the words through one head.

  Args:
    tiles: scores [TILE, P] of all words, tile by tile.
    bias_ref: [T, LANES], added to them.
    values_ref: [H, T], the words' values.

  Returns:
    ([H, P], logsumexp [1, P]).
  """
  places = layout.tiles(bias_ref.shape[0])
  block, width = tiles[0].shape[1], values_ref.shape[0]
  biased = [
    scores_TP + across(bias_ref[place], block)
    for place, scores_TP in zip(places, tiles, strict=True)
  ]
  most_1P: jax.Array = functools.reduce(
    jnp.maximum, [scores_TP.max(axis=0, keepdims=True) for scores_TP in biased]
  )
  sum_1P = jnp.zeros((1, block), jnp.float32)
  mixed_HP = jnp.zeros((width, block), jnp.float32)
  for place, scores_TP in zip(places, biased, strict=True):
    weights_TP = jnp.exp2(scores_TP - most_1P)
    sum_1P += weights_TP.sum(axis=0, keepdims=True)
    mixed_HP += dot(
      values_ref[:, place], weights_TP.astype(values_ref.dtype), PRODUCT
    )
  return mixed_HP / sum_1P, most_1P + jnp.log2(sum_1P)


def _end(
  mask_ref, most_ref, sum_ref, total_ref, words_ref, word_lse_ref, width
) -> None:
  """Writes what the words have read from all pixels."""
  kept_TL = layout.spread(mask_ref[0])
  owner_1C = layout.head_of_lane(words_ref.shape[2], width)
  words_TC = jnp.zeros(words_ref.shape[1:], jnp.float32)
  for head in range(most_ref.shape[0]):
    # Its largest score counts 1, so no sum is zero.
    sum_T1 = jnp.sum(sum_ref[head], axis=1, keepdims=True)
    part_TC = total_ref[head] * across(kept_TL / sum_T1, owner_1C.shape[1])
    words_TC = jnp.where(owner_1C == head, part_TC, words_TC)
    lse_TL = most_ref[head] + jnp.log2(sum_T1)
    word_lse_ref[0, 0, head : head + 1] = lse_TL.T[:1]
  words_ref[0] = words_TC.astype(words_ref.dtype)


def _look(scores_TP, value_PC, most_ref, sum_ref, total_ref) -> None:
  """Adds a block of pixels to what a tile of words reads from them all."""
  block, lanes = value_PC.shape
  before_TL = most_ref[...]
  most_TL = jnp.maximum(before_TL, jnp.max(scores_TP, axis=1, keepdims=True))
  shrink_TL = jnp.exp2(before_TL - most_TL)
  over_pixels_TP = jnp.exp2(scores_TP - across(most_TL, block))
  # Summed by lane here, over lanes once at the end.
  sum_TL = sum_ref[...] * shrink_TL
  for start in range(0, block, LANES):
    sum_TL += over_pixels_TP[:, start : start + LANES]
  most_ref[...] = most_TL
  sum_ref[...] = sum_TL
  total_ref[...] = total_ref[...] * across(shrink_TL, lanes) + dot(
    over_pixels_TP.astype(value_PC.dtype), value_PC, PRODUCT
  )
