"""What the scores of an evaluation depend on, so that no two are mixed.

Known before the first question and without reading an image. Of images and
masks that is their paths, and of some the sizes: to look at each of the
release's 834,346 images and their masks on a network disk would take half an
hour. A data set that was drawn anew in its place shows; one picture that was
repaired there does not, and keeps the score, or the fault, that it had when it
was read.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import hashlib
import json
import os
from typing import Any

from rcmed_jax.data.records import Sample
from rcmed_jax.eval.protocols import EvalConfig
from rcmed_jax.eval.registry import Registry

# Records whose files are looked at, at most: some 4,000 calls of stat.
LOOKED_AT = 1000

# Settings from which only tables are made, of scores that stay the same.
_LATER = ("bootstrap", "batch_size", "confident")


def told(
  evaluated: Sequence[Sample],
  config: EvalConfig,
  siblings: Mapping[tuple[str, str], Sequence[str]],
  registry: Registry,
  *,
  split: str,
  model: str,
  most_targets: int,
) -> dict[str, Any]:
  """All that scores and pictures depend on, as JSON values.

  Args:
    evaluated: in their order.
    siblings: (dataset, modality) -> its classes, also of records that are not
      evaluated: absent classes and wrong names are taken from them.
    registry: of the tasks; what it holds, not where it lies.
    model: what answers, in words that another has not.
    most_targets: that one question names; 0: any number.
  """
  settings = dataclasses.asdict(config)
  for name in _LATER:
    del settings[name]
  looked_at = evaluated[:: -(-len(evaluated) // LOOKED_AT)]
  found = {
    "split": split,
    "model": model,
    "most_targets": most_targets,
    "records": _digest(
      (r.id, r.classes, r.modality, r.dataset) for r in evaluated
    ),
    "descriptions": _digest(record.description for record in evaluated),
    "files": _digest(record.files for record in evaluated),
    "sizes of files": _digest(
      [_size(path) for path in record.files] for record in looked_at
    ),
    "classes": _digest(sorted(siblings.items())),
    "tasks": registry.digest(),
  }
  return json.loads(json.dumps(settings | found))


def _digest(values: Iterable[Any]) -> str:
  found = hashlib.sha256()
  for value in values:
    found.update(json.dumps(value).encode())
  return found.hexdigest()


def _size(path: str) -> int | None:
  try:
    return os.stat(path).st_size
  except OSError:  # a fault of the record, told when it is read
    return None
