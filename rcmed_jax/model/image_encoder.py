"""SAM's image encoder: pixels to tokens for language and pixels for masks.

A plain ViT whose blocks attend within windows, except for one global block at
the end of every stage. Stages, and the windowed blocks within a stage, are
stacked and scanned.
Source: "Segment Anything", arXiv 2304.02643; sizes in `config.py`.
"""

import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from rcmed_jax import axes
from rcmed_jax.kernels.relpos_attention import (
  relpos_attention,
  window_relpos_attention,
)
from rcmed_jax.model import layers
from rcmed_jax.model.config import (
  PIXEL_MEAN,
  PIXEL_STD,
  ImageEncoderConfig,
  ModelConfig,
)
from rcmed_jax.parallel import rules
from rcmed_jax.parallel.local import local

NORM_EPS = 1e-6
# Attention on each device's own images, or windows, and heads.
_ROWS_HEADS = PartitionSpec(axes.BATCH, axes.HEADS)

_GRID = (axes.BATCH, axes.LENGTH, axes.LENGTH)


def normalize(
  pixels_BIJC: jax.Array, extent_B2: jax.Array, channel_order: str
) -> jax.Array:
  """float32 [B, I, J, 3]: (pixels - mean) / std, zero outside the extent.

  The mean and std apply in the order in which the checkpoint saw channels: the
  release read BGR and subtracted SAM's RGB means from it all the same.

  Args:
    pixels_BIJC: uint8, 0..255, RGB.
    extent_B2: int32 rows and columns that are image; the rest is padding.
    channel_order: "rgb" or "bgr", a property of the checkpoint.
  """
  if channel_order == "bgr":
    pixels_BIJC = pixels_BIJC[..., ::-1]
  mean_BIJC = jnp.asarray(PIXEL_MEAN, jnp.float32)[None, None, None]
  std_BIJC = jnp.asarray(PIXEL_STD, jnp.float32)[None, None, None]
  values_BIJC = (pixels_BIJC.astype(jnp.float32) - mean_BIJC) / std_BIJC
  _, rows, columns, _ = pixels_BIJC.shape
  inside_BI = jnp.arange(rows)[None] < extent_B2[:, :1]
  inside_BJ = jnp.arange(columns)[None] < extent_B2[:, 1:]
  inside_BIJ = inside_BI[:, :, None] & inside_BJ[:, None, :]
  return jnp.where(inside_BIJ[..., None], values_BIJC, 0.0)


class ImageEncoder(nnx.Module):
  """Pixels [B, I, J, 3] to tokens [B, Y, X, D] and pixels [B, Y, X, C]."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    image = config.image
    stages, windowed = _stage_plan(image)
    self.image_size = image.image_size
    self.patch_size = image.patch_size
    self.dtype = jnp.dtype(config.dtype)
    self.patches = layers.linear(
      3 * image.patch_size**2,
      image.width,
      (axes.SPACE, axes.EMBED),
      rngs=rngs,
      init=layers.FAN_IN,
      dtype=self.dtype,
    )
    positions = layers.named(
      layers.NORMAL, (axes.SPACE, axes.SPACE, axes.EMBED)
    )
    self.positions = nnx.Param(
      positions(rngs.params(), (image.grid, image.grid, image.width))
    )
    self.stages = layers.stack(
      lambda rngs: Stage(config, windowed, rngs=rngs),
      stages,
      axes.STAGES,
      rngs=rngs,
    )
    self.neck = Neck(config, rngs=rngs)

  def __call__(self, pixels_BIJC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Tokens before the neck and pixels after it.

    Args:
      pixels_BIJC: float32, square, from `normalize`.

    Returns:
      tokens [B, Y, X, D] and pixels [B, Y, X, C], both of the config's dtype.

    Raises:
      ValueError: the pixels have another size than the position embedding.
    """
    size = self.image_size
    if pixels_BIJC.shape[1:] != (size, size, 3):
      raise ValueError(
        f"ImageEncoder: expected pixels [B, {size}, {size}, 3], received "
        f"{pixels_BIJC.shape}; resize and pad the image to image_size first."
      )
    tokens_BYXD = self.patches(cut_patches(pixels_BIJC, self.patch_size))
    tokens_BYXD += self.positions[...].astype(self.dtype)[None]
    tokens_BYXD, _ = jax.lax.scan(_run, tokens_BYXD, self.stages)
    return tokens_BYXD, self.neck(tokens_BYXD)


