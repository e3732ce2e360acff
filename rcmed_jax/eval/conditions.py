"""Whether two evaluations asked the same: settings and data side by side.

Two scores compare where the questions were the same. What was told of each
evaluation lies beside its scores, in summary--<split>.json.
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

from rcmed_jax.data.checks import DataError

# Settings that change intervals or tables and no score of a mask.
_LATER = ("bootstrap", "confident")

UNKNOWN = "not told"


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
  """One thing that two evaluations did not have in common."""

  what: str  # "eval.seed"
  a: str
  b: str

  def __str__(self) -> str:
    return f"{self.what}: {self.a} in A, {self.b} in B"


def differences(a: pathlib.Path, b: pathlib.Path) -> tuple[Difference, ...]:
  """Returns what differs between two runs' evaluations, sorted.

  Weights and temperatures are left out: two runs are compared because these
  differ, and masks do not depend on a temperature.

  Args:
    a, b: files metrics--<split>.jsonl.

  Raises:
    DataError: a summary is there and cannot be read.
  """
  told_a, told_b = _told(a), _told(b)
  return tuple(
    Difference(what, *(one.get(what, UNKNOWN) for one in (told_a, told_b)))
    for what in sorted({*told_a, *told_b})
    if told_a.get(what) != told_b.get(what)
  )


def _told(scores: pathlib.Path) -> dict[str, str]:
  """Returns setting -> value of one evaluation; empty without a summary."""
  name = scores.name.replace("metrics--", "summary--", 1)
  path = scores.with_name(name).with_suffix(".json")
  if path == scores or not path.is_file():
    return {}
  try:
    summary = json.loads(path.read_text(encoding="utf-8"))
    config, made = summary["config"], summary.get("made", {})
    told = {
      f"eval.{name}": _text(value)
      for name, value in config.items()
      if name not in _LATER
    }
    for group in ("data", "records", "versions"):
      told |= {
        f"{group}, {name}": _text(value)
        for name, value in made.get(group, {}).items()
      }
    return told
  except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
    raise DataError(
      path,
      "config",
      f"cannot be read: {error!r}",
      "Run `rcmed evaluate` again, or remove the file",
    ) from error


def _text(value: Any) -> str:
  if isinstance(value, list):
    return ", ".join(map(str, value)) or "none"
  if isinstance(value, Mapping):
    return json.dumps(value, sort_keys=True)
  return "none" if value in ("", None) else str(value)
