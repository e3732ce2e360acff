"""The language model: vectors, causality, cache, rotary positions."""

import dataclasses
import re

from flax import nnx
import jax
from jax.ad_checkpoint import print_saved_residuals
import jax.numpy as jnp
import numpy as np
import parts
import pytest
import released
import toy

from rcmed_jax.model import language, layers
from rcmed_jax.model.config import ModelConfig
from rcmed_jax.model.language import Language


def _build(config: ModelConfig) -> Language:
  return parts.at_random(lambda: Language(config, rngs=nnx.Rngs(0)))


def _model(**settings) -> Language:
  return _build(toy.model_config(**settings))


@jax.jit
def _run(model: Language, states_BSD, **settings) -> jax.Array:
  return model(states_BSD, **settings)


def _states(length: int = 9, batch: int = 2) -> jax.Array:
  return jax.random.normal(jax.random.key(1), (batch, length, 16))


def test_text_alone_matches_a_plain_llama(shared):
  """The released weights, one layer at a time, in NumPy's float64."""
  model = released.model(shared).language
  arrays = jax.tree.map(np.float64, nnx.to_pure_dict(nnx.state(model)))
  tokens_BT = np.array([[1, 5, 7, 90, 104, 3]])
  states = arrays["embedding"][tokens_BT]
  for index in range(model.config.language.depth):
    weights = jax.tree.map(lambda leaf, i=index: leaf[i], arrays["layers"])
    states = _plain_layer(weights, states, model.config.language)
  hidden = _plain_norm(states, arrays["norm"]["scale"], 1e-6)
  ours = _run(model, model.embed(jnp.asarray(tokens_BT)))
  np.testing.assert_allclose(ours, hidden, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(
    model.logits(ours), hidden @ arrays["head"]["kernel"], atol=1e-5
  )


def _plain_norm(states, scale, eps):
  return states / np.sqrt((states**2).mean(-1, keepdims=True) + eps) * scale


def _plain_layer(weights, states, config):
  """A layer with rotary positions as complex numbers."""
  batch, length, width = states.shape
  head = width // config.heads
  normed = _plain_norm(
    states, weights["attention_norm"]["scale"], config.norm_eps
  )
  q, k, v = (
    (normed @ weights[name]["kernel"]).reshape(batch, length, -1, head)
    for name in "qkv"
  )
  turns = np.exp(
    1j
    * np.arange(length)[:, None]
    * config.rope_theta ** (-np.arange(0, head, 2) / head)
  )[:, None]
  q, k = (
    (part[..., : head // 2] + 1j * part[..., head // 2 :]) * turns
    for part in (q, k)
  )
  scores = np.einsum("bsnh,btnh->bnst", q, k.conj()).real / np.sqrt(head)
  scores = np.where(np.tril(np.ones((length, length))), scores, -np.inf)
  chances = np.exp(scores - scores.max(-1, keepdims=True))
  chances /= chances.sum(-1, keepdims=True)
  mixed = np.einsum("bnst,btnh->bsnh", chances, v).reshape(states.shape)
  states = states + mixed @ weights["o"]["kernel"]
  normed = _plain_norm(states, weights["mlp_norm"]["scale"], config.norm_eps)
  gate = normed @ weights["gate"]["kernel"]
  hidden = gate / (1 + np.exp(-gate)) * (normed @ weights["up"]["kernel"])
  return states + hidden @ weights["down"]["kernel"]


@pytest.mark.parametrize(
  "prefix_B, seen",
  [(None, (0, 1, 2, 3)), (np.array([6, 6]), (0, 1, 2, 3, 4, 5))],
)
def test_position_3_reads_only_what_it_may(prefix_B, seen):
  model = _model()

  @jax.jit
  @jax.grad
  def influence(states_BSD):
    return model(states_BSD, prefix_B=prefix_B)[:, 3].sum()

  influence_S = np.abs(influence(_states())).sum((0, 2))
  assert tuple(np.flatnonzero(influence_S)) == seen


def test_padding_changes_nothing():
  model = _model()
  long = _run(model, jnp.pad(_states(), ((0, 0), (0, 4), (0, 0))))
  np.testing.assert_allclose(long[:, :9], _run(model, _states()), atol=1e-6)


def test_decoding_with_a_cache_equals_the_whole_sequence():
  """Rows of 3 and 5 states are prefilled, the rest is decoded."""
  model = _model()
  states_BSD = _states()
  whole = _run(model, states_BSD)
  decode = jax.jit(Language.decode)
  length_B = np.array([3, 5])
  prompt_BSD = jnp.where(
    (jnp.arange(5)[None] < length_B[:, None])[..., None], states_BSD[:, :5], 9.0
  )
  _, cache = model.prefill(prompt_BSD, slots=9)
  rows_B = np.arange(2)
  for step in range(4):
    position_B = length_B + step
    hidden_BD, cache = decode(
      model, states_BSD[rows_B, position_B], position_B, cache
    )
    np.testing.assert_allclose(hidden_BD, whole[rows_B, position_B], atol=2e-6)


def test_prefill_equals_the_training_pass():
  model = _model()
  prefix_B = jnp.array([4, 2])
  hidden_BSD, cache = model.prefill(_states(), slots=12, prefix_B=prefix_B)
  np.testing.assert_allclose(
    hidden_BSD, _run(model, _states(), prefix_B=prefix_B), atol=1e-6
  )
  assert cache.key_BLNSH.shape == (2, 2, 2, 12, 8)
  assert not np.any(np.asarray(cache.key_BLNSH[:, :, :, 9:]))


def test_an_extended_cache_equals_the_whole_sequence():
  """Rows of 2 and 4 states are prefilled, then 3 and 2 more come at once."""
  model = _model()
  states_BSD = _states()
  whole = _run(model, states_BSD)
  first_B, more_B = np.array([2, 4]), np.array([3, 2])
  _, cache = model.prefill(states_BSD[:, :4], slots=9)
  rows_B1 = np.arange(2)[:, None]
  new_BSD = states_BSD[rows_B1, first_B[:, None] + np.arange(3)]
  padding_BS = np.arange(3)[None] >= more_B[:, None]
  hidden_BSD, cache = jax.jit(Language.extend)(
    model, jnp.where(padding_BS[..., None], 9.0, new_BSD), first_B, cache
  )
  for row, (first, more) in enumerate(zip(first_B, more_B, strict=True)):
    np.testing.assert_allclose(
      hidden_BSD[row, :more], whole[row, first : first + more], atol=2e-6
    )
  # The padding that row 1 left in its slots is not read afterwards.
  position_B = first_B + more_B
  next_BD = states_BSD[np.arange(2), position_B]
  hidden_BD, _ = jax.jit(Language.decode)(model, next_BD, position_B, cache)
  np.testing.assert_allclose(
    hidden_BD, whole[np.arange(2), position_B], atol=2e-6
  )


def test_rematerialization_keeps_gradients():
  config = toy.model_config(lora_rank=2, dropout=0.5)

  @jax.jit
  @jax.grad
  def gradients(model):
    return (model(_states(), dropout_key=jax.random.key(0)) ** 2).sum()

  reference, *others = (
    jax.tree.leaves(gradients(_build(dataclasses.replace(config, remat=remat))))
    for remat in ("none", *layers.REMAT)
  )
  for ours in others:
    for leaf, reference_leaf in zip(ours, reference, strict=True):
      np.testing.assert_allclose(leaf, reference_leaf, atol=1e-5)


@pytest.mark.parametrize(
  ("remat", "widths"),
  [
    ("full", 1),  # the layer's input
    ("attention", 2),  # and what attention gives
    # Input, q, k, v, what attention gives, o; gate and up, each 2 D wide here.
    # What down gives is needed by nothing but the next layer's input.
    ("dots", 6 + 4),
  ],
)
def test_each_policy_keeps_what_it_says(remat, widths, capsys):
  config = dataclasses.replace(toy.model_config(), remat=remat)
  graph, state = nnx.split(_build(config))
  states_BSD = _states()
  print_saved_residuals(
    lambda state: nnx.merge(graph, state)(states_BSD).sum(), state
  )
  # Kept for every layer: [depth, batch, length, ...].
  stacked = f"{config.language.depth},2,9,"
  kept = [
    np.prod([int(size) for size in shape.split(",")])
    for shape in re.findall(r"^\w+\[([\d,]+)\]", capsys.readouterr().out, re.M)
    if shape.startswith(stacked)
  ]
  one = config.language.depth * states_BSD.size
  assert sum(size // one for size in kept) == widths


def test_dropout_draws_from_its_key():
  model = _model(lora_rank=2, dropout=0.5)
  keys = [jax.random.key(seed) for seed in (0, 1)]
  first, second = (_run(model, _states(), dropout_key=key) for key in keys)
  assert np.any(np.asarray(first != second))


def test_rotation_keeps_lengths_and_depends_on_distance_alone():
  config = toy.model_config()
  values_BSNH = jnp.tile(_states(1, 1).reshape(1, 1, 2, 8), (1, 9, 1, 1))
  turned = language.rotate(
    values_BSNH, language.rotations(jnp.arange(9)[None], config)
  )
  np.testing.assert_allclose(
    jnp.linalg.norm(turned, axis=-1),
    jnp.linalg.norm(values_BSNH, axis=-1),
    rtol=1e-6,
  )
  products = np.einsum("bsnh,btnh->nst", turned, turned)
  for distance in range(1, 8):
    diagonal = np.diagonal(products, distance, axis1=1, axis2=2)
    np.testing.assert_allclose(np.ptp(diagonal, axis=1), 0, atol=1e-5)
