"""Heads that begin by looking one, two, ... tokens back.

At random weights every head looks at all positions alike, and the few tokens of
a class name are diluted by a hundred others: the state that predicts [SEG]
takes long to learn which class came just before it. A language model that
begins from loaded weights has such heads; one trained from nothing is given
them here. They stay trainable like the rest.

All embeddings get a direction in common. Head h of the first layer reads it
into the PAIRS fastest rotary pairs of its queries and keys, turned so that the
score of a token d places back is, by that direction alone,

  STRENGTH / PAIRS * sum over i < PAIRS of cos(theta_i (d - h - 1)).

Source: previous-token heads are what language models learn by themselves
(Olsson et al., "In-context Learning and Induction Heads"); the start is ours.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from rcmed_jax.model.config import LanguageConfig

STRENGTH = 8.0  # score h + 1 places back; a token elsewhere has 2 or less
PAIRS = 4  # turning by 1, 0.46, 0.22, 0.1 a token at a head width of 24
QUIET = 0.3  # of the random part of these heads' queries and keys


def make_local(
  embedding_VD: jax.Array,
  q_DF: jax.Array,
  k_DF: jax.Array,
  config: LanguageConfig,
  key: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The three with their first `config.local_heads` heads looking back.

  Args:
    embedding_VD: fresh embedding, of zero mean.
    q_DF, k_DF: fresh kernels of the first layer, F = heads * head width.
    config: of the language model.
    key: draws the common direction.
  """
  width, head = config.width, config.width // config.heads
  pairs = min(PAIRS, head // 2)
  angle_I = config.rope_theta ** (-2 * np.arange(pairs) / head)
  turn_NI = np.outer(np.arange(1, config.local_heads + 1), angle_I)
  query_NH, key_NH = np.zeros((2, config.local_heads, head))
  amplitude = math.sqrt(STRENGTH * math.sqrt(head) / pairs)
  query_NH[:, :pairs] = amplitude
  key_NH[:, :pairs] = amplitude * np.cos(turn_NI)
  key_NH[:, head // 2 :][:, :pairs] = amplitude * np.sin(turn_NI)

  shared_D = jax.random.normal(key, (width,))
  # After the norm half of a state's square is the common direction's.
  read_D = shared_D * math.sqrt(2) / width
  local = config.local_heads * head

  def look(kernel_DF: jax.Array, back_NH: np.ndarray) -> jax.Array:
    back_DF = jnp.outer(read_D, jnp.asarray(back_NH.ravel()))
    quiet_DF = kernel_DF.at[:, :local].multiply(QUIET)
    return quiet_DF.at[:, :local].add(back_DF)

  size = jnp.std(embedding_VD)
  return (
    embedding_VD + size * shared_D[None],
    look(q_DF, query_NH),
    look(k_DF, key_NH),
  )
