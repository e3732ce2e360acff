"""What an evaluation puts down: one row for each asked target, and their sum.

Every number of the report is made of these rows, and nothing else is kept of an
image but a few pictures.
"""

import dataclasses

from rcmed_jax.eval.boxes import Box
from rcmed_jax.eval.instances import InstanceScore
from rcmed_jax.eval.metrics import Counts
from rcmed_jax.eval.tasks import Task


@dataclasses.dataclass(frozen=True, slots=True)
class MaskScore:
  """One asked target of one image."""

  record: str  # the record's id
  dataset: str
  modality: str
  name: str  # the class
  counts: Counts
  box_iou: float
  present: bool  # the answer holds the target
  confidence: float  # 0..1, 0 where the answer does not hold the target
  # Between the surfaces (`surfaces.py`): share within the tolerance, and 95th
  # percentile of the distance.
  nsd: float = 1.0
  hd95: float = 0.0
  tolerance: float = 0.0
  unit: str = "px"  # of distance and tolerance; or "mm"
  pred_box: Box | None = None
  ref_box: Box | None = None
  instances: InstanceScore | None = None  # of tasks that are counted one by one
  canonical: str = ""  # the registry's name of the class; "": `name`

  @property
  def task(self) -> Task:
    return Task(self.modality, self.canonical or self.name)


@dataclasses.dataclass(frozen=True, slots=True)
class Named:
  """What an open question brought out for one image."""

  record: str
  modality: str  # reference
  said_modality: str | None
  classes: tuple[str, ...]  # reference
  said_classes: tuple[str, ...]  # in the order of the answer
  said: str = ""  # the description in the answer
  description: str | None = None  # the data's; the model never saw it

  @property
  def there(self) -> set[str]:
    """The reference's classes in lower case, as they are compared."""
    return {name.lower() for name in self.classes}

  @property
  def named(self) -> set[str]:
    """The answer's, likewise."""
    return {name.lower() for name in self.said_classes}


@dataclasses.dataclass(frozen=True, slots=True)
class Alone:
  """The answer to a question about one class alone.

  Whatever comes back is a claim of it, also under another name.
  """

  record: str
  dataset: str
  modality: str
  name: str
  rejected: bool
  confidence: float
  box: Box | None = None  # around what is claimed
  canonical: str = ""  # the registry's name of the class; "": `name`

  @property
  def task(self) -> Task:
    return Task(self.modality, self.canonical or self.name)


class Absent(Alone):
  """Of a class that the image lacks."""

  __slots__ = ()


class Present(Alone):
  """Of a class that the image holds, asked in the same words."""

  __slots__ = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Control:
  """The answer to one class of a control."""

  kind: str
  record: str
  modality: str
  asked: str  # the class in the question
  target: str  # the class it is compared with
  dice: float | None  # against the target's reference; None over noise
  present: bool
  confidence: float
  asked_modality: str = ""  # wrong_modality: the one in the question
  said_modality: str | None = None  # and in the answer


@dataclasses.dataclass(frozen=True, slots=True)
class Phrase:
  """The answer to a question that names a class in other words."""

  record: str
  modality: str
  name: str
  kind: str  # one of `phrases.KINDS`, or PLAIN
  phrase: str
  dice: float  # of all that comes back, whatever the answer calls it
  present: bool
  confidence: float


PLAIN = "name"  # the class's own name, alone in its question


@dataclasses.dataclass(frozen=True, slots=True)
class Quarantined:
  """A record that could not be read."""

  record: str
  path: str
  field: str
  reason: str


@dataclasses.dataclass
class Tally:
  """All scores of a split, without any image."""

  images: int = 0  # read
  masks: list[MaskScore] = dataclasses.field(default_factory=list)
  open_masks: list[MaskScore] = dataclasses.field(default_factory=list)
  named: list[Named] = dataclasses.field(default_factory=list)
  absent: list[Absent] = dataclasses.field(default_factory=list)
  present: list[Present] = dataclasses.field(default_factory=list)
  controls: list[Control] = dataclasses.field(default_factory=list)
  phrases: list[Phrase] = dataclasses.field(default_factory=list)
  quarantine: list[Quarantined] = dataclasses.field(default_factory=list)

  def extend(self, other: "Tally") -> None:
    """Adds another's scores after these."""
    self.images += other.images
    for name, rows in vars(other).items():
      if name != "images":
        getattr(self, name).extend(rows)
