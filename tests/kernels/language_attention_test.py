"""Which position reads which, and with what weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rcmed_jax.kernels import choice, language_attention

# Splash's own body, interpreted where there is no TPU.
IMPLEMENTATIONS = ("reference", "splash")


def _inputs(length: int = 5, width: int = 4) -> list[np.ndarray]:
  """Queries, keys, values, and the gradient of what is mixed."""
  rng = np.random.default_rng(0)
  return [
    rng.normal(size=(2, length, 3, width)).astype(np.float32) for _ in range(4)
  ]


def _allowed(length: int, prefix_B=(0, 0)) -> np.ndarray:
  """[B, S, S]: who reads whom, position by position."""
  return np.array(
    [
      [[s <= q or s < prefix for s in range(length)] for q in range(length)]
      for prefix in prefix_B
    ]
  )


def _formula(query, key, value, allowed_BSS) -> np.ndarray:
  """Softmax attention in float64 where `allowed_BSS`."""
  return _formula_and_gradients(query, key, value, 0 * query, allowed_BSS)[0]


def _formula_and_gradients(query, key, value, mixed_gradient, allowed_BSS):
  """(mixed, gradients of query, key, value) in float64, written out."""
  query, key, value, gradient = map(
    np.float64, (query, key, value, mixed_gradient)
  )
  scale = query.shape[-1] ** -0.5
  scores = np.einsum("bsnh,btnh->bnst", query, key) * scale
  weights = np.exp(scores) * allowed_BSS[:, None]
  weights /= weights.sum(-1, keepdims=True)
  weighed = np.einsum("bsnh,btnh->bnst", gradient, value)
  inner = (weighed * weights).sum(-1, keepdims=True)
  of_scores = weights * (weighed - inner) * scale
  return (
    np.einsum("bnst,btnh->bsnh", weights, value),
    np.einsum("bnst,btnh->bsnh", of_scores, key),
    np.einsum("bnst,bsnh->btnh", of_scores, query),
    np.einsum("bnst,bsnh->btnh", weights, gradient),
  )


@functools.partial(jax.jit, static_argnames="implementation")
def _run(query, key, value, mixed_gradient, prefix_B=None, *, implementation):
  """(mixed, gradients of query, key, value)."""
  mixed, pull = jax.vjp(
    lambda *inputs: language_attention.causal_attention(
      *inputs,
      prefix_B=prefix_B,
      implementation=implementation,
      interpret=implementation == "splash",
    ),
    query,
    key,
    value,
  )
  return mixed, *pull(mixed_gradient)


@pytest.mark.parametrize(
  ("implementation", "prefix_B"),
  [("reference", None), ("reference", (3, 0)), ("splash", None)],
)
def test_matches_the_formula(implementation, prefix_B):
  inputs = _inputs()
  results = _run(
    *inputs,
    None if prefix_B is None else jnp.array(prefix_B),
    implementation=implementation,
  )
  wanted = _formula_and_gradients(*inputs, _allowed(5, prefix_B or (0, 0)))
  for ours, exact in zip(results, wanted, strict=True):
    np.testing.assert_allclose(ours, exact, atol=2e-6)


@pytest.mark.parametrize("prefix_B", [None, (700, 30)])
def test_splash_matches_the_formula_over_several_blocks(prefix_B):
  inputs = _inputs(length=777, width=16)  # 2 blocks of 512, 247 padded
  results = _run(
    *inputs,
    None if prefix_B is None else jnp.array(prefix_B),
    implementation="splash",
  )
  wanted = _formula_and_gradients(*inputs, _allowed(777, prefix_B or (0, 0)))
  for ours, exact in zip(results, wanted, strict=True):
    np.testing.assert_allclose(ours, exact, atol=5e-6)


def test_the_prefix_is_the_picture_of_the_docstring():
  picture = np.array(
    [
      [1, 1, 1, 0, 0],
      [1, 1, 1, 0, 0],
      [1, 1, 1, 0, 0],
      [1, 1, 1, 1, 0],
      [1, 1, 1, 1, 1],
    ]
  )
  np.testing.assert_array_equal(_allowed(5, [3])[0], picture)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_is_padded_on_the_right_leaks_nowhere(implementation):
  """Row 1 has 3 positions; nothing uses what its others read."""
  query, key, value, gradient = _inputs()
  gradient[1, 3:] = 0
  clean = _run(query, key, value, gradient, implementation=implementation)
  for array in (query, key, value):
    array[1, 3:] = 50.0
  padded = _run(query, key, value, gradient, implementation=implementation)
  for one, other in zip(padded, clean, strict=True):
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1, :3], other[1, :3])
  for of_input in padded[1:]:
    np.testing.assert_array_equal(of_input[1, 3:], 0.0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_cache_gives_the_full_pass_position_by_position(implementation):
  query, key, value, gradient = _inputs()
  mixed = _run(query, key, value, gradient, implementation=implementation)[0]
  length_B = np.arange(1, 6)
  key_BSNH, value_BSNH = (
    np.where(
      np.arange(5)[None, :, None, None] < length_B[:, None, None, None],
      array[:1],
      1e4,  # what the cache holds beyond its length must not matter
    )
    for array in (key, value)
  )
  np.testing.assert_allclose(
    language_attention.cached_attention(
      query[0][:, None],
      key_BSNH.swapaxes(1, 2),
      value_BSNH.swapaxes(1, 2),
      jnp.asarray(length_B),
    )[:, 0],
    mixed[0],
    atol=1e-6,
  )


def test_a_cache_gives_the_full_pass_for_several_positions_at_once():
  """Of row 0 the positions from 2, of row 1 those from 1 on."""
  query, key, value, gradient = _inputs()
  mixed = _run(query, key, value, gradient, implementation="reference")[0]
  first_B = np.array([2, 1])
  places_B3 = first_B[:, None] + np.arange(3)
  rows_B1 = np.arange(2)[:, None]
  np.testing.assert_allclose(
    language_attention.cached_attention(
      query[rows_B1, places_B3],
      key.swapaxes(1, 2),
      value.swapaxes(1, 2),
      jnp.asarray(first_B + 1),
    ),
    mixed[rows_B1, places_B3],
    atol=1e-6,
  )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_scores_of_bfloat16_are_summed_in_float32(implementation):
  inputs = [jnp.asarray(array, jnp.bfloat16) for array in _inputs(64)]
  results = _run(*inputs, implementation=implementation)
  wanted = _formula_and_gradients(
    *(np.asarray(array, np.float64) for array in inputs),
    _allowed(64),
  )
  for ours, exact in zip(results, wanted, strict=True):
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float64(ours), exact, atol=3e-2)


def test_refuses_an_unknown_implementation():
  with pytest.raises(NotImplementedError, match="'xla'"):
    language_attention.causal_attention(*_inputs()[:3], implementation="xla")
  with pytest.raises(NotImplementedError, match="'xla'"):
    jax.eval_shape(
      lambda q, k, v: language_attention.cached_attention(
        q[:, :1], k, v, jnp.array([1, 1]), implementation="xla"
      ),
      *_inputs()[:3],
    )


@pytest.mark.parametrize("implementation", ["splash", "cudnn"])
def test_refuses_a_kernel_on_the_wrong_device(implementation):
  with pytest.raises(NotImplementedError, match="this is a cpu"):
    language_attention.causal_attention(
      *_inputs()[:3], implementation=implementation
    )


@pytest.mark.parametrize(
  ("device", "settings", "chosen"),
  [
    (("cpu", "cpu"), {}, "reference"),
    (("tpu", "TPU v5 lite"), {}, "splash"),
    (("tpu", "TPU v5 lite"), {"prefix": True}, "splash"),
    (("tpu", "TPU v5 lite"), {"dtype": jnp.float16}, "reference"),
    (("gpu", "NVIDIA H200"), {}, "cudnn"),
    (("gpu", "NVIDIA H200"), {"prefix": True}, "reference"),
    (("gpu", "NVIDIA H200"), {"dtype": jnp.float32}, "reference"),
    (("gpu", "NVIDIA H200"), {"head_width": 100}, "reference"),
    (("gpu", "NVIDIA H200"), {"head_width": 256}, "reference"),
    (("gpu", "AMD Instinct MI300X"), {}, "reference"),
  ],
)
def test_every_device_gets_its_kernel(monkeypatch, device, settings, chosen):
  monkeypatch.setattr(choice, "device", lambda: device)
  usual = {"dtype": jnp.bfloat16, "head_width": 128, "prefix": False}
  settings = {**usual, **settings}
  query_BSNH = jax.ShapeDtypeStruct(
    (2, 9, 4, settings["head_width"]), settings["dtype"]
  )
  prefix_B = jax.ShapeDtypeStruct((2,), jnp.int32)
  refusals = language_attention.refusals(
    query_BSNH, prefix_B=prefix_B if settings["prefix"] else None
  )
  assert choice.choose("causal_attention", None, refusals) == chosen


def test_a_cache_is_read_by_xla_unless_another_is_asked_for(monkeypatch):
  monkeypatch.setattr(choice, "device", lambda: ("gpu", "NVIDIA H200"))
  query_BTNH = jax.ShapeDtypeStruct((2, 1, 4, 128), jnp.bfloat16)
  refusals = language_attention.cached_refusals(query_BTNH)
  assert choice.choose("cached_attention", None, refusals) == "reference"
  assert choice.choose("cached_attention", "cudnn", refusals) == "cudnn"
  query_BTNH = jax.ShapeDtypeStruct((2, 3, 4, 128), jnp.bfloat16)
  refusals = language_attention.cached_refusals(query_BTNH)
  with pytest.raises(NotImplementedError, match="as a bias"):
    choice.choose("cached_attention", "cudnn", refusals)


def test_cudnn_gets_even_lengths_and_the_answer_is_the_same(monkeypatch):
  """JAX refuses its gradient at odd lengths, of which prompts have many."""
  attention, lengths = jax.nn.dot_product_attention, []

  def cudnn(query_BSNH, *rest, implementation, **settings):
    assert implementation == "cudnn"
    lengths.append(query_BSNH.shape[1])
    return attention(query_BSNH, *rest, implementation="xla", **settings)

  monkeypatch.setattr(choice, "device", lambda: ("gpu", "NVIDIA H200"))
  monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn)
  for length in (4, 5):
    given = _inputs(length, width=8)
    *inputs, mixed_gradient = (jnp.asarray(a, jnp.bfloat16) for a in given)
    mixed, pull = jax.vjp(language_attention.causal_attention, *inputs)
    rounded = [np.asarray(a, np.float32) for a in (*inputs, mixed_gradient)]
    expected = _formula_and_gradients(*rounded, _allowed(length))
    for found, wanted in zip(
      (mixed, *pull(mixed_gradient)), expected, strict=True
    ):
      assert found.shape == wanted.shape
      error = np.linalg.norm(np.asarray(found, np.float64) - wanted)
      assert error < 1e-2 * np.linalg.norm(wanted)
  assert lengths == [4, 6]
