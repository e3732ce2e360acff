"""Correlation attention on TPU: how both kernels lay out a call.

Scores are held as [T, P], words on sublanes and pixels on lanes, so that what
belongs to a pixel is a row and what is made by contracting words needs no
transposed scores. The heads that share 128 lanes form a group; a product with
one of them takes the whole group, its other lanes zero, for the matrix unit
contracts 128 at a time anyway. The grid is (rows, groups, pixel blocks): the
words of a group stay, the pixels pass by, and the softmax of each word over
the pixels is kept up to date from block to block.

Exponentials and logsumexps are in base 2, which is what the hardware has.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

LANES = 128
# Words at a time: 128 x 512 scores are as many registers as there are.
TILE = 128
# Words stay in VMEM for a whole group, and this is what was compiled.
MAX_WORDS = 512
# Narrower heads would keep statistics of 32 heads and more in VMEM at once;
# wider ones in float32 overrun it at MAX_WORDS.
WIDTHS = (8, 16, 32, 64, 128, 256)
DTYPES = (jnp.bfloat16, jnp.float32)

# Added to the scores of masked words in a pixel's softmax.
MASKED = -1e30
# Gate of pixels that pad the last block: far below any gate of the caller,
# above where a running maximum starts, and finite, so that nothing is NaN.
PADDING_GATE = -1e38
LOWEST = -3e38

LOG2_E = 1.4426950408889634
COLUMNS = (((1,), (1,)), ((), ()))  # contract lanes with lanes
PRODUCT = (((1,), (0,)), ((), ()))  # contract lanes with sublanes

PARAMETERS = pltpu.CompilerParams(
  dimension_semantics=("parallel", "parallel", "arbitrary"),
  vmem_limit_bytes=48 << 20,
)


@dataclasses.dataclass(frozen=True)
class Tiling:
  """How one call is cut."""

  rows: int  # B
  pixels: int  # P, a multiple of block
  words: int  # T, a multiple of TILE
  channels: int  # C of all heads
  width: int  # H, channels of one head
  block: int  # pixels of one step

  @property
  def lanes(self) -> int:
    """Channels of one group."""
    return max(LANES, self.width)

  @property
  def heads(self) -> int:
    """Heads of one group."""
    return self.lanes // self.width

  @property
  def groups(self) -> int:
    return self.channels // self.lanes

  @property
  def grid(self) -> tuple[int, int, int]:
    return self.rows, self.groups, self.pixels // self.block

  def of_pixels(self) -> pl.BlockSpec:
    return pl.BlockSpec((1, self.block, self.lanes), lambda b, m, p: (b, p, m))

  def of_words(self) -> pl.BlockSpec:
    return pl.BlockSpec((1, self.words, self.lanes), lambda b, m, p: (b, 0, m))

  def mask(self) -> pl.BlockSpec:
    return pl.BlockSpec((1, 1, self.words), lambda b, m, p: (b, 0, 0))

  def gate(self) -> pl.BlockSpec:
    return pl.BlockSpec((1, 1, self.block), lambda b, m, p: (b, 0, p))

  def per_pixel(self, count: int) -> pl.BlockSpec:
    """Of [B, groups, count, P]."""
    return pl.BlockSpec((1, 1, count, self.block), lambda b, m, p: (b, m, 0, p))

  def per_word(self) -> pl.BlockSpec:
    """Of [B, groups, heads, T]."""
    return pl.BlockSpec(
      (1, 1, self.heads, self.words), lambda b, m, p: (b, m, 0, 0)
    )


def tiling(pixels_BPC: Any, words_BTC: Any, heads: int) -> Tiling:
  """The cut that pads the fewest pixels, in the largest blocks."""
  rows, pixels, channels = pixels_BPC.shape
  blocks = (512, 384, 256) if pixels > LANES else (LANES,)
  block = min(blocks, key=lambda size: (-pixels % size, -size))
  return Tiling(
    rows=rows,
    pixels=pixels + -pixels % block,
    words=words_BTC.shape[1] + -words_BTC.shape[1] % TILE,
    channels=channels,
    width=channels // heads,
    block=block,
  )


def refusal(
  words: int, channels: int, heads: int, dtypes: set[jnp.dtype]
) -> str | None:
  """Why these kernels cannot run a call, or None; any P can."""
  width = channels // heads
  if len(dtypes) > 1 or not dtypes <= {jnp.dtype(kind) for kind in DTYPES}:
    names = sorted(str(kind) for kind in dtypes)
    return (
      "it needs queries, keys and values all bfloat16 or all float32, "
      f"received {', '.join(names)}"
    )
  if channels % LANES or width not in WIDTHS:
    return (
      f"it needs heads of {', '.join(map(str, WIDTHS[:-1]))} or {WIDTHS[-1]} "
      f"channels that together fill groups of {LANES}, received {heads} heads "
      f"of {width}"
    )
  if not 0 < words <= MAX_WORDS:
    return f"it takes 1 to {MAX_WORDS} words, received {words}"
  return None


def padded(values_BSC: jax.Array, length: int) -> jax.Array:
  """Zeros appended along S."""
  return jnp.pad(
    values_BSC, ((0, 0), (0, length - values_BSC.shape[1]), (0, 0))
  )


def rows(
  mask_BT: jax.Array, gate_BP: jax.Array, cut: Tiling
) -> tuple[jax.Array, jax.Array]:
  """float32 ([B, 1, T] of 0 and 1, [B, 1, P]), padded."""
  mask_BT = jnp.pad(mask_BT, ((0, 0), (0, cut.words - mask_BT.shape[1])))
  gate_BP = jnp.pad(
    gate_BP.astype(jnp.float32),
    ((0, 0), (0, cut.pixels - gate_BP.shape[1])),
    constant_values=PADDING_GATE,
  )
  return mask_BT.astype(jnp.float32)[:, None], gate_BP[:, None]


def dot(left: jax.Array, right: jax.Array, contract: Any) -> jax.Array:
  """A product summed in float32; of float32 operands, exactly so.

  Without being told, a TPU would round float32 operands to bfloat16.
  """
  exact = left.dtype == jnp.float32
  return jax.lax.dot_general(
    left,
    right,
    contract,
    precision=jax.lax.Precision.HIGHEST if exact else None,
    preferred_element_type=jnp.float32,
  )


def tiles(words: int) -> list[slice]:
  """All words, TILE at a time."""
  return [slice(start, start + TILE) for start in range(0, words, TILE)]


def spread(row_1T: jax.Array) -> jax.Array:
  """[T, LANES]: a row stood upright, the same in every lane."""
  return jnp.broadcast_to(row_1T, (LANES, row_1T.shape[1])).T


def across(values_TL: jax.Array, lanes: int) -> jax.Array:
  """[T, lanes] of values that are the same in every lane."""
  return jnp.concatenate([values_TL] * (lanes // LANES), axis=1)


def head_of_lane(lanes: int, width: int) -> jax.Array:
  """int32 [1, lanes]: the head in its group that owns each lane."""
  return jax.lax.broadcasted_iota(jnp.int32, (1, lanes), 1) // width


def keep(words_TC, kept_TL, heads_ref) -> None:
  """Writes each head's lanes of the words that are there, all else zero.

  What a masked word holds is never multiplied, be it infinite.
  """
  heads, _, lanes = heads_ref.shape
  owner_1C = head_of_lane(lanes, lanes // heads)
  kept_TC = across(kept_TL, lanes) > 0
  for head in range(heads):
    part_TC = jnp.where(
      kept_TC & (owner_1C == head), words_TC.astype(jnp.float32), 0
    )
    heads_ref[head] = part_TC.astype(heads_ref.dtype)


def one_ahead(
  make: Callable[[Any], Any], steps: Sequence[Any]
) -> Iterator[Any]:
  """make(step) of each step, the next one's made before this one is used.

  What is made are products: they keep the matrix unit busy while the other
  units work on the step before.
  """
  following = make(steps[0])
  for step in steps[1:]:
    made, following = following, make(step)
    yield made
  yield following
