"""How an evaluation's answers were made, as its summary and page tell it."""

from collections.abc import Sequence
import hashlib
import os
import platform
from typing import Any

from etils import epath
import flax
import jax

import rcmed_jax
from rcmed_jax.apps import runs, settings
from rcmed_jax.convert import store
from rcmed_jax.eval import temperature
from rcmed_jax.train import checkpoints


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


def _origin(
  workdir: str | os.PathLike[str], *, best: bool
) -> dict[str, int | str | None]:
  """Which weights: the step of a training, or the content of converted ones."""
  folder = runs.converted(workdir)
  if folder is not None:
    digest = hashlib.sha256((folder / store.MANIFEST).read_bytes()).hexdigest()
    return {"converted": digest[:16]}
  with checkpoints.Checkpoints(workdir) as saved:
    step = saved.best() if best else saved.latest()
  return {"step": step, "training seed": settings.load(workdir).train.seed}


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
