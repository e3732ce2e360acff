"""A task is one class in one modality: what is averaged and compared."""

from collections.abc import Iterable
import dataclasses

from rcmed_jax.data.records import Record


@dataclasses.dataclass(frozen=True, order=True)
class Task:
  """Segment `name` in images of `modality`."""

  modality: str
  name: str  # the class

  def __str__(self) -> str:
    return f"{self.modality} / {self.name}"


def collect(records: Iterable[Record]) -> tuple[Task, ...]:
  """Returns the tasks that the records hold, sorted."""
  return tuple(
    sorted(
      {
        Task(record.modality, name)
        for record in records
        for _, name in record.masks
      }
    )
  )
