"""The ops of `kernels_gpu.py` as PyTorch offers them: SDPA and a full bias."""

from collections.abc import Callable, Sequence
import dataclasses
import importlib
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Op:
  """One op of PyTorch on arrays of JAX.

  Attributes:
    call: takes tensors and returns what the op does, a tensor or a tuple.
  """

  call: Callable[..., Any]

  def results(
    self, arrays: Sequence[jax.Array], rest: Sequence[jax.Array]
  ) -> list[np.ndarray]:
    """Results, then gradients, for cotangents equal to the results."""
    out, gradients = self._both(self._tensors(arrays, rest))
    return [
      tensor.detach().float().cpu().numpy() for tensor in (*out, *gradients)
    ]

  def timed(
    self, arrays: Sequence[jax.Array], rest: Sequence[jax.Array]
  ) -> Callable[[], Any]:
    """Forward and backward once, not waited for."""
    tensors = self._tensors(arrays, rest)
    return lambda: self._both(tensors)

  def _tensors(
    self, arrays: Sequence[jax.Array], rest: Sequence[jax.Array]
  ) -> tuple[list[Any], list[Any]]:
    torch = importlib.import_module("torch")

    def tensor(array: jax.Array) -> Any:
      if array.dtype == bool:
        return torch.tensor(np.asarray(array), device="cuda")
      held = torch.tensor(np.asarray(array, np.float32), device="cuda")
      return held.bfloat16() if array.dtype.itemsize == 2 else held

    leaves = [tensor(array).requires_grad_() for array in arrays]
    return leaves, [tensor(array) for array in rest]

  def _both(self, tensors: tuple[list[Any], list[Any]]) -> Any:
    torch = importlib.import_module("torch")
    leaves, rest = tensors
    out = self.call(*leaves, *rest)
    out = out if isinstance(out, tuple) else (out,)
    cotangents = [tensor.detach() for tensor in out]
    return out, torch.autograd.grad(out, leaves, cotangents)


def wait(_: Any) -> None:
  """Until the GPU has done what PyTorch asked of it."""
  importlib.import_module("torch").cuda.synchronize()


def refusal() -> str | None:
  """Why PyTorch cannot run here, or None."""
  try:
    torch = importlib.import_module("torch")
  except ModuleNotFoundError:
    return "PyTorch is not installed"
  if not torch.cuda.is_available():
    return f"PyTorch {torch.__version__} sees no GPU"
  return None


def relpos(scale: float) -> Op:
  """SAM's attention: the bias of every pair as a mask of SDPA."""

  def call(q: Any, k: Any, v: Any, rel_h: Any, rel_w: Any) -> Any:
    torch = importlib.import_module("torch")
    bias = rel_h[..., :, None] + rel_w[..., None, :]
    return torch.nn.functional.scaled_dot_product_attention(
      *(tensor[:, None] for tensor in (q, k, v)),
      attn_mask=bias.flatten(-2)[:, None].to(q.dtype),
      scale=scale,
    )[:, 0]

  return Op(call)


def correlation(heads: int) -> Op:
  """SDPA once for each direction, masked by words and biased by the gate."""

  def call(
    query: Any, value_p: Any, key: Any, value_t: Any, gate: Any, mask: Any
  ) -> Any:
    torch = importlib.import_module("torch")
    attend = torch.nn.functional.scaled_dot_product_attention

    def split(tensor: Any) -> Any:
      return tensor.unflatten(-1, (heads, -1)).transpose(1, 2)

    def join(tensor: Any) -> Any:
      return tensor.transpose(1, 2).flatten(-2)

    pixels = attend(
      split(query), split(key), split(value_t), attn_mask=mask[:, None, None]
    )
    bias = gate.to(query.dtype)[:, None, None].expand(
      -1, -1, mask.shape[-1], -1
    )
    words = attend(split(key), split(query), split(value_p), attn_mask=bias)
    return join(pixels), join(words) * mask[..., None]

  return Op(call)
