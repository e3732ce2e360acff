"""Correlation attention on TPU: all gradients in one pass over the pixels.

With the weights P1 = exp(S - lse of the pixel), P2 = exp(S + gate - lse of the
word), and the gradients dPix, dText of the outputs, per head:

  d1 = sum_C dPix Pix        d2 = sum_C dText Text
  dS1 = P1 (dPix V_text^T - d1)
  dS2 = P2 (V_pix dText^T - d2)
  dQ = (dS1 + dS2) K scale   dK = (dS1 + dS2)^T Q scale
  dV_text = P1^T dPix        dV_pix = P2 dText
  dGate = sum over heads and words of dS2: dS1 sums to zero over the words

Nothing but the logsumexps ties a tile of scores to another, so each is made
once, used, and forgotten. Layout: `correlation_attention_tpu_layout.py`.
"""

import functools
import itertools

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from rcmed_jax.kernels import correlation_attention_tpu_layout as layout
from rcmed_jax.kernels.correlation_attention_tpu_layout import (
  COLUMNS,
  LANES,
  LOG2_E,
  PRODUCT,
  across,
  dot,
)


def backward(
  query_BPC: jax.Array,
  value_BPC: jax.Array,
  key_BTC: jax.Array,
  value_BTC: jax.Array,
  mask_BT: jax.Array,
  gate_BP: jax.Array,
  pixels_BPC: jax.Array,
  words_BTC: jax.Array,
  lse_BMNP: jax.Array,
  lse_BMNT: jax.Array,
  d_pixels_BPC: jax.Array,
  d_words_BTC: jax.Array,
  *,
  heads: int,
  interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]:
  """Gradients of query, pixels' value, key, words' value and gate.

  Args:
    query_BPC, ..., gate_BP: what `forward` took.
    pixels_BPC, ..., lse_BMNT: what it returned.
    d_pixels_BPC, d_words_BTC: gradients of its first two results.
    heads: as there.
    interpret: run the kernel's body in plain JAX.
  """
  cut = layout.tiling(query_BPC, key_BTC, heads)
  mask_B1T, gate_B1P = layout.rows(mask_BT, gate_BP, cut)
  dtype = query_BPC.dtype
  of_pixels = jax.ShapeDtypeStruct((cut.rows, cut.pixels, cut.channels), dtype)
  of_words = jax.ShapeDtypeStruct((cut.rows, cut.words, cut.channels), dtype)
  by_head = pltpu.VMEM((cut.heads, cut.words, cut.lanes), dtype)
  upright = pltpu.VMEM((cut.lanes, cut.words), dtype)
  summed = pltpu.VMEM((cut.words, cut.lanes), jnp.float32)
  gate_BM1P = jax.ShapeDtypeStruct(
    (cut.rows, cut.groups, 1, cut.pixels), jnp.float32
  )
  d_query, d_value, d_key, d_word_value, d_gate_BM1P = pl.pallas_call(
    functools.partial(_kernel, width=cut.width),
    grid=cut.grid,
    in_specs=[
      *(cut.of_pixels(),) * 4,
      *(cut.of_words(),) * 4,
      cut.mask(),
      cut.gate(),
      cut.per_pixel(cut.heads),
      cut.per_word(),
    ],
    out_specs=[
      *(cut.of_pixels(),) * 2,
      *(cut.of_words(),) * 2,
      cut.per_pixel(1),
    ],
    out_shape=[of_pixels, of_pixels, of_words, of_words, gate_BM1P],
    scratch_shapes=[
      *(by_head,) * 3,
      *(upright,) * 2,
      pltpu.VMEM((2 * cut.heads + 1, cut.words, LANES), jnp.float32),
      *(summed,) * 2,
    ],
    compiler_params=layout.PARAMETERS,
    interpret=interpret,
    name="correlation_backward",
  )(
    *(
      layout.padded(values_BPC, cut.pixels)
      for values_BPC in (query_BPC, value_BPC, pixels_BPC, d_pixels_BPC)
    ),
    *(
      layout.padded(values_BTC, cut.words)
      for values_BTC in (key_BTC, value_BTC, words_BTC, d_words_BTC)
    ),
    mask_B1T,
    gate_B1P,
    lse_BMNP,
    lse_BMNT,
  )
  pixels, words = query_BPC.shape[1], key_BTC.shape[1]
  return (
    d_query[:, :pixels],
    d_value[:, :pixels],
    d_key[:, :words],
    d_word_value[:, :words],
    d_gate_BM1P.sum((1, 2))[:, :pixels].astype(gate_BP.dtype),
  )


