import dataclasses
import hashlib
import json
import multiprocessing
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import imports
import numbered
import numpy as np
import pytest
import tensorflow_datasets as tfds

from rcmed_jax.data import shards
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.shards import Shards
from rcmed_jax.ingest.building import build, manifest
from rcmed_jax.ingest.building.build import Input

UNITS = 60
SETTINGS = {"sources": "numbered"}

# What a killed build runs as; the tests' own folder is on its path.
PROGRAM = """
import sys
import numbered
from rcmed_jax.ingest.building import build
from rcmed_jax.ingest.building.build import Input
if __name__ == "__main__":
  out, processes, delay = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
  source = numbered.Source(0, 60, delay)
  build.build([Input("train", source)], out, {"sources": "numbered"},
              processes=processes, shard_units=4,
              on_shard=lambda shard: print(shard.number, flush=True))
"""


def make(out, *, processes=1, shard_units=4, inputs=None, settings=SETTINGS):
  given = inputs or [Input("train", numbered.Source(0, UNITS))]
  seen = []
  totals = build.build(
    given,
    out,
    settings,
    processes=processes,
    shard_units=shard_units,
    on_shard=seen.append,
  )
  return totals, seen


def contents(folder):
  """sha256 of every file, by its path within the folder."""
  return {
    path.relative_to(folder).as_posix(): hashlib.sha256(
      path.read_bytes()
    ).hexdigest()
    for path in sorted(pathlib.Path(folder).rglob("*"))
    if path.is_file()
  }


def assert_same(one, other):
  for field in dataclasses.fields(one):
    np.testing.assert_array_equal(
      getattr(one, field.name), getattr(other, field.name), field.name
    )


def started(program, *arguments):
  path = ":".join([str(imports.ROOT), str(imports.ROOT / "tests")])
  return subprocess.Popen(
    [sys.executable, str(program), *map(str, arguments)],
    env={"PYTHONPATH": path, "PATH": "/usr/bin:/bin"},
    stdout=subprocess.PIPE,
    text=True,
  )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """An uninterrupted build by one process."""
  out = tmp_path_factory.mktemp("whole") / "set"
  totals, _ = make(out)
  return out, totals


@pytest.fixture
def program(tmp_path):
  path = tmp_path / "program.py"
  path.write_text(PROGRAM)
  return path


# What is built.


def test_every_triplet_is_there_once_as_it_was(whole):
  built = Shards(whole[0])
  wanted = numbered.expected(0, UNITS)
  assert [stored.id for stored in built] == [one.id for one in wanted]
  for stored, one in zip(built, wanted, strict=True):
    assert_same(stored.load(), one)


def test_counts_add_up(whole):
  out, totals = whole
  numbers = [n for n in range(UNITS) if n % 13 != 12]
  assert totals.units == len(numbers)
  assert totals.quarantined == sum(n % 11 in (4, 5) for n in numbers)
  assert totals.empty == sum(n % 11 == 6 for n in numbers)
  assert totals.used == sum(bool(numbered.triplets_of(n)) for n in numbers)
  assert totals.triplets == len(numbered.expected(0, UNITS))
  lines = (out / manifest.QUARANTINE).read_text().splitlines()
  faults = [json.loads(line) for line in lines]
  named = [fault["path"] for fault in faults]
  entries = [f"entry {n}" for n in range(UNITS) if n % 13 == 12]
  units = [f"unit {n}" for n in numbers if n % 11 in (4, 5, 7)]
  assert named == entries + units
  assert totals.faults == len(faults)
  broken = [fault for fault in faults if fault["field"] == "unit"]
  assert "RuntimeError: a library gave up" in broken[0]["reason"]