class Stage(nnx.Module):
  """Windowed blocks, stacked, then one global block."""

  def __init__(self, config: ModelConfig, windowed: int, *, rngs: nnx.Rngs):
    image = config.image
    self.remat = config.remat
    self.windowed = layers.stack(
      lambda rngs: Block(config, image.window, windowed=True, rngs=rngs),
      windowed,
      axes.LAYERS,
      rngs=rngs,
    )
    self.last = Block(config, image.grid, windowed=False, rngs=rngs)

  def __call__(self, tokens_BYXD: jax.Array) -> jax.Array:
    run = layers.remat(_run, self.remat)
    tokens_BYXD, _ = jax.lax.scan(run, tokens_BYXD, self.windowed)
    tokens_BYXD, _ = run(tokens_BYXD, self.last)
    return tokens_BYXD


class Block(nnx.Module):
  """Pre-norm attention, within windows of `side` or over a grid of `side`."""

  def __init__(
    self, config: ModelConfig, side: int, *, windowed: bool, rngs: nnx.Rngs
  ):
    width = config.image.width
    hidden = round(width * config.image.mlp_ratio)
    self.dtype = jnp.dtype(config.dtype)
    dense = functools.partial(
      layers.linear, rngs=rngs, init=layers.FAN_IN, dtype=self.dtype
    )
    self.window = side if windowed else None
    self.attention_norm = layers.layer_norm(width, eps=NORM_EPS, rngs=rngs)
    self.attention = Attention(config, side, windowed=windowed, rngs=rngs)
    self.mlp_norm = layers.layer_norm(width, eps=NORM_EPS, rngs=rngs)
    self.mlp_in = dense(width, hidden, (axes.EMBED, axes.MLP))
    self.mlp_out = dense(hidden, width, (axes.MLP, axes.EMBED))

  def __call__(self, tokens_BYXD: jax.Array) -> jax.Array:
    tokens_BYXD = rules.constrain(tokens_BYXD, *_GRID, axes.WIDTH)
    normed_BYXD = self.attention_norm(tokens_BYXD).astype(self.dtype)
    if self.window is None:
      tokens_BYXD += self.attention(normed_BYXD)
    else:
      windows_MWWD = self.attention(split_windows(normed_BYXD, self.window))
      tokens_BYXD += join_windows(windows_MWWD, tokens_BYXD.shape[:3])
    hidden_BYXF = self.mlp_in(self.mlp_norm(tokens_BYXD))
    hidden_BYXF = rules.constrain(hidden_BYXF, *_GRID, axes.MLP)
    hidden_BYXF = jax.nn.gelu(hidden_BYXF, approximate=False)
    return tokens_BYXD + self.mlp_out(hidden_BYXF)


