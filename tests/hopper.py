"""Kernels for Hopper without one: JAX's interpreter, and lowering for CUDA."""

from collections.abc import Callable, Iterator
import contextlib
from typing import Any

import jax
import pytest


@contextlib.contextmanager
def interpreter() -> Iterator[Any]:
  """Parameters of the interpreter; skips where this JAX has none.

  It runs every warpgroup as a thread, with shared memory, barriers and copies;
  memory starts as NaN. Tensor cores are products by XLA. What it runs is
  compiled anew for every block and thread, so optimization does not pay.
  """
  # A module of JAX's own: there is no public name yet.
  params = pytest.importorskip(
    "jax._src.pallas.mosaic_gpu.interpret.params",
    reason="this JAX has no interpreter for Mosaic GPU",
  )
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", True)
  try:
    yield params.InterpretGPUParams()
  finally:
    jax.config.update("jax_disable_most_optimizations", before)


def lowered(function: Callable[..., Any], *shapes: Any) -> str:
  """The program of `function` for CUDA, which needs no GPU."""
  traced = jax.jit(function).trace(*shapes)
  return traced.lower(lowering_platforms=("cuda",)).as_text()
