"""Settings that a model refuses, and those of earlier versions."""

import pytest

from rcmed_jax.model import layers
from rcmed_jax.model.config import REMAT, ModelConfig


def test_every_policy_of_rematerialization_has_its_meaning():
  assert {"none", *layers.REMAT} == set(REMAT)
  with pytest.raises(ValueError, match=r"remat='some' is unknown; choose one"):
    ModelConfig(remat="some")


@pytest.mark.parametrize(
  ("recorded", "meant"), [(True, "full"), (False, "none")]
)
def test_records_from_before_the_policies_load(recorded, meant):
  assert ModelConfig(remat=recorded).remat == meant
