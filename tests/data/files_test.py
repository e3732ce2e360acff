import errno
import pathlib

import pytest

from rcmed_jax.data import files


@pytest.fixture
def bucket(monkeypatch, tmp_path):
  """A folder that is taken for a bucket, and a clock."""
  now = [1000.0]
  monkeypatch.setattr(files, "is_remote", lambda path: True)
  monkeypatch.setattr(files.time, "monotonic", lambda: now[0])
  return tmp_path, now


def test_lines_on_a_disk_are_there_at_once(tmp_path):
  path = tmp_path / "new" / "a.jsonl"
  file = files.LineFile(path)
  assert file.lines() == []
  file.add("one")
  file.add("two")
  assert path.read_text() == "one\ntwo\n"
  again = files.LineFile(path)
  assert again.lines() == ["one\n", "two\n"]
  again.replace(["one\n"])
  again.add("three")
  assert path.read_text() == "one\nthree\n"


def test_a_line_that_was_cut_short_gives_way_to_the_next(tmp_path):
  path = tmp_path / "a.jsonl"
  path.write_text("one\n\u00e9tw")
  file = files.LineFile(path)
  assert file.lines() == ["one\n"]
  file.add("two")
  file.add("three")
  assert path.read_text() == "one\ntwo\nthree\n"


@pytest.mark.parametrize(
  ("whole", "cut"), [(0, 1), (0, 300_000), (1, 0), (1, 300_000), (9000, 5)]
)
def test_what_follows_the_last_line_goes_however_long_it_is(
  tmp_path, whole, cut
):
  path = tmp_path / "a.jsonl"
  lines = "line\n" * whole + "long" * 20_000 * bool(whole) + "\n" * bool(whole)
  path.write_text(lines + "x" * cut)
  file = files.LineFile(path)
  file.add("next")
  assert path.read_text() == lines + "next\n"


def test_lines_are_found_again_by_their_places(tmp_path):
  path = tmp_path / "a.jsonl"
  assert list(files.LineFile(path).placed()) == []
  path.write_text("\u00e9in\nzwei\ndr")
  file = files.LineFile(path)
  assert list(file.placed()) == [(0, "\u00e9in\n"), (5, "zwei\n")]
  assert file.at(5) == "zwei\n"


def test_lines_that_cannot_all_be_made_leave_the_file_as_it_was(tmp_path):
  path = tmp_path / "a.jsonl"
  files.write_whole(path, (f"{number}\n" for number in range(3)))
  assert path.read_text() == "0\n1\n2\n"
  with pytest.raises(ZeroDivisionError):
    files.write_whole(path, (f"{1 // number}\n" for number in (1, 0)))
  assert path.read_text() == "0\n1\n2\n"
  assert [found.name for found in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize("data", ["new\n", b"\0new"])
def test_a_file_is_written_whole_or_not_at_all(tmp_path, data, monkeypatch):
  path = tmp_path / "a.json"
  files.write_whole(path, data)
  wanted = data if isinstance(data, bytes) else data.encode()
  assert path.read_bytes() == wanted

  def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")

  monkeypatch.setattr(files.os, "replace", full)
  with pytest.raises(OSError, match=r"No space left.*a\.json") as caught:
    files.write_whole(path, "other")
  assert caught.value.errno == errno.ENOSPC
  assert path.read_bytes() == wanted
  assert [found.name for found in tmp_path.iterdir()] == ["a.json"]


def test_lines_in_a_bucket_come_every_ten_seconds(bucket):
  folder, now = bucket
  path = folder / "a.jsonl"
  path.write_text("before\n")
  file = files.LineFile(path)
  file.add("one")
  assert path.read_text() == "before\none\n"
  now[0] += 9.9
  file.add("two")
  assert path.read_text() == "before\none\n"
  now[0] += 0.2
  file.add("three")
  assert path.read_text() == "before\none\ntwo\nthree\n"
  file.add("four")
  file.flush()
  assert path.read_text() == "before\none\ntwo\nthree\nfour\n"
  path.unlink()
  file.flush()  # nothing is behind
  assert not path.exists()


@pytest.mark.parametrize(
  "path, remote", [("gs://bucket/run", True), ("/a/b", False), ("a:b", False)]
)
def test_a_bucket_is_known_by_its_name(path, remote):
  assert files.is_remote(path) == remote
  found = str(files.absolute(path))
  assert found == (path if remote else str(pathlib.Path(path).absolute()))
