"""Attention with decomposed relative positions, as SAM's image encoder uses it.

  o = softmax(scale q k^T + bias) v,
  bias[(y, x), (y', x')] = rel_h[(y, x), y'] + rel_w[(y, x), x']

A grid's bias over key rows and columns comes in two thin arrays; the full
P x P bias never enters as an operand. Heads (and windows) are folded into the
leading axis M. `_reference` is the specification of every kernel of this op.
Source: SAM's `add_decomposed_rel_pos`, "Segment Anything",
arXiv 2304.02643.
"""

import math

import jax
import jax.numpy as jnp

from rcmed_jax.kernels import (
  choice,
  relpos_attention_blocks,
  relpos_attention_cudnn,
  relpos_attention_gpu,
  relpos_attention_tpu,
  relpos_attention_tpu_grid,
  relpos_attention_tpu_window,
)

BLOCKS = "blocks"
CUDNN = "cudnn"

# The bias of keys that only fill a grid up. Far below any score, yet finite:
# twice this is still a float32.
MASKED = -1e30

# Of the backward pass: the kernel's five arguments, and what it kept.
_Five = tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array]
_Residuals = tuple[_Five, tuple[jax.Array, ...]]


def relpos_attention(
  q_MPH: jax.Array,
  k_MPH: jax.Array,
  v_MPH: jax.Array,
  rel_h_MPY: jax.Array,
  rel_w_MPX: jax.Array,
  scale: float,
  *,
  implementation: str | None = None,
  interpret: bool = False,
) -> jax.Array:
  """[M, P, H] of v's dtype: attention over a grid of P = Y * X patches.

  Args:
    q_MPH: bfloat16 or float32 queries, row-major over the grid.
    k_MPH: keys.
    v_MPH: values.
    rel_h_MPY: float32 bias of each query towards each key row.
    rel_w_MPX: float32 bias of each query towards each key column.
    scale: of the scores; the biases come from the unscaled query.
    implementation: None takes the fastest that runs here, "reference" is plain
      XLA, "blocks" plain XLA by blocks of queries, "pallas" the kernel of the
      platform at hand, "cudnn" NVIDIA's with the bias inside the products.
    interpret: runs the TPU's kernel on any platform, slowly, to test it.

  Raises:
    NotImplementedError: the implementation does not exist or cannot run here.
    ValueError: the shapes do not form a grid.
  """
  arguments = (q_MPH, k_MPH, v_MPH, rel_h_MPY, rel_w_MPX)
  patches = rel_h_MPY.shape[-1] * rel_w_MPX.shape[-1]
  if q_MPH.shape[-2] != patches:
    raise ValueError(
      f"relpos_attention: {q_MPH.shape[-2]} queries, but rel_h and rel_w "
      f"describe a {rel_h_MPY.shape[-1]} x {rel_w_MPX.shape[-1]} grid; pass "
      "every patch of one grid, row by row."
    )
  chosen = choice.choose(
    "relpos_attention",
    implementation,
    refusals(*arguments, interpret=interpret),
  )
  if chosen == BLOCKS:
    return relpos_attention_blocks.attend(*arguments, scale)
  if chosen == CUDNN:
    return relpos_attention_cudnn.attend(*arguments, scale)
  if chosen == choice.PALLAS and choice.on_gpu(interpret):
    return relpos_attention_gpu.attend(*arguments, scale)
  if chosen == choice.PALLAS:
    return _tpu(*arguments, scale, interpret)
  return _reference(*arguments, scale)


def window_relpos_attention(
  q_MPH: jax.Array,
  k_MPH: jax.Array,
  v_MPH: jax.Array,
  rel_h_MPW: jax.Array,
  rel_w_MPW: jax.Array,
  scale: float,
  *,
  implementation: str | None = None,
  interpret: bool = False,
) -> jax.Array:
  """[M, P, H]: `relpos_attention` over many small square windows, P = W * W.

  The mathematics is the same, and the size alone decides which kernel runs.
  """
  return relpos_attention(
    q_MPH,
    k_MPH,
    v_MPH,
    rel_h_MPW,
    rel_w_MPW,
    scale,
    implementation=implementation,
    interpret=interpret,
  )


