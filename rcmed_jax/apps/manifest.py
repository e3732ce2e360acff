"""What a run was made with: `run.json`, one entry for each time it started.

Enough to say, of any checkpoint, which code, packages, data, seeds and devices
stand behind it, and what changed on the way.
"""

from collections.abc import Mapping, Sequence
import datetime
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

from etils import epath
import jax

import rcmed_jax
from rcmed_jax.apps import settings
from rcmed_jax.data import files, mixture, records, shards
from rcmed_jax.ingest.volumes import windows

RUN = "run.json"

# Packages that a number may depend on.
_PACKAGES = (
  "array-record",
  "flax",
  "grain",
  "jax",
  "jaxlib",
  "numpy",
  "opencv-python-headless",
  "optax",
  "orbax-checkpoint",
  "sentencepiece",
)


def add_start(
  workdir: str | os.PathLike[str],
  told: settings.Settings,
  command: Sequence[str],
  *,
  source: str | None = None,
  allowed: Sequence[str] = (),
  items: Sequence[records.Sample] = (),
) -> dict[str, Any]:
  """The entry of this start, as it was added to `run.json`.

  Args:
    workdir: of the run.
    told: its settings.
    command: that trains, and its arguments: "train", "--workdir=runs/mine".
    source: the weights that it began from.
    allowed: settings that may differ from those that the run began with.
    items: what it trains on.

  Raises:
    ValueError: the file holds something else.
  """
  path = epath.Path(workdir) / RUN
  starts = read(workdir)
  text = settings.to_json(told)
  classes = mixture.class_table(items)
  entry = {
    "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    "command": ["rcmed", *command],
    "settings": hashlib.sha256(text.encode()).hexdigest(),
    "allowed": list(allowed),
    "from": source,
    "code": _code(),
    "versions": _versions(),
    "data": _data(told),
    "datasets": sorted({dataset for dataset, _ in classes}),
    "tasks": _tasks(classes),
    "windows": _windows(items),
    "seeds": {"train": told.train.seed, "data": told.data.seed},
    "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "processes": jax.process_count(),
  }
  whole = json.dumps({"starts": [*starts, entry]}, indent=2) + "\n"
  files.write_whole(path, whole)
  return entry


def read(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
  """The entries of a run's starts, oldest first.

  Raises:
    ValueError: the file holds something else.
  """
  path = epath.Path(workdir) / RUN
  if not path.exists():
    return []
  try:
    return list(json.loads(path.read_text(encoding="utf-8"))["starts"])
  except (ValueError, KeyError, TypeError) as error:
    raise ValueError(
      f"{path} does not list the starts of a run; delete it to begin a new "
      "list."
    ) from error


def _code() -> dict[str, Any] | None:
  """The commit of the checkout that runs; None: it is no checkout."""
  folder = pathlib.Path(rcmed_jax.__file__).parent
  commit = _git(folder, "rev-parse", "HEAD")
  changed = _git(folder, "status", "--porcelain", "--", ".")
  if commit is None or changed is None:
    return None
  # An installed copy may lie inside a checkout of something else.
  if _git(folder, "ls-files", "--error-unmatch", "__init__.py") is None:
    return None
  return {"commit": commit, "changed": bool(changed)}


def _git(folder: pathlib.Path, *command: str) -> str | None:
  try:
    done = subprocess.run(
      ["git", "-C", folder, *command],
      capture_output=True,
      text=True,
      timeout=30,
      check=True,
    )
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout.strip()


def _versions() -> dict[str, str]:
  found = {
    "rcmed-jax": rcmed_jax.__version__,
    "python": platform.python_version(),
  }
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue  # no Windows wheel of some
  return found


def _data(told: settings.Settings) -> Mapping[str, str]:
  """SHA-256 of each index, or of the manifest of a built set, which holds
  those of its shards."""
  names = [name for name, _ in told.data.mixture] or [told.data.index]
  names += filter(None, (told.data.descriptions, told.data.validation))
  return {str(name): _digest(str(name)) for name in names}


def _tasks(
  classes: Mapping[tuple[str, str], Sequence[str]],
) -> Mapping[str, Sequence[str]]:
  """Modality -> its classes: the data may be gone where the run answers."""
  found: dict[str, set[str]] = {}
  for (_, modality), names in classes.items():
    found.setdefault(modality, set()).update(names)
  return {modality: sorted(found[modality]) for modality in sorted(found)}


def _windows(items: Sequence[records.Sample]) -> list[str]:
  """Windows of CT that built sets of it are shown in; answers keep to them."""
  parts = items.parts if isinstance(items, mixture.Mixture) else (items,)
  built = [part for part in parts if isinstance(part, shards.Shards)]
  return sorted({w for part in built for w in part.windows()} & {*windows.CT})


def _digest(name: str) -> str:
  folder, colon, _ = name.rpartition(":")
  path = pathlib.Path(name)
  if colon and shards.is_built(folder):
    path = pathlib.Path(folder)
  if path.is_dir():
    path /= shards.MANIFEST
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()
