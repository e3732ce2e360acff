"""SAM's mask decoder: guided pixels and a query to one mask a target.

Targets never see each other. They share the pixels up to the first layer's
pixel update, so everything before it is computed once an image: until there
the pixels' target axis G has length 1 and broadcasts.
Source: "Segment Anything", arXiv 2304.02643.
"""

import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from rcmed_jax import axes
from rcmed_jax.model import layers
from rcmed_jax.model.config import ModelConfig
from rcmed_jax.model.prompt_encoder import UNIT_NORMAL, PromptEncoder
from rcmed_jax.parallel import rules

MASK_TOKENS = 4  # SAM's single mask, then its three alternatives
TOKEN_NORM_EPS = 1e-5  # in the transformer
PIXEL_NORM_EPS = 1e-6  # in the upscaling


class MaskDecoder(nnx.Module):
  """Pixels [B, Y, X, C] and queries [B, G, C] to masks of 4Y x 4X."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    width, heads = config.decoder.width, config.decoder.heads
    if width % 8 or (width // 2) % heads:
      raise ValueError(
        f"model.decoder: width={width} must be a multiple of 8, and its half "
        f"a multiple of heads={heads}; the release has 256 and 8."
      )
    self.dtype = dtype = jnp.dtype(config.dtype)
    self.prompts = PromptEncoder(width, rngs=rngs)
    token = layers.named(UNIT_NORMAL, (axes.TOKENS, axes.CHANNELS))
    self.quality_token = nnx.Param(token(rngs.params(), (1, width)))
    self.mask_tokens = nnx.Param(token(rngs.params(), (MASK_TOKENS, width)))
    self.transformer = TwoWayTransformer(config, rngs=rngs)
    self.upscale = Upscale(width, dtype, rngs=rngs)
    self.hypernetworks = layers.stack(
      lambda rngs: Mlp(width, width // 8, dtype, rngs=rngs),
      MASK_TOKENS,
      axes.TOKENS,
      rngs=rngs,
    )
    self.quality = Mlp(width, MASK_TOKENS, dtype, rngs=rngs)

  def __call__(
    self, pixels_BYXC: jax.Array, query_BGC: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Mask logits of the first mask token, and the decoder's own estimate.

    Args:
      pixels_BYXC: guided pixels; the `no_mask` embedding is added here.
      query_BGC: one prompt token for each target.

    Returns:
      float32 mask logits [B, G, 4Y, 4X] and float32 [B, G] estimated IoU.
    """
    masks_BGQIJ, quality_BGQ = self._decode(pixels_BYXC, query_BGC, masks=1)
    return masks_BGQIJ[:, :, 0], quality_BGQ[:, :, 0]

  def all_masks(
    self, pixels_BYXC: jax.Array, query_BGC: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """The same for every mask token: [B, G, 4, 4Y, 4X] and [B, G, 4]."""
    return self._decode(pixels_BYXC, query_BGC, masks=MASK_TOKENS)

  def _decode(
    self, pixels_BYXC: jax.Array, query_BGC: jax.Array, *, masks: int
  ) -> tuple[jax.Array, jax.Array]:
    batch, rows, columns, width = pixels_BYXC.shape
    pixels_BYXC += self.prompts.no_mask[...][None, None, None]
    positions_YXC = self.prompts.positions((rows, columns))
    tokens_BGQC, pixels_BGPC = self.transformer(
      self._tokens(query_BGC),
      pixels_BYXC.reshape(batch, 1, -1, width).astype(self.dtype),
      positions_YXC.reshape(1, 1, -1, width).astype(self.dtype),
    )
    weights_BGQC = jnp.stack(
      [
        _pick(self.hypernetworks, mask)(tokens_BGQC[:, :, 1 + mask])
        for mask in range(masks)
      ],
      axis=2,
    )
    masks_BGQPSS = jnp.einsum(
      "BGQC,BGPSsC->BGQPSs",
      weights_BGQC,
      self.upscale(pixels_BGPC),
      preferred_element_type=jnp.float32,
    )
    quality_BGQ = self.quality(tokens_BGQC[:, :, 0]).astype(jnp.float32)
    return join_subpixels(masks_BGQPSS, (rows, columns)), quality_BGQ

  def _tokens(self, query_BGC: jax.Array) -> jax.Array:
    """[B, G, 6, C]: quality, four masks, query."""
    own_QC = jnp.concatenate([self.quality_token[...], self.mask_tokens[...]])
    own_BGQC = jnp.broadcast_to(
      own_QC[None, None], (*query_BGC.shape[:2], *own_QC.shape)
    )
    return jnp.concatenate(
      [own_BGQC.astype(self.dtype), query_BGC[:, :, None].astype(self.dtype)],
      axis=2,
    )


class TwoWayTransformer(nnx.Module):
  """Tokens and pixels attend to each other, layer by layer."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    width = config.decoder.width
    self.dtype = jnp.dtype(config.dtype)
    self.depth = config.decoder.depth
    self.layers = layers.stack(
      lambda rngs: TwoWayLayer(config, rngs=rngs),
      self.depth,
      axes.LAYERS,
      rngs=rngs,
    )
    self.last = Attention(config, width // 2, rngs=rngs)
    self.last_norm = layers.layer_norm(width, eps=TOKEN_NORM_EPS, rngs=rngs)

  def __call__(
    self,
    tokens_BGQC: jax.Array,
    pixels_BGPC: jax.Array,
    positions_BGPC: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    """Final tokens [B, G, Q, C] and pixels [B, G, P, C].

    Args:
      tokens_BGQC: also the tokens' own positions in every layer.
      pixels_BGPC: with G = 1, the same for every target.
      positions_BGPC: with B = G = 1; added to pixels as keys and as queries,
        never as values.
    """
    start_BGQC = tokens_BGQC
    places = (axes.BATCH, axes.LENGTH, axes.LENGTH, axes.WIDTH)
    # Not a scan: the first layer differs, and its pixels still have G = 1.
    for index in range(self.depth):
      tokens_BGQC, pixels_BGPC = _pick(self.layers, index)(
        rules.constrain(tokens_BGQC, *places),
        rules.constrain(pixels_BGPC, *places),
        start_BGQC,
        positions_BGPC,
        first=index == 0,
      )
    tokens_BGQC += self.last(
      tokens_BGQC + start_BGQC, pixels_BGPC + positions_BGPC, pixels_BGPC
    )
    return self.last_norm(tokens_BGQC).astype(self.dtype), pixels_BGPC


class TwoWayLayer(nnx.Module):
  """Tokens to tokens, tokens to pixels, MLP, pixels to tokens; post-norm."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    width, hidden = config.decoder.width, config.decoder.hidden
    self.dtype = jnp.dtype(config.dtype)
    dense = functools.partial(
      layers.linear, rngs=rngs, init=layers.FAN_IN, dtype=self.dtype
    )
    norm = functools.partial(
      layers.layer_norm, width, eps=TOKEN_NORM_EPS, rngs=rngs
    )
    self.self_attention = Attention(config, width, rngs=rngs)
    self.self_norm = norm()
    self.token_to_pixel = Attention(config, width // 2, rngs=rngs)
    self.token_norm = norm()
    self.mlp_in = dense(width, hidden, (axes.CHANNELS, axes.MLP))
    self.mlp_out = dense(hidden, width, (axes.MLP, axes.CHANNELS))
    self.mlp_norm = norm()
    self.pixel_to_token = Attention(config, width // 2, rngs=rngs)
    self.pixel_norm = norm()

  def __call__(
    self,
    tokens_BGQC: jax.Array,
    pixels_BGPC: jax.Array,
    start_BGQC: jax.Array,
    positions_BGPC: jax.Array,
    *,
    first: bool,
  ) -> tuple[jax.Array, jax.Array]:
    """Updated tokens and pixels; `first` lacks a residual and positions."""
    if first:
      tokens_BGQC = self.self_attention(tokens_BGQC, tokens_BGQC, tokens_BGQC)
    else:
      placed_BGQC = tokens_BGQC + start_BGQC
      tokens_BGQC += self.self_attention(placed_BGQC, placed_BGQC, tokens_BGQC)
    tokens_BGQC = self.self_norm(tokens_BGQC).astype(self.dtype)

    placed_BGPC = pixels_BGPC + positions_BGPC
    tokens_BGQC += self.token_to_pixel(
      tokens_BGQC + start_BGQC, placed_BGPC, pixels_BGPC
    )
    tokens_BGQC = self.token_norm(tokens_BGQC).astype(self.dtype)

    tokens_BGQC += self.mlp_out(jax.nn.relu(self.mlp_in(tokens_BGQC)))
    tokens_BGQC = self.mlp_norm(tokens_BGQC).astype(self.dtype)

    update_BGPC = self.pixel_to_token(
      placed_BGPC, tokens_BGQC + start_BGQC, tokens_BGQC
    )
    pixels_BGPC = self.pixel_norm(pixels_BGPC + update_BGPC)
    return tokens_BGQC, pixels_BGPC.astype(self.dtype)


class Attention(nnx.Module):
  """Attention whose inner width may be less than the outer one."""

  def __init__(self, config: ModelConfig, inner: int, *, rngs: nnx.Rngs):
    width = config.decoder.width
    self.heads = config.decoder.heads
    dense = functools.partial(
      layers.linear,
      rngs=rngs,
      init=layers.FAN_IN,
      dtype=jnp.dtype(config.dtype),
    )
    self.q, self.k, self.v = (
      dense(width, inner, (axes.CHANNELS, axes.HEADS)) for _ in range(3)
    )
    self.out = dense(inner, width, (axes.HEADS, axes.CHANNELS))

  def __call__(
    self, q_BGTC: jax.Array, k_BGSC: jax.Array, v_BGSC: jax.Array
  ) -> jax.Array:
    """[B, G, T, C]; a G of length 1 on either side serves every target."""
    q_BGTNH = self._split(self.q(q_BGTC))
    k_BGSNH = self._split(self.k(k_BGSC))
    v_BGSNH = self._split(self.v(v_BGSC))
    scores_BGNTS = jnp.einsum(
      "...TNH,...SNH->...NTS",
      q_BGTNH,
      k_BGSNH,
      preferred_element_type=jnp.float32,
    )
    weights_BGNTS = jax.nn.softmax(
      scores_BGNTS * q_BGTNH.shape[-1] ** -0.5, axis=-1
    )
    out_BGTNH = jnp.einsum(
      "...NTS,...SNH->...TNH", weights_BGNTS.astype(v_BGSNH.dtype), v_BGSNH
    )
    return self.out(out_BGTNH.reshape(*out_BGTNH.shape[:3], -1))

  def _split(self, values_BGTC: jax.Array) -> jax.Array:
    return values_BGTC.reshape(*values_BGTC.shape[:3], self.heads, -1)


class Upscale(nnx.Module):
  """Two learned doublings of the pixels' resolution.

  A transposed convolution of side and stride 2 turns each pixel into 2 x 2
  without looking at its neighbours. So the four children of a pixel stay on an
  axis of their own until they are logits (`join_subpixels`), which moves C / 8
  times less data than placing them at once.
  """

  def __init__(self, width: int, dtype: jnp.dtype, *, rngs: nnx.Rngs):
    self.dtype = dtype
    self.first = Double(width, width // 4, dtype, rngs=rngs)
    self.first_norm = layers.layer_norm(
      width // 4, eps=PIXEL_NORM_EPS, rngs=rngs
    )
    self.second = Double(width // 4, width // 8, dtype, rngs=rngs)

  def __call__(self, pixels_BGPC: jax.Array) -> jax.Array:
    """[B, G, P, 4, 4, C / 8]: pixel, its children, and theirs."""
    children = self.first_norm(self.first(pixels_BGPC)).astype(self.dtype)
    children = jax.nn.gelu(children, approximate=False)
    return jax.nn.gelu(self.second(children), approximate=False)


class Double(nnx.Module):
  """Each pixel [..., C] to its 2 x 2 children [..., 4, O], row by row."""

  def __init__(
    self, inputs: int, outputs: int, dtype: jnp.dtype, *, rngs: nnx.Rngs
  ):
    self.children = layers.linear(
      inputs,
      4 * outputs,
      (axes.CHANNELS, axes.CHANNELS),
      rngs=rngs,
      bias=False,
      init=layers.FAN_IN,
      dtype=dtype,
    )
    bias = layers.named(layers.ZEROS, (axes.VECTOR,))
    self.bias = nnx.Param(bias(rngs.params(), (outputs,)))

  def __call__(self, pixels: jax.Array) -> jax.Array:
    children = self.children(pixels)
    children = children.reshape(*pixels.shape[:-1], 4, -1)
    bias = jnp.expand_dims(self.bias[...], tuple(range(children.ndim - 1)))
    return children + bias.astype(children.dtype)


class Mlp(nnx.Module):
  """Three dense layers with ReLU between them."""

  def __init__(
    self, width: int, outputs: int, dtype: jnp.dtype, *, rngs: nnx.Rngs
  ):
    dense = functools.partial(
      layers.linear, rngs=rngs, init=layers.FAN_IN, dtype=dtype
    )
    self.first = dense(width, width, (axes.CHANNELS, axes.MLP))
    self.second = dense(width, width, (axes.MLP, axes.CHANNELS))
    self.third = dense(width, outputs, (axes.CHANNELS, axes.VECTOR))

  def __call__(self, values: jax.Array) -> jax.Array:
    hidden = jax.nn.relu(self.first(values))
    return self.third(jax.nn.relu(self.second(hidden)))


def join_subpixels(
  values_BGQPSS: jax.Array, grid: tuple[int, int]
) -> jax.Array:
  """[B, G, Q, 4Y, 4X]: children and grandchildren put in their places.

  Pixel (y, x), child (a, b) = divmod(s, 2) and grandchild (c, d) of
  [..., y * X + x, 2a + b, 2c + d] lie at row 4y + 2a + c, column 4x + 2b + d.
  """
  rows, columns = grid
  lead = values_BGQPSS.shape[:3]
  values = values_BGQPSS.reshape(*lead, rows, columns, 2, 2, 2, 2)
  values = values.transpose(0, 1, 2, 3, 5, 7, 4, 6, 8)
  return values.reshape(*lead, 4 * rows, 4 * columns)


def _pick(stack: nnx.Module, index: int) -> Any:
  """One layer of a stacked module."""
  return jax.tree.map(lambda leaf: leaf[index], stack)
