import json

import pytest

from rcmed_jax.data.checks import DataError
from rcmed_jax.eval import instances, row_lines, rows
from rcmed_jax.eval.metrics import Counts
from rcmed_jax.eval.rows import MaskScore

SCORE = MaskScore(
  record="a",
  dataset="toy",
  modality="ct",
  name="liver",
  counts=Counts(5, 10, 10),
  box_iou=1 / 3,
  present=True,
  confidence=0.1 + 0.2,
  ref_box=(1, 2, 3, 4),
  instances=instances.InstanceScore(1, 1, (0.5,), (1,), (0.75,), 3, 4),
)
ALL = (
  SCORE,
  rows.Named("a", "ct", None, ("liver",), (), "said", "wanted"),
  rows.Absent("a", "toy", "ct", "spleen", False, 0.5, (0, 0, 4, 4)),
  rows.Control("noise", "a", "ct", "liver", "liver", None, True, 0.5),
  rows.Phrase("a", "ct", "liver", "typo", "livre", 0.5, True, 0.5),
  rows.Quarantined("a", "a.png", "image", "no picture"),
)


def _line(**more):
  return json.dumps(row_lines.of(SCORE) | more)


@pytest.mark.parametrize("row", ALL)
def test_rows_come_back_from_their_lines(row, tmp_path):
  text = json.dumps(row_lines.of(row))
  assert row_lines.row(type(row), json.loads(text)) == row
  path = tmp_path / "rows.jsonl"
  path.write_text(f"{text}\n{text}\n")
  assert list(row_lines.read(path, type(row))) == [row, row]


def test_a_masks_line_tells_class_counts_and_scores():
  line = row_lines.of(SCORE)
  assert (line["class"], line["inter"], line["ref"]) == ("liver", 5, 10)
  assert (line["dice"], line["iou"]) == (pytest.approx(0.5), 1 / 3)
  assert not {"name", "counts"} & line.keys()


@pytest.mark.parametrize(
  ("lines", "message"),
  [
    ((_line(), _line()[:20]), "line 2: line: expected a JSON object with rec"),
    (('{"record": "a"}',), "line 1: line: expected a JSON object"),
    (("[1]",), "line 1: line: expected a JSON object"),
    ((_line(more=1),), "line 1: line: expected a JSON object"),
    ((_line(inter=1.5),), "line 1: inter: expected an integer, not 1.5"),
    ((_line(inter=True),), "line 1: inter: expected an integer"),
    ((_line(inter=11),), "line 1: inter: 11 pixels of 10 and 10"),
    ((_line(inter=-1),), "line 1: inter: -1 pixels"),
    ((_line(record=7),), "line 1: record: expected a text, not 7"),
    ((_line(present=1),), "line 1: present: expected true or false, not 1"),
    ((_line(confidence="1"),), "line 1: confidence: expected a number, not"),
    ((_line(confidence=float("inf")),), "line 1: confidence: expected a numbe"),
    ((_line(**{"class": 7}),), "line 1: class: expected a text"),
    ((_line(dice=0.6),), "line 1: dice: 0.6 is not that of its counts, 0.5"),
    ((_line(dice="0.5"),), "line 1: dice: '0.5' is not that of its counts"),
    ((_line(dice=float("nan")),), "line 1: dice: nan is not that of its"),
  ],
)
def test_faulty_lines_are_refused(tmp_path, lines, message):
  path = tmp_path / "rows.jsonl"
  path.write_text("\n".join(lines))
  with pytest.raises(DataError, match=message):
    list(row_lines.read(path, MaskScore))


def test_files_that_are_missing_or_no_text(tmp_path):
  with pytest.raises(DataError, match=r"cannot be read.*rcmed evaluate"):
    list(row_lines.read(tmp_path / "none.jsonl", MaskScore))
  (tmp_path / "bytes").write_bytes(b"\xff\xfe")
  with pytest.raises(DataError, match="cannot be read"):
    list(row_lines.read(tmp_path / "bytes", MaskScore))