class Attention(nnx.Module):
  """Self-attention over a side x side grid with relative positions."""

  def __init__(
    self, config: ModelConfig, side: int, *, windowed: bool, rngs: nnx.Rngs
  ):
    width, self.heads = config.image.width, config.image.heads
    head_width = width // self.heads
    self.dtype = dtype = jnp.dtype(config.dtype)
    self.scale = head_width**-0.5
    self.op = window_relpos_attention if windowed else relpos_attention
    chosen = config.image.attention
    self.implementation = None if chosen == "auto" else chosen
    # q, k, v on an axis of their own, so that heads can be sharded.
    self.qkv = layers.LinearGeneral(
      width,
      (3, width),
      dtype=dtype,
      kernel_init=layers.named(
        layers.FAN_IN, (axes.EMBED, axes.VECTOR, axes.HEADS)
      ),
      bias_init=layers.named(layers.ZEROS, (axes.VECTOR, axes.VECTOR)),
      rngs=rngs,
    )
    self.out = layers.linear(
      width,
      width,
      (axes.HEADS, axes.EMBED),
      rngs=rngs,
      init=layers.FAN_IN,
      dtype=dtype,
    )
    table = layers.named(layers.ZEROS, (axes.SPACE, axes.VECTOR))
    shape = (2 * side - 1, head_width)  # every distance between two rows
    self.rows = nnx.Param(table(rngs.params(), shape))
    self.columns = nnx.Param(table(rngs.params(), shape))

  def __call__(self, tokens_BYXD: jax.Array) -> jax.Array:
    batch, rows, columns, width = tokens_BYXD.shape
    # Rows and columns join first: a TPU would pad 14 of them to 16. One product
    # each, because the parts of one array would be copied to be told apart.
    tokens_BPD = tokens_BYXD.reshape(batch, rows * columns, width)
    q_BNPH, k_BNPH, v_BNPH = (
      self._project(tokens_BPD, part) for part in range(3)
    )
    q_BNYXH = q_BNPH.reshape(batch, self.heads, rows, columns, -1)
    rel_h_BNYXS = jnp.einsum(
      "BNYXH,YSH->BNYXS",
      q_BNYXH,
      _by_distance(self.rows[...], rows).astype(self.dtype),
      preferred_element_type=jnp.float32,
    )
    rel_w_BNYXS = jnp.einsum(
      "BNYXH,XSH->BNYXS",
      q_BNYXH,
      _by_distance(self.columns[...], columns).astype(self.dtype),
      preferred_element_type=jnp.float32,
    )
    attend = local(self._attend, (_ROWS_HEADS,) * 5, _ROWS_HEADS)
    out_BNPH = layers.attended(
      attend(
        q_BNPH,
        k_BNPH,
        v_BNPH,
        rel_h_BNYXS.reshape(batch, self.heads, rows * columns, rows),
        rel_w_BNYXS.reshape(batch, self.heads, rows * columns, columns),
      )
    )
    out_BPNH = out_BNPH.transpose(0, 2, 1, 3)
    return self.out(out_BPNH.reshape(batch, rows, columns, width))

  def _project(self, tokens_BPD: jax.Array, part: int) -> jax.Array:
    """[B, N, P, H], the queries, keys or values."""
    assert self.qkv.bias is not None  # it was made with one
    out_BPD = layers.affine(
      tokens_BPD, self.qkv.kernel[:, part], self.qkv.bias[part], self.dtype
    )
    out_BPNH = out_BPD.reshape(*out_BPD.shape[:2], self.heads, -1)
    return out_BPNH.transpose(0, 2, 1, 3)

  def _attend(
    self,
    q_BNPH: jax.Array,
    k_BNPH: jax.Array,
    v_BNPH: jax.Array,
    rel_h_BNPS: jax.Array,
    rel_w_BNPS: jax.Array,
  ) -> jax.Array:
    """[B, N, P, H]; the op knows no images and heads, only their product."""

    def fold(values: jax.Array) -> jax.Array:
      return values.reshape(-1, *values.shape[2:])

    out_MPH = self.op(
      fold(q_BNPH),
      fold(k_BNPH),
      fold(v_BNPH),
      fold(rel_h_BNPS),
      fold(rel_w_BNPS),
      self.scale,
      implementation=self.implementation,
    )
    return out_MPH.reshape(q_BNPH.shape)


