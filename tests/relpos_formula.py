"""Relative-position attention and its gradients in float64, in NumPy.

Scores and weights whole, the gradients written out by hand: nothing here is
shared with the package. `relpos_attention_test.py` holds these formulas
against a loop over single entries and against slopes.
"""

import numpy as np

NAMES = ("o", "dq", "dk", "dv", "d rel_h", "d rel_w")


def arguments(heads, rows, columns, width, *, spread=1.0, seed=0):
  """Float64 q, k, v, rel_h, rel_w; biases of standard deviation `spread`."""
  rng = np.random.default_rng(seed)
  sizes = (width, width, width, rows, columns)
  found = [rng.standard_normal((heads, rows * columns, size)) for size in sizes]
  return [*found[:3], *(spread * bias for bias in found[3:])]


def formula(q_MPH, k_MPH, v_MPH, rel_h_MPY, rel_w_MPX, scale, do_MPH):
  """The output and the gradients of its product with do, as in NAMES."""
  q_MPH, k_MPH, v_MPH, rel_h_MPY, rel_w_MPX, do_MPH = (
    np.asarray(array, np.float64)
    for array in (q_MPH, k_MPH, v_MPH, rel_h_MPY, rel_w_MPX, do_MPH)
  )
  rows, columns = rel_h_MPY.shape[-1], rel_w_MPX.shape[-1]
  bias_MPYX = rel_h_MPY[..., :, None] + rel_w_MPX[..., None, :]
  scores_MPS = scale * np.einsum("MPH,MSH->MPS", q_MPH, k_MPH, optimize=True)
  scores_MPS += bias_MPYX.reshape(scores_MPS.shape)
  weights_MPS = np.exp(scores_MPS - scores_MPS.max(-1, keepdims=True))
  weights_MPS /= weights_MPS.sum(-1, keepdims=True)
  dweights_MPS = do_MPH @ v_MPH.swapaxes(1, 2)
  mean_MP1 = (weights_MPS * dweights_MPS).sum(-1, keepdims=True)
  dscores_MPS = weights_MPS * (dweights_MPS - mean_MP1)
  dscores_MPYX = dscores_MPS.reshape(*q_MPH.shape[:2], rows, columns)
  return (
    weights_MPS @ v_MPH,
    scale * dscores_MPS @ k_MPH,
    scale * dscores_MPS.swapaxes(1, 2) @ q_MPH,
    weights_MPS.swapaxes(1, 2) @ do_MPH,
    dscores_MPYX.sum(3),
    dscores_MPYX.sum(2),
  )
