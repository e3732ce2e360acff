"""A task is one class in one modality: what is averaged and compared."""

from collections.abc import Iterable
import dataclasses

from rcmed_jax.data.records import Sample

# Where the tolerance of a task comes from that has none of its own; see
# `task_table.DEFAULT_TOLERANCE_MM`.
DEFAULT = "default"


@dataclasses.dataclass(frozen=True, order=True)
class Task:
  """Segment `name` in images of `modality`."""

  modality: str
  name: str  # the class

  def __str__(self) -> str:
    return f"{self.modality} / {self.name}"


@dataclasses.dataclass(frozen=True)
class TaskInfo:
  """What is known of a task."""

  modality: str  # as answers write it, "computed tomography"
  name: str  # the canonical one
  known: bool = True  # False: of no file, all below is a default
  synonyms: tuple[str, ...] = ()
  abbreviations: tuple[str, ...] = ()
  # Narrower, wider or Latin: understood as this task, but no words for it.
  related: tuple[str, ...] = ()
  region: str = ""  # of the body
  kind: str = ""  # one of `task_table.KINDS`
  cancer: str = ""  # its type; "": none, or not told
  side: str = ""  # "left", "right"; "": neither, or both
  # How far a contour may be off for the normalised surface distance. None:
  # images of the modality carry no spacing, or one far below a millimetre.
  tolerance_mm: float | None = None
  tolerance_source: str = ""  # who published it; DEFAULT; "" where None
  window: str = ""  # of computed tomography, by name; "": of no use
  instances: bool = False  # counted one by one: cells, polyps
  sources: tuple[str, ...] = ()  # data sets whose class lists hold it

  @property
  def task(self) -> Task:
    return Task(self.modality, self.name)

  @property
  def names(self) -> tuple[str, ...]:
    """All names by which it is known."""
    return (self.name, *self.synonyms, *self.abbreviations, *self.related)


def collect(records: Iterable[Sample]) -> tuple[Task, ...]:
  """Returns the tasks that the records hold, sorted."""
  return tuple(
    sorted(
      {
        Task(record.modality, name)
        for record in records
        for name in record.classes
      }
    )
  )
