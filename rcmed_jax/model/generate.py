"""Generation: the answer token by token, and the mask of every [SEG] in it.

  encode_image --> read --> (extend) --> begin --> decode --> finish

`read` takes an image and the text around it, `extend` more text after that:
what comes before a question is the same for all questions about an image, and
need be read once. `decode` goes on up to a given number of tokens, so that a
text can be shown while it grows. `finish` makes the masks: the state that chose
[SEG] is the query of its target, and once the text is complete the same
correlation loop and mask decoder as in training read the states of prompt and
answer. `generate` is all of them after one another.
"""

import dataclasses

import jax
import jax.numpy as jnp

from rcmed_jax.model import sampling
from rcmed_jax.model.language import Cache
from rcmed_jax.model.rcmed import RCMed
from rcmed_jax.model.sampling import Choice, Grammar


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
  # float32, of each token as the model gives it, whatever it was chosen by; 0
  # after the end.
  token_log_prob_BT: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Seen:
  """What the model has read of images and T tokens of text."""

  # Final states; [:, t] predicts token t + 1. The placeholder's own index holds
  # the state of the last visual token.
  text_BTD: jax.Array
  image_B: jax.Array  # int32, index of the placeholder
  pixels_BYXC: jax.Array  # pixel features, guided by the states at the image


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
  """The answers so far. Rows that have not ended are equally long."""

  done_B: jax.Array  # bool, rows that have ended
  length_B: jax.Array  # int32, tokens decided
  position_B: jax.Array  # int32, of the first of them in the sequence
  grammar_B: jax.Array  # int32, state of the grammar
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
  choice: Choice | None = None,
  grammar: Grammar | None = None,
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
    choice: how tokens are chosen; None: the likeliest, up to max_new.
    grammar: of the rows that `choice` binds; None: there are none.

  Raises:
    ValueError: nothing to generate.
  """
  visual_BED, pixels_BYXC = model.encode_image(pixels_BIJC, extent_B2)
  seen, cache = read(
    model, visual_BED, pixels_BYXC, tokens_BT, length_B, room=max_new
  )
  progress = decode(
    model,
    begin(model, seen, cache, length_B, max_new=max_new),
    choice or sampling.greedy(len(tokens_BT), max_new),
    max_new,
    end_id=end_id,
    grammar=grammar,
  )
  return finish(model, seen, progress, seg_id=seg_id, max_targets=max_targets)


def read(
  model: RCMed,
  visual_BED: jax.Array,
  pixels_BYXC: jax.Array,
  tokens_BT: jax.Array,
  length_B: jax.Array,
  *,
  room: int,
) -> tuple[Seen, Cache]:
  """What the model has seen after a text with an image, and its cache.

  Args:
    visual_BED, pixels_BYXC: of `RCMed.encode_image`.
    tokens_BT, length_B: as in `generate`. Under prefix attention these must be
      whole prompts: what the image's states are depends on all of them.
    room: slots of the cache beyond the text.
  """
  states_BSD, image_B = model.embed(tokens_BT, visual_BED)
  hidden_BSD, cache = model.language.prefill(
    states_BSD,
    states_BSD.shape[1] + room,
    prefix_B=model.prefix(length_B, image_B),
  )
  text_BTD, visual_BED = model.part(hidden_BSD, image_B)
  return Seen(text_BTD, image_B, model.guide(pixels_BYXC, visual_BED)), cache


def extend(
  model: RCMed, seen: Seen, cache: Cache, tokens_BT: jax.Array, *, room: int
) -> tuple[Seen, Cache]:
  """The same after more text.

  Args:
    seen: of rows without padding.
    cache: full.
    tokens_BT: int32[B, T], what follows, padded right.
    room: slots of the cache beyond the text.
  """
  batch, more = tokens_BT.shape
  states_BTD, cache = model.language.extend(
    model.language.embed(tokens_BT),
    jnp.full(batch, cache.slots, jnp.int32),
    cache.grown(more + room),
  )
  text_BTD = jnp.concatenate([seen.text_BTD, states_BTD], axis=1)
  return dataclasses.replace(seen, text_BTD=text_BTD), cache


def begin(
  model: RCMed, seen: Seen, cache: Cache, length_B: jax.Array, *, max_new: int
) -> Progress:
  """An empty answer after the last token of each prompt.

  Args:
    length_B: int32[B], tokens of each prompt.
    cache: with room for max_new more.

  Raises:
    ValueError: nothing to generate.
  """
  if max_new < 1:
    raise ValueError(
      f"generate: expected max_new >= 1, received max_new={max_new}."
    )
  batch, _, width = seen.text_BTD.shape
  last_B11 = (length_B - 1)[:, None, None]
  return Progress(
    done_B=jnp.zeros(batch, bool),
    length_B=jnp.zeros(batch, jnp.int32),
    position_B=length_B + model.config.visual_tokens - 1,
    grammar_B=jnp.zeros(batch, jnp.int32),
    state_BD=jnp.take_along_axis(seen.text_BTD, last_B11, axis=1)[:, 0],
    cache=cache,
    tokens_BT=jnp.zeros((batch, max_new), jnp.int32),
    log_prob_BT=jnp.zeros((batch, max_new), jnp.float32),
    states_BTD=jnp.zeros((batch, max_new, width), seen.text_BTD.dtype),
  )


def decode(
  model: RCMed,
  progress: Progress,
  choice: Choice,
  until: jax.Array | int,
  *,
  end_id: int,
  grammar: Grammar | None = None,
) -> Progress:
  """The answers once every row has ended or has `until` tokens.

  In how many calls a limit is reached changes nothing.

  Args:
    choice, grammar: as in `generate`.
    until: int32.
    end_id: the id that ends an answer.
  """

  def unfinished(progress: Progress) -> jax.Array:
    return ~jnp.all(progress.done_B) & (jnp.max(progress.length_B) < until)

  def add_token(progress: Progress) -> Progress:
    step, done_B = jnp.max(progress.length_B), progress.done_B
    logits_BV = model.language.logits(progress.state_BD)
    log_prob_BV = jax.nn.log_softmax(logits_BV)
    state_B = progress.grammar_B
    if grammar is not None:
      logits_BV = sampling.allow(logits_BV, state_B, step, choice, grammar)
    token_B = sampling.choose(logits_BV, step, choice)
    if grammar is not None:
      state_B = sampling.follow(state_B, token_B, choice, grammar)
    log_prob_B = jnp.take_along_axis(log_prob_BV, token_B[:, None], axis=-1)[
      :, 0
    ]
    token_B = jnp.where(done_B, 0, token_B)
    state_BD, cache = model.language.decode(
      model.language.embed(token_B), progress.position_B + step, progress.cache
    )
    ends_B = (token_B == end_id) | (step + 1 >= choice.max_new_B)
    return Progress(
      done_B=done_B | ends_B,
      length_B=jnp.where(done_B, progress.length_B, step + 1),
      position_B=progress.position_B,
      grammar_B=jnp.where(done_B, progress.grammar_B, state_B),
      state_BD=state_BD,
      cache=cache,
      tokens_BT=progress.tokens_BT.at[:, step].set(token_B),
      log_prob_BT=progress.log_prob_BT.at[:, step].set(
        jnp.where(done_B, 0.0, log_prob_B)
      ),
      states_BTD=progress.states_BTD.at[:, step].set(progress.state_BD),
    )

  return jax.lax.while_loop(unfinished, add_token, progress)


def finish(
  model: RCMed,
  seen: Seen,
  progress: Progress,
  *,
  seg_id: int,
  max_targets: int,
) -> Generation:
  """What was said, and the masks of its targets.

  Args:
    seen: the prompts.
    progress: the answers to them, at their ends.
    seg_id, max_targets: as in `generate`.

  Raises:
    ValueError: no masks are asked for.
  """
  if max_targets < 1:
    raise ValueError(
      f"generate: expected max_targets >= 1, received "
      f"max_targets={max_targets}."
    )
  length_B = progress.position_B - model.config.visual_tokens + 1
  step_BG = jax.vmap(
    lambda is_seg_T: jnp.nonzero(is_seg_T, size=max_targets, fill_value=-1)[0]
  )(progress.tokens_BT == seg_id)
  valid_BG = step_BG >= 0
  masks_KBGYX, quality_BG = model.segment(
    seen.pixels_BYXC,
    _append(seen.text_BTD, progress.states_BTD, length_B),
    seen.image_B,
    length_B[:, None] + step_BG,
    valid_BG,
  )
  seg_log_prob_BG = jnp.take_along_axis(
    progress.log_prob_BT, jnp.maximum(step_BG, 0), axis=1
  )
  return Generation(
    tokens_BT=progress.tokens_BT,
    length_B=progress.length_B,
    seg_valid_BG=valid_BG,
    masks_BGYX=masks_KBGYX[-1],
    quality_BG=quality_BG,
    seg_log_prob_BG=jnp.where(valid_BG, seg_log_prob_BG, 0.0),
    token_log_prob_BT=progress.log_prob_BT,
  )


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
