"""The language model: LLaMA, decoder only, layers stacked and scanned.

`Language(states)` runs a whole sequence, `prefill` also keeps the keys and
values, `extend` then adds positions to each row, and `decode` one. Rows may
differ in length: text is padded on the right and each row writes into its own
cache slots, so padding left in the cache is overwritten before anything reads
it.
"""

import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from rcmed_jax import axes
from rcmed_jax.kernels import language_attention
from rcmed_jax.model import layers, local_heads
from rcmed_jax.model.config import ModelConfig
from rcmed_jax.model.lora import LoraLinear
from rcmed_jax.parallel import rules
from rcmed_jax.parallel.local import local
from rcmed_jax.parallel.lookup import lookup

# Attention on each device's own rows and heads.
_ROWS = PartitionSpec(axes.BATCH)
_ROWS_HEADS = PartitionSpec(axes.BATCH, axes.HEADS)
_ROWS_SLOTS_HEADS = PartitionSpec(axes.BATCH, None, axes.HEADS)
_attention = local(
  lambda q_BSNH, k_BSNH, v_BSNH, prefix_B: language_attention.causal_attention(
    q_BSNH, k_BSNH, v_BSNH, prefix_B=prefix_B
  ),
  (*(_ROWS_SLOTS_HEADS,) * 3, _ROWS),
  _ROWS_SLOTS_HEADS,
)
_cached_attention = local(
  language_attention.cached_attention,
  (_ROWS_SLOTS_HEADS, *(_ROWS_HEADS,) * 2, _ROWS),
  _ROWS_SLOTS_HEADS,
)
_STATES = (axes.BATCH, axes.LENGTH, axes.WIDTH)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """Rotated keys, and values, of every layer; S slots a row.

  Rows come first, as in all that programs hand to each other. Heads come before
  slots, as a head's products with them need: else every token would turn the
  whole cache around, on CPU 36 of 48 ms (33 M weights, 1,272 slots).
  """

  key_BLNSH: jax.Array
  value_BLNSH: jax.Array

  @property
  def slots(self) -> int:
    """S."""
    return self.key_BLNSH.shape[3]

  def grown(self, room: int) -> "Cache":
    """The same with that many more slots."""
    more = ((0, 0), (0, 0), (0, 0), (0, room), (0, 0))
    return jax.tree.map(lambda values: jnp.pad(values, more), self)


