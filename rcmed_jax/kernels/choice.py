"""One way to choose how an op runs.

Every op of this folder takes `implementation`: None lets it choose, a name
insists. An op offers some of these names:

  reference  plain XLA, the specification of the op; runs anywhere
  pallas     our own kernel for the platform at hand
  others     kernels of libraries, by the library's word for them

An explicit choice never falls back: it runs or says why it cannot.
"""

from collections.abc import Mapping

import jax

REFERENCE = "reference"
PALLAS = "pallas"


def device() -> tuple[str, str]:
  """(platform, device kind) that a program traced here is meant for.

  That is the mesh in scope (`jax.set_mesh`), so that programs compiled ahead
  of time for other devices choose for these; without one, the default device.

  Returns:
    For example ("cpu", "cpu"), ("gpu", "NVIDIA H200"), ("tpu", "TPU v5 lite").
  """
  meant = jax.sharding.get_abstract_mesh().abstract_device
  if meant is None or meant.platform is None:
    meant = jax.devices()[0]
  platform = "gpu" if meant.platform in ("cuda", "rocm") else meant.platform
  return platform, meant.device_kind


def on_gpu(interpret: bool) -> bool:
  """Whether "pallas" is the GPU's kernel: the TPU's alone is interpreted."""
  return not interpret and device()[0] == "gpu"


def choose(
  op: str, implementation: str | None, refusals: Mapping[str, str | None]
) -> str:
  """The implementation to run.

  Args:
    op: its name, for the error.
    implementation: what was asked for; None takes the first that can run.
    refusals: every implementation of the op, the preferred one first, with
      why it cannot run here (a clause: "it needs ..."), or None where it can.

  Raises:
    NotImplementedError: the one that was asked for does not exist, or cannot
      run here.
  """
  if implementation is None:
    return next(name for name, why in refusals.items() if why is None)
  if implementation not in refusals:
    raise NotImplementedError(
      f"{op} has no implementation {implementation!r}; choose one of "
      f"{(None, *refusals)}."
    )
  why = refusals[implementation]
  if why is not None:
    raise NotImplementedError(
      f"{op}: implementation={implementation!r} cannot run here: {why}; choose "
      f"one of {(None, *(n for n, w in refusals.items() if w is None))}."
    )
  return implementation
