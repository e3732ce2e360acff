"""Correlation attention: both directions of attention from one affinity.

One affinity S between pixels and words serves twice: every pixel attends to
the words (softmax over words) and every word attends to the pixels (softmax
over pixels). `reference` is the specification of every kernel of this op.
No implementation keeps scores for the backward pass: they are made again.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from rcmed_jax.kernels import (
  choice,
  correlation_attention_gpu,
  correlation_attention_tpu,
  correlation_attention_tpu_backward,
  correlation_attention_tpu_layout,
)

# Far below any score, yet finite: a row of nothing else stays free of NaN.
MASKED = -1e30

# Words from which a kernel is preferred to plain XLA. The TPU kernels pad to
# 128 words; at 128 the compiler's estimates for v5e are 5.8 ms against 24.4 ms
# (batch 64, 4096 pixels, forward and backward), so they would meet at 31 words
# if XLA's time fell with the words. Twice that is on the safe side. Source:
# benchmarks/results/tpu_schedule_correlation.md.
KERNEL_FROM = 64


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
  kernel_from: int | None = None,
  interpret: bool = False,
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
    implementation: None chooses; "reference" is plain XLA, "pallas" our
      kernel, on TPU and, where asked for, on GPU.
    kernel_from: with fewer words than this, an implementation of None means
      "reference"; None takes KERNEL_FROM.
    interpret: run the TPU kernel's body in plain JAX, on any platform.

  Returns:
    (pixels [B, P, C], words [B, T, C]) in the dtypes of their values.

  Raises:
    NotImplementedError: no such implementation, or it cannot run here.

  Source: the correlation step of the model's closed loop.
  """
  chosen = choice.choose(
    "correlation_attention",
    implementation,
    refusals(
      query_BPC,
      value_BPC,
      key_BTC,
      value_BTC,
      heads=heads,
      kernel_from=kernel_from,
      interpret=interpret,
    ),
  )
  operands = query_BPC, value_BPC, key_BTC, value_BTC, mask_BT
  if chosen == choice.PALLAS:
    if gate_BP is None:
      gate_BP = jnp.zeros(query_BPC.shape[:2], jnp.float32)
    if choice.on_gpu(interpret):
      return correlation_attention_gpu.attend(heads, *operands, gate_BP)
    return _fused(heads, interpret, *operands, gate_BP)
  return jax.checkpoint(functools.partial(reference, heads=heads))(
    *operands, gate_BP=gate_BP
  )


def refusals(
  query_BPC: Any,
  value_BPC: Any,
  key_BTC: Any,
  value_BTC: Any,
  *,
  heads: int,
  kernel_from: int | None = None,
  interpret: bool = False,
) -> dict[str, str | None]:
  """Every implementation, the preferred one first, with why it cannot run.

  Args:
    query_BPC, ..., value_BTC: arrays, or anything with their shape and dtype.
    heads, kernel_from, interpret: as in `correlation_attention`.
  """
  words, channels = key_BTC.shape[1:]
  operands = query_BPC, value_BPC, key_BTC, value_BTC
  if choice.on_gpu(interpret):
    # Last, because it has not run on a GPU yet: it waits for being asked.
    why = correlation_attention_gpu.refusal(*operands, heads)
    return {choice.REFERENCE: None, choice.PALLAS: why}
  platform, _ = choice.device()
  if platform != "tpu" and not interpret:
    why = f"it needs a TPU or a GPU, or interpret=True; here is a {platform}"
  else:
    why = correlation_attention_tpu_layout.refusal(
      words, channels, heads, {jnp.dtype(array.dtype) for array in operands}
    )
  found = {choice.PALLAS: why, choice.REFERENCE: None}
  if words < (KERNEL_FROM if kernel_from is None else kernel_from):
    found = dict(reversed(found.items()))
  return found


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _fused(
  heads: int, interpret: bool, *operands: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The kernel; operands as `correlation_attention` names them, gate last."""
  return _fused_forward(heads, interpret, *operands)[0]


def _fused_forward(heads: int, interpret: bool, *operands: jax.Array):
  pixels_BPC, words_BTC, *lse = correlation_attention_tpu.forward(
    *operands, heads=heads, interpret=interpret
  )
  # A gate may leave all words the same few pixels, where gradients are small
  # differences; rounded words would show there many times over.
  kept = *operands, pixels_BPC, words_BTC, *lse
  return (pixels_BPC, words_BTC.astype(operands[3].dtype)), kept


def _fused_backward(heads: int, interpret: bool, residuals, cotangents):
  *floats, d_gate_BP = correlation_attention_tpu_backward.backward(
    *residuals, *cotangents, heads=heads, interpret=interpret
  )
  return *floats, None, d_gate_BP  # None: a mask has no gradient


_fused.defvjp(_fused_forward, _fused_backward)


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