def refusals(
  q_MPH: jax.Array | jax.ShapeDtypeStruct,
  k_MPH: jax.Array | jax.ShapeDtypeStruct,
  v_MPH: jax.Array | jax.ShapeDtypeStruct,
  rel_h_MPY: jax.Array | jax.ShapeDtypeStruct,
  rel_w_MPX: jax.Array | jax.ShapeDtypeStruct,
  *,
  interpret: bool = False,
) -> dict[str, str | None]:
  """Every implementation, the fastest first, with why it cannot run here.

  Looks at shapes, dtypes and the device in scope; see `choice.choose`.
  """
  grid = rel_h_MPY.shape[-1], rel_w_MPX.shape[-1]
  if choice.on_gpu(interpret):
    # Last, because neither has run on a GPU yet: they wait for being asked.
    return {
      choice.REFERENCE: None,
      BLOCKS: None,
      CUDNN: relpos_attention_cudnn.refusal(q_MPH, grid),
      choice.PALLAS: relpos_attention_gpu.refusal(q_MPH, k_MPH, v_MPH, grid),
    }
  platform, kind = choice.device()
  if interpret or platform == "tpu":
    rows, columns = relpos_attention_tpu.padded_grid(*grid)
    why = relpos_attention_tpu.refusal(
      rows * columns,
      q_MPH.shape[-1],
      tuple(jnp.dtype(a.dtype) for a in (q_MPH, k_MPH, v_MPH)),
    )
  else:
    why = f"it needs a TPU or a GPU, not a {platform}, or interpret=True"
  plain = [choice.REFERENCE, BLOCKS]
  if platform == "cpu" and relpos_attention_blocks.worthwhile(
    math.prod(q_MPH.shape[:-2]), q_MPH.shape[-2]
  ):
    plain.reverse()
  return {
    choice.PALLAS: why,
    **dict.fromkeys(plain),
    CUDNN: f"it needs an NVIDIA GPU, not {kind!r}",
  }


def _tpu(
  q_MPH: jax.Array,
  k_MPH: jax.Array,
  v_MPH: jax.Array,
  rel_h_MPY: jax.Array,
  rel_w_MPX: jax.Array,
  scale: float,
  interpret: bool,
) -> jax.Array:
  """The kernels in the layout that they take: feature-major, grid filled up."""
  rows, columns = rel_h_MPY.shape[-1], rel_w_MPX.shape[-1]
  to_rows, to_columns = relpos_attention_tpu.padded_grid(rows, columns)
  below, right = (0, to_rows - rows), (0, to_columns - columns)

  def fill(values_MPC: jax.Array, more: tuple[int, int]) -> jax.Array:
    """[M, C, P] on the larger grid, with `more` masked features."""
    heads, _, features = values_MPC.shape
    values_MCP = values_MPC.swapaxes(1, 2)
    if below[1] or right[1]:
      values_MCYX = values_MCP.reshape(heads, features, rows, columns)
      values_MCYX = jnp.pad(values_MCYX, ((0, 0), (0, 0), below, right))
      values_MCP = values_MCYX.reshape(heads, features, to_rows * to_columns)
    if more[1]:
      values_MCP = jnp.pad(
        values_MCP, ((0, 0), more, (0, 0)), constant_values=MASKED
      )
    return values_MCP

  o_MHP = _attend(
    fill(q_MPH, (0, 0)),
    fill(k_MPH, (0, 0)),
    fill(v_MPH, (0, 0)),
    fill(rel_h_MPY.astype(jnp.float32), below),
    fill(rel_w_MPX.astype(jnp.float32), right),
    scale,
    interpret,
  )
  if below[1] or right[1]:
    o_MHYX = o_MHP.reshape(*o_MHP.shape[:2], to_rows, to_columns)
    o_MHP = o_MHYX[:, :, :rows, :columns].reshape(q_MPH.swapaxes(1, 2).shape)
  return o_MHP.swapaxes(1, 2)


