"""Correlation attention: both directions of attention from one affinity.

One affinity S between pixels and words serves twice: every pixel attends to
the words (softmax over words) and every word attends to the pixels (softmax
over pixels). `reference` is the specification of every kernel of this op.
"""

import jax
import jax.numpy as jnp

IMPLEMENTATIONS = (None, "reference")

# Far below any score, yet finite: a row of nothing else stays free of NaN.
MASKED = -1e30


def correlation_attention(
  query_BPC: jax.Array,
  value_BPC: jax.Array,
  key_BTC: jax.Array,
  value_BTC: jax.Array,
  mask_BT: jax.Array,
  *,
  heads: int,
  gate_BP: jax.Array | None = None,
  implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
  """What pixels read from words, and words from pixels.

    S     = query key^T / sqrt(C / heads) + gate
    pixel = softmax over words(S) value_BTC
    word  = softmax over pixels(S)^T value_BPC

  A gate is the same for all words, so it cancels in the pixels' softmax and
  steers only where the words look. Masked words are seen by no pixel and read
  zeros; where all words are masked the pixels read zeros too.

  Args:
    query_BPC: [B, P, C], one query a pixel, heads side by side in C.
    value_BPC: [B, P, C], what words read from pixels.
    key_BTC: [B, T, C], one key a word.
    value_BTC: [B, T, C], what pixels read from words.
    mask_BT: bool[B, T], True where there is a word.
    heads: number of heads; divides C.
    gate_BP: float32[B, P], added to the affinity of each pixel.
    implementation: None chooses; "reference" is plain XLA.

  Returns:
    (pixels [B, P, C], words [B, T, C]) in the dtypes of their values.

  Raises:
    NotImplementedError: no such implementation on this machine.

  Source: the correlation step of the model's closed loop.
  """
  if implementation not in IMPLEMENTATIONS:
    raise NotImplementedError(
      f"correlation_attention has no implementation {implementation!r} yet; "
      f"choose one of {IMPLEMENTATIONS}."
    )
  return reference(
    query_BPC,
    value_BPC,
    key_BTC,
    value_BTC,
    mask_BT,
    heads=heads,
    gate_BP=gate_BP,
  )


def reference(
  query_BPC: jax.Array,
  value_BPC: jax.Array,
  key_BTC: jax.Array,
  value_BTC: jax.Array,
  mask_BT: jax.Array,
  *,
  heads: int,
  gate_BP: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """The op in plain JAX; scores and softmax in float32."""
  query_BPNH = _split(query_BPC, heads)
  key_BTNH = _split(key_BTC, heads)
  scores_BNPT = jnp.einsum(
    "BPNH,BTNH->BNPT",
    query_BPNH,
    key_BTNH,
    preferred_element_type=jnp.float32,
  ) * (query_BPNH.shape[-1] ** -0.5)
  if gate_BP is not None:
    scores_BNPT += gate_BP.astype(jnp.float32)[:, None, :, None]

  seen_B11T = mask_BT[:, None, None, :]
  over_words_BNPT = seen_B11T * jax.nn.softmax(
    jnp.where(seen_B11T, scores_BNPT, MASKED), axis=-1
  )
  over_pixels_BNPT = seen_B11T * jax.nn.softmax(scores_BNPT, axis=-2)
  pixels_BPNH = jnp.einsum(
    "BNPT,BTNH->BPNH",
    over_words_BNPT.astype(value_BTC.dtype),
    _split(value_BTC, heads),
  )
  words_BTNH = jnp.einsum(
    "BNPT,BPNH->BTNH",
    over_pixels_BNPT.astype(value_BPC.dtype),
    _split(value_BPC, heads),
  )
  return (
    pixels_BPNH.reshape(value_BPC.shape),
    words_BTNH.reshape(value_BTC.shape),
  )


def _split(values_BSC: jax.Array, heads: int) -> jax.Array:
  """[B, S, N, H] with C = N * H."""
  batch, length, channels = values_BSC.shape
  return values_BSC.reshape(batch, length, heads, channels // heads)
