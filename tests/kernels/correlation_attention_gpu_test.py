"""The Hopper kernels: interpreted against float64, lowered at full size."""

import hopper
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcmed_jax.kernels import choice, correlation_attention_gpu
from rcmed_jax.kernels.correlation_attention import correlation_attention

NAMES = ("query_BPC", "value_BPC", "key_BTC", "value_BTC")


def _inputs(
  batch: int, pixels: int, words: int, channels: int
) -> dict[str, np.ndarray]:
  """bfloat16 matrices, a gate, and a mask with holes; a second row of none."""
  rng = np.random.default_rng(0)
  lengths = (pixels, pixels, words, words)
  arrays = {
    name: np.asarray(
      rng.standard_normal((batch, length, channels)), jnp.bfloat16
    )
    for name, length in zip(NAMES, lengths, strict=True)
  }
  mask_BT = rng.random((batch, words)) < 0.8
  mask_BT[1:2] = False
  gate_BP = np.float32(rng.standard_normal((batch, pixels)))
  return {**arrays, "mask_BT": mask_BT, "gate_BP": gate_BP}


def _affinity(arrays, row, part) -> np.ndarray:
  """[P, T] of one head, without the gate."""
  query = np.float64(arrays["query_BPC"][row, :, part])
  key = np.float64(arrays["key_BTC"][row, :, part])
  return query @ key.T * query.shape[-1] ** -0.5


def _formulas(arrays, heads: int, dpixels=None, dwords=None) -> dict:
  """Results, and gradients where theirs are given, head by head in float64."""
  batch, _, channels = arrays["query_BPC"].shape
  width = channels // heads
  found = {name: np.zeros(arrays[name].shape) for name in (*NAMES, "gate_BP")}
  found["pixels"] = np.zeros(arrays["value_BPC"].shape)
  found["words"] = np.zeros(arrays["value_BTC"].shape)
  for row in range(batch):
    kept = np.float64(arrays["mask_BT"][row])
    for head in range(heads):
      part = slice(head * width, (head + 1) * width)
      scores = _affinity(arrays, row, part)
      value_P = np.float64(arrays["value_BPC"][row, :, part])
      value_T = np.float64(arrays["value_BTC"][row, :, part])
      read = np.exp(scores) * kept
      read /= np.maximum(read.sum(1, keepdims=True), 1e-300)
      gated = np.exp(scores + np.float64(arrays["gate_BP"][row])[:, None])
      gated = gated / gated.sum(0) * kept
      found["pixels"][row, :, part] = read @ value_T
      found["words"][row, :, part] = gated.T @ value_P
      if dpixels is None:
        continue
      dpixel = np.float64(dpixels[row, :, part])
      dword = np.float64(dwords[row, :, part])
      dread, dgated = dpixel @ value_T.T, value_P @ dword.T
      by_gate = gated * (dgated - (gated * dgated).sum(0))
      dscores = by_gate + read * (dread - (read * dread).sum(1)[:, None])
      query = np.float64(arrays["query_BPC"][row, :, part])
      key = np.float64(arrays["key_BTC"][row, :, part])
      found["query_BPC"][row, :, part] = dscores @ key * width**-0.5
      found["key_BTC"][row, :, part] = dscores.T @ query * width**-0.5
      found["value_BPC"][row, :, part] = gated @ dword
      found["value_BTC"][row, :, part] = read.T @ dpixel
      found["gate_BP"][row] += by_gate.sum(1)
  return found


def _check(name: str, ours: jax.Array, formula: np.ndarray) -> None:
  assert ours.shape == formula.shape, name
  error = np.linalg.norm(np.asarray(ours, np.float64) - formula)
  assert error < 6e-3 * np.linalg.norm(formula), name


