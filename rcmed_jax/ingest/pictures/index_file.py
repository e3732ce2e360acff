"""An index of images and masks in loose files: SyRe's `Datasets2D` form.

`{image path: [{mask path: class}, ...]}`, as `data.readers` describes it. The
file is read as a stream: three million entries are never in memory at once.
"""

from collections.abc import Iterator
import dataclasses
import pathlib

from rcmed_jax.data import json_stream, readers
from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest.pictures.picture import PictureUnit
from rcmed_jax.ingest.sources import Faults, Options

# How the public data names its index files.
PATTERN = "image2label*.json"


def matches(path: pathlib.Path) -> bool:
  """Whether it is such a file, or the folder of exactly one."""
  if path.is_dir():
    return len(list(path.glob(PATTERN))) == 1
  if path.suffix.lower() != ".json":
    return False
  # Keys are file names.
  key, sign = json_stream.first_key(path)
  return "." in key and sign == "["


def open_source(path: pathlib.Path, options: Options) -> "IndexSource":
  """Raises DataError where a folder holds not exactly one index."""
  if path.is_dir():
    found = sorted(path.glob(PATTERN))
    if len(found) != 1:
      raise DataError(
        path,
        "index",
        f"expected one {PATTERN}, found {len(found)}",
        "Name the index file itself",
      )
    path = found[0]
  return IndexSource(path, options)


@dataclasses.dataclass(frozen=True)
class IndexSource:
  """The entries of an index file, in its order."""

  path: pathlib.Path
  options: Options

  def units(self, faults: Faults) -> Iterator[PictureUnit]:
    """One unit an entry; entries that cannot be used are faults."""
    options = self.options
    for record in readers.iter_index(
      self.path,
      faults,
      modality_words=dict(options.modality_words),
      modality=options.modality,
    ):
      if options.dataset:
        record = dataclasses.replace(record, dataset=options.dataset)
      yield PictureUnit(record, options.license)
