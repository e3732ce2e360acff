"""Why masks fail: groups of failures, by task, with an example each.

A mask of the named protocol fails below a Dice of `FAILING`. Its group is the
first that fits:

  missed       the answer does not hold the class, or its mask is empty
  misplaced    mask and reference share no pixel
  too_large    the mask has `FACTOR` times the pixels of the reference, or more
  too_small    the other way round
  shifted      about as large as the reference, but mostly beside it

Two more are of other protocols, where no reference mask fails:

  wrong_name   open: a class of the image is left out and one that is not in it
               is named
  false_alarm  negative: a class that the image lacks is claimed
"""

from collections.abc import Iterator
import dataclasses
from typing import Any

from rcmed_jax.eval.metrics import Counts
from rcmed_jax.eval.rows import Tally
from rcmed_jax.eval.tasks import Task

FAILING = 0.5  # Dice, where less than half of both masks agrees
FACTOR = 1.5

MASKS = ("missed", "misplaced", "too_large", "too_small", "shifted")
WRONG_NAME, FALSE_ALARM = "wrong_name", "false_alarm"
WITHOUT_DICE = frozenset({WRONG_NAME, FALSE_ALARM})
# Group -> the protocol whose rows it is counted of.
REASONS = {
  **dict.fromkeys(MASKS, "named"),
  WRONG_NAME: "open",
  FALSE_ALARM: "negative",
}


def reason(counts: Counts) -> str:
  """Returns the group of a mask that fails; nothing of one that does not."""
  if counts.dice >= FAILING:
    return ""
  if not counts.pred:
    return "missed"
  if not counts.inter:
    return "misplaced"
  if counts.pred >= FACTOR * counts.ref:
    return "too_large"
  if counts.ref >= FACTOR * counts.pred:
    return "too_small"
  return "shifted"


def table(tally: Tally) -> dict[str, Any]:
  """Returns how often each group occurs, in all and by task."""
  found: dict[tuple[str, Task], list[_Case]] = {}
  asked: dict[tuple[str, Task], int] = {}
  for case in _cases(tally):
    key = (case.protocol, case.task)
    asked[key] = asked.get(key, 0) + 1
    if case.reason:
      found.setdefault((case.reason, case.task), []).append(case)
  order = list(REASONS)
  by_task = []
  for name, task in sorted(
    found, key=lambda key: (order.index(key[0]), key[1])
  ):
    cases = found[name, task]
    worst = min(cases, key=lambda case: (case.dice, case.record, case.said))
    by_task.append(
      {
        "reason": name,
        "modality": task.modality,
        "class": task.name,
        "count": len(cases),
        "asked": asked[REASONS[name], task],
        "example": worst.record,
        "said": worst.said,
      }
    )
  return {
    "below": FAILING,
    "reasons": {
      name: {
        "count": sum(r["count"] for r in by_task if r["reason"] == name),
        "asked": sum(n for (of, _), n in asked.items() if of == protocol),
        "tasks": sum(r["reason"] == name for r in by_task),
      }
      for name, protocol in REASONS.items()
    },
    "by_task": by_task,
  }


@dataclasses.dataclass(frozen=True)
class _Case:
  """One thing that was asked, and how it failed, if it did."""

  protocol: str
  reason: str  # one of REASONS; "": it did not fail
  task: Task
  record: str
  dice: float = 0.0
  said: str = ""  # what an answer named instead


def _cases(tally: Tally) -> Iterator[_Case]:
  for score in tally.masks:
    dice = score.counts.dice
    name = reason(score.counts)
    yield _Case("named", name, score.task, score.record, dice)
  for row in tally.named:
    there, said = row.there, row.named
    wrong = ", ".join(sorted(said - there))
    for name in sorted(there):
      failed = WRONG_NAME if wrong and name not in said else ""
      task = Task(row.modality, name)
      yield _Case("open", failed, task, row.record, said=wrong)
  for row in tally.absent:
    failed = "" if row.rejected else FALSE_ALARM
    yield _Case("negative", failed, row.task, row.record)
