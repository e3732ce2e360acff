"""Heads that begin local really look where they are said to look."""

import jax
import numpy as np
import pytest
import scipy.special

from rcmed_jax.model import local_heads
from rcmed_jax.model.config import LanguageConfig, ModelConfig

CONFIG = LanguageConfig(vocabulary=300, width=96, heads=4, local_heads=3)
LENGTH = 120


@pytest.fixture(scope="module")
def weights_NTT():
  """Attention of the first layer over random words, in float64 NumPy."""
  keys = jax.random.split(jax.random.key(0), 5)
  width = CONFIG.width
  kernel = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
  embedding_VD, q_DF, k_DF = local_heads.make_local(
    0.02 * jax.random.normal(keys[0], (CONFIG.vocabulary, width)),
    kernel(keys[1], (width, width)),
    kernel(keys[2], (width, width)),
    CONFIG,
    keys[3],
  )
  words_T = jax.random.randint(keys[4], (LENGTH,), 0, CONFIG.vocabulary)
  states_TD = np.float64(embedding_VD[words_T])
  states_TD /= np.sqrt((states_TD**2).mean(axis=-1, keepdims=True))

  def rotated(kernel_DF) -> np.ndarray:
    split_TNH = (states_TD @ np.float64(kernel_DF)).reshape(LENGTH, 4, 24)
    pairs_TNI = split_TNH[..., :12] + 1j * split_TNH[..., 12:]
    turn_TI = np.outer(np.arange(LENGTH), 10000.0 ** (-np.arange(12) / 12))
    return pairs_TNI * np.exp(1j * turn_TI)[:, None]

  scores_NTT = np.einsum(
    "tni,sni->nts", rotated(q_DF), rotated(k_DF).conj()
  ).real / np.sqrt(24)
  causal_TT = np.tri(LENGTH, dtype=bool)
  return scipy.special.softmax(
    np.where(causal_TT, scores_NTT, -np.inf), axis=-1
  )


@pytest.mark.parametrize("head", range(3))
def test_a_local_head_looks_its_own_distance_back(weights_NTT, head):
  weights_TT = weights_NTT[head]
  back = [np.diagonal(weights_TT, -d)[20:].mean() for d in range(10)]
  assert np.argmax(back) == head + 1
  near = sum(back[head : head + 3])
  assert near > 0.7, back


def test_the_other_heads_look_everywhere(weights_NTT):
  last_T = weights_NTT[3][-1]
  assert last_T.max() < 0.2


def test_more_local_heads_than_heads_are_refused():
  with pytest.raises(ValueError, match=r"local_heads=5 must lie in 0\.\.4"):
    ModelConfig(language=LanguageConfig(heads=4, local_heads=5))
