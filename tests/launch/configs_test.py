"""The config that the launch files start by default, on what they start."""

import json

import pytest

from rcmed_jax.apps import plan

FULL = "--config=configs/finetune.py"


def test_fine_tuning_fits_its_accelerators_and_replicates_nothing(capsys):
  told = (FULL, "--config.data.vocabulary=32000", "--topology=h100:64")
  assert plan.main([*told, "--json"]) == 0
  found = json.loads(capsys.readouterr().out)
  assert found["fits"]
  assert found["replicated"] == []
  assert found["rows"] == 8.0  # as the release, which had 40 of them


@pytest.mark.parametrize("devices", [8, 16, 32, 64, 128, 256, 512])
def test_batch_of_fine_tuning_divides_over(devices, capsys):
  told = (FULL, "--config.data.vocabulary=32000", f"--topology=h100:{devices}")
  plan.main([*told, "--json"])
  found = json.loads(capsys.readouterr().out)
  assert found["rows"] == 512 / devices
  assert found["replicated"] == []
