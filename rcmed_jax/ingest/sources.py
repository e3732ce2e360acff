"""What every reader of a format gives: units of work that yield triplets.

A source is what somebody has on disk, in one format. Its units are what is read
at once: one image with its masks, one volume with its labels. Units are small,
pickle to other processes and come in an order that depends on the files alone,
so that a build can be cut into shards, stopped and taken up again.

  source.units() -> unit -> unit.triplets() -> triplet, triplet, ...

Faults are handed to a `Faults` callable and never raised by a sound source: a
unit that cannot be used yields nothing, a mask that cannot be used leaves its
class out.
"""

from collections.abc import Callable, Iterator
import dataclasses
from typing import Protocol

from rcmed_jax.data import modalities
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Triplet

Faults = Callable[[DataError], None]

# What becomes of slices of a volume that show no target.
EMPTY_SLICES = ("drop", "keep")


@dataclasses.dataclass(frozen=True)
class Options:
  """What the files do not say of themselves, or say wrongly."""

  # As anybody writes it, kept as `modalities.normal` does; "": as files say.
  modality: str = ""
  dataset: str = ""  # "": the name of the source's folder or file
  license: str = ""  # of images and masks, "CC-BY-4.0"; "": as the files say
  # More words of file names, ("cta", "computed tomography"), ...
  modality_words: tuple[tuple[str, str], ...] = ()
  # Of volumes:
  axis: str = "axial"  # slices along it: axial, coronal or sagittal
  empty_slices: str = "drop"  # one of EMPTY_SLICES; of volumes with labels
  # One of EMPTY_SLICES, too, of volumes without: that nobody has labelled what
  # is in them does not mean that nothing is.
  unlabelled: str = "drop"
  assume_same_grid: bool = False  # labels fit voxel for voxel, whatever is said
  label_names: tuple[tuple[int, str], ...] = ()  # label value -> class
  window: str = ""  # one of windows.CHOICES; "": by the classes of the labels
  # Of slides and other large pictures: tiles of so many pixels a side, of which
  # neighbours share so many.
  tile: int = 1024
  tile_overlap: int = 0
  # Of DICOM files: their own names and numbers in ids, not pseudonyms.
  keep_identifiers: bool = False
  # What pseudonyms are made with; the same key gives the same ones.
  key: bytes = b""

  def __post_init__(self) -> None:
    words = modalities.normal_words(self.modality_words)
    object.__setattr__(self, "modality_words", words)
    name = modalities.normal(self.modality, words)
    object.__setattr__(self, "modality", name)
    for field in ("empty_slices", "unlabelled"):
      value = getattr(self, field)
      if value not in EMPTY_SLICES:
        raise ValueError(
          f"{field}={value!r} is none of {', '.join(EMPTY_SLICES)}."
        )
    if not 0 <= self.tile_overlap < self.tile:
      raise ValueError(
        f"tile_overlap={self.tile_overlap}: expected 0 to less than the tile's "
        f"{self.tile} pixels."
      )


class Unit(Protocol):
  """What is read at once. A frozen dataclass of small values."""

  @property
  def id(self) -> str:
    """Its name, alone of that name in its source."""
    ...

  def triplets(self, faults: Faults) -> Iterator[Triplet]:
    """Reads it; each triplet's id is unique within the source."""
    ...


class Source(Protocol):
  """What is on disk."""

  def units(self, faults: Faults) -> Iterator[Unit]:
    """All of it, in an order that the files alone decide.

    Units are found as they are asked for: none of them is kept.

    Raises:
      DataError: there is nothing of the format at all.
    """
    ...
