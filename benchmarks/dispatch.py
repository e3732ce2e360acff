"""Milliseconds that a training step costs before any device computes.

  PYTHONPATH=. .venv/bin/python benchmarks/dispatch.py

The step's arguments, shardings and donation are those of the 7B
(configs/pretrain_7b.py); each array is cut to the smallest that its sharding
divides, and the body hands the state on. What is left is what Python, JAX and
the runtime do for one call: the loop's time between two programs on a device.
"""

import argparse
import os
import statistics
import time
from typing import Any

_FLAGS = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_FLAGS}"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402

from rcmed_jax.apps import settings  # noqa: E402
from rcmed_jax.data import pipeline  # noqa: E402
from rcmed_jax.parallel import mesh as meshes  # noqa: E402
from rcmed_jax.parallel import rules  # noqa: E402
from rcmed_jax.train import optimizer as optimizers  # noqa: E402
from rcmed_jax.train import step as steps  # noqa: E402

CONFIG = "configs/pretrain_7b.py"
# The devices of one host: a TPU host has four or eight.
MESHES = {
  "1 device": meshes.MeshConfig(data=1),
  "8 devices: 2 data x 2 fsdp x 2 tensor": meshes.MeshConfig(
    data=2, fsdp=2, tensor=2
  ),
}


def main() -> None:
  """Prints a line for each mesh."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--calls", type=int, default=300)
  args = parser.parse_args()
  print(f"jax {jax.__version__}, {os.cpu_count()} cores, {args.calls} calls")
  for name, sizes in MESHES.items():
    mesh = meshes.make_mesh(sizes, jax.devices()[: _devices(sizes)])
    state, batch, step = _abstracted(mesh)
    for _ in range(5):
      state, metrics = step(state, batch)
    returned, finished = [], []
    for _ in range(args.calls):
      jax.block_until_ready((state, metrics))
      start = time.perf_counter()
      state, metrics = step(state, batch)
      returned.append(time.perf_counter() - start)
      jax.block_until_ready((state, metrics))
      finished.append(time.perf_counter() - start)
    count = len(jax.tree.leaves((state, batch)))
    print(
      f"{name}: {count} arrays; the call returns after {_spread(returned)}, "
      f"its results are there after {_spread(finished)}"
    )


def _abstracted(mesh: jax.sharding.Mesh) -> tuple[Any, Any, Any]:
  """(state, batch, step) of the 7B, all arrays at their smallest."""
  told = settings.parse([], default=CONFIG)
  optimizer = optimizers.make_optimizer(told.optimizer, told.train.steps)
  layout = steps.make_layout(told.model, told.optimizer, optimizer, mesh)
  shapes = pipeline.batch_shapes(
    told.data, told.model.image.image_size, told.train.batch_size, 513
  )
  by_rows = rules.batch_sharding(mesh)

  def smallest(shape: Any, dtype: Any, sharding: Any) -> jax.Array:
    parts = [
      size // part
      for size, part in zip(shape, sharding.shard_shape(shape), strict=True)
    ]
    return jax.device_put(jnp.zeros(parts, dtype), sharding)

  state = jax.tree.map(
    lambda leaf: smallest(leaf.shape, leaf.dtype, leaf.sharding), layout.state
  )
  batch = {
    name: smallest(shape, dtype, by_rows)
    for name, (shape, dtype) in shapes.items()
  }

  def step(state: Any, batch: Any) -> tuple[Any, Any]:
    # Something of each array, so that none is left out of the program.
    total = sum(leaf.ravel()[0] * 1.0 for leaf in jax.tree.leaves(batch))
    state = jax.tree.map(lambda leaf: leaf + leaf.dtype.type(1), state)
    return state, {"loss": total, "grad_norm": total, "non_finite": total}

  return (
    state,
    batch,
    jax.jit(step, donate_argnums=0, out_shardings=(layout.shardings, None)),
  )


def _devices(sizes: meshes.MeshConfig) -> int:
  return sizes.slice * sizes.data * sizes.fsdp * sizes.tensor


def _spread(seconds: list[float]) -> str:
  ordered = sorted(seconds)
  high = ordered[int(0.95 * len(ordered))]
  return f"{1e3 * statistics.median(seconds):.2f} ms (95%: {1e3 * high:.2f})"


if __name__ == "__main__":
  main()