class Neck(nnx.Module):
  """Tokens of width D to pixels of width C: 1x1, norm, 3x3, norm."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    pixel_width = config.decoder.width
    self.dtype = jnp.dtype(config.dtype)
    self.project = layers.linear(
      config.image.width,
      pixel_width,
      (axes.EMBED, axes.CHANNELS),
      rngs=rngs,
      bias=False,
      init=layers.FAN_IN,
      dtype=self.dtype,
    )
    self.project_norm = layers.layer_norm(pixel_width, eps=NORM_EPS, rngs=rngs)
    self.smooth = nnx.Conv(
      pixel_width,
      pixel_width,
      (3, 3),
      use_bias=False,
      dtype=self.dtype,
      kernel_init=layers.named(
        layers.FAN_IN, (axes.SPACE, axes.SPACE, axes.EMBED, axes.CHANNELS)
      ),
      rngs=rngs,
    )
    self.smooth_norm = layers.layer_norm(pixel_width, eps=NORM_EPS, rngs=rngs)

  def __call__(self, tokens_BYXD: jax.Array) -> jax.Array:
    pixels_BYXC = self.project_norm(self.project(tokens_BYXD))
    pixels_BYXC = self.smooth_norm(self.smooth(pixels_BYXC))
    return pixels_BYXC.astype(self.dtype)


def cut_patches(pixels_BIJC: jax.Array, size: int) -> jax.Array:
  """[B, Y, X, size * size * C]: each patch's pixels row by row."""
  batch, rows, columns, channels = pixels_BIJC.shape
  grid = (rows // size, columns // size)
  patches = pixels_BIJC.reshape(batch, grid[0], size, grid[1], size, channels)
  return patches.transpose(0, 1, 3, 2, 4, 5).reshape(batch, *grid, -1)


def split_windows(tokens_BYXD: jax.Array, window: int) -> jax.Array:
  """[M, W, W, D]: the grid cut into windows, zeros below and to the right.

  A grid of 64 becomes 5 x 5 windows of 14, its last 6 rows and columns zeros.
  """
  batch, rows, columns, width = tokens_BYXD.shape
  below, right = -rows % window, -columns % window
  padded = jnp.pad(tokens_BYXD, ((0, 0), (0, below), (0, right), (0, 0)))
  windows = padded.reshape(
    batch,
    (rows + below) // window,
    window,
    (columns + right) // window,
    window,
    width,
  )
  windows = windows.transpose(0, 1, 3, 2, 4, 5)
  return windows.reshape(-1, window, window, width)


def join_windows(windows_MWWD: jax.Array, grid: tuple[int, ...]) -> jax.Array:
  """[*grid, D]: undoes `split_windows`, dropping its padding.

  Args:
    windows_MWWD: every window of every image.
    grid: batch, rows and columns before the split.
  """
  batch, rows, columns = grid
  _, window, _, width = windows_MWWD.shape
  down, across = -(-rows // window), -(-columns // window)
  tokens = windows_MWWD.reshape(batch, down, across, window, window, width)
  tokens = tokens.transpose(0, 1, 3, 2, 4, 5)
  tokens = tokens.reshape(batch, down * window, across * window, width)
  return tokens[:, :rows, :columns]


def _by_distance(table: jax.Array, size: int) -> jax.Array:
  """[size, size, H]: for query q and key k the row q - k + size - 1."""
  positions = np.arange(size)
  return table[positions[:, None] - positions[None] + size - 1]


def _run(tokens_BYXD: jax.Array, module: Any) -> tuple[jax.Array, None]:
  """One turn of a scan over stages or blocks; its carry is the tokens."""
  return module(tokens_BYXD), None


def _stage_plan(image: ImageEncoderConfig) -> tuple[int, int]:
  """Stages, and windowed blocks in each; ValueError for any other pattern."""
  stages = len(image.global_blocks)
  length = image.depth // max(stages, 1)
  ends = tuple(range(length - 1, image.depth, max(length, 1)))
  if length < 2 or tuple(image.global_blocks) != ends or len(ends) != stages:
    raise ValueError(
      f"model.image: global_blocks={image.global_blocks} of depth="
      f"{image.depth} do not end stages of one length, each with at least one "
      "windowed block before it; expected for example depth=12, "
      "global_blocks=(2, 5, 8, 11)."
    )
  return stages, length - 1
