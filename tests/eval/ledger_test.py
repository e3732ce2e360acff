import json
import tracemalloc

import pytest

from rcmed_jax.data.checks import DataError
from rcmed_jax.eval import ledger, overlays, rows

TOLD = {"model": "step 6", "seed": 0}
EMPTY = overlays.Gallery(set(), 0)


def _tally(image: int) -> rows.Tally:
  row = rows.Absent(f"{image}", "toy", "ct", "liver", True, 0.0, None)
  return rows.Tally(images=1, absent=[row])


def _sample(record: str) -> overlays.Sample:
  return overlays.Sample(
    *(record, "ct", "what?", "this", ("liver",), (0.5,), (True,), (4, 4)),
    *(b"image", b"reference", b"prediction"),
  )


@pytest.mark.parametrize("left", ["", '{"model"', json.dumps(TOLD)])
def test_a_kill_in_the_first_write_dooms_nothing(tmp_path, left):
  (tmp_path / "scores-0.jsonl").write_text(left)
  held = ledger.Ledger(tmp_path, TOLD)
  held.add(0, _tally(0), EMPTY)
  assert held.tally(1) == _tally(0)
  assert ledger.Ledger(tmp_path, TOLD).tally(1) == _tally(0)
  with pytest.raises(ValueError, match="another model, seed; delete it"):
    ledger.Ledger(tmp_path, {"model": "step 8", "seed": 1})


def test_another_process_that_has_told_nothing_yet_is_passed_over(tmp_path):
  (tmp_path / "scores-1.jsonl").write_text('{"mod')
  held = ledger.Ledger(tmp_path, TOLD)
  held.add(0, _tally(0), EMPTY)
  assert held.tally(1) == _tally(0)


def test_a_line_cut_short_is_no_chunk_and_gives_way(tmp_path):
  ledger.Ledger(tmp_path, TOLD).add(0, _tally(0), EMPTY)
  path = tmp_path / "scores-0.jsonl"
  path.write_text(path.read_text() + '{"chunk": 1, "ima')
  held = ledger.Ledger(tmp_path, TOLD)
  assert 0 in held and 1 not in held
  with pytest.raises(ValueError, match="1 of 2 chunks have no scores"):
    held.tally(2)
  held.add(1, _tally(1), EMPTY)
  assert [row.record for row in held.tally(2).absent] == ["0", "1"]


def test_a_damaged_line_is_named(tmp_path):
  ledger.Ledger(tmp_path, TOLD).add(0, _tally(0), EMPTY)
  path = tmp_path / "scores-0.jsonl"
  path.write_text(path.read_text().replace('"images"', "images"))
  with pytest.raises(DataError, match=r"scores-0\.jsonl: line 2: is no JSON"):
    ledger.Ledger(tmp_path, TOLD)


def test_chunks_come_in_their_order_from_all_files(tmp_path):
  parts = [ledger.Ledger(tmp_path, TOLD, part) for part in range(2)]
  for chunk, part in ((3, 0), (0, 1), (2, 1), (1, 0)):
    parts[part].add(chunk, _tally(chunk), EMPTY)
  found = ledger.Ledger(tmp_path, TOLD).tally(4)
  assert [row.record for row in found.absent] == ["0", "1", "2", "3"]
  assert found.images == 4


def test_pictures_are_written_when_there_are_others(tmp_path, monkeypatch):
  written = []
  write = ledger.files.write_whole
  monkeypatch.setattr(
    ledger.files,
    "write_whole",
    lambda path, data: (written.append(path.name), write(path, data)),
  )
  held = ledger.Ledger(tmp_path, TOLD)
  gallery = overlays.Gallery({"a", "b"}, 0)
  held.add(0, _tally(0), gallery)
  assert not written
  gallery.add(_sample("a"))
  held.add(1, _tally(1), gallery)
  held.add(2, _tally(2), gallery)
  assert len(written) == 1
  gallery.add(_sample("b"))
  held.add(3, _tally(3), gallery)
  assert len(written) == 2
  again = overlays.Gallery({"a", "b"}, 0)
  ledger.Ledger(tmp_path, TOLD).pictures(again)
  assert again.examples == gallery.examples


def test_a_resumed_ledger_holds_no_scores(tmp_path):
  """Numbers of chunks alone, of a file a hundred times as large."""
  held = ledger.Ledger(tmp_path, TOLD)
  big = rows.Tally(images=1, absent=_tally(0).absent * 500)
  for chunk in range(40):
    held.add(chunk, big, EMPTY)
  size = (tmp_path / "scores-0.jsonl").stat().st_size
  tracemalloc.start()
  resumed = ledger.Ledger(tmp_path, TOLD)
  kept, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert 39 in resumed
  assert kept < size / 100
  assert peak < size / 4  # one chunk at a time