def _attend_only(
  q_MHP: jax.Array,
  k_MHP: jax.Array,
  v_MHP: jax.Array,
  rel_h_MYP: jax.Array,
  rel_w_MXP: jax.Array,
  scale: float,
  interpret: bool,
) -> jax.Array:
  kernels = _kernels(q_MHP.shape[-1])
  o_MHP, _ = kernels.forward(
    q_MHP, k_MHP, v_MHP, rel_h_MYP, rel_w_MXP, scale, interpret=interpret
  )
  return o_MHP


def _attend_forward(
  q_MHP: jax.Array,
  k_MHP: jax.Array,
  v_MHP: jax.Array,
  rel_h_MYP: jax.Array,
  rel_w_MXP: jax.Array,
  scale: float,
  interpret: bool,
) -> tuple[jax.Array, _Residuals]:
  arguments = (q_MHP, k_MHP, v_MHP, rel_h_MYP, rel_w_MXP)
  kernels = _kernels(q_MHP.shape[-1])
  o_MHP, kept = kernels.forward(*arguments, scale, interpret=interpret)
  return o_MHP, (arguments, kept)


def _attend_backward(
  scale: float, interpret: bool, residuals: _Residuals, do_MHP: jax.Array
) -> tuple[jax.Array, ...]:
  arguments, kept = residuals
  kernels = _kernels(do_MHP.shape[-1])
  return kernels.backward(*arguments, kept, do_MHP, scale, interpret=interpret)


_attend = jax.custom_vjp(_attend_only, nondiff_argnums=(5, 6))
_attend.defvjp(_attend_forward, _attend_backward)


def _kernels(patches: int):
  """The module whose kernels hold a grid of so many patches."""
  if patches <= relpos_attention_tpu.TILE_PATCHES:
    return relpos_attention_tpu_window
  return relpos_attention_tpu_grid


def _reference(
  q_MPH: jax.Array,
  k_MPH: jax.Array,
  v_MPH: jax.Array,
  rel_h_MPY: jax.Array,
  rel_w_MPX: jax.Array,
  scale: float,
) -> jax.Array:
  """The formula, scores in memory, float32 softmax."""
  scores_MPS = jnp.einsum(
    "MPH,MSH->MPS", q_MPH, k_MPH, preferred_element_type=jnp.float32
  )
  bias_MPS = _bias(rel_h_MPY, rel_w_MPX)
  weights_MPS = jax.nn.softmax(scores_MPS * scale + bias_MPS, axis=-1)
  return jnp.einsum("MPS,MSH->MPH", weights_MPS.astype(v_MPH.dtype), v_MPH)


def _bias(rel_h_MPY: jax.Array, rel_w_MPX: jax.Array) -> jax.Array:
  """float32 [M, P, S]: rel_h of the key's row plus rel_w of its column.

  One product with a constant of zeros and ones. SAM adds two 5-D broadcasts
  instead, whose short last axis wastes most of a TPU's lanes; measured on a
  CPU the product is two to three times as fast.
  """
  rows, columns = rel_h_MPY.shape[-1], rel_w_MPX.shape[-1]
  pick_row_YS = jnp.repeat(jnp.eye(rows), columns, axis=1)
  pick_column_XS = jnp.tile(jnp.eye(columns), (1, rows))
  return jnp.einsum(
    "MPR,RS->MPS",
    jnp.concatenate([rel_h_MPY, rel_w_MPX], axis=-1).astype(jnp.float32),
    jnp.concatenate([pick_row_YS, pick_column_XS], axis=0),
    precision=jax.lax.Precision.HIGHEST,  # or a TPU rounds it to bfloat16
  )
