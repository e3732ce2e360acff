"""Both directions of the attention against formulas in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcmed_jax.kernels.correlation_attention import (
  KERNEL_FROM,
  correlation_attention,
  refusals,
)
from rcmed_jax.parallel import topologies

HEADS = 2


def _inputs(seed: int = 0) -> dict[str, np.ndarray]:
  """Two rows of 9 pixels and 5 words, 6 channels, in float64."""
  rng = np.random.default_rng(seed)
  mask_BT = np.ones((2, 5), bool)
  mask_BT[0, 3:] = False
  mask_BT[1, 1] = False
  return {
    "query_BPC": rng.normal(size=(2, 9, 6)),
    "value_BPC": rng.normal(size=(2, 9, 6)),
    "key_BTC": rng.normal(size=(2, 5, 6)),
    "value_BTC": rng.normal(size=(2, 5, 6)),
    "mask_BT": mask_BT,
    "gate_BP": rng.normal(size=(2, 9)),
  }


def _formula(
  query_BPC, value_BPC, key_BTC, value_BTC, mask_BT, gate_BP
) -> tuple[np.ndarray, np.ndarray]:
  """The docstring's formula, row by row and head by head."""
  pixels, words = np.zeros_like(value_BPC), np.zeros_like(value_BTC)
  width = query_BPC.shape[-1] // HEADS
  for row in range(len(query_BPC)):
    kept = np.flatnonzero(mask_BT[row])
    for head in range(HEADS):
      part = slice(head * width, (head + 1) * width)
      keys = key_BTC[row, kept, part]
      scores = np.exp(
        query_BPC[row, :, part] @ keys.T / np.sqrt(width)
        + gate_BP[row][:, None]
      )
      over_words = scores / scores.sum(1, keepdims=True)
      over_pixels = scores / scores.sum(0, keepdims=True)
      pixels[row, :, part] = over_words @ value_BTC[row, kept, part]
      words[row, kept, part] = over_pixels.T @ value_BPC[row, :, part]
  return pixels, words


def _run(arrays, dtype=jnp.float32) -> tuple[jax.Array, jax.Array]:
  floats = {
    name: jnp.asarray(array, dtype)
    for name, array in arrays.items()
    if name != "mask_BT"
  }
  return correlation_attention(
    **floats, mask_BT=jnp.asarray(arrays["mask_BT"]), heads=HEADS
  )


@pytest.mark.parametrize(
  "dtype, tolerance", [(jnp.float32, 5e-6), (jnp.bfloat16, 3e-2)]
)
def test_matches_the_formula(dtype, tolerance):
  arrays = _inputs()
  for ours, reference in zip(
    _run(arrays, dtype), _formula(**arrays), strict=True
  ):
    assert ours.dtype == dtype
    np.testing.assert_allclose(
      np.asarray(ours, np.float64), reference, atol=tolerance
    )


def test_gradients_match_finite_differences_in_float64():
  arrays = _inputs(1)
  rng = np.random.default_rng(2)
  weights = [
    rng.normal(size=arrays[name].shape) for name in ("value_BPC", "value_BTC")
  ]

  def total(outputs):
    return sum(
      (output * weight).sum()
      for output, weight in zip(outputs, weights, strict=True)
    )

  names = [name for name in arrays if name != "mask_BT"]
  gradients = jax.grad(
    lambda floats: total(_run({**arrays, **floats})), allow_int=False
  )({name: jnp.float32(arrays[name]) for name in names})
  step = 1e-5
  for name in names:
    numeric = np.zeros_like(arrays[name])
    for place in np.ndindex(numeric.shape):
      ends = []
      for sign in (1, -1):
        moved = arrays[name].copy()
        moved[place] += sign * step
        ends.append(total(_formula(**{**arrays, name: moved})))
      numeric[place] = (ends[0] - ends[1]) / (2 * step)
    np.testing.assert_allclose(
      gradients[name], numeric, atol=2e-5, err_msg=name
    )


def test_masked_words_neither_give_nor_take():
  arrays = _inputs()
  hidden_BT = ~arrays["mask_BT"]
  loud = dict(arrays)
  for name in ("key_BTC", "value_BTC"):
    loud[name] = np.where(hidden_BT[..., None], 1e4, arrays[name])
  for quiet_out, loud_out in zip(_run(arrays), _run(loud), strict=True):
    np.testing.assert_array_equal(quiet_out, loud_out)
  assert not np.any(np.asarray(_run(loud)[1])[hidden_BT])


