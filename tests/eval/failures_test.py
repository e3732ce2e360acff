import pytest

from rcmed_jax.eval import failures, negatives
from rcmed_jax.eval.metrics import Counts
from rcmed_jax.eval.rows import Absent, MaskScore, Named, Present, Tally


@pytest.mark.parametrize(
  ("inter", "pred", "ref", "reason"),
  [
    (8, 10, 10, ""),
    (5, 10, 10, ""),  # Dice 0.5 does not fail
    (0, 0, 10, "missed"),
    (0, 10, 10, "misplaced"),
    (0, 90, 10, "misplaced"),  # no pixel shared, whatever the size
    (10, 90, 10, "too_large"),
    (2, 15, 10, "too_large"),
    (2, 2, 10, "too_small"),
    (4, 10, 10, "shifted"),
    (4, 14, 10, "shifted"),
    (0, 0, 0, ""),  # both empty: Dice 1
    (0, 5, 0, "misplaced"),
  ],
)
def test_reason_of_a_mask(inter, pred, ref, reason):
  assert failures.reason(Counts(inter, pred, ref)) == reason


def _mask(record, name, inter, pred, modality="ct"):
  return MaskScore(
    *(record, "toy", modality, name, Counts(inter, pred, 10)),
    box_iou=0.0,
    present=pred > 0,
    confidence=0.5,
  )


TALLY = Tally(
  images=3,
  masks=[
    _mask("b", "liver", 0, 0),
    _mask("a", "liver", 0, 0),
    _mask("c", "liver", 9, 10),
    _mask("a", "spleen", 10, 50),
    _mask("b", "heart", 9, 9, "x"),
  ],
  named=[
    Named("a", "ct", "ct", ("liver", "spleen"), ("Spleen", "kidney")),
    Named("b", "ct", "ct", ("liver",), ()),  # nothing said in its place
    Named("c", "ct", "ct", ("liver",), ("liver", "spleen")),
  ],
  absent=[
    Absent("a", "toy", "ct", "kidney", rejected=False, confidence=0.7),
    Absent("b", "toy", "ct", "kidney", rejected=True, confidence=0.0),
    Absent("b", "toy", "ct", "liver", rejected=True, confidence=0.0),
  ],
  present=[
    Present("a", "toy", "ct", "liver", rejected=True, confidence=0.0),
    Present("b", "toy", "ct", "liver", rejected=True, confidence=0.0),
    Present("c", "toy", "ct", "hepar", False, 0.8, canonical="liver"),
    Present("b", "toy", "x", "heart", rejected=False, confidence=0.6),
  ],
)


def test_hand_worked_groups_by_task():
  found = failures.table(TALLY)
  rows = [
    tuple(
      row[key]
      for key in ("reason", "modality", "class", "count", "asked", "example")
    )
    for row in found["by_task"]
  ]
  assert rows == [
    ("missed", "ct", "liver", 2, 3, "a"),
    ("too_large", "ct", "spleen", 1, 1, "a"),
    ("wrong_name", "ct", "liver", 1, 3, "a"),
    ("false_alarm", "ct", "kidney", 1, 2, "a"),
  ]
  assert found["by_task"][2]["said"] == "kidney"
  assert found["reasons"]["missed"] == {"count": 2, "asked": 5, "tasks": 1}
  assert found["reasons"]["wrong_name"] == {"count": 1, "asked": 4, "tasks": 1}
  assert found["reasons"]["false_alarm"] == {"count": 1, "asked": 3, "tasks": 1}
  assert found["reasons"]["shifted"] == {"count": 0, "asked": 5, "tasks": 0}


def test_hand_worked_negatives_by_task():
  rows = {(r["modality"], r["class"]): r for r in negatives.by_task(TALLY)}
  assert list(rows) == sorted(rows)
  kidney, liver, heart = (
    rows["ct", "kidney"],
    rows["ct", "liver"],
    rows["x", "heart"],
  )
  assert (kidney["asked_absent"], kidney["absent_rejection"]) == (2, 0.5)
  assert (kidney["asked_present"], kidney["false_rejection"]) == (0, None)
  assert (liver["rejected_present"], liver["false_rejection"]) == (2, 2 / 3)
  assert (heart["asked_absent"], heart["absent_rejection"]) == (0, None)
