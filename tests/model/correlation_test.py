"""The closed loop: it starts as the identity and then does what it says."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import parts
import pytest
import toy

from rcmed_jax.kernels.correlation_attention import correlation_attention
from rcmed_jax.model import correlation
from rcmed_jax.model.config import CorrelationConfig, MaskDecoderConfig
from rcmed_jax.model.correlation import Step, soft_mask
from rcmed_jax.model.rcmed import RCMed


def _model(**settings) -> RCMed:
  """No array is zero: the loop as after some training."""
  return parts.at_random(
    lambda: RCMed(toy.model_config(**settings), rngs=nnx.Rngs(0))
  )


SEG_BG = np.array([[5, 7], [6, 0]])


def _segment(model: RCMed, text_BTD, valid_BG, seg_BG=SEG_BG) -> jax.Array:
  """Masks [K + 1, B, G, 16, 16] from made-up pixels and given states."""
  return _compiled(model, text_BTD, valid_BG, seg_BG)


@jax.jit
def _compiled(model: RCMed, text_BTD, valid_BG, seg_BG) -> jax.Array:
  pixels_BYXC = jax.random.normal(jax.random.key(0), (2, 4, 4, 16))
  image_B = jnp.array([2, 1])
  return model.segment(pixels_BYXC, text_BTD, image_B, seg_BG, valid_BG)[0]


TEXT_BTD = jax.random.normal(jax.random.key(1), (2, 10, 16))
VALID_BG = jnp.array([[True, True], [True, False]])


@pytest.fixture(scope="module")
def awake() -> RCMed:
  """One step; do not change it."""
  return _model(correlation_steps=1)


def test_new_step_returns_exactly_what_it_got():
  with nnx.use_eager_sharding(False):
    step = Step(toy.model_config(correlation_steps=1), rngs=nnx.Rngs(0))
  pixels_BYXC = jax.random.normal(jax.random.key(0), (2, 4, 4, 16))
  pixels, words = step(
    pixels_BYXC, TEXT_BTD, jnp.ones((2, 10), bool), jnp.ones((2, 4, 4))
  )
  np.testing.assert_array_equal(pixels, pixels_BYXC)
  np.testing.assert_array_equal(words, TEXT_BTD)


def test_new_steps_change_no_mask():
  """All that may differ is how two programs round."""
  new = _model(correlation_steps=2)
  arrays = nnx.to_pure_dict(nnx.state(new))
  for step in arrays["correlation"]["steps"].values():
    for name in ("pixel_out", "word_out"):
      step[name]["kernel"] = jnp.zeros_like(step[name]["kernel"])
    step["gate"] = jnp.zeros_like(step["gate"])
  nnx.update(new, arrays)
  masks = _segment(new, TEXT_BTD, VALID_BG)
  assert masks.shape[0] == 3

  plain = _model()
  del arrays["correlation"]
  nnx.update(plain, arrays)
  (reference,) = _segment(plain, TEXT_BTD, VALID_BG)
  scale = np.abs(reference).max()
  for step in masks:
    np.testing.assert_allclose(step, reference, atol=5e-6 * scale)


def test_no_steps_no_parameters():
  model = nnx.eval_shape(lambda: RCMed(toy.model_config(), rngs=nnx.Rngs(0)))
  assert "correlation" not in nnx.to_pure_dict(nnx.state(model))


def test_trained_step_changes_the_masks(awake):
  before, after = _segment(awake, TEXT_BTD, VALID_BG)
  assert np.abs(after - before).max() > 1e-3


@pytest.fixture(scope="module")
def gradients(awake):
  """Of all valid masks, with respect to the model and the text's states."""

  @jax.jit
  @functools.partial(jax.grad, argnums=(0, 1))
  def masks_squared(model, text_BTD):
    masks_KBGYX = _segment(model, text_BTD, VALID_BG)
    return ((masks_KBGYX * VALID_BG[None, ..., None, None]) ** 2).mean()

  return masks_squared(awake, TEXT_BTD)


def test_all_parameters_learn(gradients):
  for path, gradient in nnx.to_flat_state(nnx.state(gradients[0].correlation)):
    assert np.any(gradient[...] != 0), path