def test_both_sides_read_what_the_formula_says():
  arrays = _inputs(1, 70, 20, 32)
  with hopper.interpreter() as interpret:
    pixels, words, _, _ = jax.block_until_ready(
      correlation_attention_gpu.forward(**arrays, heads=1, interpret=interpret)
    )
  formulas = _formulas(arrays, 1)
  assert pixels.dtype == words.dtype == jnp.bfloat16
  _check("pixels", pixels, formulas["pixels"])
  _check("words", words, formulas["words"])
  assert not np.any(np.asarray(words)[~arrays["mask_BT"]])


@pytest.mark.heavy  # a minute each: every block is compiled anew
@pytest.mark.parametrize(
  ("batch", "pixels", "words", "channels", "heads"),
  [(2, 70, 20, 16, 2), (1, 200, 150, 32, 1)],
)
def test_results_and_gradients_match_the_formulas(
  batch, pixels, words, channels, heads
):
  arrays = _inputs(batch, pixels, words, channels)
  rng = np.random.default_rng(1)
  dpixels, dwords = (
    np.asarray(rng.standard_normal(arrays[name].shape), jnp.bfloat16)
    for name in ("value_BPC", "value_BTC")
  )
  with hopper.interpreter() as interpret:
    results = correlation_attention_gpu.forward(
      **arrays, heads=heads, interpret=interpret
    )
    gradients = correlation_attention_gpu.backward(
      **arrays,
      results=results,
      dpixels_BPC=jnp.asarray(dpixels),
      dwords_BTC=jnp.asarray(dwords),
      heads=heads,
      interpret=interpret,
    )
    jax.block_until_ready(gradients)
  formulas = _formulas(arrays, heads, dpixels, dwords)
  _check("pixels", results[0], formulas["pixels"])
  _check("words", results[1], formulas["words"])
  for name, ours in zip((*NAMES, "gate_BP"), gradients, strict=True):
    _check(name, ours, formulas[name])
  # The row whose words are all masked reads nothing and moves nothing.
  for result in (*results[:2], *gradients):
    assert not np.any(np.asarray(result, np.float32)[1:])


def test_lowers_for_cuda_without_the_affinity_in_memory(monkeypatch):
  monkeypatch.setattr(
    choice, "device", lambda: ("gpu", "NVIDIA H100 80GB HBM3")
  )
  pixel = jax.ShapeDtypeStruct((8, 4096, 256), jnp.bfloat16)
  word = jax.ShapeDtypeStruct((8, 512, 256), jnp.bfloat16)
  mask_BT = jax.ShapeDtypeStruct((8, 512), bool)
  gate_BP = jax.ShapeDtypeStruct((8, 4096), jnp.float32)

  def both(mask_BT, cotangents, gate_BP, *given):
    def attend(gate_BP, *given):
      return correlation_attention(
        *given, mask_BT, heads=8, gate_BP=gate_BP, implementation="pallas"
      )

    outputs, pull = jax.vjp(attend, gate_BP, *given)
    return outputs, pull(cotangents)

  text = hopper.lowered(
    both, mask_BT, (pixel, word), gate_BP, pixel, pixel, word, word
  )
  # Both directions run the same two kernels.
  assert text.count("@mosaic_gpu") == 4
  assert "4096x512x" not in text
  assert "512x4096x" not in text


def test_refusals_name_their_reason(monkeypatch):
  def refusal(channels, dtype) -> str:
    matrix = jax.ShapeDtypeStruct((1, 64, channels), dtype)
    return str(
      correlation_attention_gpu.refusal(matrix, matrix, matrix, matrix, 2)
    )

  assert "Hopper GPU" in refusal(64, jnp.bfloat16)
  monkeypatch.setattr(
    correlation_attention_gpu.hopper.choice,
    "device",
    lambda: ("gpu", "NVIDIA H200"),
  )
  assert refusal(64, jnp.bfloat16) == "None"
  assert "bfloat16 operands, not float32" in refusal(64, jnp.float32)
  assert "128 or less, not 256" in refusal(512, jnp.bfloat16)
