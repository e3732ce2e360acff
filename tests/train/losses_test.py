import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, special

from rcmed_jax.data.tokens import IGNORE_LABEL
from rcmed_jax.model.rcmed import Prediction
from rcmed_jax.train import losses


def bce64(probability, target):
  """BCE with logarithms held above -100, float64."""
  with np.errstate(divide="ignore"):
    log_p = np.maximum(np.log(probability), -100)
    log_not_p = np.maximum(np.log1p(-probability), -100)
  return -(target * log_p + (1 - target) * log_not_p)


def edges64(values):
  """Morphological gradient, the border ignored."""
  return ndimage.maximum_filter(
    values, 3, mode="constant", cval=-np.inf
  ) - ndimage.minimum_filter(values, 3, mode="constant", cval=np.inf)


def terms64(logits, target):
  """Dice, BCE and boundary of one mask without padding, in float64."""
  logits, target = logits.astype(np.float64), target.astype(np.float64)
  soft = special.expit(logits)
  overlap, size = 2 * (soft * target).sum(), (soft + target).sum()
  bce = np.logaddexp(0, logits) - logits * target
  return {
    "dice": 1 - (overlap / 1000 + 1e-6) / (size / 1000 + 1e-6),
    "bce": bce.mean(),
    "boundary": bce64(edges64(soft), edges64(target)).mean(),
  }


@pytest.fixture(scope="module")
def case(shared):
  return np.load(shared / "vectors/a/case.npz")


@pytest.fixture(scope="module")
def masks():
  """Logits and references [2, 3, 24, 20], smooth as masks are."""
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(2, 3, 24, 20))
  logits = 9 * ndimage.gaussian_filter(noise, (0, 0, 2, 2))
  target = (
    ndimage.gaussian_filter(rng.normal(size=noise.shape), (0, 0, 3, 3)) > 0.02
  )
  return logits.astype(np.float32), target.astype(np.float32)


def test_mask_terms_match_the_release(case):
  shape = case["masks"].shape
  terms = losses.mask_terms(
    case["masks"],
    case["gt_masks"],
    np.ones(shape, bool),
    np.ones(shape[:2], bool),
  )
  for name in losses.MASK_TERMS:
    np.testing.assert_allclose(terms[name], case[name], atol=1e-5, rtol=0)


def test_original_size_logits_match_the_release(case):
  for row in range(2):
    logits = losses.original_size_logits(
      jnp.asarray(case["low_res_masks"][row]),
      image_size=128,
      extent=tuple(case["resized_hw"]),
      original=tuple(case["original_hw"]),
    )
    np.testing.assert_allclose(logits, case["masks"][row], atol=1e-5)


def test_text_loss_matches_the_release(case):
  # Of the 47 states, 15 more than tokens: the image of one id has 16.
  image, extra = 6, 15
  states = np.arange(case["labels"].shape[1])
  before = np.where(states > image, states + extra, states) - 1
  text = losses.text_loss(case["logits"][:, before], case["labels"])
  np.testing.assert_allclose(text, case["ce"], atol=1e-5, rtol=0)
  total = sum(
    getattr(losses.LossConfig(), name) * case[name]
    for name in losses.MASK_TERMS
  )
  np.testing.assert_allclose(total + text, case["loss"], atol=1e-5, rtol=0)


def test_mask_terms_match_float64(masks):
  logits, target = masks
  valid = np.array([[True, True, False], [False, True, True]])
  terms = losses.mask_terms(logits, target, np.ones(logits.shape, bool), valid)
  each = [terms64(logits[b, g], target[b, g]) for b, g in np.argwhere(valid)]
  for name in losses.MASK_TERMS:
    wanted = np.mean([one[name] for one in each])
    np.testing.assert_allclose(terms[name], wanted, rtol=2e-6)


def test_padding_is_as_if_cut_off(masks):
  logits, target = masks
  inside = np.zeros(logits.shape, bool)
  inside[..., :17, :13] = True
  valid = np.ones(logits.shape[:2], bool)
  padded = losses.mask_terms(logits, target, inside, valid)
  wanted = [
    terms64(logits[b, g, :17, :13], target[b, g, :17, :13])
    for b, g in np.ndindex(2, 3)
  ]
  for name in losses.MASK_TERMS:
    np.testing.assert_allclose(
      padded[name], np.mean([one[name] for one in wanted]), rtol=2e-6
    )

  def total(logits):
    return sum(losses.mask_terms(logits, target, inside, valid).values())

  gradient = jax.grad(total)(logits)
  assert np.all(np.isfinite(gradient))
  assert not np.any(np.where(inside, 0, gradient))


def test_an_empty_reference_counts_in_all_terms_but_dice(masks):
  logits, target = masks
  target = target.copy()
  target[0, 1] = 0
  valid = np.array([[True, True, False], [False, False, False]])
  terms = losses.mask_terms(logits, target, np.ones(logits.shape, bool), valid)
  shown, empty = (terms64(logits[0, g], target[0, g]) for g in range(2))
  wanted = {
    "dice": shown["dice"],
    "bce": (shown["bce"] + empty["bce"]) / 2,
    "boundary": (shown["boundary"] + empty["boundary"]) / 2,
  }
  for name, value in wanted.items():
    np.testing.assert_allclose(terms[name], value, rtol=2e-6)


def test_no_valid_mask_gives_zero(masks):
  logits, target = masks
  valid = np.zeros(logits.shape[:2], bool)
  terms = losses.mask_terms(logits, target, np.ones(logits.shape, bool), valid)
  assert all(term == 0 for term in terms.values())


