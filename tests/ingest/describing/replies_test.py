import json

from rcmed_jax.ingest.describing.replies import Replies

KEYS = [f"{n:032x}" for n in range(1, 5)]


def test_replies_are_there_again(tmp_path):
  first = Replies(tmp_path / "deep")
  assert KEYS[0] not in first and first.get(KEYS[0]) is None
  first.add(KEYS[0], 'Zwölf "Worte"\n', "eye")
  first.add(KEYS[1], "", "eye")
  assert first.get(KEYS[0]) == 'Zwölf "Worte"\n'
  again = Replies(tmp_path / "deep")
  assert len(again) == 2 and KEYS[1] in again
  assert again.get(KEYS[0]) == 'Zwölf "Worte"\n'
  again.close()
  first.close()


def test_the_last_reply_counts(tmp_path):
  kept = Replies(tmp_path)
  for text in ("old", "new"):
    kept.add(KEYS[0], text, "eye")
  assert kept.get(KEYS[0]) == "new"
  assert Replies(tmp_path).get(KEYS[0]) == "new"


def test_two_share_a_folder(tmp_path):
  ours, theirs = Replies(tmp_path), Replies(tmp_path)
  ours.add(KEYS[0], "a", "eye")
  theirs.add(KEYS[1], "bb", "eye")
  ours.add(KEYS[2], "ccc", "eye")
  assert [ours.get(KEYS[n]) for n in (0, 2)] == ["a", "ccc"]
  assert theirs.get(KEYS[1]) == "bb"
  assert len(Replies(tmp_path)) == 3


def test_a_line_cut_anywhere_costs_itself_only(tmp_path):
  whole = Replies(tmp_path / "whole")
  for key in KEYS[:2]:
    whole.add(key, "wörter", "eye")
  data = whole.path.read_bytes()
  start = data.index(b"\n") + 1
  for cut in range(start, len(data)):
    folder = tmp_path / str(cut)
    folder.mkdir()
    (folder / whole.path.name).write_bytes(data[:cut])
    kept = Replies(folder)
    assert kept.get(KEYS[0]) == "wörter"
    assert kept.get(KEYS[1]) is None and kept.broken == (cut > start)
    kept.add(KEYS[2], "next", "eye")
    kept.close()
    again = Replies(folder)
    assert [again.get(KEYS[n]) for n in (0, 2)] == ["wörter", "next"]
    again.close()


def test_other_lines_are_passed_over(tmp_path):
  lines = ["[]", '{"key": "zz", "text": "a"}', '{"key": "aa"}', "null", ""]
  good = json.dumps({"key": KEYS[0], "text": "b"})
  (tmp_path / "replies.jsonl").write_text("\n".join([*lines, good, ""]))
  kept = Replies(tmp_path)
  assert len(kept) == 1 and kept.broken == 4
  assert kept.get(KEYS[0]) == "b"
