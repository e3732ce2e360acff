import concurrent.futures
import json

import pytest

from rcmed_jax.data.checks import DataError, Quarantine


def error(path="a.png", field="image", message="it is empty"):
  return DataError(path, field, message, "Remove it")


def test_error_names_file_fault_and_remedy():
  assert str(error()) == "a.png: image: it is empty. Remove it."
  assert isinstance(error(), ValueError)
  assert (error().path, error().field) == ("a.png", "image")


def test_each_fault_is_written_once(tmp_path):
  quarantine = Quarantine(tmp_path / "deep" / "quarantine.jsonl")
  for _ in range(3):
    quarantine.add(error())
    quarantine.add(error(field="description"))
  lines = quarantine.path.read_text(encoding="utf-8").splitlines()
  assert [json.loads(line) for line in lines] == [
    {
      "path": "a.png",
      "field": field,
      "reason": "it is empty",
      "remedy": "Remove it",
    }
    for field in ("image", "description")
  ]
  assert len(quarantine) == 2


def test_nothing_bad_leaves_no_file(tmp_path):
  quarantine = Quarantine(tmp_path / "quarantine.jsonl")
  assert len(quarantine) == 0
  assert not quarantine.path.exists()


def test_goes_on_from_what_the_file_held(tmp_path):
  path = tmp_path / "quarantine.jsonl"
  Quarantine(path).add(error())
  again = Quarantine(path)
  again.add(error())
  again.add(error("b.png"))
  assert len(again) == 2
  assert len(path.read_text(encoding="utf-8").splitlines()) == 2


def test_many_threads_write_whole_lines_once(tmp_path):
  quarantine = Quarantine(tmp_path / "quarantine.jsonl")
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda i: quarantine.add(error(str(i % 50))), range(800)))
  lines = quarantine.path.read_text(encoding="utf-8").splitlines()
  paths = [json.loads(line)["path"] for line in lines]
  assert sorted(paths) == sorted(map(str, range(50)))


@pytest.mark.parametrize("line", ['{"path": "a', "[1, 2]", '{"path": "a"}'])
def test_a_broken_file_is_named(tmp_path, line):
  path = tmp_path / "quarantine.jsonl"
  Quarantine(path).add(error())
  with path.open("a") as file:
    file.write(line + "\n")  # without its end, it is a line cut short
  with pytest.raises(DataError, match=r"quarantine.jsonl: line 2: .*Delete"):
    Quarantine(path)


def test_items_of_another_process_are_taken_once(tmp_path):
  ours, theirs = (Quarantine(tmp_path / name) for name in "ab")
  for quarantine, names in ((ours, "xy"), (theirs, "yz")):
    for name in names:
      quarantine.add(DataError(name, "image", "is broken", "Mend it"))
  ours.take(tmp_path / "b")
  assert len(ours) == 3
  kept = Quarantine(tmp_path / "a")
  assert len(kept) == 3
  lines = (tmp_path / "a").read_text().splitlines()
  assert [json.loads(line)["path"] for line in lines] == ["x", "y", "z"]
