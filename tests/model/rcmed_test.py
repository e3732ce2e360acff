"""The whole model: the released vectors, and what a batch may hold."""

from collections import Counter
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import parts
import pytest
import released
import toy

from rcmed_jax.convert import names
from rcmed_jax.data.tokens import IGNORE_LABEL, IMAGE_TOKEN
from rcmed_jax.model import layers, presets
from rcmed_jax.model.config import ModelConfig
from rcmed_jax.model.lora import Lora
from rcmed_jax.model.rcmed import RCMed


def _build(config: ModelConfig) -> RCMed:
  return parts.at_random(lambda: RCMed(config, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def model() -> RCMed:
  """A toy with one correlation step; do not change it."""
  return _build(toy.model_config(correlation_steps=1))


def _batch(**changes) -> dict[str, jax.Array]:
  batch = toy.batch(2)
  del batch["record_B"], batch["masks_BGIJ"]
  return jax.tree.map(jnp.asarray, {**batch, **changes})


def _close(ours, reference, tolerance=1e-5) -> None:
  assert ours.shape == reference.shape
  assert parts.relative_error(ours, np.asarray(reference)) <= tolerance


# The released vectors.


def test_vectors_match_from_the_image_file_on(shared):
  model, case = released.model(shared), released.case(shared)
  batch = released.batch(shared)

  @jax.jit
  def run(model, batch):
    visual_BED, pixels_BYXC = model.encode_image(
      batch["pixels_BIJC"], batch["extent_B2"]
    )
    states_BSD, image_B = model.embed(batch["tokens_BT"], visual_BED)
    hidden_BSD = model.language(states_BSD)
    text_BTD, visual_BED = model.part(hidden_BSD, image_B)
    state_BG1 = batch["seg_BG"][..., None] - 1
    return {
      "hidden": hidden_BSD,
      "logits": model.language.logits(hidden_BSD),
      "feedback": jnp.moveaxis(
        model.guide(jnp.zeros_like(pixels_BYXC), visual_BED), -1, 1
      ),
      "seg_queries": model.query(
        jnp.take_along_axis(text_BTD, state_BG1, axis=1)
      ),
      "prediction": parts.say(model, batch),
    }

  found = run(model, batch)
  prediction = found.pop("prediction")
  found["low_res_masks"] = prediction.masks_KBGYX[-1]
  for name, array in found.items():
    _close(array, case[name])
  (image,) = set(np.argmax(batch["tokens_BT"] == IMAGE_TOKEN, axis=1))
  after = case["logits"][:, image + model.config.visual_tokens - 1 :]
  _close(prediction.logits_BTV[:, image + 1 :], after[:, :-1])
  _close(prediction.logits_BTV[:, 1 : image + 1], case["logits"][:, :image])


def test_vectors_losses_and_gradients_match(shared):
  """The release's loss at the original size, written out here once more."""
  case, batch = released.case(shared), released.batch(shared)
  graph, state = nnx.split(released.model(shared))

  @jax.jit
  def losses_and_gradients(state, batch):
    def loss(state):
      said = parts.say(nnx.merge(graph, state), batch)
      losses = _release_losses(said, batch, case)
      weights = {"ce": 1.0, "dice": 2.0, "bce": 0.5, "boundary": 0.2}
      return sum(weights[name] * losses[name] for name in weights), losses

    return jax.grad(loss, has_aux=True)(state)

  gradients, losses = losses_and_gradients(state, batch)
  for name, value in losses.items():
    _close(value, case[name])
  arrays = nnx.to_pure_dict(gradients)
  entries = {
    entry.release: entry
    for entry in names.entries(released.model_config(shared))
  }
  checked = 0
  for name, reference in case.items():
    if not name.startswith("grad/"):
      continue
    entry = entries[name.removeprefix("grad/")]
    array = arrays
    for key in entry.path.split("."):
      array = array[key]
    ours = entry.transform.to_release(np.asarray(array)[entry.index])
    _close(ours, reference, 1e-4)
    checked += 1
  assert checked == 7


def _release_losses(prediction, batch, case) -> dict[str, jax.Array]:
  log_probs = jax.nn.log_softmax(prediction.logits_BTV)
  labels_BT = batch["labels_BT"]
  kept_BT = labels_BT != IGNORE_LABEL
  chosen_BT1 = jnp.take_along_axis(
    log_probs, jnp.where(kept_BT, labels_BT, 0)[..., None], axis=-1
  )
  low_BYXG = jnp.moveaxis(prediction.masks_KBGYX[-1], 1, -1)
  size = batch["pixels_BIJC"].shape[1]
  rows, columns = (int(side) for side in case["resized_hw"])
  square = layers.resize_bilinear(low_BYXG, (size, size))
  logits = layers.resize_bilinear(
    square[:, :rows, :columns], tuple(map(int, case["original_hw"]))
  )
  masks = jnp.moveaxis(case["gt_masks"], 1, -1)
  chance = jax.nn.sigmoid(logits)

  def cross_entropy(chance):
    return -(masks * jnp.log(chance) + (1 - masks) * jnp.log(1 - chance))

  def edges(values):
    window, ones = (1, 3, 3, 1), (1, 1, 1, 1)
    most = jax.lax.reduce_window(
      values, -jnp.inf, jax.lax.max, window, ones, "SAME"
    )
    least = jax.lax.reduce_window(
      values, jnp.inf, jax.lax.min, window, ones, "SAME"
    )
    return most - least

  both, either = (chance * masks).sum((1, 2)), (chance + masks).sum((1, 2))
  dice = 1 - (2 * both / 1000 + 1e-6) / (either / 1000 + 1e-6)
  ours, true = edges(chance), edges(masks)
  ours = jnp.clip(ours, 1e-12, 1 - 1e-7)
  boundary = -(true * jnp.log(ours) + (1 - true) * jnp.log(1 - ours))
  return {
    "ce": -(chosen_BT1[..., 0] * kept_BT).sum() / kept_BT.sum(),
    "dice": dice.mean(),
    "bce": cross_entropy(chance).mean(),
    "boundary": boundary.mean(),
  }


# What a batch may hold.


def test_placeholder_may_stand_anywhere(model):
  """Row 0 alone and beside a row whose image comes later."""
  tokens_BT = np.array(toy.batch(2)["tokens_BT"])
  tokens_BT[1, toy.IMAGE_AT] = 3
  tokens_BT[1, 4] = IMAGE_TOKEN
  both = parts.say(model, _batch(tokens_BT=tokens_BT))
  for row in range(2):
    alone = jax.tree.map(
      lambda array, row=row: array[row : row + 1], _batch(tokens_BT=tokens_BT)
    )
    single = parts.say(model, alone)
    _close(both.logits_BTV[row], single.logits_BTV[0])
    _close(both.masks_KBGYX[:, row], single.masks_KBGYX[:, 0])


def test_visual_tokens_take_the_place_of_the_placeholder(model):
  tokens_BT = jnp.array([[7, 8, IMAGE_TOKEN, 9], [IMAGE_TOKEN, 8, 9, 0]])
  visual_BED = jax.random.normal(jax.random.key(0), (2, 4, 16))
  states_BSD, image_B = model.embed(tokens_BT, visual_BED)
  np.testing.assert_array_equal(image_B, [2, 0])

  def words(*ids):
    return model.language.embed(jnp.array(ids))

  expected_BSD = [
    jnp.concatenate([words(7, 8), visual_BED[0], words(9)]),
    jnp.concatenate([visual_BED[1], words(8, 9, 0)]),
  ]
  np.testing.assert_array_equal(states_BSD, expected_BSD)
  text_BTD, again_BED = model.part(states_BSD, image_B)
  np.testing.assert_array_equal(again_BED, visual_BED)
  np.testing.assert_array_equal(
    text_BTD[0], jnp.stack([*words(7, 8), visual_BED[0, -1], *words(9)])
  )


def test_padding_of_the_text_changes_nothing(model):
  batch = _batch()
  room = ((0, 0), (0, 3))
  padded = {
    **batch,
    "tokens_BT": jnp.pad(batch["tokens_BT"], room),
    "labels_BT": jnp.pad(
      batch["labels_BT"], room, constant_values=IGNORE_LABEL
    ),
  }
  short, long = parts.say(model, batch), parts.say(model, padded)
  _close(long.logits_BTV[:, : toy.TOKENS], short.logits_BTV)
  _close(long.masks_KBGYX, short.masks_KBGYX)


def test_padding_of_the_picture_is_never_read(model):
  batch = _batch()
  rows, columns = batch["extent_B2"][1]
  loud = batch["pixels_BIJC"].at[1, rows:].set(200)
  loud = loud.at[1, :, columns:].set(200)
  np.testing.assert_array_equal(
    parts.say(model, {**batch, "pixels_BIJC": loud}).masks_KBGYX,
    parts.say(model, batch).masks_KBGYX,
  )


def test_rows_of_other_lengths_and_targets_are_what_they_are_alone(model):
  """Two targets, one, none; 12, 9 and 7 tokens; images at 2, 0 and 4."""
  rng = np.random.default_rng(0)
  rows = ((12, 2, (7, 9)), (9, 0, (6,)), (7, 4, ()))
  tokens_BT = np.zeros((3, 12), np.int32)
  labels_BT = np.full((3, 12), IGNORE_LABEL, np.int32)
  seg_BG, valid_BG = np.zeros((3, 2), np.int32), np.zeros((3, 2), bool)
  for row, (length, image, places) in enumerate(rows):
    tokens_BT[row, :length] = rng.integers(1, toy.SEG, length)
    tokens_BT[row, image] = IMAGE_TOKEN
    tokens_BT[row, list(places)] = toy.SEG
    labels_BT[row, 5:length] = tokens_BT[row, 5:length]
    seg_BG[row, : len(places)] = places
    valid_BG[row, : len(places)] = True
  pictures = toy.batch(3)
  whole = {
    "pixels_BIJC": pictures["pixels_BIJC"],
    "extent_B2": pictures["extent_B2"],
    "tokens_BT": tokens_BT,
    "length_B": np.array([length for length, _, _ in rows], np.int32),
    "labels_BT": labels_BT,
    "seg_BG": seg_BG,
    "valid_BG": valid_BG,
  }
  together = parts.say(model, jax.tree.map(jnp.asarray, whole))
  for row in (1, 2):  # row 0 is not padded
    length, _, places = rows[row]
    alone = {name: values[row : row + 1] for name, values in whole.items()}
    for name in ("tokens_BT", "labels_BT"):
      alone[name] = alone[name][:, :length]
    targets = max(len(places), 1)
    for name in ("seg_BG", "valid_BG"):
      alone[name] = alone[name][:, :targets]
    single = parts.say(model, jax.tree.map(jnp.asarray, alone))
    _close(together.logits_BTV[row, :length], single.logits_BTV[0])
    if places:
      _close(together.masks_KBGYX[:, row, :targets], single.masks_KBGYX[:, 0])
      _close(together.quality_BG[row, :targets], single.quality_BG[0])


def test_batch_without_any_target_trains_on_text_alone(model):
  batch = _batch(
    seg_BG=jnp.zeros((2, 2), jnp.int32), valid_BG=jnp.zeros((2, 2), bool)
  )

  @jax.jit
  @jax.grad
  def gradients(model):
    said = parts.say(model, batch)
    masks = said.masks_KBGYX * batch["valid_BG"][None, ..., None, None]
    return masks.sum() + (said.logits_BTV**2).mean()

  for path, gradient in nnx.to_flat_state(nnx.state(gradients(model))):
    assert np.all(np.isfinite(gradient[...])), path


def test_answer_never_reaches_the_question(model):
  """Causality through the whole model, by gradient of one logit."""
  batch = _batch()
  states_BSD, image_B = model.embed(
    batch["tokens_BT"], jnp.ones((2, 4, 16), jnp.float32)
  )

  @jax.jit
  @jax.grad
  def influence(states_BSD):
    text_BTD, _ = model.part(model.language(states_BSD), image_B)
    return text_BTD[:, 5].sum()

  seen_S = np.abs(influence(states_BSD)).sum((0, 2)) > 0
  np.testing.assert_array_equal(seen_S, np.arange(len(seen_S)) <= 5 + 3)


def test_prefix_lets_the_picture_read_the_question_but_not_the_answer(model):
  config = dataclasses.replace(
    model.config,
    language=dataclasses.replace(model.config.language, attention="prefix"),
  )
  free = _build(config)
  batch = _batch()

  def logits_after(model, index):
    """Logits once the token at `index` is another one."""
    tokens_BT = batch["tokens_BT"].at[:, index].add(1)
    return parts.say(model, {**batch, "tokens_BT": tokens_BT}).logits_BTV

  before = {
    "prefix": parts.say(free, batch).logits_BTV,
    "causal": parts.say(model, batch).logits_BTV,
  }
  question, answer = toy.ANSWER_AT - 1, toy.ANSWER_AT
  # Token 1 is predicted by a state before the picture.
  after = logits_after(free, question)
  assert np.all(np.any(after[:, 1] != before["prefix"][:, 1], axis=-1))
  after = logits_after(model, question)
  np.testing.assert_array_equal(after[:, 1], before["causal"][:, 1])
  after = logits_after(free, answer)
  np.testing.assert_array_equal(
    after[:, : answer + 1], before["prefix"][:, : answer + 1]
  )


def test_switches_cut_either_half(model):
  config = dataclasses.replace(
    model.config,
    correlation=dataclasses.replace(
      model.config.correlation,
      vision_to_language=False,
      language_to_vision=False,
    ),
  )
  cut = _build(config)
  batch = _batch()
  visual_BED, pixels_BYXC = jax.jit(RCMed.encode_image)(
    cut, batch["pixels_BIJC"], batch["extent_B2"]
  )
  assert not np.any(visual_BED)
  guided_BYXC = cut.guide(pixels_BYXC, jnp.ones((2, 4, 16)))
  np.testing.assert_array_equal(guided_BYXC, pixels_BYXC)


def test_dropout_draws_from_its_key():
  model = _build(toy.model_config(lora_rank=2, dropout=0.3))
  first, again, other = (
    parts.say(model, _batch(), jax.random.key(seed)) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first.masks_KBGYX, again.masks_KBGYX)
  for name in ("masks_KBGYX", "logits_BTV"):
    assert np.any(getattr(first, name) != getattr(other, name))


def test_bfloat16_arithmetic_gives_float32_results(model):
  half = _build(toy.model_config(correlation_steps=1, dtype="bfloat16"))
  exact, rounded = parts.say(model, _batch()), parts.say(half, _batch())
  for ours, reference in zip(
    jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True
  ):
    assert ours.dtype == jnp.float32
    _close(ours, reference, 0.1)


def test_full_size_has_the_release_s_parameters():
  model = nnx.eval_shape(lambda: RCMed(presets.SYRE_7B, rngs=nnx.Rngs(0)))
  counts: Counter[str] = Counter()
  for path, variable in nnx.to_flat_state(nnx.state(model, nnx.Param)):
    counts[_part(path, variable)] += int(np.prod(variable.shape))
  assert counts == {
    "embedding + head": 262_201_344,
    "SAM": 641_090_608,
    "two heads": 35_660_288,
    "projector": 22_028_288,
    "LoRA": 16_777_216,
    "frozen": 6_476_271_616,
  }
  assert counts.total() == 7_454_029_360


def _part(path, variable) -> str:
  if isinstance(variable, Lora):
    return "LoRA"
  if path[0] == "language":
    trains = path[1] in ("embedding", "head")
    return "embedding + head" if trains else "frozen"
  return {
    "image_encoder": "SAM",
    "mask_decoder": "SAM",
    "feedback": "two heads",
    "query": "two heads",
    "projector": "projector",
  }[path[0]]
