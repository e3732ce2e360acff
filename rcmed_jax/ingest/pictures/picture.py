"""The unit of every source of loose pictures: an image and its masks."""

from collections.abc import Iterator
import dataclasses

from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Record, Triplet
from rcmed_jax.ingest.sources import Faults


@dataclasses.dataclass(frozen=True, slots=True)
class PictureUnit:
  """One image and its masks, each in a file."""

  record: Record
  license: str = ""

  @property
  def id(self) -> str:
    """The image's path as its source writes it."""
    return self.record.id

  def triplets(self, faults: Faults) -> Iterator[Triplet]:
    """One, or none where the image cannot be read."""
    try:
      triplet = self._made(self.record.load(faults), faults)
    except DataError as error:
      faults(error)
      return
    yield dataclasses.replace(triplet, license=self.license or None)

  def _made(self, triplet: Triplet, faults: Faults) -> Triplet:
    """What a source makes of it; a DataError leaves it out."""
    return triplet
