"""The whole model: image and request in, text and masks out.

  pixels --encoder--> tokens --projector--> visual tokens -+
                  \\                                        v
                   \\          text ---------------> language model --> logits
                    \\                                 |        |
                     +--> pixel features + feedback <-+        +--> queries
                                   |                                 |
                                   +--> correlation, K steps <-------+
                                   +--> mask decoder, one mask a target

Training calls the model on a batch; `generate.py` calls the same parts one
after another. The one image placeholder of a row becomes E visual tokens: the
token at index t stands at position t before the placeholder and at t + E - 1
after it, and so the sequence has S = T - 1 + E positions.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools

from flax import nnx
import jax
import jax.numpy as jnp

from rcmed_jax import axes
from rcmed_jax.data.tokens import IGNORE_LABEL, IMAGE_TOKEN
from rcmed_jax.model import adapt, layers
from rcmed_jax.model.config import ModelConfig
from rcmed_jax.model.correlation import Correlation, soft_mask
from rcmed_jax.model.image_encoder import ImageEncoder, normalize
from rcmed_jax.model.language import Language
from rcmed_jax.model.mask_decoder import MaskDecoder
from rcmed_jax.parallel import rules

_STATES = (axes.BATCH, axes.LENGTH, axes.WIDTH)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Prediction:
  """What a forward pass says about a batch."""

  # [B, T, D]; [:, t] predicts token t, through `Language.logits`: the logits
  # themselves are too large to be kept. Token 0 has no state before it; its
  # place repeats that of token 1.
  states_BTD: jax.Array
  # float32[K + 1, B, G, 4g, 4g], logits before step 1 and after each of the K
  # steps; [-1] is the answer.
  masks_KBGYX: jax.Array
  # float32[B, G], the decoder's own estimate of the IoU, a raw number.
  quality_BG: jax.Array


class Projection(nnx.Module):
  """Linear, activation, Linear."""

  def __init__(
    self,
    inputs: int,
    hidden: int,
    outputs: int,
    output_axis: str,
    *,
    activation: Callable[[jax.Array], jax.Array],
    dtype: jnp.dtype,
    rngs: nnx.Rngs,
  ):
    self.activation = activation
    linear = functools.partial(
      layers.linear, init=layers.UNIT, dtype=dtype, rngs=rngs
    )
    self.inner = linear(inputs, hidden, (axes.EMBED, axes.MLP))
    self.outer = linear(hidden, outputs, (axes.MLP, output_axis))

  def __call__(self, values: jax.Array) -> jax.Array:
    """[..., outputs] from [..., inputs]."""
    return self.outer(self.activation(self.inner(values)))


class RCMed(nnx.Module):
  """The model of the paper, from `ModelConfig` alone.

  Source: arXiv 2505.03380 and its released weights; the correlation loop's
  steps >= 1 are this project's reading of the paper.
  """

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    self.config = config
    width, channels = config.language.width, config.decoder.width
    projection = functools.partial(
      Projection, hidden=width, dtype=jnp.dtype(config.dtype), rngs=rngs
    )
    # Placement is decided where the model is used, not where it is built.
    with nnx.use_eager_sharding(False):
      self.image_encoder = ImageEncoder(config, rngs=rngs)
      self.projector = projection(
        inputs=config.image.width,
        outputs=width,
        output_axis=axes.EMBED,
        activation=functools.partial(jax.nn.gelu, approximate=False),
      )
      self.language = Language(config, rngs=rngs)
      self.feedback, self.query = (
        projection(
          inputs=width,
          outputs=channels,
          output_axis=axes.CHANNELS,
          activation=jax.nn.relu,
        )
        for _ in range(2)
      )
      self.mask_decoder = MaskDecoder(config, rngs=rngs)
      self.correlation = (
        Correlation(config, rngs=rngs) if config.correlation.steps else None
      )

  def __call__(
    self,
    batch: Mapping[str, jax.Array],
    *,
    adaptation: adapt.Adaptation | None = None,
    dropout_key: jax.Array | None = None,
  ) -> Prediction:
    """States and masks of a batch whose answers are given.

    Args:
      batch: `pixels_BIJC`, `extent_B2`, `tokens_BT`, `length_B`, `labels_BT`,
        `seg_BG`, `valid_BG` as `data/pipeline.py` makes them.
      adaptation: of a new class in every row.
      dropout_key: None: no dropout.
    """
    language_key, guide_key, query_key = (
      (None, None, None)
      if dropout_key is None
      else jax.random.split(dropout_key, 3)
    )
    tokens_BT = batch["tokens_BT"]
    visual_BED, pixels_BYXC = self.encode_image(
      batch["pixels_BIJC"], batch["extent_B2"], adaptation
    )
    states_BSD, image_B = self.embed(tokens_BT, visual_BED)
    supervised_BT = batch["labels_BT"] != IGNORE_LABEL
    question_B = jnp.where(
      supervised_BT.any(axis=1),
      jnp.argmax(supervised_BT, axis=1),
      batch["length_B"],
    )
    hidden_BSD = self.language(
      states_BSD,
      prefix_B=self.prefix(question_B, image_B),
      dropout_key=language_key,
    )
    text_BTD, visual_BED = self.part(hidden_BSD, image_B)
    pixels_BYXC = self.guide(pixels_BYXC, visual_BED, dropout_key=guide_key)
    masks_KBGYX, quality_BG = self.segment(
      pixels_BYXC,
      text_BTD,
      image_B,
      batch["seg_BG"],
      batch["valid_BG"],
      adaptation=adaptation,
      dropout_key=query_key,
    )
    before_BTD = jnp.concatenate([text_BTD[:, :1], text_BTD[:, :-1]], axis=1)
    return Prediction(before_BTD, masks_KBGYX, quality_BG)

  def encode_image(
    self,
    pixels_BIJC: jax.Array,
    extent_B2: jax.Array,
    adaptation: adapt.Adaptation | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Visual tokens [B, E, D] for the text, pixel features [B, g, g, C].

    Args:
      pixels_BIJC: uint8[B, size, size, 3], RGB, padded bottom and right.
      extent_B2: int32[B, 2], rows and columns that are not padding.
      adaptation: of a new class in every row.
    """
    tokens_BYXD, pixels_BYXC = self.image_encoder(
      normalize(pixels_BIJC, extent_B2, self.config.channel_order)
    )
    if adaptation is not None:
      tokens_BYXD = adapt.turn_up_tokens(tokens_BYXD, adaptation)
      pixels_BYXC = adapt.turn_up_pixels(pixels_BYXC, adaptation)
    batch, rows, columns, width = tokens_BYXD.shape
    # Halving by bilinear interpolation is exactly the mean of 2 x 2.
    squares = tokens_BYXD.astype(jnp.float32).reshape(
      batch, rows // 2, 2, columns // 2, 2, width
    )
    halved_BED = squares.mean(axis=(2, 4)).reshape(batch, -1, width)
    visual_BED = self.projector(halved_BED.astype(tokens_BYXD.dtype))
    if not self.config.correlation.vision_to_language:
      visual_BED = jnp.zeros_like(visual_BED)
    return visual_BED, pixels_BYXC

  def embed(
    self, tokens_BT: jax.Array, visual_BED: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """The sequence [B, S, D], and int32[B]: where each row's image begins."""
    image_BT = tokens_BT == IMAGE_TOKEN
    image_B = jnp.argmax(image_BT, axis=1).astype(jnp.int32)
    extra = visual_BED.shape[1] - 1
    ids_BT = jnp.where(image_BT, 0, tokens_BT)
    positions_1S = jnp.arange(tokens_BT.shape[1] + extra)[None]
    ids_BS = jnp.where(
      positions_1S < image_B[:, None],
      jnp.pad(ids_BT, ((0, 0), (0, extra))),
      jnp.pad(ids_BT, ((0, 0), (extra, 0))),
    )
    place = jax.vmap(
      lambda states_SD, visual_ED, start: jax.lax.dynamic_update_slice(
        states_SD, visual_ED, (start, 0)
      )
    )
    # Rows come together here from an embedding in parts, once, rather than at
    # each use of what is put between them.
    states_BSD = rules.constrain(self.language.embed(ids_BS), *_STATES)
    visual_BED = rules.constrain(visual_BED.astype(states_BSD.dtype), *_STATES)
    return place(states_BSD, visual_BED, image_B), image_B

  def part(
    self, hidden_BSD: jax.Array, image_B: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """States at the text positions [B, T, D], at the visual ones [B, E, D].

    The placeholder's own index holds the state of the last visual token: the
    one that predicts the token after it.
    """
    visual = self.config.visual_tokens
    text = hidden_BSD.shape[1] - visual + 1
    text_BTD = jnp.where(
      (jnp.arange(text)[None] < image_B[:, None])[:, :, None],
      hidden_BSD[:, :text],
      hidden_BSD[:, visual - 1 :],
    )
    take = jax.vmap(
      lambda hidden_SD, start: jax.lax.dynamic_slice_in_dim(
        hidden_SD, start, visual
      )
    )
    return text_BTD, take(hidden_BSD, image_B)

  def prefix(
    self, question_B: jax.Array, image_B: jax.Array
  ) -> jax.Array | None:
    """int32[B]: positions before the answer, if they see each other freely.

    Args:
      question_B: tokens before the answer, the placeholder counted once.
      image_B: index of the placeholder.
    """
    if self.config.language.attention == "causal":
      return None
    extra = self.config.visual_tokens - 1
    return jnp.where(question_B > image_B, question_B + extra, question_B)

  def guide(
    self,
    pixels_BYXC: jax.Array,
    visual_BED: jax.Array,
    *,
    dropout_key: jax.Array | None = None,
  ) -> jax.Array:
    """Pixel features plus the feedback of the states at visual positions."""
    if not self.config.correlation.language_to_vision:
      return pixels_BYXC
    batch, rows, columns, channels = pixels_BYXC.shape
    feedback_BEC = layers.dropout(
      self.feedback(visual_BED), self.config.dropout, dropout_key
    )
    feedback_BYXC = layers.resize_bilinear(
      feedback_BEC.reshape(batch, rows // 2, columns // 2, channels),
      (rows, columns),
    )
    return pixels_BYXC + feedback_BYXC.astype(pixels_BYXC.dtype)

  def segment(
    self,
    pixels_BYXC: jax.Array,
    text_BTD: jax.Array,
    image_B: jax.Array,
    seg_BG: jax.Array,
    valid_BG: jax.Array,
    *,
    adaptation: adapt.Adaptation | None = None,
    dropout_key: jax.Array | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Mask logits after each step, [K + 1, B, G, 4g, 4g]; quality [B, G].

    The query of a target is the state that predicts its [SEG]. The words of
    the loop end with the last of these states: a description that follows is
    made from the reference masks and would leak them.

    Args:
      pixels_BYXC: guided pixel features.
      text_BTD: final states at text positions.
      image_B: index of the placeholder, which is no word.
      seg_BG: int32[B, G], index of each [SEG] among the tokens.
      valid_BG: bool[B, G], which targets exist.
      adaptation: of a new class in every row.
      dropout_key: None: no dropout.
    """
    state_BG = jnp.maximum(seg_BG - 1, 0)
    query_BGC = layers.dropout(
      self.query(jnp.take_along_axis(text_BTD, state_BG[:, :, None], axis=1)),
      self.config.dropout,
      dropout_key,
    )
    decode = functools.partial(
      self._decode, valid_BG=valid_BG, adaptation=adaptation
    )
    masks_BGYX, quality_BG = decode(pixels_BYXC, query_BGC)
    masks = [masks_BGYX]
    if self.correlation is None:
      return jnp.stack(masks), quality_BG

    text_1T = jnp.arange(text_BTD.shape[1])[None]
    last_B = jnp.max(jnp.where(valid_BG, state_BG, -1), axis=1)
    is_word_BT = (text_1T <= last_B[:, None]) & (text_1T != image_B[:, None])
    words_BTC = self.correlation.begin(
      text_BTD,
      query_BGC,
      jnp.where(valid_BG, state_BG, text_BTD.shape[1]),
    )
    grid = self.config.image.grid
    for step in self.correlation.steps:
      pixels_BYXC, words_BTC = step(
        pixels_BYXC,
        words_BTC,
        is_word_BT,
        soft_mask(masks[-1], valid_BG, grid),
      )
      query_BGC = jnp.where(
        valid_BG[:, :, None],
        jnp.take_along_axis(words_BTC, state_BG[:, :, None], axis=1),
        query_BGC,
      )
      masks_BGYX, quality_BG = decode(pixels_BYXC, query_BGC)
      masks.append(masks_BGYX)
    return jnp.stack(masks), quality_BG

  def _decode(
    self,
    pixels_BYXC: jax.Array,
    query_BGC: jax.Array,
    *,
    valid_BG: jax.Array,
    adaptation: adapt.Adaptation | None,
  ) -> tuple[jax.Array, jax.Array]:
    if adaptation is None:
      return self.mask_decoder(pixels_BYXC, query_BGC)
    masks_BGQYX, quality_BGQ = self.mask_decoder.all_masks(
      pixels_BYXC, query_BGC
    )
    masks_BGYX = adapt.turn_up_logits(masks_BGQYX, valid_BG, adaptation)
    return masks_BGYX, quality_BGQ[:, :, 0]
