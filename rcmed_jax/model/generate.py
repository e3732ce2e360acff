"""Generation: the answer token by token, and the mask of every [SEG] in it.

One pass gives both: the state that chose [SEG] is the query of its target, and
once the text is complete the same correlation loop and mask decoder as in
training read the states of prompt and answer.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rcmed_jax.model.language import Cache
from rcmed_jax.model.rcmed import RCMed


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Generation:
  """What the model answers; T = max_new, G = max_targets."""

  tokens_BT: jax.Array  # int32, the end token included, 0 after it
  length_B: jax.Array  # int32, number of tokens, the end token included
  seg_valid_BG: jax.Array  # bool, which of the G targets were found
  masks_BGYX: jax.Array  # float32 logits, 4g x 4g; noise where not valid
  quality_BG: jax.Array  # float32, the decoder's own estimate of the IoU
  seg_log_prob_BG: jax.Array  # float32, of each [SEG]; 0 where not valid
  token_log_prob_BT: jax.Array  # float32, of each token; 0 after the end


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Answer:
  """The answer so far, the state of the loop over tokens."""

  step: jax.Array  # int32, tokens decided
  done_B: jax.Array  # bool, rows that have ended
  state_BD: jax.Array  # predicts the next token
  cache: Cache
  tokens_BT: jax.Array
  log_prob_BT: jax.Array
  states_BTD: jax.Array  # [:, t] predicted token t


def generate(
  model: RCMed,
  pixels_BIJC: jax.Array,
  extent_B2: jax.Array,
  tokens_BT: jax.Array,
  length_B: jax.Array,
  *,
  seg_id: int,
  end_id: int,
  max_new: int,
  max_targets: int,
  temperature: float = 0.0,
  top_p: float = 1.0,
  key: jax.Array | None = None,
) -> Generation:
  """The answers to B prompts. Static shapes: fit for `jax.jit`.

  Args:
    model: the whole model.
    pixels_BIJC: uint8[B, size, size, 3], RGB, padded bottom and right.
    extent_B2: int32[B, 2], rows and columns that are not padding.
    tokens_BT: int32[B, T], prompts with one image placeholder, padded right.
    length_B: int32[B], tokens of each prompt.
    seg_id: the id of [SEG].
    end_id: the id that ends an answer.
    max_new: most tokens of an answer.
    max_targets: masks a row; a [SEG] beyond them stays text only.
    temperature: 0 takes the likeliest token.
    top_p: samples only among the likeliest tokens that hold this probability.
    key: randomness, needed if temperature > 0.

  Raises:
    ValueError: sampling without a key, or nothing to generate.
  """
  _check(max_new, max_targets, temperature, key)
  visual_BED, pixels_BYXC = model.encode_image(pixels_BIJC, extent_B2)
  states_BSD, image_B = model.embed(tokens_BT, visual_BED)
  hidden_BSD, cache = model.language.prefill(
    states_BSD,
    states_BSD.shape[1] + max_new,
    prefix_B=model.prefix(length_B, image_B),
  )
  text_BTD, visual_BED = model.part(hidden_BSD, image_B)
  answer = _decode(
    model,
    _begin(text_BTD, length_B, cache, max_new),
    length_B + visual_BED.shape[1] - 1,
    end_id=end_id,
    temperature=temperature,
    top_p=top_p,
    key=key,
  )

  step_BG = jax.vmap(
    lambda is_seg_T: jnp.nonzero(is_seg_T, size=max_targets, fill_value=-1)[0]
  )(answer.tokens_BT == seg_id)
  valid_BG = step_BG >= 0
  masks_KBGYX, quality_BG = model.segment(
    model.guide(pixels_BYXC, visual_BED),
    _append(text_BTD, answer.states_BTD, length_B),
    image_B,
    length_B[:, None] + step_BG,
    valid_BG,
  )
  seg_log_prob_BG = jnp.take_along_axis(
    answer.log_prob_BT, jnp.maximum(step_BG, 0), axis=1
  )
  ended_BT = jnp.cumsum(answer.tokens_BT == end_id, axis=1) > 0
  return Generation(
    tokens_BT=answer.tokens_BT,
    length_B=jnp.minimum(max_new, 1 + jnp.sum(~ended_BT, axis=1)),
    seg_valid_BG=valid_BG,
    masks_BGYX=masks_KBGYX[-1],
    quality_BG=quality_BG,
    seg_log_prob_BG=jnp.where(valid_BG, seg_log_prob_BG, 0.0),
    token_log_prob_BT=answer.log_prob_BT,
  )


def _check(
  max_new: int, max_targets: int, temperature: float, key: jax.Array | None
) -> None:
  if temperature > 0 and key is None:
    raise ValueError(
      f"generate: expected a key with temperature={temperature}, received "
      "None; pass key=jax.random.key(seed) or temperature=0."
    )
  if max_new < 1 or max_targets < 1:
    raise ValueError(
      "generate: expected max_new >= 1 and max_targets >= 1, received "
      f"max_new={max_new} and max_targets={max_targets}."
    )


def _begin(
  text_BTD: jax.Array, length_B: jax.Array, cache: Cache, max_new: int
) -> _Answer:
  """An empty answer after the last token of each prompt."""
  batch, _, width = text_BTD.shape
  last_B11 = (length_B - 1)[:, None, None]
  return _Answer(
    step=jnp.int32(0),
    done_B=jnp.zeros(batch, bool),
    state_BD=jnp.take_along_axis(text_BTD, last_B11, axis=1)[:, 0],
    cache=cache,
    tokens_BT=jnp.zeros((batch, max_new), jnp.int32),
    log_prob_BT=jnp.zeros((batch, max_new), jnp.float32),
    states_BTD=jnp.zeros((batch, max_new, width), text_BTD.dtype),
  )


def _decode(
  model: RCMed,
  answer: _Answer,
  position_B: jax.Array,
  *,
  end_id: int,
  temperature: float,
  top_p: float,
  key: jax.Array | None,
) -> _Answer:
  """The answer once every row has ended or is full.

  Args:
    position_B: int32[B], position of each row's first new token.
  """
  max_new = answer.tokens_BT.shape[1]

  def unfinished(answer: _Answer) -> jax.Array:
    return (answer.step < max_new) & ~jnp.all(answer.done_B)

  def add_token(answer: _Answer) -> _Answer:
    step, done_B = answer.step, answer.done_B
    logits_BV = model.language.logits(answer.state_BD)
    if key is None or temperature == 0:
      token_B = jnp.argmax(logits_BV, axis=-1)
    else:
      token_B = jax.random.categorical(
        jax.random.fold_in(key, step),
        keep_likely(logits_BV / temperature, top_p),
      )
    log_prob_B = jnp.take_along_axis(
      jax.nn.log_softmax(logits_BV), token_B[:, None], axis=-1
    )[:, 0]
    token_B = jnp.where(done_B, 0, token_B).astype(jnp.int32)
    log_prob_B = jnp.where(done_B, 0.0, log_prob_B)
    state_BD, cache = model.language.decode(
      model.language.embed(token_B), position_B + step, answer.cache
    )
    return _Answer(
      step=step + 1,
      done_B=done_B | (token_B == end_id),
      state_BD=state_BD,
      cache=cache,
      tokens_BT=answer.tokens_BT.at[:, step].set(token_B),
      log_prob_BT=answer.log_prob_BT.at[:, step].set(log_prob_B),
      states_BTD=answer.states_BTD.at[:, step].set(answer.state_BD),
    )

  return jax.lax.while_loop(unfinished, add_token, answer)


def keep_likely(logits_BV: jax.Array, top_p: float) -> jax.Array:
  """The logits, -inf outside the fewest tokens that hold top_p together."""
  if top_p >= 1:
    return logits_BV
  falling_BV = -jnp.sort(-logits_BV, axis=-1)
  chance_BV = jax.nn.softmax(falling_BV, axis=-1)
  before_BV = jnp.cumsum(chance_BV, axis=-1) - chance_BV
  floor_B1 = jnp.min(
    jnp.where(before_BV < top_p, falling_BV, jnp.inf), axis=-1, keepdims=True
  )
  return jnp.where(logits_BV >= floor_B1, logits_BV, -jnp.inf)


def _append(
  text_BTD: jax.Array, answer_BTD: jax.Array, length_B: jax.Array
) -> jax.Array:
  """States of prompt and answer in one row, as a training batch has them.

  The state that predicted the answer's token t stands at length - 1 + t, just
  before its token; the first of them is the prompt's last state itself.
  """
  room = answer_BTD.shape[1] - 1
  place = jax.vmap(
    lambda text_TD, answer_TD, start: jax.lax.dynamic_update_slice(
      text_TD, answer_TD, (start, 0)
    )
  )
  return place(
    jnp.pad(text_BTD, ((0, 0), (0, room), (0, 0))), answer_BTD, length_B - 1
  )
