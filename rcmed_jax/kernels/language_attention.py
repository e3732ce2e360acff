"""Attention of the language model: one face over the libraries' kernels.

  splash     JAX's flash attention for TPUs: `language_attention_tpu.py`
  cudnn      NVIDIA's flash attention
  reference  plain XLA, scores in memory, the specification

Text is padded on the right, so a causal mask already keeps padding out of
every real position, and out of its gradient: no lengths are needed here. What
padded positions themselves read is finite and unused.
"""

import jax
import jax.numpy as jnp

from rcmed_jax.kernels import choice, language_attention_tpu

Shaped = jax.Array | jax.ShapeDtypeStruct

SPLASH = "splash"
CUDNN = "cudnn"

# Of cuDNN's flash attention. Source: jax.nn.dot_product_attention, which
# raises only while the program is compiled.
_CUDNN_DTYPES = (jnp.bfloat16, jnp.float16)
_CUDNN_WIDEST = 128  # 256 from Hopper on, which the mesh in scope cannot tell

_SPLASH_DTYPES = (jnp.bfloat16, jnp.float32)


def causal_attention(
  query_BSNH: jax.Array,
  key_BSNH: jax.Array,
  value_BSNH: jax.Array,
  *,
  prefix_B: jax.Array | None = None,
  implementation: str | None = None,
  interpret: bool = False,
) -> jax.Array:
  """[B, S, N, H]: each position reads itself, those before, and the prefix.

  With prefix_B = 3 and S = 5 the rows read (x = yes):

    x x x . .
    x x x . .
    x x x . .
    x x x x .
    x x x x x

  Args:
    query_BSNH: [B, S, N, H], rotated.
    key_BSNH: [B, S, N, H], rotated.
    value_BSNH: [B, S, N, H].
    prefix_B: int32[B], the first positions that all see each other, at most
      S; None for purely causal attention.
    implementation: None chooses; "splash", "cudnn" or "reference" insist.
    interpret: runs splash's body without a TPU, slowly; for tests.

  Raises:
    NotImplementedError: the implementation does not exist or cannot run here.
  """
  chosen = choice.choose(
    "causal_attention",
    implementation,
    refusals(query_BSNH, prefix_B=prefix_B, interpret=interpret),
  )
  if chosen == SPLASH:
    return language_attention_tpu.splash(
      query_BSNH, key_BSNH, value_BSNH, prefix_B, interpret=interpret
    )
  if chosen == CUDNN:
    return _cudnn(query_BSNH, key_BSNH, value_BSNH)
  mask_B1SS = None
  if prefix_B is not None:
    slots_S = jnp.arange(query_BSNH.shape[1])
    before_SS = slots_S[None, :] <= slots_S[:, None]
    prefix_BS = slots_S[None, :] < prefix_B[:, None]
    mask_B1SS = before_SS[None, None] | prefix_BS[:, None, None, :]
  return jax.nn.dot_product_attention(
    query_BSNH,
    key_BSNH,
    value_BSNH,
    mask=mask_B1SS,
    is_causal=prefix_B is None,
    implementation="xla",
  )


def cached_attention(
  query_BTNH: jax.Array,
  key_BNSH: jax.Array,
  value_BNSH: jax.Array,
  length_B: jax.Array,
  *,
  implementation: str | None = None,
) -> jax.Array:
  """[B, T, N, H]: T new positions of each row read its filled cache slots.

  New position t reads the first length_B + t slots: all before it and its own.
  One query a row, T = 1, reads the whole cache once, whatever computes it: XLA
  does that at the speed of the memory, and is the choice on every platform. Of
  a question, T is some hundreds: its scores, [B, N, T, S], are in memory.

  Args:
    query_BTNH: [B, T, N, H], rotated.
    key_BNSH: [B, N, S, H], the cache, the new positions' own keys in it.
    value_BNSH: [B, N, S, H].
    length_B: int32[B], filled slots, the first new position's own included.
    implementation: None chooses; "reference" or "cudnn" insist.

  Raises:
    NotImplementedError: the implementation does not exist or cannot run here.
  """
  chosen = choice.choose(
    "cached_attention",
    implementation,
    cached_refusals(query_BTNH),
  )
  if chosen == CUDNN:
    return jax.nn.dot_product_attention(
      query_BTNH,
      key_BNSH.swapaxes(1, 2),
      value_BNSH.swapaxes(1, 2),
      key_value_seq_lengths=length_B.astype(jnp.int32),
      implementation="cudnn",
    )
  return _read_cache(query_BTNH, key_BNSH, value_BNSH, length_B)


