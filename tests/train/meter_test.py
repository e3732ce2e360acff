import types

import numpy as np
import pytest
import toy

from rcmed_jax.model import flops
from rcmed_jax.parallel import chips
from rcmed_jax.train import meter
from rcmed_jax.train import optimizer as optimizers

BATCH = toy.batch(4)


def _mesh(kind, held=None):
  """Two devices of a kind, which hold at most so many bytes."""
  device = types.SimpleNamespace(
    device_kind=kind,
    memory_stats=lambda: held and {"peak_bytes_in_use": held},
  )
  devices = np.asarray([device, device])
  return types.SimpleNamespace(devices=devices, size=2, local_devices=devices)


def test_work_is_the_model_s_own():
  config = toy.model_config()
  gauge = meter.Meter(config, "all", _mesh("cpu"))
  own, _ = flops.train(config, toy.TOKENS, toy.TARGETS, "all")
  assert gauge.work(BATCH) == 4 * own


def test_work_is_known_whatever_trains():
  config = toy.model_config(lora_rank=2)
  work = {
    name: meter.Meter(config, name, _mesh("cpu")).work(BATCH)
    for name in optimizers.TRAINABLES
  }
  assert work["all"] > work["all_but_encoder"] > work["release_but_encoder"]
  assert work["release"] > work["release_but_encoder"] > work["lora"] > 0


def test_use_is_told_where_the_chip_is_known():
  gauge = meter.Meter(toy.model_config(), "all", _mesh("NVIDIA H200", 3 << 30))
  found = gauge.numbers(989e12, 1.0)
  assert found == {"mfu": pytest.approx(0.5), "memory_gib": 3}
  assert not meter.Meter(toy.model_config(), "all", _mesh("cpu")).numbers(1, 1)


@pytest.mark.parametrize(
  ("kind", "name"),
  [
    ("TPU v4", "v4"),
    ("TPU v5 lite", "v5e"),
    ("TPU v5", "v5p"),
    ("TPU v5p", "v5p"),
    ("TPU v6 lite", "v6e"),
    ("NVIDIA H100 80GB HBM3", "h100"),
    ("NVIDIA A100-SXM4-80GB", "a100"),
  ],
)
def test_chips_are_known_by_what_jax_calls_them(kind, name):
  chip = chips.known(kind)
  assert chip and chip.name == name
  assert chips.known("Some CPU") is None
