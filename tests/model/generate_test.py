"""Generation against the forward pass that is given the same answer."""

import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import parts
import pytest
import toy

from rcmed_jax.data.tokens import IGNORE_LABEL, IMAGE_TOKEN
from rcmed_jax.model import generate as stages
from rcmed_jax.model import sampling
from rcmed_jax.model.generate import Generation, generate
from rcmed_jax.model.rcmed import RCMed

MAX_NEW = 6
NEVER = -1  # an id that no token has


def _model(attention: str) -> RCMed:
  """A toy whose correlation step is awake."""
  config = toy.model_config(correlation_steps=1)
  config = dataclasses.replace(
    config,
    language=dataclasses.replace(config.language, attention=attention),
  )
  return parts.at_random(lambda: RCMed(config, rngs=nnx.Rngs(0)))


@pytest.fixture(scope="module")
def model() -> RCMed:
  """Do not change it."""
  return _model("causal")


def _prompts() -> dict[str, np.ndarray]:
  """Two prompts of 5 and 7 tokens, their images at 2 and 1."""
  batch = toy.batch(2)
  tokens_BT = np.array(
    [[1, 9, IMAGE_TOKEN, 4, 7, 0, 0], [1, IMAGE_TOKEN, 5, 20, 11, 3, 8]],
    np.int32,
  )
  return {
    "pixels_BIJC": batch["pixels_BIJC"],
    "extent_B2": batch["extent_B2"],
    "tokens_BT": tokens_BT,
    "length_B": np.array([5, 7], np.int32),
  }


@functools.partial(jax.jit, static_argnames=("max_new", "max_targets"))
def _compiled(model, prompts, **settings) -> Generation:
  return generate(model, **prompts, **settings)


def _generate(model: RCMed, prompts=None, **settings) -> Generation:
  """One program for all ids and prompts of the same shapes."""
  defaults = {
    "seg_id": NEVER,
    "end_id": NEVER,
    "max_new": MAX_NEW,
    "max_targets": 2,
    "choice": sampling.greedy(2, MAX_NEW),
  }
  return _compiled(model, prompts or _prompts(), **defaults | settings)


def _forced(model: RCMed, answer: Generation, seg_id: int):
  """The training pass over prompt and answer, row by row as in a batch."""
  prompts = _prompts()
  tokens_BT = np.zeros((2, 7 + MAX_NEW), np.int32)
  labels_BT = np.full_like(tokens_BT, IGNORE_LABEL)
  seg_BG = np.zeros((2, 2), np.int32)
  for row, length in enumerate(prompts["length_B"]):
    end = length + MAX_NEW
    tokens_BT[row, :length] = prompts["tokens_BT"][row, :length]
    tokens_BT[row, length:end] = answer.tokens_BT[row]
    labels_BT[row, length:end] = answer.tokens_BT[row]
    found = np.flatnonzero(np.asarray(answer.tokens_BT[row]) == seg_id)[:2]
    seg_BG[row, : len(found)] = length + found
  batch = {
    "pixels_BIJC": prompts["pixels_BIJC"],
    "extent_B2": prompts["extent_B2"],
    "tokens_BT": tokens_BT,
    "length_B": prompts["length_B"] + MAX_NEW,
    "labels_BT": labels_BT,
    "seg_BG": seg_BG,
    "valid_BG": np.asarray(answer.seg_valid_BG),
  }
  return parts.say(model, batch)