def test_description_after_the_last_seg_is_never_read(gradients):
  """The last [SEG]s stand at 7 and 6; the placeholders at 2 and 1."""
  seen_BT = np.abs(gradients[1]).sum(-1) > 0
  expected_BT = np.arange(10)[None] <= np.array([[6], [5]])
  expected_BT[[0, 1], [2, 1]] = False
  np.testing.assert_array_equal(seen_BT, expected_BT)


def test_invalid_targets_do_not_touch_the_others(awake):
  masks = _segment(awake, TEXT_BTD, VALID_BG)
  moved_BG = np.array([[5, 7], [6, 9]])
  elsewhere = _segment(awake, TEXT_BTD, VALID_BG, moved_BG)
  np.testing.assert_array_equal(masks[:, 0], elsewhere[:, 0])
  np.testing.assert_array_equal(masks[:, 1, 0], elsewhere[:, 1, 0])
  assert np.any(masks[:, 1, 1] != elsewhere[:, 1, 1])


def test_text_without_seg_leaves_everything_as_it_was(awake):
  before, *after = _segment(awake, TEXT_BTD, jnp.zeros((2, 2), bool))
  for masks in after:
    np.testing.assert_allclose(masks, before, atol=1e-5)


@pytest.mark.parametrize("vision_to_language", [True, False])
@pytest.mark.parametrize("language_to_vision", [True, False])
def test_switches_turn_off_either_half(vision_to_language, language_to_vision):
  config = toy.model_config(correlation_steps=1)
  config = dataclasses.replace(
    config,
    correlation=dataclasses.replace(
      config.correlation,
      vision_to_language=vision_to_language,
      language_to_vision=language_to_vision,
    ),
  )
  step = parts.at_random(lambda: Step(config, rngs=nnx.Rngs(0)))
  pixels_BYXC = jax.random.normal(jax.random.key(0), (2, 4, 4, 16))
  pixels, words = step(
    pixels_BYXC, TEXT_BTD, jnp.ones((2, 10), bool), jnp.ones((2, 4, 4))
  )
  assert np.any(pixels != pixels_BYXC) == language_to_vision
  assert np.any(words != TEXT_BTD) == vision_to_language


def test_kernel_and_reference_give_the_same_step(monkeypatch):
  """Values and gradients of all parameters, through the kernel's body."""
  config = dataclasses.replace(
    toy.model_config(),
    decoder=MaskDecoderConfig(width=128, heads=2, hidden=32),
    correlation=CorrelationConfig(steps=1, heads=1),
  )
  step = parts.at_random(lambda: Step(config, rngs=nnx.Rngs(0)))
  pixels_BYXC = jax.random.normal(jax.random.key(0), (2, 4, 4, 128))
  words_BTC = jax.random.normal(jax.random.key(1), (2, 10, 128))
  mask_BT = jnp.arange(10)[None] < jnp.array([[10], [7]])
  soft_BYX = jax.random.uniform(jax.random.key(2), (2, 4, 4))

  def run(implementation):
    monkeypatch.setattr(
      correlation,
      "correlation_attention",
      functools.partial(
        correlation_attention, implementation=implementation, interpret=True
      ),
    )

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def squared(step):
      refined = step(pixels_BYXC, words_BTC, mask_BT, soft_BYX)
      return sum((array**2).mean() for array in refined), refined

    (_, refined), gradients = squared(step)
    return *refined, *jax.tree.leaves(nnx.state(gradients))

  for found, expected in zip(run("pallas"), run("reference"), strict=True):
    # The gate is one number, whose gradient is a small difference of sums.
    tolerance = 1e-3 if expected.size == 1 else 1e-5
    assert parts.relative_error(found, np.asarray(expected)) < tolerance


def test_soft_mask_joins_valid_targets_by_their_maximum():
  """A 2 x 2 grid: each cell is the middle of its 4 x 4 logits."""
  masks_BGYX = np.full((1, 3, 8, 8), -50.0, np.float32)
  masks_BGYX[0, 0, :4, :4] = 50.0
  masks_BGYX[0, 1, :4] = 0.0
  masks_BGYX[0, 2] = 50.0
  valid_BG = jnp.array([[True, True, False]])
  np.testing.assert_allclose(
    soft_mask(masks_BGYX, valid_BG, 2)[0], [[1.0, 0.5], [0.0, 0.0]], atol=1e-6
  )
  assert not np.any(soft_mask(masks_BGYX, ~valid_BG & False, 2))
