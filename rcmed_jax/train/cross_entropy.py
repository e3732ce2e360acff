"""The text's loss without its logits: a few positions of each row at a time.

Logits of 512 tokens and 32007 ids take 65 MB a row in float32, and training
needs them three times over. Here a scan makes those of some positions, adds up
their loss and forgets them; the backward pass makes them again. The head's
gradient is added up in the head's own dtype.
"""

import jax
import jax.numpy as jnp

from rcmed_jax import axes
from rcmed_jax.data.tokens import IGNORE_LABEL
from rcmed_jax.model import layers
from rcmed_jax.parallel import rules

# Each turn gathers a head that fsdp cuts and scatters its gradient, so turns
# should be few: 5 for the release's 513 tokens.
MAX_POSITIONS = 128

# Far below any logit, yet finite: its exponential is zero, and no NaN comes up.
_MASKED = -1e30


def text_loss(
  states_BTD: jax.Array,
  head_DV: jax.Array,
  labels_BT: jax.Array,
  *,
  vocabulary: int,
  max_positions: int = MAX_POSITIONS,
) -> jax.Array:
  """float32[]: mean cross-entropy of the labelled tokens, 0 where none is.

  The same as `losses.text_loss` of the head's logits. A label that the
  vocabulary lacks makes it NaN.

  Args:
    states_BTD: `[:, t]` predicts the token at t; its dtype is the product's.
    head_DV: V >= vocabulary; columns beyond it take no part.
    labels_BT: int32, `IGNORE_LABEL` where unsupervised.
    vocabulary: number of ids.
    max_positions: of each row at a time.
  """
  length = labels_BT.shape[1]
  turns = -(-length // max_positions)
  size = -(-length // turns)
  missing = turns * size - length
  # Turns lead, as scan wants them.
  states_KBTD = jnp.moveaxis(
    jnp.pad(states_BTD, ((0, 0), (0, missing), (0, 0))).reshape(
      len(states_BTD), turns, size, -1
    ),
    1,
    0,
  )
  labels_KBT = jnp.moveaxis(
    jnp.pad(
      labels_BT, ((0, 0), (0, missing)), constant_values=IGNORE_LABEL
    ).reshape(len(labels_BT), turns, size),
    1,
    0,
  )

  def add(
    total: jax.Array, turn: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, None]:
    return total + _sum(*turn, head_DV, vocabulary), None

  total, _ = jax.lax.scan(
    jax.checkpoint(add, prevent_cse=False),
    jnp.float32(0),
    (states_KBTD, labels_KBT),
  )
  return total / jnp.maximum(jnp.sum(labels_BT != IGNORE_LABEL), 1)


def _sum(
  states_BTD: jax.Array,
  labels_BT: jax.Array,
  head_DV: jax.Array,
  vocabulary: int,
) -> jax.Array:
  """float32[]: the summed cross-entropy of some positions."""
  logits_BTV = layers.product(
    states_BTD, head_DV, states_BTD.dtype, jnp.float32
  )
  logits_BTV = rules.constrain(logits_BTV, axes.BATCH, axes.LENGTH, axes.VOCAB)
  ids_11V = jnp.arange(head_DV.shape[1])[None, None]
  logits_BTV = jnp.where(ids_11V < vocabulary, logits_BTV, _MASKED)
  # Not a gather, for which a vocabulary in parts would have to come together.
  own_BT = jnp.sum(logits_BTV, axis=-1, where=ids_11V == labels_BT[:, :, None])
  own_BT = jnp.where(labels_BT < vocabulary, own_BT, jnp.nan)
  loss_BT = jax.nn.logsumexp(logits_BTV, axis=-1) - own_BT
  return jnp.sum(loss_BT, where=labels_BT != IGNORE_LABEL)