def test_tfds_reads_it_without_tensorflow(whole):
  source = tfds.builder_from_directory(whole[0]).as_data_source(split="train")
  wanted = numbered.expected(0, UNITS)
  assert len(source) == len(wanted)
  for place in (0, 1, len(wanted) // 2, len(wanted) - 1):
    example, one = source[place], wanted[place]
    assert example["id"].decode() == one.id
    np.testing.assert_array_equal(example["image"], one.image_IJC)
    masks = [np.asarray(mask)[..., 0] > 0 for mask in example["masks"]]
    assert [name.decode() for name in example["classes"]] == list(one.classes)
    np.testing.assert_array_equal(
      np.array(masks, bool).reshape(one.masks_GIJ.shape), one.masks_GIJ
    )
    np.testing.assert_allclose(example["spacing_mm"], one.spacing_mm or ())
    assert example["description"].decode() == (one.description or "")


@pytest.mark.parametrize("processes", [2, 4])
def test_bytes_do_not_depend_on_the_processes(whole, tmp_path, processes):
  make(tmp_path / "set", processes=processes)
  assert contents(tmp_path / "set") == contents(whole[0])


def test_splits_and_sources_are_kept_apart(tmp_path):
  inputs = [
    Input("train", numbered.Source(0, 7), "a/"),
    Input("test", numbered.Source(7, 14)),
    Input("train", numbered.Source(0, 3), "b/"),
  ]
  make(tmp_path / "set", inputs=inputs)
  train = [stored.id for stored in Shards(tmp_path / "set", "train")]
  assert train == [f"a/{one.id}" for one in numbered.expected(0, 7)] + [
    f"b/{one.id}" for one in numbered.expected(0, 3)
  ]
  test = [stored.id for stored in Shards(tmp_path / "set", "test")]
  assert test == [one.id for one in numbered.expected(7, 14)]
  builder = tfds.builder_from_directory(tmp_path / "set")
  assert len(builder.as_data_source(split="test")) == len(test)


def test_a_shard_of_nothing_is_a_shard(tmp_path):
  totals, _ = make(
    tmp_path / "set",
    shard_units=3,
    inputs=[Input("train", numbered.Source(1, 10))],
  )
  listed = shards.read_manifest(tmp_path / "set")["shards"]
  assert [shard.triplets for shard in listed][1] == 0
  assert len(Shards(tmp_path / "set")) == totals.triplets
  source = tfds.builder_from_directory(tmp_path / "set").as_data_source(
    split="train"
  )
  assert len(source) == totals.triplets
  assert source[totals.triplets - 1]["id"]


@dataclasses.dataclass(frozen=True)
class Twice(numbered.Unit):
  """Gives a triplet twice, and one whose masks do not fit."""

  def triplets(self, faults):
    one = numbered.triplet(self.number)
    yield one
    yield one
    yield dataclasses.replace(one, id="other", masks_GIJ=one.masks_GIJ[..., 1:])


class OneUnit:
  def units(self, faults):
    yield Twice(3)


def test_what_a_reader_must_not_do_is_quarantined(tmp_path):
  totals, _ = make(tmp_path / "set", inputs=[Input("train", OneUnit())])
  assert (totals.units, totals.used, totals.triplets) == (1, 1, 1)
  lines = (tmp_path / "set" / manifest.QUARANTINE).read_text().splitlines()
  assert [json.loads(line)["field"] for line in lines] == ["id", "triplet"]


@dataclasses.dataclass
class Millions:
  """Three million units; counts how many were asked for."""

  asked: int = 0

  def units(self, faults):
    for number in range(3_000_000):
      self.asked += 1
      yield numbered.Unit(number)


@pytest.mark.parametrize("processes", [1, 2])
def test_millions_of_units_are_never_held(tmp_path, processes):
  class EnoughError(Exception):
    pass

  def stop(shard):
    raise EnoughError

  source = Millions()
  with pytest.raises(EnoughError):
    build.build(
      [Input("train", source)],
      tmp_path / "set",
      SETTINGS,
      processes=processes,
      shard_units=4,
      on_shard=stop,
    )
  assert source.asked <= 4 * (processes + 2)


def test_want_of_memory_stops_a_build(tmp_path, monkeypatch):
  def starved(unit, faults):
    raise MemoryError("no room for pixels")

  monkeypatch.setattr(numbered.Unit, "triplets", starved)
  with pytest.raises(MemoryError, match="no room for pixels"):
    make(tmp_path / "set")
  assert not (tmp_path / "set" / shards.MANIFEST).exists()


# What goes on, and what is refused.


def test_finished_shards_are_not_built_again(whole, tmp_path, monkeypatch):
  shutil.copytree(whole[0], tmp_path / "set")
  monkeypatch.setattr(build.shard_files, "write", None)
  totals, seen = make(tmp_path / "set")
  assert totals == whole[1]
  assert len(seen) == totals.shards
  assert contents(tmp_path / "set") == contents(whole[0])


def test_a_missing_shard_alone_is_built_again(whole, tmp_path, monkeypatch):
  shutil.copytree(whole[0], tmp_path / "set")
  (tmp_path / "set/rcmed-train.array_record-00003").unlink()
  built, write = [], build.shard_files.write

  def spy(task):
    built.append(task.number)
    return write(task)

  monkeypatch.setattr(build.shard_files, "write", spy)
  make(tmp_path / "set")
  assert built == [3]
  assert contents(tmp_path / "set") == contents(whole[0])


def test_other_settings_are_refused_by_name(whole, tmp_path):
  shutil.copytree(whole[0], tmp_path / "set")
  with pytest.raises(ValueError, match=r'(?s)- .*: 4.*\+ .*"shard_units": 5'):
    make(tmp_path / "set", shard_units=5)
  assert contents(tmp_path / "set") == contents(whole[0])


@pytest.mark.parametrize(
  ("start", "stop", "message"),
  [(1, UNITS, "shard 0 was built of other units"), (0, 17, "no longer have")],
)
def test_other_units_are_refused(whole, tmp_path, start, stop, message):
  shutil.copytree(whole[0], tmp_path / "set")
  with pytest.raises(ValueError, match=message):
    make(
      tmp_path / "set", inputs=[Input("train", numbered.Source(start, stop))]
    )


def test_a_folder_of_something_else_is_left_alone(tmp_path):
  (tmp_path / "letter.txt").write_text("dear")
  with pytest.raises(DataError, match=r"no build.json"):
    make(tmp_path)
  assert (tmp_path / "letter.txt").read_text() == "dear"


def test_sources_without_units_are_refused(tmp_path):
  with pytest.raises(DataError, match="have no unit"):
    make(tmp_path / "set", inputs=[Input("train", numbered.Source(5, 5))])


def test_a_full_disk_is_told_with_both_numbers(tmp_path, monkeypatch):
  usage = shutil.disk_usage(tmp_path)._replace(free=1234)
  monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
  with pytest.raises(ValueError, match=r"need about \d+ bytes and 1234 are"):
    make(tmp_path / "set")


def test_a_second_build_in_the_folder_is_refused(tmp_path):
  def again(shard):
    del shard
    with pytest.raises(ValueError, match="another build is at work"):
      make(tmp_path / "set")
    seen.append(True)

  seen = []
  source = Input("train", numbered.Source(0, 3))
  build.build([source], tmp_path / "set", SETTINGS, on_shard=again)
  assert seen


def test_a_torn_line_of_the_journal_is_built_again(whole, tmp_path):
  shutil.copytree(whole[0], tmp_path / "set")
  path = tmp_path / "set" / manifest.JOURNAL
  path.write_bytes(path.read_bytes()[:-40])
  (tmp_path / "set" / shards.MANIFEST).unlink()
  make(tmp_path / "set")
  assert contents(tmp_path / "set") == contents(whole[0])


def test_verification_names_what_has_changed(whole, tmp_path):
  shutil.copytree(whole[0], tmp_path / "set")
  listed = shards.read_manifest(tmp_path / "set")["shards"]
  assert not any(shards.faults(tmp_path / "set", shard) for shard in listed)
  path = tmp_path / "set" / listed[2].examples_name
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  (tmp_path / "set" / listed[4].headers_name).unlink()
  found = [
    error.path
    for shard in listed
    for error in shards.faults(tmp_path / "set", shard)
  ]
  assert found == [str(path), str(tmp_path / "set" / listed[4].headers_name)]


def kill_after(process, lines, delay_s):
  """Kills without warning once so many lines were printed."""
  for _ in range(lines):
    process.stdout.readline()
  time.sleep(delay_s)
  process.send_signal(signal.SIGKILL)
  process.communicate()


def test_a_killed_build_goes_on(whole, tmp_path, program):
  process = started(program, tmp_path / "set", 1, 0.02)
  kill_after(process, 3, 0.03)
  finished = (tmp_path / "set" / manifest.JOURNAL).read_text().count("\n")
  assert 3 <= finished < whole[1].shards
  assert not (tmp_path / "set" / shards.MANIFEST).exists()
  with pytest.raises(DataError, match="not to its end"):
    Shards(tmp_path / "set")
  make(tmp_path / "set")
  assert contents(tmp_path / "set") == contents(whole[0])


@pytest.mark.heavy
def test_killed_at_ten_moments_nothing_is_lost_or_doubled(
  whole, tmp_path, program
):
  moments = random.Random(0)
  stops = 0
  for turn in range(10):
    process = started(program, tmp_path / "set", 1 + turn % 3, 0.05)
    kill_after(process, moments.randrange(3), moments.uniform(0, 0.8))
    stops += not (tmp_path / "set" / shards.MANIFEST).exists()
  assert stops >= 5  # it was really stopped before its end
  make(tmp_path / "set", processes=2)
  assert contents(tmp_path / "set") == contents(whole[0])
  assert multiprocessing.active_children() == []
