"""How much of the devices a run uses: arithmetic and memory."""

from collections.abc import Mapping
from typing import Any

import jax

from rcmed_jax.model import config as model_configs
from rcmed_jax.model import flops
from rcmed_jax.parallel import chips


class Meter:
  """Counts a batch's arithmetic and reads the devices' memory."""

  def __init__(
    self,
    config: model_configs.ModelConfig,
    trainable: str,
    mesh: jax.sharding.Mesh,
  ):
    """Of a model that trains on a mesh; `trainable` is the optimizer's."""
    self._config = config
    self._trainable = trainable
    chip = chips.known(mesh.devices.flat[0].device_kind)
    self._peak = chip and chip.tflops * 1e12 * mesh.size
    self._devices = mesh.local_devices

  def work(self, batch: Mapping[str, Any]) -> float:
    """The model's own operations of a step on a whole batch."""
    images, text = batch["tokens_BT"].shape
    targets = batch["seg_BG"].shape[1]
    own, _ = flops.train(self._config, text, targets, self._trainable)
    return images * own

  def numbers(self, work: float, seconds: float) -> dict[str, float]:
    """What can be told here of `work` done in `seconds`.

    Returns:
      "mfu": share of the chips' dense bfloat16 peak, where they are known;
      "memory_gib": the most that a device of this process has held so far,
      where devices tell.
    """
    found = {}
    if self._peak:
      found["mfu"] = work / seconds / self._peak
    told = [device.memory_stats() for device in self._devices]
    held = [one["peak_bytes_in_use"] for one in told if one]
    if held:
      found["memory_gib"] = max(held) / 2**30
    return found
