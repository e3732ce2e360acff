"""Which format a path is in, and the source that reads it."""

import collections
import importlib
import pathlib
from types import ModuleType

from rcmed_jax.data import files
from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest.sources import Options, Source

# Name on the command line -> its module, with `matches(path)`, which is cheap,
# and `open_source(path, options)`. A module is imported when it is asked.
FORMATS = {
  "index": "pictures.index_file",
  "coco": "pictures.coco",
  "biomedparse": "pictures.biomedparse",
  "folder": "pictures.folder",
  "tiles": "pictures.tiles",
  "nifti": "volumes.nifti",
  "nrrd": "volumes.nrrd_file",
  "challenge": "volumes.challenge",
  "dicom": "dicom.dicom",
  "built": "building.built",
}

# What a path of each looks like, for those whose path looks like none.
LOOKS = {
  "index": "JSON {image path: [{mask path: class}]}",
  "coco": "COCO JSON with images, annotations and categories",
  "biomedparse": "DATASET/train beside DATASET/train_mask",
  "folder": "a folder with images/ and masks/CLASS/ or masks/",
  "tiles": "slides/ of large TIFF or PNG with masks/CLASS/ or masks/",
  "nifti": "a folder of NIfTI images and labels",
  "nrrd": "a folder of NRRD images and labels",
  "challenge": "npz files with imgs and gts, or their folder",
  "dicom": "a folder of DICOM files",
  "built": "what rcmed data build wrote",
}

# Kinds of files named in the message about an unknown folder.
MOST_KINDS = 6


def open_source(
  path: str | pathlib.Path, options: Options, format: str = ""
) -> Source:
  """The source of what lies at the path.

  Args:
    path: a file or folder on a disk.
    options: what the files do not say.
    format: one of FORMATS; "": it is found out.

  Raises:
    DataError: there is nothing, or it is in no format or in several.
    ValueError: there is no such format.
  """
  if files.is_remote(path):
    raise DataError(
      path,
      "source",
      "sources are read from disks, not from buckets",
      "Copy it to a disk, or mount the bucket there",
    )
  path = pathlib.Path(path)
  if not path.exists():
    raise DataError(
      path, "source", "there is no such file or folder", "Correct the path"
    )
  return _module(format or detect(path)).open_source(path, options)


def detect(path: pathlib.Path) -> str:
  """The name of the one format that the path is in.

  Raises:
    DataError: it is in none, or in several.
  """
  found = [name for name in FORMATS if _module(name).matches(path)]
  if len(found) == 1:
    return found[0]
  if found:
    raise DataError(
      path,
      "source",
      f"it may be read as {' or as '.join(found)}",
      f"Say which by --format, for example --format {found[0]}",
    )
  looks = "; ".join(f"{name}: {LOOKS[name]}" for name in FORMATS)
  raise DataError(
    path,
    "source",
    f"it is in no known format; found {_contents(path)}",
    f"Expected one of: {looks}",
  )


def _module(name: str) -> ModuleType:
  if name not in FORMATS:
    raise ValueError(
      f"format={name!r} is none of {', '.join(FORMATS)}; leave it out to have "
      "it found out."
    )
  return importlib.import_module(f"rcmed_jax.ingest.{FORMATS[name]}")


def _contents(path: pathlib.Path) -> str:
  """What there is, in a few words."""
  if path.is_file():
    return f"a file of {path.stat().st_size} bytes named {path.name}"
  kinds = collections.Counter(
    "folders" if entry.is_dir() else f"{entry.suffix or 'nameless'} files"
    for entry in path.iterdir()
  )
  counts = [f"{count} {kind}" for kind, count in kinds.most_common(MOST_KINDS)]
  return f"a folder with {', '.join(counts)}" if counts else "an empty folder"