class Layer(nnx.Module):
  """One pre-norm layer: attention, then SwiGLU, both residual."""

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    language = config.language
    width, hidden = language.width, language.hidden
    dtype = jnp.dtype(config.dtype)
    self.heads = language.heads
    self.dtype = dtype

    def norm() -> nnx.RMSNorm:
      return layers.rms_norm(width, eps=language.norm_eps, rngs=rngs)

    def attention(names: tuple[str, str]) -> LoraLinear:
      return LoraLinear(
        width, width, names, config.lora, dtype=dtype, rngs=rngs
      )

    def mlp(inputs: int, outputs: int, names: tuple[str, str]) -> nnx.Linear:
      return layers.linear(
        inputs, outputs, names, bias=False, dtype=dtype, rngs=rngs
      )

    self.attention_norm = norm()
    self.q = attention((axes.EMBED, axes.HEADS))
    self.k = attention((axes.EMBED, axes.HEADS))
    self.v = attention((axes.EMBED, axes.HEADS))
    self.o = attention((axes.HEADS, axes.EMBED))
    self.mlp_norm = norm()
    self.gate = mlp(width, hidden, (axes.EMBED, axes.MLP))
    self.up = mlp(width, hidden, (axes.EMBED, axes.MLP))
    self.down = mlp(hidden, width, (axes.MLP, axes.EMBED))

  def project(
    self,
    states_BSD: jax.Array,
    rotation: tuple[jax.Array, jax.Array],
    keys: tuple[jax.Array | None, ...],
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Rotated queries, rotated keys and values, each [B, S, N, H]."""
    states_BSD = rules.constrain(states_BSD, *_STATES)
    normed_BSD = self.attention_norm(states_BSD)
    q_BSNH, k_BSNH, v_BSNH = (
      self._split(dense(normed_BSD, key))
      for dense, key in zip((self.q, self.k, self.v), keys[:3], strict=True)
    )
    return rotate(q_BSNH, rotation), rotate(k_BSNH, rotation), v_BSNH

  def update(
    self,
    states_BSD: jax.Array,
    mixed_BSNH: jax.Array,
    keys: tuple[jax.Array | None, ...],
  ) -> jax.Array:
    """The states after what attention mixed and after the MLP."""
    mixed_BSD = layers.attended(mixed_BSNH).reshape(states_BSD.shape)
    states_BSD = states_BSD + self.o(mixed_BSD, keys[3])
    normed_BSD = self.mlp_norm(states_BSD).astype(self.dtype)
    hidden_BSF = jax.nn.silu(self.gate(normed_BSD)) * self.up(normed_BSD)
    hidden_BSF = rules.constrain(hidden_BSF, axes.BATCH, axes.LENGTH, axes.MLP)
    return states_BSD + self.down(hidden_BSF)

  def _split(self, values_BSD: jax.Array) -> jax.Array:
    batch, length, width = values_BSD.shape
    return rules.constrain(
      values_BSD.reshape(batch, length, self.heads, width // self.heads),
      axes.BATCH,
      axes.LENGTH,
      axes.HEADS,
      axes.WIDTH,
    )


class Language(nnx.Module):
  """Embedding, layers, final norm and untied head.

  Source: LLaMA; the release's language model.
  """

  def __init__(self, config: ModelConfig, *, rngs: nnx.Rngs):
    language = config.language
    self.config = config
    self.dtype = jnp.dtype(config.dtype)
    self.embedding = nnx.Param(
      layers.named(layers.NORMAL, (axes.VOCAB, axes.EMBED))(
        rngs.params(), (language.vocabulary, language.width)
      )
    )
    self.layers: Any = layers.stack(  # one Layer, its arrays stacked
      lambda rngs: Layer(config, rngs=rngs),
      language.depth,
      axes.LAYERS,
      rngs=rngs,
    )
    if language.local_heads:
      self._start_local(rngs.params())
    self.norm = layers.rms_norm(
      language.width, eps=language.norm_eps, rngs=rngs
    )
    self.head = layers.linear(
      language.width,
      language.vocabulary,
      (axes.EMBED, axes.VOCAB),
      bias=False,
      dtype=self.dtype,
      rngs=rngs,
    )

  def _start_local(self, key: jax.Array) -> None:
    q, k = self.layers.q.kernel, self.layers.k.kernel
    embedding_VD, q_DF, k_DF = local_heads.make_local(
      self.embedding[...], q[0], k[0], self.config.language, key
    )
    self.embedding[...] = embedding_VD
    q[...] = q[...].at[0].set(q_DF)
    k[...] = k[...].at[0].set(k_DF)

  def embed(self, tokens: jax.Array) -> jax.Array:
    """[..., D] in the arithmetic's dtype, from token ids of any shape."""
    return lookup(self.embedding[...], tokens, self.dtype)

  def __call__(
    self,
    states_BSD: jax.Array,
    *,
    prefix_B: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
  ) -> jax.Array:
    """[B, S, D]: the states after the final norm.

    Args:
      states_BSD: embedded text and visual tokens, padded on the right.
      prefix_B: int32[B], positions that see each other freely; None: causal.
      dropout_key: for the low-rank updates; None: no dropout.
    """

    def run(
      states_BSD: jax.Array, layer_and_key: tuple[Layer, jax.Array | None]
    ) -> tuple[jax.Array, None]:
      layer, key = layer_and_key
      return self._attend(layer, states_BSD, prefix_B, key)[0], None

    run = layers.remat(run, self.config.remat)
    depth = self.config.language.depth
    keys_L = None
    if dropout_key is not None:
      keys_L = jax.random.split(dropout_key, depth)
    states_BSD, _ = jax.lax.scan(run, states_BSD, (self.layers, keys_L))
    return self._finish(states_BSD)

  def prefill(
    self,
    states_BSD: jax.Array,
    slots: int,
    *,
    prefix_B: jax.Array | None = None,
  ) -> tuple[jax.Array, Cache]:
    """The same states, and a cache of `slots` >= S positions a row."""

    def run(
      states_BSD: jax.Array, layer: Layer
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
      return self._attend(layer, states_BSD, prefix_B, None)

    states_BSD, kept = jax.lax.scan(run, states_BSD, self.layers)
    cache = Cache(*(jnp.einsum("LBSNH->BLNSH", values) for values in kept))
    return self._finish(states_BSD), cache.grown(slots - cache.slots)

  def extend(
    self, states_BSD: jax.Array, position_B: jax.Array, cache: Cache
  ) -> tuple[jax.Array, Cache]:
    """The final states [B, S, D] of S new positions a row, and their cache.

    Args:
      states_BSD: embedded new tokens, padded on the right.
      position_B: int32[B], position of the first, which is also its cache
        slot.
      cache: every slot below position_B filled, and at least S more.
    """
    new_1S = jnp.arange(states_BSD.shape[1])[None]
    position_BS = position_B[:, None] + new_1S
    rotation = rotations(position_BS, self.config)
    rows_B1 = jnp.arange(states_BSD.shape[0])[:, None]
    keys = (None,) * 4

    # The cache is carried, not scanned over, so that it is updated in place.
    def run(
      carry: tuple[jax.Array, Cache], layer_and_index: tuple[Layer, jax.Array]
    ) -> tuple[tuple[jax.Array, Cache], None]:
      states_BSD, cache = carry
      layer, index = layer_and_index
      q_BSNH, k_BSNH, v_BSNH = layer.project(states_BSD, rotation, keys)
      place = (rows_B1, index, slice(None), position_BS)
      cache = Cache(
        cache.key_BLNSH.at[place].set(k_BSNH),
        cache.value_BLNSH.at[place].set(v_BSNH),
      )
      mixed_BSNH = _cached_attention(
        q_BSNH,
        cache.key_BLNSH[:, index],
        cache.value_BLNSH[:, index],
        position_B + 1,
      )
      return (layer.update(states_BSD, mixed_BSNH, keys), cache), None

    indices_L = jnp.arange(self.config.language.depth)
    (states_BSD, cache), _ = jax.lax.scan(
      run, (states_BSD, cache), (self.layers, indices_L)
    )
    return self._finish(states_BSD), cache

  def decode(
    self, state_BD: jax.Array, position_B: jax.Array, cache: Cache
  ) -> tuple[jax.Array, Cache]:
    """The final state [B, D] of one new position a row, and its cache.

    Args:
      state_BD: the embedded new token of each row.
      position_B, cache: as in `extend`.
    """
    states_B1D, cache = self.extend(state_BD[:, None], position_B, cache)
    return states_B1D[:, 0], cache

  def logits(self, hidden: jax.Array) -> jax.Array:
    """float32[..., V]: the next token's logits from final states.

    While training, embedding and head are held with places beyond the
    vocabulary (`parallel.rules.MULTIPLES`); these have no logits.
    """
    logits = jnp.matmul(
      hidden.astype(self.dtype),
      self.head.kernel[...].astype(self.dtype),
      preferred_element_type=jnp.float32,
    )
    return logits[..., : self.config.language.vocabulary]

  def _attend(
    self,
    layer: Layer,
    states_BSD: jax.Array,
    prefix_B: jax.Array | None,
    key: jax.Array | None,
  ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """One layer over a whole sequence; also its keys and values."""
    keys = (None,) * 4 if key is None else tuple(jax.random.split(key, 4))
    positions_1S = jnp.arange(states_BSD.shape[1])[None]
    rotation = rotations(positions_1S, self.config)
    q_BSNH, k_BSNH, v_BSNH = layer.project(states_BSD, rotation, keys)
    mixed_BSNH = _attention(q_BSNH, k_BSNH, v_BSNH, prefix_B)
    return layer.update(states_BSD, mixed_BSNH, keys), (k_BSNH, v_BSNH)

  def _finish(self, states_BSD: jax.Array) -> jax.Array:
    return self.norm(states_BSD).astype(self.dtype)


def rotations(
  positions_BS: jax.Array, config: ModelConfig
) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines, float32[B, S, 1, H / 2], of the rotary embedding.

  Pair h of a head turns by position / theta^(2 h / H).
  """
  language = config.language
  head = language.width // language.heads
  exponents_H = jnp.arange(0, head, 2, dtype=jnp.float32) / head
  rates_H = language.rope_theta**-exponents_H
  angles_BS1H = (
    positions_BS.astype(jnp.float32)[:, :, None, None]
    * rates_H[None, None, None, :]
  )
  return jnp.cos(angles_BS1H), jnp.sin(angles_BS1H)


def rotate(
  values_BSNH: jax.Array, rotation: tuple[jax.Array, jax.Array]
) -> jax.Array:
  """Turns channel h together with channel h + H / 2.

  Source: the half-rotation convention of LLaMA's published weights, not the
  interleaved one of the rotary embedding's paper.
  """
  cosines, sines = rotation
  first, second = jnp.split(values_BSNH.astype(jnp.float32), 2, axis=-1)
  turned_BSNH = jnp.concatenate(
    [first * cosines - second * sines, second * cosines + first * sines],
    axis=-1,
  )
  return turned_BSNH.astype(values_BSNH.dtype)