@pytest.mark.parametrize("attention", ["causal", "prefix"])
def test_answers_equal_the_pass_that_is_given_them(attention):
  model = _model(attention)
  # An id that both rows emit in mid-answer stands for [SEG].
  tokens_BT = np.asarray(_generate(model).tokens_BT)
  seg_id = int(tokens_BT[0, 2])
  answer = _generate(model, seg_id=seg_id)
  np.testing.assert_array_equal(answer.tokens_BT, tokens_BT)
  assert np.asarray(answer.seg_valid_BG)[0, 0]

  forced = _forced(model, answer, seg_id)
  for row, length in enumerate(_prompts()["length_B"]):
    logits_TV = forced.logits_BTV[row, length : length + MAX_NEW]
    np.testing.assert_array_equal(jnp.argmax(logits_TV, -1), tokens_BT[row])
    log_prob_T = jnp.take_along_axis(
      jax.nn.log_softmax(logits_TV), tokens_BT[row][:, None], axis=-1
    )[:, 0]
    np.testing.assert_allclose(
      answer.token_log_prob_BT[row], log_prob_T, atol=1e-4
    )
  valid_BG = np.asarray(answer.seg_valid_BG)
  np.testing.assert_allclose(
    np.asarray(answer.masks_BGYX)[valid_BG],
    np.asarray(forced.masks_KBGYX[-1])[valid_BG],
    atol=1e-4,
  )
  np.testing.assert_allclose(
    np.asarray(answer.quality_BG)[valid_BG],
    np.asarray(forced.quality_BG)[valid_BG],
    atol=1e-4,
  )


def test_ragged_prompts_are_answered_as_each_would_be_alone(model):
  seg_id = int(_generate(model).tokens_BT[0, 2])
  both = _generate(model, seg_id=seg_id)
  for row, length in enumerate(_prompts()["length_B"]):
    prompt = {name: one[row : row + 1] for name, one in _prompts().items()}
    prompt["tokens_BT"] = prompt["tokens_BT"][:, :length]
    choice = sampling.greedy(1, MAX_NEW)
    alone = _generate(model, prompt, seg_id=seg_id, choice=choice)
    np.testing.assert_array_equal(both.tokens_BT[row], alone.tokens_BT[0])
    np.testing.assert_array_equal(both.seg_valid_BG[row], alone.seg_valid_BG[0])
    valid_G = np.asarray(alone.seg_valid_BG[0])
    np.testing.assert_allclose(
      np.asarray(both.masks_BGYX[row])[valid_G],
      np.asarray(alone.masks_BGYX[0])[valid_G],
      atol=1e-4,
    )


def test_rows_do_not_see_each_other(model):
  prompts = _prompts()
  prompts["tokens_BT"][1, 3:] += 1
  prompts["pixels_BIJC"][1] += 50
  both, other = _generate(model), _generate(model, prompts)
  np.testing.assert_array_equal(both.tokens_BT[0], other.tokens_BT[0])
  np.testing.assert_array_equal(both.masks_BGYX[0], other.masks_BGYX[0])
  assert np.any(both.masks_BGYX[1] != other.masks_BGYX[1])


def test_answer_stops_after_the_end_token(model):
  free = _generate(model)
  end_id = int(free.tokens_BT[0, 1])
  ended = _generate(model, end_id=end_id)
  for row in range(2):
    free_T = np.asarray(free.tokens_BT[row])
    ends = np.flatnonzero(free_T == end_id)
    length = ends[0] + 1 if len(ends) else MAX_NEW
    assert ended.length_B[row] == length
    np.testing.assert_array_equal(
      ended.tokens_BT[row, :length], free_T[:length]
    )
    assert not np.any(ended.tokens_BT[row, length:])
    assert not np.any(ended.token_log_prob_BT[row, length:])


def test_segs_are_found_in_order_and_cut_to_max_targets(model):
  seg_id = int(_generate(model).tokens_BT[0, 0])
  answer = _generate(model, seg_id=seg_id, max_targets=1)
  assert answer.masks_BGYX.shape == (2, 1, 16, 16)
  for row in range(2):
    places = np.flatnonzero(np.asarray(answer.tokens_BT[row]) == seg_id)
    assert answer.seg_valid_BG[row, 0] == bool(len(places))
    expected = answer.token_log_prob_BT[row, places[0]] if len(places) else 0.0
    assert answer.seg_log_prob_BG[row, 0] == expected


def _chosen(**changes) -> sampling.Choice:
  """Greedy rows, but for what is given."""
  arrays = {name: np.asarray(values) for name, values in changes.items()}
  return dataclasses.replace(sampling.greedy(2, MAX_NEW), **arrays)