def refusals(
  query_BSNH: Shaped,
  *,
  prefix_B: Shaped | None = None,
  interpret: bool = False,
) -> dict[str, str | None]:
  """Every implementation, the preferred first, with why it cannot run here.

  Args:
    query_BSNH, prefix_B: of `causal_attention`, or their shapes and dtypes.
    interpret: whether splash's body may run without a TPU.
  """
  cudnn = _cudnn_refusal(query_BSNH)
  if prefix_B is not None and cudnn is None:
    cudnn = (
      "it would hold the prefix as a bias of S x S a row, and its gradient"
    )
  return {
    SPLASH: _splash_refusal(query_BSNH, interpret),
    CUDNN: cudnn,
    choice.REFERENCE: None,
  }


def cached_refusals(query_BTNH: Shaped) -> dict[str, str | None]:
  """The same of `cached_attention`."""
  cudnn = _cudnn_refusal(query_BTNH)
  if query_BTNH.shape[1] > 1 and cudnn is None:
    cudnn = "it would hold what new positions may read as a bias"
  return {
    choice.REFERENCE: None,
    CUDNN: cudnn,
    SPLASH: "its blocks of queries would be empty but for a few positions",
  }


def _read_cache(
  query_BTNH: jax.Array,
  key_BNSH: jax.Array,
  value_BNSH: jax.Array,
  length_B: jax.Array,
) -> jax.Array:
  """`cached_attention` in plain XLA.

  Keys stand left of their product and values right of theirs: so the cache
  lies as a matrix product on CPU wants it, and is not turned around for it.
  """
  heads = ((0, 1), (0, 1))
  query_BNHT = jnp.einsum("BTNH->BNHT", query_BTNH)
  scores_BNST = jax.lax.dot_general(
    key_BNSH,
    query_BNHT,
    (((3,), (2,)), heads),
    preferred_element_type=jnp.float32,
  )
  slots_S1 = jnp.arange(key_BNSH.shape[2])[:, None]
  filled_BT = length_B[:, None] + jnp.arange(query_BTNH.shape[1])[None]
  scores_BNST = jnp.where(
    slots_S1[None, None] < filled_BT[:, None, None, :],
    scores_BNST * query_BTNH.shape[-1] ** -0.5,
    -jnp.inf,
  )
  weights_BNST = jax.nn.softmax(scores_BNST, axis=2).astype(value_BNSH.dtype)
  mixed_BNTH = jax.lax.dot_general(
    weights_BNST.swapaxes(2, 3),
    value_BNSH,
    (((3,), (2,)), heads),
    preferred_element_type=jnp.float32,
  )
  return mixed_BNTH.swapaxes(1, 2).astype(query_BTNH.dtype)


def _cudnn(*arrays_BSNH: jax.Array) -> jax.Array:
  """Causal attention by cuDNN, whose gradients JAX refuses at odd lengths.

  One more position, after all others, is read by itself only.
  """
  length = arrays_BSNH[0].shape[1]
  even = [(0, 0), (0, length % 2), (0, 0), (0, 0)]
  mixed_BSNH = jax.nn.dot_product_attention(
    *(jnp.pad(array_BSNH, even) for array_BSNH in arrays_BSNH),
    is_causal=True,
    implementation="cudnn",
  )
  return mixed_BSNH[:, :length]


def _splash_refusal(query: Shaped, interpret: bool) -> str | None:
  platform, _ = choice.device()
  if platform != "tpu" and not interpret:
    return f"it needs a TPU, or interpret=True, and this is a {platform}"
  if query.dtype not in _SPLASH_DTYPES:
    return f"it needs bfloat16 or float32, and was given {query.dtype}"
  return None


def _cudnn_refusal(query: Shaped) -> str | None:
  platform, kind = choice.device()
  width = query.shape[-1]
  if platform != "gpu" or not kind.startswith("NVIDIA"):
    return f"it needs an NVIDIA GPU, and this is a {platform} ({kind})"
  if query.dtype not in _CUDNN_DTYPES:
    return f"it needs bfloat16 or float16, and was given {query.dtype}"
  if width % 8 or width > _CUDNN_WIDEST:
    return (
      f"it needs a head width that is a multiple of 8 up to {_CUDNN_WIDEST}, "
      f"and was given {width}"
    )
  return None
