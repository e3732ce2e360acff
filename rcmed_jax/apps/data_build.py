"""`rcmed data build` and `rcmed data verify`: make shards, read them again."""

import argparse
from collections.abc import Sequence
import hashlib
import os
import pathlib
from typing import Any

import tqdm

from rcmed_jax.apps import data_sources
from rcmed_jax.data import files, shards
from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest.building import build, manifest
from rcmed_jax.ingest.describing import described
from rcmed_jax.ingest.sources import Source

# Arguments that change how a build is made, not what is built.
_HOW = {
  "run",
  "out",
  "processes",
  "sources",
  "pseudonym_key",
  "descriptions",
}


def add_to(commands: argparse._SubParsersAction) -> None:
  """Adds the commands."""
  parser = commands.add_parser(
    "build",
    allow_abbrev=False,
    help="make shards of sources, to train from",
    description="Reads sources of any known format and writes checked shards "
    "that rcmed train, rcmed evaluate and TFDS read. Killed at any moment, the "
    "same command goes on. What cannot be used is in OUT/quarantine.jsonl.",
  )
  data_sources.add_arguments(parser)
  parser.add_argument(
    "--out",
    required=True,
    help="folder of the shards, on a disk or gs://; made, or gone on with",
  )
  parser.add_argument(
    "--descriptions",
    type=pathlib.Path,
    metavar="JSON",
    help="{image: text}, as rcmed data describe writes it",
  )
  parser.add_argument(
    "--processes",
    type=data_sources.positive,
    default=os.cpu_count(),
    help="that build at once (default: one a core, %(default)s)",
  )
  parser.add_argument(
    "--shard-units",
    type=data_sources.positive,
    default=build.SHARD_UNITS,
    help="images or volumes a shard (default: %(default)s)",
  )
  parser.set_defaults(run=run)
  parser = commands.add_parser(
    "verify",
    allow_abbrev=False,
    help="read built shards again and compare their sums",
    description="Reads every byte of a built data set and compares it with "
    "the manifest: names shards that are missing or changed.",
  )
  parser.add_argument("folder", type=pathlib.Path)
  parser.set_defaults(run=verify)


def run(args: argparse.Namespace) -> int:
  """Builds, and prints what there is; 1 where nothing could be used."""
  opened = data_sources.open_all(args)
  with tqdm.tqdm(desc="build", unit="unit", mininterval=2) as bar:
    found = manifest.Totals()

    def show(shard: shards.Shard) -> None:
      found.add(shard)
      bar.set_postfix(
        triplets=found.triplets, quarantined=found.quarantined, refresh=False
      )
      bar.update(shard.units)

    totals = build.build(
      _inputs(opened, args.descriptions),
      args.out,
      _settings(args, opened),
      processes=args.processes,
      shard_units=args.shard_units,
      on_shard=show,
    )
  print(
    f"build: {totals.units} units = {totals.used} used + {totals.quarantined} "
    f"quarantined + {totals.empty} without target; {totals.triplets} triplets "
    f"in {totals.shards} shards, {totals.bytes} bytes, in {args.out}"
  )
  if totals.faults:
    quarantine = files.absolute(args.out) / manifest.QUARANTINE
    print(
      f"build: {totals.faults} faults and slices left out are listed in "
      f"{quarantine}"
    )
  return 0 if totals.triplets else 1


def verify(args: argparse.Namespace) -> int:
  """Reads all shards again; 1 where something is wrong."""
  listed = shards.read_manifest(args.folder)["shards"]
  wrong: list[DataError] = []
  for shard in tqdm.tqdm(listed, desc="verify", unit="shard", mininterval=2):
    wrong += shards.faults(args.folder, shard)
  for error in wrong:
    print(f"verify: {error}")
  triplets = sum(shard.triplets for shard in listed)
  print(
    f"verify: {len(listed)} shards of {triplets} triplets, {len(wrong)} files "
    "wrong"
  )
  return 1 if wrong else 0


def _inputs(
  opened: Sequence[tuple[str, pathlib.Path, Source]],
  descriptions: pathlib.Path | None,
) -> list[build.Input]:
  """Sources of one split get names before their ids, each another."""
  splits = [split for split, _, _ in opened]
  taken: set[tuple[str, str]] = set()
  inputs = []
  for split, path, source in opened:
    prefix = ""
    if splits.count(split) > 1:
      name = stem = path.resolve().stem
      number = 1
      while (split, name) in taken:
        number += 1
        name = f"{stem}-{number}"
      taken.add((split, name))
      prefix = f"{name}/"
    if descriptions is not None:
      source = described.DescribedSource(source, descriptions)
    inputs.append(build.Input(split, source, prefix))
  return inputs


def _settings(
  args: argparse.Namespace,
  opened: Sequence[tuple[str, pathlib.Path, Source]],
) -> dict[str, Any]:
  """What must be the same when a build goes on.

  Raises:
    ValueError: ids would differ, for want of a key.
  """
  data_sources.require_key(args, [source for _, _, source in opened])
  settings = {
    name: value for name, value in vars(args).items() if name not in _HOW
  }
  settings["sources"] = [
    {"split": split, "path": str(path), "file": _identity(path)}
    for split, path, _ in opened
  ]
  if args.descriptions:
    told = _identity(args.descriptions)
    settings["descriptions"] = [str(args.descriptions), told]
  if args.pseudonym_key:
    key = args.pseudonym_key.read_bytes()
    settings["pseudonym_key_sha256"] = hashlib.sha256(key).hexdigest()
  return settings


def _identity(path: pathlib.Path) -> list[int] | None:
  """Size and time of a file; a folder's units are compared instead."""
  if not path.is_file():
    return None
  told = path.stat()
  return [told.st_size, told.st_mtime_ns]