def _kernel(
  query_ref,
  value_ref,
  pixels_ref,
  d_pixels_ref,
  key_ref,
  word_value_ref,
  words_ref,
  d_words_ref,
  mask_ref,
  gate_ref,
  pixel_lse_ref,
  word_lse_ref,
  d_query_ref,
  d_value_ref,
  d_key_ref,
  d_word_value_ref,
  d_gate_ref,
  keys_ref,  # [N, T, C], as in `forward`; so are the next two
  word_values_ref,
  d_words_heads_ref,
  keys_upright_ref,  # [C, T]
  d_words_upright_ref,  # [C, T]
  stats_ref,  # [2 N + 1, T, LANES]: d2 and lse of each head, bias
  d_keys_ref,  # [T, C], so far
  d_word_values_ref,  # [T, C], so far
  *,
  width: int,
):
  """One block of pixels and all words of one group of heads."""

  @pl.when(pl.program_id(2) == 0)
  def _():
    kept_TL = layout.spread(mask_ref[0])
    layout.keep(word_value_ref[0], kept_TL, word_values_ref)
    for given_ref, heads_ref, upright_ref in (
      (key_ref, keys_ref, keys_upright_ref),
      (d_words_ref, d_words_heads_ref, d_words_upright_ref),
    ):
      layout.keep(given_ref[0], kept_TL, heads_ref)
      _stand(heads_ref, upright_ref)
    _prepare(kept_TL, words_ref, d_words_heads_ref, word_lse_ref, stats_ref)
    d_keys_ref[...] = jnp.zeros_like(d_keys_ref)
    d_word_values_ref[...] = jnp.zeros_like(d_word_values_ref)

  query_PC, value_PC, d_pixels_PC = query_ref[0], value_ref[0], d_pixels_ref[0]
  (heads, words, lanes), block = keys_ref.shape, query_PC.shape[0]
  dtype, gate_1P = query_PC.dtype, gate_ref[0] * LOG2_E
  d1_NP = _along(d_pixels_PC, pixels_ref[0], width)
  owner_1C = layout.head_of_lane(lanes, width)

  def products(step):
    """The scores, and what P1 and P2 get from the outputs' gradients."""
    head, tile = step
    return (
      dot(keys_ref[head, tile], query_PC, COLUMNS),
      dot(word_values_ref[head, tile], d_pixels_PC, COLUMNS),
      dot(d_words_heads_ref[head, tile], value_PC, COLUMNS),
    )

  tiles = layout.tiles(words)
  steps = itertools.product(range(heads), tiles)
  made = layout.one_ahead(products, list(steps))
  d_gate_1P = jnp.zeros((1, block), jnp.float32)
  for head in range(heads):
    own, row = slice(head * width, (head + 1) * width), slice(head, head + 1)
    of_pixels = gate_1P, pixel_lse_ref[0, 0, row], d1_NP[row]
    own_query_PC = jnp.where(owner_1C == head, query_PC, 0)
    own_d_pixels_PC = jnp.where(owner_1C == head, d_pixels_PC, 0)
    d_query_HP = d_value_HP = jnp.zeros((width, block), jnp.float32)
    for tile in tiles:
      of_words = [
        across(stats_ref[index, tile], block)
        for index in (head, heads + head, 2 * heads)
      ]
      (p1_TP, p2_TP, ds_TP), ds2_1P = _weigh(
        next(made), of_pixels, of_words, width**-0.5 * LOG2_E, dtype
      )
      d_gate_1P += ds2_1P
      d_keys_ref[tile] += dot(ds_TP, own_query_PC, PRODUCT)
      d_word_values_ref[tile] += dot(p1_TP, own_d_pixels_PC, PRODUCT)
      d_query_HP += dot(keys_upright_ref[own, tile], ds_TP, PRODUCT)
      d_value_HP += dot(d_words_upright_ref[own, tile], p2_TP, PRODUCT)
    d_query_ref[0, :, own] = (d_query_HP * width**-0.5).astype(dtype).T
    d_value_ref[0, :, own] = d_value_HP.astype(dtype).T
  d_gate_ref[0, 0] = d_gate_1P

  @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
  def _():
    kept_TC = across(layout.spread(mask_ref[0]), lanes)
    d_key_ref[0] = (d_keys_ref[...] * width**-0.5).astype(dtype)
    d_word_value_ref[0] = (d_word_values_ref[...] * kept_TC).astype(dtype)


