"""New classes: the formulas in float64, and where they act in the model."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import parts
import pytest
import toy

from rcmed_jax.model import adapt
from rcmed_jax.model.image_encoder import normalize
from rcmed_jax.model.rcmed import RCMed

GRID = toy.IMAGE_SIZE // 16
WIDTH = 16  # of the toy's features
BATCH = 2


def _bilinear(values_IJ: np.ndarray, rows: int, columns: int) -> np.ndarray:
  """Half-pixel centres, no antialiasing, one output after the other."""
  out = np.zeros((rows, columns))
  height, width = values_IJ.shape
  for row, column in np.ndindex(rows, columns):
    y = np.clip((row + 0.5) * height / rows - 0.5, 0, height - 1)
    x = np.clip((column + 0.5) * width / columns - 0.5, 0, width - 1)
    top, left = int(y), int(x)
    below, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down, across = y - top, x - left
    out[row, column] = (1 - down) * (
      (1 - across) * values_IJ[top, left] + across * values_IJ[top, right]
    ) + down * (
      (1 - across) * values_IJ[below, left] + across * values_IJ[below, right]
    )
  return out


def _likeness(pixels_YXC: np.ndarray, prototype_C: np.ndarray) -> np.ndarray:
  cosine = np.array(
    [
      [p @ prototype_C / np.linalg.norm(p) / np.linalg.norm(prototype_C)]
      for p in pixels_YXC.reshape(-1, pixels_YXC.shape[-1])
    ]
  )
  deviation = np.sqrt(((cosine - cosine.mean()) ** 2).sum() / (len(cosine) - 1))
  scores = (cosine - cosine.mean()) / (deviation + 1e-6)
  return (1 / (1 + np.exp(-scores))).reshape(pixels_YXC.shape[:2])


def _adaptation(seed: int = 0, **changes) -> adapt.Adaptation:
  rng = np.random.default_rng(seed)
  prototype_BC = rng.normal(size=(BATCH, WIDTH))
  prototype_BC /= np.linalg.norm(prototype_BC, axis=1, keepdims=True)
  values = {
    "prototype_BC": prototype_BC,
    "prior_BYX": rng.uniform(size=(BATCH, 4 * GRID, 4 * GRID)),
    "pixel_strength_B": [0.3, 0.7],
    "token_strength_B": [0.5, 0.0],
    "logit_strength_B": [0.5, 1.5],
  }
  return adapt.Adaptation(
    **{name: jnp.float32(v) for name, v in (values | changes).items()}
  )


def test_a_prototype_is_the_mean_feature_under_the_mask():
  rng = np.random.default_rng(1)
  pixels = rng.normal(size=(3, 4, 4, 5))
  masks = rng.uniform(size=(3, 32, 32))
  masks[1] = 0
  masks[2] = 0
  masks[2, 3:5, 3] = 1  # half of what one cell reads
  found, usable = adapt.prototypes(jnp.float32(pixels), jnp.float32(masks))
  for one, pixels_YXC, mask_IJ in zip(found, pixels, masks, strict=True):
    weights = _bilinear(mask_IJ, 4, 4)
    total = np.einsum("yxc,yx->c", pixels_YXC, weights)
    expected = total / (weights.sum() + 1e-6)
    np.testing.assert_allclose(one, expected, rtol=1e-4, atol=1e-5)
  assert usable.tolist() == [True, False, False]


def test_likeness_is_the_standardised_cosine():
  rng = np.random.default_rng(2)
  pixels = rng.normal(size=(BATCH, 5, 3, WIDTH)) * 7
  given = _adaptation()
  found = adapt.likeness(jnp.float32(pixels), given.prototype_BC)
  for one, pixels_YXC, prototype_C in zip(
    found, pixels, np.float64(given.prototype_BC), strict=True
  ):
    np.testing.assert_allclose(one, _likeness(pixels_YXC, prototype_C), 1e-4)


def test_one_colour_is_like_nothing_more_than_itself():
  pixels = jnp.ones((BATCH, 4, 4, WIDTH))
  found = adapt.likeness(pixels, _adaptation().prototype_BC)
  np.testing.assert_allclose(found, 0.5, atol=0.1)


def test_logits_rise_by_the_mean_of_those_that_exist():
  rng = np.random.default_rng(3)
  masks = rng.normal(size=(BATCH, 3, 4, 4 * GRID, 4 * GRID)) * 9
  valid = np.array([[True, False, True], [False, False, False]])
  given = _adaptation()
  found = adapt.turn_up_logits(jnp.float32(masks), jnp.asarray(valid), given)
  mean = np.abs(masks[0, [0, 2]]).mean()
  prior = np.float64(given.prior_BYX)
  expected = masks[0, :, 0] + 0.5 * (mean + 1e-6) * prior[0]
  np.testing.assert_allclose(found[0], expected, rtol=1e-5, atol=1e-5)
  expected = masks[1, :, 0] + 1.5 * 1e-6 * prior[1]
  np.testing.assert_allclose(found[1], expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def model() -> RCMed:
  config = toy.model_config(correlation_steps=1)
  return parts.at_random(lambda: RCMed(config, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def batch():
  arrays = toy.batch(BATCH)
  del arrays["record_B"], arrays["masks_BGIJ"]
  return jax.tree.map(jnp.asarray, arrays)


@jax.jit
def _run(model, batch, given):
  return model(batch, adaptation=given)


def test_no_strength_changes_nothing(model, batch):
  nothing = np.zeros(BATCH)
  given = _adaptation(
    pixel_strength_B=nothing, token_strength_B=nothing, logit_strength_B=nothing
  )
  plain, adapted = _run(model, batch, None), _run(model, batch, given)
  for name in ("states_BTD", "masks_KBGYX", "quality_BG"):
    np.testing.assert_allclose(
      getattr(adapted, name), getattr(plain, name), rtol=1e-4, atol=1e-4
    )


def test_the_encoder_s_outputs_are_turned_up_before_anything_reads_them(
  model, batch
):
  given = _adaptation()

  @jax.jit
  def run(model, batch, given):
    image = batch["pixels_BIJC"], batch["extent_B2"]
    plain = model.image_encoder(normalize(*image, "rgb"))
    return plain, model.encode_image(*image, given)

  (tokens, pixels), (visual, turned) = jax.device_get(run(model, batch, given))
  for row in range(BATCH):
    like = _likeness(
      np.float64(pixels[row]), np.float64(given.prototype_BC[row])
    )
    gain = 1 + float(given.pixel_strength_B[row]) * like[..., None]
    np.testing.assert_allclose(turned[row], pixels[row] * gain, rtol=1e-4)
  prior = np.stack(
    [_bilinear(np.float64(one), GRID, GRID) for one in given.prior_BYX]
  )
  strength = np.float64(given.token_strength_B)[:, None, None, None]
  raised = np.float64(tokens) * (1 + strength * prior[..., None])
  half = GRID // 2
  squares = raised.reshape(BATCH, half, 2, half, 2, WIDTH).mean(axis=(2, 4))
  expected = model.projector(jnp.float32(squares.reshape(BATCH, -1, WIDTH)))
  np.testing.assert_allclose(visual, expected, rtol=1e-3, atol=1e-5)


def test_every_step_s_masks_are_raised_by_the_prior(model, batch):
  nothing = np.zeros(BATCH)
  given = _adaptation(pixel_strength_B=nothing, token_strength_B=nothing)

  @jax.jit
  def first(model, batch):
    visual, pixels = model.encode_image(
      batch["pixels_BIJC"], batch["extent_B2"]
    )
    states, image = model.embed(batch["tokens_BT"], visual)
    text, visual = model.part(model.language(states), image)
    before = jnp.maximum(batch["seg_BG"] - 1, 0)[:, :, None]
    query = model.query(jnp.take_along_axis(text, before, axis=1))
    return model.mask_decoder.all_masks(model.guide(pixels, visual), query)[0]

  masks = np.float64(first(model, batch))
  found = _run(model, batch, given).masks_KBGYX[0]
  for row in range(BATCH):
    valid = np.asarray(batch["valid_BG"][row])
    mean = np.abs(masks[row, valid]).mean()
    strength = float(given.logit_strength_B[row])
    prior = np.float64(given.prior_BYX[row])
    expected = masks[row, :, 0] + strength * (mean + 1e-6) * prior
    np.testing.assert_allclose(found[row], expected, rtol=1e-3, atol=1e-4)
