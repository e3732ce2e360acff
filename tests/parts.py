"""Parts of the model with parameters that are all at work."""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from rcmed_jax.model.rcmed import RCMed


def at_random(make: Callable[[], nnx.Module], seed: int = 0) -> Any:
  """The module with no parameter left at its start of zero or one.

  Made abstractly and filled by NumPy: compiling the initializers takes longer
  than most tests.
  """
  rng = np.random.default_rng(seed)

  def fill(path, leaf):
    around = 1 if "scale" in jax.tree_util.keystr(path) else 0
    return jnp.asarray(rng.normal(around, 0.2, leaf.shape), leaf.dtype)

  with nnx.use_eager_sharding(False):
    graph, state = nnx.split(nnx.eval_shape(make))
  return nnx.merge(graph, jax.tree.map_with_path(fill, state))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Said:
  """A prediction with its logits."""

  logits_BTV: jax.Array
  masks_KBGYX: jax.Array
  quality_BG: jax.Array


@jax.jit
def say(
  model: RCMed, batch: dict[str, jax.Array], dropout_key: Any = None
) -> Said:
  """The model's prediction for a batch whose answers are given."""
  prediction = model(batch, dropout_key=dropout_key)
  return Said(
    model.language.logits(prediction.states_BTD),
    prediction.masks_KBGYX,
    prediction.quality_BG,
  )


def relative_error(found: jax.Array, expected: np.ndarray) -> float:
  """The largest difference over the largest expected magnitude."""
  difference = np.abs(np.asarray(found, np.float64) - expected).max()
  return float(difference / np.abs(expected).max())
