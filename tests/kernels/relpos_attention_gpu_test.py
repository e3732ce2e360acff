"""The Hopper kernels: interpreted against float64, lowered at full size."""

import functools

import hopper
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcmed_jax.kernels import choice, relpos_attention_gpu
from rcmed_jax.kernels.relpos_attention import refusals, relpos_attention

H100 = ("gpu", "NVIDIA H100 80GB HBM3")
SCALE = 0.3
KERNELS = {
  "relpos_forward",
  "relpos_backward_queries",
  "relpos_backward_keys",
}


def _inputs(
  heads: int, rows: int, columns: int, width: int
) -> list[np.ndarray]:
  """bfloat16 q, k, v, do, and float32 rel_h, rel_w."""
  rng = np.random.default_rng(0)
  shape = (heads, rows * columns)
  matrices = [
    np.asarray(rng.standard_normal((*shape, width)), jnp.bfloat16)
    for _ in range(4)
  ]
  biases = [rng.standard_normal((*shape, size)) for size in (rows, columns)]
  return matrices + [np.float32(bias) for bias in biases]


def _formulas(q, k, v, do, rel_h, rel_w) -> dict[str, np.ndarray]:
  """Results and gradients in float64, all pairs in memory."""
  q, k, v, do, rel_h, rel_w = map(np.float64, (q, k, v, do, rel_h, rel_w))
  heads, patches, rows = rel_h.shape
  columns = rel_w.shape[-1]
  bias = rel_h[..., :, None] + rel_w[..., None, :]
  scores = SCALE * q @ k.transpose(0, 2, 1) + bias.reshape(heads, patches, -1)
  highest = scores.max(-1)
  lse = highest + np.log(np.exp(scores - highest[..., None]).sum(-1))
  weights = np.exp(scores - lse[..., None])
  o = weights @ v
  dweights = do @ v.transpose(0, 2, 1)
  dscores = weights * (dweights - (do * o).sum(-1, keepdims=True))
  by_row = dscores.reshape(heads, patches, rows, columns)
  return {
    "o": o,
    "lse": lse,
    "dq": SCALE * dscores @ k,
    "dk": SCALE * dscores.transpose(0, 2, 1) @ q,
    "dv": weights.transpose(0, 2, 1) @ do,
    "drel_h": by_row.sum(3),
    "drel_w": by_row.sum(2),
  }


def _run(q, k, v, do, rel_h, rel_w) -> dict[str, jax.Array]:
  given = [jnp.asarray(array) for array in (q, k, v, rel_h, rel_w)]
  with hopper.interpreter() as interpret:
    o, lse = relpos_attention_gpu.forward(*given, SCALE, interpret)
    gradients = relpos_attention_gpu.backward(
      *given, o, lse, jnp.asarray(do), SCALE, interpret
    )
    jax.block_until_ready(gradients)
  names = ("dq", "dk", "dv", "drel_h", "drel_w")
  return {"o": o, "lse": lse, **dict(zip(names, gradients, strict=True))}


def _compare(inputs: list[np.ndarray]) -> None:
  found, expected = _run(*inputs), _formulas(*inputs)
  for name, formula in expected.items():
    ours = np.asarray(found[name], np.float64)
    assert ours.shape == formula.shape, name
    error = np.linalg.norm(ours - formula) / np.linalg.norm(formula)
    # lse knows no rounding of probabilities or results, only of exponentials.
    assert error < (1e-5 if name == "lse" else 5e-3), name
    if name not in ("lse", "drel_h", "drel_w"):
      assert found[name].dtype == jnp.bfloat16, name


def test_matches_the_formulas_on_a_ragged_grid():
  # 7 x 14 becomes 8 x 16, and heads of 20 become 32 wide.
  _compare(_inputs(1, 7, 14, 20))


@pytest.mark.heavy  # half a minute each: every block is compiled anew
@pytest.mark.parametrize(
  ("heads", "rows", "columns", "width"), [(1, 14, 14, 80), (1, 6, 64, 80)]
)
def test_matches_the_formulas(heads, rows, columns, width):
  _compare(_inputs(heads, rows, columns, width))


@pytest.mark.heavy
def test_large_biases_neither_overflow_nor_drift():
  """Of standard deviation 16, a row of keys raised by 1e4, another lowered.

  delta is made of an o rounded to bfloat16. Where few keys take all weight,
  the gradients of the biases are what their sums leave of dP - delta, next to
  nothing, so that they are held against what that rounding may amount to.
  """
  *matrices, rel_h, rel_w = _inputs(2, 3, 5, 64)
  rel_h, rel_w = 16 * rel_h, 16 * rel_w
  rel_h[0, :, 0] += 1e4
  rel_h[1, :, -1] -= 1e4
  found = _run(*matrices, rel_h, rel_w)
  expected = _formulas(*matrices, rel_h, rel_w)
  terms = np.float64(matrices[-1]) * expected["o"]
  rounding = 2**-8 * np.linalg.norm(terms, axis=-1).max()
  for name, formula in expected.items():
    error = np.abs(np.float64(found[name]) - formula).max()
    largest = rounding if "rel" in name else 1e-2 * np.abs(formula).max()
    assert error < largest, name


@pytest.mark.parametrize(("side", "width"), [(64, 80), (14, 64)])
def test_lowers_for_cuda_without_all_pairs_in_memory(side, width, monkeypatch):
  monkeypatch.setattr(choice, "device", lambda: H100)
  patches = side * side
  matrix = jax.ShapeDtypeStruct((32, patches, width), jnp.bfloat16)
  rel = jax.ShapeDtypeStruct((32, patches, side), jnp.float32)

  def both(do, *given):
    attend = functools.partial(
      relpos_attention, scale=SCALE, implementation="pallas"
    )
    o, pull = jax.vjp(attend, *given)
    return o, pull(do)

  text = hopper.lowered(both, matrix, matrix, matrix, matrix, rel, rel)
  assert text.count("@mosaic_gpu") == len(KERNELS)
  assert all(name in text for name in KERNELS)
  assert f"{patches}x{patches}" not in text


def test_what_has_not_run_on_a_gpu_waits_to_be_asked_for(monkeypatch):
  monkeypatch.setattr(choice, "device", lambda: H100)
  matrix = jax.ShapeDtypeStruct((1, 196, 80), jnp.bfloat16)
  rel = jax.ShapeDtypeStruct((1, 196, 14), jnp.float32)
  found = refusals(matrix, matrix, matrix, rel, rel)
  assert list(found) == ["reference", "blocks", "cudnn", "pallas"]
  assert set(found.values()) == {None}


def test_refusals_name_their_reason(monkeypatch):
  def refusal(width, dtype, grid) -> str:
    matrix = jax.ShapeDtypeStruct((1, grid[0] * grid[1], width), dtype)
    return str(relpos_attention_gpu.refusal(matrix, matrix, matrix, grid))

  assert "Hopper GPU" in refusal(80, jnp.bfloat16, (64, 64))
  monkeypatch.setattr(choice, "device", lambda: H100)
  assert refusal(80, jnp.bfloat16, (64, 64)) == "None"
  assert "bfloat16 operands, not float32" in refusal(80, jnp.float32, (8, 8))
  assert "64 columns, not 72" in refusal(80, jnp.bfloat16, (64, 72))
  assert "96 rows, not 128" in refusal(80, jnp.bfloat16, (128, 64))
  assert "128 or less, not 160" in refusal(160, jnp.bfloat16, (64, 64))
