"""TPU slices that nobody has rented: devices to compile for.

The TPU compiler comes with the `tpu` extra (the package libtpu, Linux on
x86-64) and needs no TPU. Programs lowered inside `jax.set_mesh` of a mesh of
these devices are the ones that such a slice would run.
"""

import functools
import importlib.util
import os
from typing import Any

from jax.experimental import topologies as jax_topologies
import numpy as np

# Slices that can be rented, by generation. Larger ones of three sides are
# multiples of 4. Source: Google Cloud's pages on each TPU version.
_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
  "2x2x1",
  "2x2x2",
  "2x2x4",
  "2x4x4",
  "4x4x4",
  "4x4x8",
  "4x8x8",
  "8x8x8",
)
SHAPES = {
  "v4": _CUBES,
  "v5e": _FLAT,
  "v5p": _CUBES,
  "v6e": _FLAT,
  "tpu7x": _CUBES,
}

# What libtpu asks its machine for, and a machine without a TPU cannot answer.
_ANSWERS = {
  "TPU_SKIP_MDS_QUERY": "1",
  "TPU_ACCELERATOR_TYPE": "v5litepod-8",
  "TPU_WORKER_HOSTNAMES": "localhost",
  "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes compile at once
}


@functools.cache
def devices(name: str, slices: int = 1) -> np.ndarray:
  """The devices of one or several slices, in the compiler's order.

  Args:
    name: generation and shape, such as "v5e:2x4" or "v5p:4x4x8".
    slices: of this shape, with the data-centre network between them.

  Raises:
    NotImplementedError: the TPU compiler is not installed.
    ValueError: no such slice.
  """
  generation = name.partition(":")[0]
  if generation not in SHAPES:
    raise ValueError(
      f"topology {name!r}: unknown generation {generation!r}; {known()}"
    )
  if importlib.util.find_spec("libtpu") is None:
    raise NotImplementedError(
      "the TPU compiler is not installed; `pip install rcmed-jax[tpu]` brings "
      "it (Linux on x86-64)."
    )
  for variable, answer in _ANSWERS.items():
    os.environ.setdefault(variable, answer)
  try:
    found: Any = jax_topologies.get_topology_desc(
      topology_name=name, platform="tpu", num_slices=slices
    )
  except RuntimeError as error:  # what XLA raises
    raise ValueError(
      f"topology {name!r} is not one that the TPU compiler knows; {known()} "
      f"The compiler says: {error}"
    ) from error
  return np.asarray(found.devices)


def known() -> str:
  """A sentence that lists the slices."""
  listed = "; ".join(
    f"{generation}:{shapes[0]}, {', '.join(shapes[1:])}"
    for generation, shapes in SHAPES.items()
  )
  return f"known are {listed}."
