"""What an evaluation's answers were made with, as its files tell it."""

from collections.abc import Sequence
import dataclasses
import hashlib
import os
import platform
from typing import Any

from etils import epath
import flax
import jax

import rcmed_jax
from rcmed_jax.apps import manifest, runs, settings
from rcmed_jax.convert import store
from rcmed_jax.eval import external, temperature
from rcmed_jax.eval.protocols import EvalConfig
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.train import checkpoints

# Of a fingerprint in hexadecimal digits: 64 bits, no two by chance.
_DIGITS = 16


def made(
  workdir: str | os.PathLike[str],
  index: str | os.PathLike[str],
  *,
  classes: Sequence[os.PathLike[str]] = (),
  in_int8: bool = False,
  averaged: bool = False,
  best: bool = False,
  fitted: epath.PathLike | None = None,
  descriptions: str = "",
) -> dict[str, Any]:
  """Returns weights, temperature, data and versions, as JSON values.

  The number of devices is left out: it changes no number.

  Args:
    workdir: of a run, or of a converted checkpoint.
    index: that is asked about, as it was given.
    classes, in_int8, averaged, best: as `answering.load_assistant`.
    fitted: file of the temperature that confidences get, where it is there.
    descriptions: as `index`; "" where there are none.
  """
  return {
    "weights": {
      "folder": str(workdir),
      **_origin(workdir, best=best),
      "averaged": averaged,
      "best on held-out": best,
      "8 bits": in_int8,
      "new classes": [str(path) for path in classes],
    },
    "temperature": _temperature(fitted),
    "data": {"index": str(index), "descriptions": descriptions},
    "versions": {
      "rcmed-jax": rcmed_jax.__version__,
      "jax": jax.__version__,
      "flax": flax.__version__,
      "python": platform.python_version(),
      "device": jax.devices()[0].device_kind,
    },
  }


def identity(
  workdir: str | os.PathLike[str],
  *,
  classes: Sequence[os.PathLike[str]] = (),
  in_int8: bool = False,
  averaged: bool = False,
  best: bool = False,
  fitted: epath.PathLike | None = None,
) -> str:
  """What answers, in words that no other model has; arguments as of `made`.

  Of a run: the settings that weights and answers depend on, and the
  fingerprints of the checkpoint; two runs of a sweep share seed and step.
  """
  converted = _converted(workdir)
  if converted is not None:
    words = [f"converted {converted}"]
  else:
    told = settings.load(workdir)
    # Neither the mesh nor earlier questions change a weight.
    trained = dataclasses.replace(
      told, eval=EvalConfig(), mesh=meshes.MeshConfig()
    )
    with checkpoints.Checkpoints(workdir) as saved:
      step = saved.chosen(best=best)
      weights = saved.digest(step)
    words = [
      f"settings {_short(settings.to_json(trained).encode())}",
      f"seed {told.train.seed} step {step}",
      f"weights {weights[:_DIGITS]}",
    ]
  more = [epath.Path(workdir) / runs.TOKENIZER, *classes]
  for path in map(epath.Path, more if fitted is None else [*more, fitted]):
    if path.exists():
      words.append(f"{path.name} {_short(path.read_bytes())}")
  words += ["averaged"] * averaged + ["int8"] * in_int8
  return ", ".join(words)


def trained_on(workdir: str | os.PathLike[str]) -> external.Training | None:
  """What a run's weights have met, in this run and those that it began from.

  None: no start tells it, or these are weights from elsewhere.
  """
  datasets: set[str] = set()
  unknown: list[str] = []
  waiting, seen = [str(workdir)], set[str]()
  while waiting:
    folder = waiting.pop()
    if folder in seen:
      continue
    seen.add(folder)
    starts = manifest.read(folder)
    if not starts or any("datasets" not in entry for entry in starts):
      unknown.append(folder)
    for entry in starts:
      datasets.update(entry.get("datasets", ()))
      waiting += filter(None, (entry["from"],))
  if not datasets:
    return None
  return external.Training(frozenset(datasets), tuple(sorted(unknown)))


def _origin(
  workdir: str | os.PathLike[str], *, best: bool
) -> dict[str, int | str | None]:
  """Which weights: the step of a training, or the content of converted ones."""
  converted = _converted(workdir)
  if converted is not None:
    return {"converted": converted}
  with checkpoints.Checkpoints(workdir) as saved:
    step = saved.chosen(best=best)
  return {"step": step, "training seed": settings.load(workdir).train.seed}


def _converted(workdir: str | os.PathLike[str]) -> str | None:
  """A fingerprint of converted weights; None of a run."""
  folder = runs.converted(workdir)
  return folder and _short((folder / store.MANIFEST).read_bytes())


def _short(data: bytes) -> str:
  return hashlib.sha256(data).hexdigest()[:_DIGITS]


def _temperature(fitted: epath.PathLike | None) -> dict[str, Any] | None:
  if fitted is None or not epath.Path(fitted).exists():
    return None
  found = temperature.load(fitted)
  return {
    "file": str(fitted),
    "value": found.value,
    "fitted on split": found.split,
    "rows": found.rows,
  }
