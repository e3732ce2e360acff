"""Attention with decomposed relative positions through cuDNN.

cuDNN's flash attention takes a bias only in full, P x P for every head, and
writes its gradient in full. Concatenated to queries and keys the bias is part
of the products instead:

  [q, rel_h / scale, rel_w / scale] [k, one-hot row, one-hot column]^T
    = q k^T + (rel_h[row] + rel_w[column]) / scale

so that no P x P array exists and the gradients of q carry those of the bias.
The price: longer products (80 + 64 + 64 = 208 for ViT-H on a 64 x 64 grid), v
padded to the same width, and a bias rounded to the dtype of q.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from rcmed_jax.kernels import choice

WIDTH_STEP = 8  # cuDNN's widths are multiples of it
MAX_WIDTH = 256  # cuDNN's limit on Hopper and later; 128 before


def width(head: int, rows: int, columns: int) -> int:
  """Of the concatenated queries, keys and values."""
  return -(-(head + rows + columns) // WIDTH_STEP) * WIDTH_STEP


def refusal(
  q_MPH: jax.Array | jax.ShapeDtypeStruct, grid: tuple[int, int]
) -> str | None:
  """Why cuDNN cannot run on such arrays here, or None.

  Args:
    q_MPH: of `attend`.
    grid: rows and columns.
  """
  platform, kind = choice.device()
  if platform != "gpu":
    return f"it needs an NVIDIA GPU, not {kind!r}"
  if q_MPH.dtype not in (jnp.bfloat16, jnp.float16):
    return f"it needs bfloat16 or float16 operands, not {q_MPH.dtype}"
  size = width(q_MPH.shape[-1], *grid)
  if size > MAX_WIDTH:
    return f"it needs head + rows + columns of {MAX_WIDTH} or less, not {size}"
  if q_MPH.shape[-2] % 2:
    # JAX refuses the gradient only, while the program is traced.
    return f"it needs an even number of patches, not {q_MPH.shape[-2]}"
  return None


def attend(
  q_MPH: jax.Array,
  k_MPH: jax.Array,
  v_MPH: jax.Array,
  rel_h_MPY: jax.Array,
  rel_w_MPX: jax.Array,
  scale: float,
  *,
  implementation: Literal["xla", "cudnn"] = "cudnn",
) -> jax.Array:
  """[M, P, H] of v's dtype; differentiable by all arrays.

  Args:
    q_MPH: queries, row-major over the grid.
    k_MPH: keys.
    v_MPH: values.
    rel_h_MPY: float32 bias of each query towards each key row.
    rel_w_MPX: float32 bias of each query towards each key column.
    scale: of the scores.
    implementation: of `jax.nn.dot_product_attention`; "xla" is the same
      arithmetic with the scores in memory, on any device.
  """
  rows, columns = rel_h_MPY.shape[-1], rel_w_MPX.shape[-1]
  heads, _, head = q_MPH.shape
  size = width(head, rows, columns)
  places_PR = jnp.concatenate(
    [
      jnp.repeat(jnp.eye(rows, dtype=k_MPH.dtype), columns, axis=0),
      jnp.tile(jnp.eye(columns, dtype=k_MPH.dtype), (rows, 1)),
    ],
    axis=-1,
  )
  places_MPR = jnp.broadcast_to(places_PR[None], (heads, *places_PR.shape))
  bias_MPR = jnp.concatenate([rel_h_MPY, rel_w_MPX], axis=-1) / scale

  def widened(*parts: jax.Array) -> jax.Array:
    joined = jnp.concatenate(parts, axis=-1)
    missing = size - joined.shape[-1]
    joined = jnp.pad(joined, ((0, 0), (0, 0), (0, missing)))
    return joined[:, :, None]  # heads are in the batch already

  mixed_MP1H = jax.nn.dot_product_attention(
    widened(q_MPH, bias_MPR.astype(q_MPH.dtype)),
    widened(k_MPH, places_MPR),
    widened(v_MPH),
    scale=scale,
    implementation=implementation,
  )
  return mixed_MP1H[:, :, 0, : v_MPH.shape[-1]]