def test_quality_is_held_against_the_iou():
  # By hand, on 4 x 4 pixels: 2 of 6 pixels shared; nothing there, one pixel
  # claimed; a row that does not count.
  logits = np.full((1, 3, 4, 4), -1.0, np.float32)
  logits[0, 0, 0, :] = 1
  logits[0, 1, 2, 2] = 1
  target = np.zeros_like(logits)
  target[0, 0, :2, 1:3] = 1
  quality = jnp.array([[0.5, 0.25, 9.0]])
  valid = np.array([[True, True, False]])
  inside = np.ones(logits.shape, bool)
  value, gradient = jax.value_and_grad(losses.quality_loss, argnums=(0, 1))(
    quality, jnp.asarray(logits), target, inside, valid
  )
  errors = np.array([0.5 - 2 / 6, 0.25])
  np.testing.assert_allclose(value, np.mean(errors**2), rtol=1e-6)
  np.testing.assert_allclose(gradient[0], [[*errors, 0]], rtol=1e-6)
  assert not np.any(gradient[1])  # the mask does not move for it


def test_saturated_logits_have_finite_gradients():
  logits = np.full((1, 1, 6, 6), -200.0, np.float32)
  logits[..., :3] = 200.0
  target = np.zeros_like(logits)
  target[..., 2:5, 2:5] = 1
  ones = np.ones(logits.shape, bool)

  def total(logits):
    return sum(
      losses.mask_terms(logits, target, ones, ones[..., 0, 0]).values()
    )

  value, gradient = jax.value_and_grad(total)(logits)
  assert np.isfinite(value)
  assert np.all(np.isfinite(gradient))


def test_inside_counts_pixels_with_their_centre_before_the_padding():
  inside = losses.inside(jnp.array([[5, 8], [4, 1]]), image_size=8, mask_size=4)
  assert inside[0].sum(0).tolist() == [2, 2, 2, 2]
  # Centres 1 and 3 of 4 rows; a single column has its centre at 1, not below.
  assert inside[1].sum() == 0


TEXT = jnp.float32(1.5)  # of an answer, whichever it was


@pytest.fixture(scope="module")
def predicted(masks):
  logits, target = masks
  prediction = Prediction(
    states_BTD=jnp.zeros((2, 5, 1)),
    masks_KBGYX=jnp.stack([logits + 1.0, logits]),
    quality_BG=jnp.zeros((2, 3)),
  )
  batch = {
    "pixels_BIJC": np.zeros((2, 48, 48, 3), np.uint8),
    "extent_B2": np.array([[48, 48], [32, 48]]),
    "masks_BGIJ": np.pad(target, [(0, 0), (0, 0), (0, 0), (0, 4)]),
    "valid_BG": np.ones((2, 3), bool),
  }
  return prediction, batch


def test_total_is_the_weighted_sum(predicted):
  prediction, batch = predicted
  config = losses.LossConfig(
    text=3.0, dice=5.0, bce=7.0, boundary=11.0, deep_supervision=0.0
  )
  total, terms = losses.losses(prediction, TEXT, batch, config)
  wanted = sum(
    weight * terms[name]
    for name, weight in zip(
      ("text", "dice", "bce", "boundary"), (3, 5, 7, 11), strict=True
    )
  )
  np.testing.assert_allclose(total, wanted, rtol=1e-6)
  assert set(terms) == {"text", "dice", "bce", "boundary"}


def test_quality_joins_the_total_where_it_is_asked_for(predicted):
  prediction, batch = predicted
  without = losses.LossConfig(deep_supervision=0.0)
  total, _ = losses.losses(prediction, TEXT, batch, without)
  config = losses.LossConfig(quality=13.0, deep_supervision=0.0)
  more, terms = losses.losses(prediction, TEXT, batch, config)
  assert terms["quality"] > 0
  np.testing.assert_allclose(more - total, 13 * terms["quality"], rtol=1e-5)


def test_text_is_averaged_over_all_labelled_tokens():
  rng = np.random.default_rng(1)
  labels = rng.integers(0, 7, (2, 5))
  labels[0, :4] = IGNORE_LABEL
  logits = rng.normal(size=(2, 5, 7))
  rows, columns = np.nonzero(labels != IGNORE_LABEL)
  picked = logits[rows, columns]
  wanted = special.logsumexp(picked, axis=1) - np.take_along_axis(
    picked, labels[rows, columns][:, None], 1
  ).squeeze(1)
  assert len(wanted) == 6
  text = losses.text_loss(jnp.float32(logits), labels)
  np.testing.assert_allclose(text, wanted.mean(), rtol=1e-6)
  nothing = np.full_like(labels, IGNORE_LABEL)
  assert losses.text_loss(jnp.float32(logits), nothing) == 0


def test_earlier_steps_add_their_weighted_masks(predicted):
  prediction, batch = predicted
  without = losses.LossConfig(deep_supervision=0.0)
  total, _ = losses.losses(prediction, TEXT, batch, without)
  first = Prediction(
    prediction.states_BTD,
    prediction.masks_KBGYX[:1],
    prediction.quality_BG,
  )
  alone, terms = losses.losses(first, TEXT, batch, without)
  both, _ = losses.losses(
    prediction, TEXT, batch, losses.LossConfig(deep_supervision=0.25)
  )
  np.testing.assert_allclose(
    both - total, 0.25 * (alone - terms["text"]), rtol=1e-5
  )