def test_fully_masked_text_gives_zeros_and_finite_gradients():
  arrays = _inputs()
  arrays["mask_BT"] = np.zeros_like(arrays["mask_BT"])
  for output in _run(arrays):
    np.testing.assert_array_equal(output, np.zeros(output.shape))
  gradients = jax.grad(
    lambda query_BPC: sum(
      output.sum() for output in _run({**arrays, "query_BPC": query_BPC})
    )
  )(jnp.float32(arrays["query_BPC"]))
  np.testing.assert_array_equal(gradients, np.zeros(gradients.shape))


def test_gate_steers_where_words_look_and_nothing_else():
  arrays = _inputs()
  gate_BP = np.zeros((2, 9))
  gate_BP[:, 4] = 100.0  # every word looks at pixel 4
  pixels, words = _run({**arrays, "gate_BP": gate_BP})
  np.testing.assert_allclose(pixels, _run(arrays)[0], atol=1e-4)
  looked_at = np.where(
    arrays["mask_BT"][..., None], arrays["value_BPC"][:, None, 4], 0
  )
  np.testing.assert_allclose(words, looked_at, atol=1e-5)


def test_refuses_an_unknown_implementation():
  arrays = _inputs()
  gate_BP = arrays.pop("gate_BP")
  with pytest.raises(NotImplementedError, match="'mosaic'"):
    correlation_attention(
      **arrays, gate_BP=gate_BP, heads=HEADS, implementation="mosaic"
    )


def _abstract(words=128, channels=256, kind=jnp.bfloat16, word_kind=None):
  """Shapes of query, pixels' value, key, words' value."""
  of_pixels = jax.ShapeDtypeStruct((2, 256, channels), kind)
  of_words = jax.ShapeDtypeStruct((2, words, channels), word_kind or kind)
  return of_pixels, of_pixels, of_words, of_words


@pytest.mark.parametrize(
  "shapes, heads, reason",
  [
    ({}, 8, None),
    ({"words": 513}, 8, "1 to 512 words, received 513"),
    ({"channels": 96}, 3, "received 3 heads of 32"),
    ({"channels": 384}, 8, "received 8 heads of 48"),
    ({"channels": 128}, 32, "received 32 heads of 4"),
    ({"channels": 512}, 1, "received 1 heads of 512"),
    ({"kind": jnp.float16}, 8, "received float16"),
    ({"word_kind": jnp.float32}, 8, "received bfloat16, float32"),
  ],
)
def test_kernel_refuses_with_a_reason(shapes, heads, reason):
  found = refusals(*_abstract(**shapes), heads=heads, interpret=True)
  assert found.pop("reference") is None
  assert (
    found["pallas"] is None if reason is None else reason in found["pallas"]
  )


def test_kernel_refuses_what_is_no_tpu():
  assert "here is a cpu" in refusals(*_abstract(), heads=8)["pallas"]
  with pytest.raises(NotImplementedError, match=r"needs a TPU.*'reference'"):
    correlation_attention(
      *_abstract(), jnp.ones((2, 128), bool), heads=8, implementation="pallas"
    )


def test_kernel_is_preferred_from_as_many_words_as_are_told():
  few = _abstract(words=KERNEL_FROM - 1)
  many = _abstract(words=KERNEL_FROM)
  assert next(iter(refusals(*few, heads=8))) == "reference"
  assert next(iter(refusals(*many, heads=8))) == "pallas"
  told = refusals(*many, heads=8, kernel_from=KERNEL_FROM + 1)
  assert next(iter(told)) == "reference"
  assert next(iter(refusals(*few, heads=8, kernel_from=0))) == "pallas"


def test_program_for_a_tpu_takes_the_kernel_by_itself():
  pytest.importorskip("libtpu", reason="the TPU compiler is not installed")
  axis_types = (jax.sharding.AxisType.Auto,)
  mesh = jax.sharding.Mesh(
    topologies.devices("v5e:2x4")[:1], ("x",), axis_types=axis_types
  )

  def traced(words):
    with jax.set_mesh(mesh):
      return str(
        jax.make_jaxpr(lambda *a: correlation_attention(*a, heads=8))(
          *_abstract(words=words), jax.ShapeDtypeStruct((2, words), jnp.bool_)
        )
      )

  assert "correlation_forward" in traced(KERNEL_FROM)
  assert "correlation_forward" not in traced(KERNEL_FROM - 1)
