"""Present against absent, task by task: who says yes to everything is seen."""

from collections.abc import Mapping, Sequence
from typing import Any

from rcmed_jax.eval.metrics import share
from rcmed_jax.eval.rows import Tally
from rcmed_jax.eval.tasks import Task


def by_task(tally: Tally) -> list[dict[str, Any]]:
  """Returns a row for every task that was asked, sorted; no share is None."""
  present: dict[Task, list[bool]] = {}
  absent: dict[Task, list[bool]] = {}
  for rows, found in ((tally.present, present), (tally.absent, absent)):
    for row in rows:
      found.setdefault(row.task, []).append(row.rejected)
  return [
    {
      "modality": task.modality,
      "class": task.name,
      **_counts("absent", absent, task, "absent_rejection"),
      **_counts("present", present, task, "false_rejection"),
    }
    for task in sorted({*present, *absent})
  ]


def _counts(
  kind: str, rows: Mapping[Task, Sequence[bool]], task: Task, name: str
) -> dict[str, Any]:
  rejected = rows.get(task, [])
  return {
    f"asked_{kind}": len(rejected),
    f"rejected_{kind}": sum(rejected),
    name: share(sum(rejected), len(rejected)) if rejected else None,
  }
