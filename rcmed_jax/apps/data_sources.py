"""Arguments that name sources and say what the files do not say themselves.

`check`, `show`, `build` and `describe` take the same ones.
"""

import argparse
from collections.abc import Sequence
import glob
import os
import pathlib
import re
import secrets

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import formats, sources
from rcmed_jax.ingest.building import built
from rcmed_jax.ingest.sources import Source
from rcmed_jax.ingest.volumes import windows

# Of sources that are given without one.
SPLIT = "train"

# What may stand before the first "=" of SPLIT=PATH.
SPLIT_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")

KEY_BYTES = 32

# Where sources with patients' names in them come from.
_DICOM = "rcmed_jax.ingest.dicom."

# What people call the three planes.
AXES = ("axial", "coronal", "sagittal")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Adds the sources and everything that `open_all` reads."""
  parser.add_argument(
    "sources",
    nargs="+",
    metavar="SOURCE",
    help="PATH, or SPLIT=PATH such as test=PATH (default split: "
    f"{SPLIT}); PATH may hold * and ?",
  )
  group = parser.add_argument_group(
    "what the files do not say, or say wrongly (of all sources given)"
  )
  group.add_argument(
    "--format", default="", help=f"{', '.join(formats.FORMATS)}; else found out"
  )
  group.add_argument(
    "--modality", default="", help='CT, MR, X-ray, ... or "computed tomography"'
  )
  group.add_argument(
    "--modality-word",
    type=_pair,
    action="append",
    default=[],
    metavar="WORD=NAME",
    help='a word of file names: "cta=computed tomography"',
  )
  group.add_argument("--dataset", default="", help="name of the data set")
  group.add_argument("--license", default="", help='"CC-BY-4.0"')
  _add_volume_arguments(parser)
  _add_tile_arguments(parser)


def open_all(
  args: argparse.Namespace,
) -> list[tuple[str, pathlib.Path, sources.Source]]:
  """(split, path, source) of every source, in the order given.

  A built data set is as many sources as it has splits, and names them itself.
  Pseudonyms are made with the key in `--pseudonym-key`, or with a fresh random
  one, which makes others in each run.

  Raises:
    DataError: a source is missing or in no known format.
  """
  options = _options(args)
  found = []
  for split, path in _paths(args.sources):
    if built.matches(path):
      found += [
        (own, path, built.open_source(path, options, own))
        for own in built.splits(path)
      ]
    else:
      source = formats.open_source(path, options, args.format)
      found.append((split, path, source))
  return found


def require_key(args: argparse.Namespace, told: Sequence[Source]) -> None:
  """Refuses pseudonyms that would be others next time.

  Raises:
    ValueError: there are DICOM files, and neither a key nor leave to name
      patients.
  """
  secret = any(type(one).__module__.startswith(_DICOM) for one in told)
  if secret and not (args.pseudonym_key or args.keep_identifiers):
    raise ValueError(
      "DICOM files need --pseudonym-key=FILE here, so that images and patients "
      "have the same pseudonyms another time; a new file is made."
    )


def positive(text: str) -> int:
  """A whole number from 1 on, for argparse."""
  if not text.isdecimal() or not int(text):
    raise argparse.ArgumentTypeError(
      f"expected a whole number from 1 on, received {text!r}"
    )
  return int(text)


def _add_volume_arguments(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group("volumes and DICOM")
  group.add_argument(
    "--axis", choices=AXES, default="axial", help="slices along it"
  )
  group.add_argument(
    "--empty-slices",
    choices=sources.EMPTY_SLICES,
    default="drop",
    help="slices without any target, of volumes with labels (default: "
    "%(default)s)",
  )
  group.add_argument(
    "--unlabelled",
    choices=sources.EMPTY_SLICES,
    default="drop",
    help="volumes without labels; kept, all their slices say that none of the "
    "classes is there: mind that somebody looked (default: %(default)s)",
  )
  group.add_argument(
    "--assume-same-grid",
    action="store_true",
    help="labels fit their image voxel for voxel, whatever their headers say",
  )
  group.add_argument(
    "--label",
    type=_label,
    action="append",
    default=[],
    metavar="VALUE=CLASS",
    help='of label maps: "1=liver"; may be repeated',
  )
  group.add_argument(
    "--window",
    choices=windows.CHOICES,
    default="",
    help="of CT, the same for all volumes, or percentiles of any values; "
    "default: for each volume, by all classes that its labels may hold",
  )
  group.add_argument(
    "--keep-identifiers",
    action="store_true",
    help="patients' names and numbers instead of pseudonyms",
  )
  group.add_argument(
    "--pseudonym-key",
    type=pathlib.Path,
    metavar="FILE",
    help="the secret that pseudonyms are made with, made when it is missing; "
    "the same file gives the same pseudonyms (default: new ones each time)",
  )


def _add_tile_arguments(parser: argparse.ArgumentParser) -> None:
  defaults = sources.Options()
  group = parser.add_argument_group("slides and other large pictures")
  group.add_argument(
    "--tile",
    type=int,
    default=defaults.tile,
    metavar="PIXELS",
    help="side of a tile (default: %(default)s)",
  )
  group.add_argument(
    "--tile-overlap",
    type=int,
    default=defaults.tile_overlap,
    metavar="PIXELS",
    help="that neighbours share (default: %(default)s)",
  )


def _options(args: argparse.Namespace) -> sources.Options:
  return sources.Options(
    modality=args.modality,
    dataset=args.dataset,
    license=args.license,
    modality_words=tuple(args.modality_word),
    axis=args.axis,
    empty_slices=args.empty_slices,
    unlabelled=args.unlabelled,
    assume_same_grid=args.assume_same_grid,
    label_names=tuple(args.label),
    window=args.window,
    tile=args.tile,
    tile_overlap=args.tile_overlap,
    keep_identifiers=args.keep_identifiers,
    key=_key(args.pseudonym_key),
  )


def _paths(texts: list[str]) -> list[tuple[str, pathlib.Path]]:
  """(split, path) of each; what holds * or ? may give several, sorted."""
  found = []
  for text in texts:
    split, sign, path = text.partition("=")
    if not sign or not SPLIT_NAME.fullmatch(split) or os.path.exists(text):
      split, path = SPLIT, text
    if not path:
      raise ValueError(f"{text!r}: expected SPLIT=PATH, received no path.")
    many = [] if os.path.exists(path) else sorted(glob.glob(path))
    found += [(split, pathlib.Path(one)) for one in many or [path]]
  return found


def _key(path: pathlib.Path | None) -> bytes:
  """The file's key; where there is no file, a new one, which is kept in it."""
  if path is None:
    return secrets.token_bytes(KEY_BYTES)
  try:
    # Never over a file that is there, and for nobody else to read.
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
  except FileExistsError:
    pass
  else:
    with open(handle, "w", encoding="ascii") as file:
      file.write(secrets.token_hex(KEY_BYTES))
  try:
    key = bytes.fromhex(path.read_text(encoding="ascii"))
  except ValueError:
    key = b""
  if len(key) < KEY_BYTES:
    raise DataError(
      path,
      "pseudonym key",
      f"expected {2 * KEY_BYTES} hexadecimal digits",
      "Name a file that does not exist, and it will be made",
    )
  return key


def _pair(text: str) -> tuple[str, str]:
  left, sign, right = text.partition("=")
  if not (sign and left.strip() and right.strip()):
    raise argparse.ArgumentTypeError(f"expected NAME=VALUE, received {text!r}")
  return left.strip(), right.strip()


def _label(text: str) -> tuple[int, str]:
  left, right = _pair(text)
  if not left.isdecimal():
    raise argparse.ArgumentTypeError(
      f"expected VALUE=CLASS with a whole number, received {text!r}"
    )
  return int(left), right
