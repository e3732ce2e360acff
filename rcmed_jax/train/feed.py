"""Batches on their way from the data to the devices."""

from collections.abc import Mapping
import dataclasses
from typing import Any, Protocol

import jax
import numpy as np

from rcmed_jax.parallel import rules


class Batches(Protocol):
  """An endless iterator of batches that can say and take back its place."""

  def __next__(self) -> dict[str, np.ndarray]: ...

  def get_state(self) -> Any: ...  # JSON

  def set_state(self, state: Any) -> None: ...


@dataclasses.dataclass(frozen=True)
class Fetched:
  """One batch of a step."""

  arrays: dict[str, jax.Array]  # on the devices
  records: np.ndarray  # int64[B], which records the rows are
  before: Any  # state of the iterator before this batch
  data_state: Any  # and after it


def fetch(data: Batches, mesh: jax.sharding.Mesh, step: int) -> Fetched:
  """The next batch, on its way to the devices.

  Raises:
    ValueError: there is none after `step` steps.
  """
  before = data.get_state()
  try:
    batch = next(data)
  except StopIteration as error:
    raise ValueError(
      f"the data ended after step {step}; make_data must repeat without end."
    ) from error
  arrays = on_devices(batch, mesh)
  return Fetched(arrays, batch["record_B"], before, data.get_state())


def on_devices(
  batch: Mapping[str, np.ndarray], mesh: jax.sharding.Mesh
) -> dict[str, jax.Array]:
  """This process's rows, as its part of the arrays that a step takes."""
  sharding = rules.batch_sharding(mesh)
  return {
    name: jax.make_array_from_process_local_data(sharding, rows)
    for name, rows in batch.items()
    if name != "record_B"
  }