def test_a_row_draws_by_its_own_seed_beside_a_greedy_one(model):
  greedy = np.asarray(_generate(model).tokens_BT)
  hot_B = np.float32([0, 5])
  first, again, other = (
    _generate(
      model,
      choice=_chosen(
        temperature_B=hot_B,
        top_p_B=np.float32([1, 0.9]),
        seed_B=np.uint32([9, seed]),
      ),
    ).tokens_BT
    for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first, again)
  assert np.any(first[1] != other[1])
  for drawn in (first, other):
    np.testing.assert_array_equal(drawn[0], greedy[0])


def test_each_row_ends_at_its_own_limit(model):
  free = _generate(model)
  limit_B = np.int32([2, MAX_NEW])
  cut = _generate(model, choice=_chosen(max_new_B=limit_B))
  np.testing.assert_array_equal(cut.length_B, limit_B)
  np.testing.assert_array_equal(cut.tokens_BT[1], free.tokens_BT[1])
  np.testing.assert_array_equal(cut.tokens_BT[0, :2], free.tokens_BT[0, :2])
  assert not np.any(cut.tokens_BT[0, 2:])


@functools.partial(jax.jit, static_argnames=("steps",))
def _in_stages(model, prompts, seg_id, choice, steps) -> Generation:
  """The first two tokens, the image the second, are read once for both rows."""
  visual_BED, pixels_BYXC = model.encode_image(
    prompts["pixels_BIJC"], prompts["extent_B2"]
  )
  first_BT, rest_BT = (prompts["tokens_BT"][:, part] for part in _PARTS)
  length_B = prompts["length_B"]
  seen, cache = stages.read(
    model, visual_BED, pixels_BYXC, first_BT, jnp.array([2, 2]), room=0
  )
  seen, cache = stages.extend(model, seen, cache, rest_BT, room=MAX_NEW)
  progress = stages.begin(model, seen, cache, length_B, max_new=MAX_NEW)
  for until in steps:
    progress = stages.decode(model, progress, choice, until, end_id=NEVER)
  return stages.finish(model, seen, progress, seg_id=seg_id, max_targets=2)


_PARTS = np.s_[:2], np.s_[2:]


def test_an_image_that_was_read_before_gives_the_same_answer(model):
  prompts = _prompts()
  prompts["tokens_BT"][0] = [1, IMAGE_TOKEN, 9, 4, 7, 0, 0]
  seg_id = int(_generate(model, prompts).tokens_BT[0, 2])
  wanted = _generate(model, prompts, seg_id=seg_id)
  choice = sampling.greedy(2, MAX_NEW)
  found = _in_stages(model, prompts, seg_id, choice, steps=(MAX_NEW,))
  np.testing.assert_array_equal(found.tokens_BT, wanted.tokens_BT)
  np.testing.assert_array_equal(found.seg_valid_BG, wanted.seg_valid_BG)
  valid_BG = np.asarray(wanted.seg_valid_BG)
  assert valid_BG[0, 0]
  for name in ("masks_BGYX", "quality_BG", "seg_log_prob_BG"):
    np.testing.assert_allclose(
      np.asarray(getattr(found, name))[valid_BG],
      np.asarray(getattr(wanted, name))[valid_BG],
      atol=1e-4,
    )


def test_in_how_many_steps_an_answer_is_made_changes_no_bit(model):
  prompts = _prompts()
  prompts["tokens_BT"][0] = [1, IMAGE_TOKEN, 9, 4, 7, 0, 0]
  choice = _chosen(
    temperature_B=np.float32([0, 3]), max_new_B=np.int32([3, MAX_NEW])
  )
  once, often = (
    _in_stages(model, prompts, 5, choice, steps=steps)
    for steps in ((MAX_NEW,), (1, 4, 5, MAX_NEW))
  )
  jax.tree.map(np.testing.assert_array_equal, once, often)


@pytest.mark.parametrize(
  "settings, words",
  [
    ({"max_new": 0}, "max_new=0"),
    ({"max_targets": 0}, "max_targets=0"),
  ],
)
def test_impossible_settings_are_refused(model, settings, words):
  with pytest.raises(ValueError, match=words):
    _generate(model, **settings)