def _weigh(products, of_pixels, of_words, scale, dtype):
  """((P1, P2, dS) [T, P] in dtype, dS2 summed [1, P]) of one head and tile."""
  scores_TP, d_p1_TP, d_p2_TP = products
  gate_1P, pixel_lse_1P, d1_1P = of_pixels
  d2_TP, word_lse_TP, bias_TP = of_words
  scores_TP = scores_TP * scale
  # In this order a text of masked words only, whose lse is MASKED too, gives
  # finite weights; their gradients are zero or masked.
  p1_TP = jnp.exp2((scores_TP - pixel_lse_1P) + bias_TP)
  p2_TP = jnp.exp2((scores_TP + gate_1P) - word_lse_TP)
  ds2_TP = p2_TP * (d_p2_TP - d2_TP)
  ds_TP = p1_TP * (d_p1_TP - d1_1P) + ds2_TP
  rounded = tuple(x_TP.astype(dtype) for x_TP in (p1_TP, p2_TP, ds_TP))
  return rounded, jnp.sum(ds2_TP, axis=0, keepdims=True)


def _stand(heads_ref, upright_ref) -> None:
  """Writes [C, T] of what `keep` wrote; the heads' lanes do not overlap."""
  heads_NTC = heads_ref[...].astype(jnp.float32)
  upright_ref[...] = jnp.sum(heads_NTC, axis=0).T.astype(upright_ref.dtype)


def _prepare(kept_TL, words_ref, d_words_ref, lse_ref, stats_ref) -> None:
  """Writes what tiles need of each word, the same in every lane."""
  heads = d_words_ref.shape[0]
  words_TC = words_ref[0].astype(jnp.float32)
  for head in range(heads):
    d2_T1 = jnp.sum(
      d_words_ref[head].astype(jnp.float32) * words_TC, axis=1, keepdims=True
    )
    stats_ref[head] = jnp.broadcast_to(d2_T1, kept_TL.shape)
    stats_ref[heads + head] = layout.spread(lse_ref[0, 0, head : head + 1])
  stats_ref[2 * heads] = (1 - kept_TL) * layout.MASKED


def _along(left_PC, right_PC, width: int) -> jax.Array:
  """float32 [N, P]: products summed over the channels of each head."""
  lanes = left_PC.shape[1]
  heads = max(8, lanes // width)  # eight sublanes are the fewest
  shape = (heads, lanes)
  own_NC = (
    jax.lax.broadcasted_iota(jnp.int32, shape, 1) // width
    == jax.lax.broadcasted_iota(jnp.int32, shape, 0)
  ).astype(jnp.float32)
  product_PC = left_PC.astype(jnp.float32) * right_PC.astype(jnp.float32)
  return dot(own_NC, product_PC, COLUMNS)
