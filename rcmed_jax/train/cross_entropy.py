"""The text's loss without its logits: a part of the vocabulary at a time.

Logits of 512 tokens and 32007 ids take 65 MB a row in float32, and training
needs them three times over. Here a scan makes those of some ids, takes their
log-sum-exp and forgets them; the backward pass makes them again. Parts of the
vocabulary rather than of the text, because each then gathers its own part of a
head that fsdp cuts, and scatters its gradient, once.
"""

import jax
import jax.numpy as jnp

from rcmed_jax import axes
from rcmed_jax.data.tokens import IGNORE_LABEL
from rcmed_jax.model import layers
from rcmed_jax.parallel import rules

# 67 MB of a float32 head of 4096 rows. The TPU compiler scatters a sum of
# gradients over devices where a part's ids fill its lanes; of 4016 ids, or of
# all 32128, each device would get it whole.
MAX_IDS = 4096

# Far below any logit, yet finite: its exponential is zero, and no NaN comes up.
_MASKED = -1e30


def text_loss(
  states_BTD: jax.Array,
  head_DV: jax.Array,
  labels_BT: jax.Array,
  *,
  vocabulary: int,
  max_ids: int = MAX_IDS,
) -> jax.Array:
  """float32[]: mean cross-entropy of the labelled tokens, 0 where none is.

  The same as `losses.text_loss` of the head's logits. A label that the
  vocabulary lacks makes it NaN.

  Args:
    states_BTD: `[:, t]` predicts the token at t; its dtype is the product's.
    head_DV: V >= vocabulary; columns beyond it take no part.
    labels_BT: int32, `IGNORE_LABEL` where unsupervised.
    vocabulary: number of ids.
    max_ids: at a time.
  """
  parts = -(-head_DV.shape[1] // max_ids)
  missing = -head_DV.shape[1] % (parts * rules.LANES) if parts > 1 else 0
  head_DV = jnp.pad(head_DV, ((0, 0), (0, missing)))
  # Part k has the ids k, k + parts, ...: each some of every device's.
  head_KDV = jnp.moveaxis(
    head_DV.reshape(len(head_DV), -1, parts), source=2, destination=0
  )
  dtype = states_BTD.dtype
  # Parts add up their gradients of the states: in float32.
  states_BTD = states_BTD.astype(jnp.float32)

  def part(
    _: None, of: tuple[jax.Array, jax.Array]
  ) -> tuple[None, tuple[jax.Array, jax.Array]]:
    head_DV, first = of
    ids_11V = first + parts * jnp.arange(head_DV.shape[1])[None, None]
    head_DV = rules.constrain(head_DV, axes.EMBED, axes.VOCAB)
    logits_BTV = layers.product(states_BTD, head_DV, dtype, jnp.float32)
    logits_BTV = rules.constrain(
      logits_BTV, axes.BATCH, axes.LENGTH, axes.VOCAB
    )
    logits_BTV = jnp.where(ids_11V < vocabulary, logits_BTV, _MASKED)
    # Not a gather, for which a vocabulary in parts would have to come together.
    is_own_BTV = ids_11V == labels_BT[:, :, None]
    own_BT = jnp.sum(logits_BTV, axis=-1, where=is_own_BTV)
    return None, (jax.nn.logsumexp(logits_BTV, axis=-1), own_BT)

  _, (sums_KBT, own_KBT) = jax.lax.scan(
    jax.checkpoint(part, prevent_cse=False),
    None,
    (head_KDV, jnp.arange(parts)),
  )
  loss_BT = jax.nn.logsumexp(sums_KBT, axis=0) - own_KBT.sum(axis=0)
  loss_BT = jnp.where(labels_BT < vocabulary, loss_BT, jnp.nan)
  labelled_BT = labels_BT != IGNORE_LABEL
  total = jnp.sum(loss_BT, where=labelled_BT)
  return total / jnp.maximum(jnp.sum(labelled_BT), 1)
