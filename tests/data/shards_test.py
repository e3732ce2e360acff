import json
import multiprocessing
import pathlib
import pickle
import shutil
import threading

import numbered
import numpy as np
import pytest

from rcmed_jax.data import readers, shards
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.shards import Shards
from rcmed_jax.ingest.building import build
from rcmed_jax.ingest.building.build import Input

WANTED = numbered.expected(0, 40)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
  out = tmp_path_factory.mktemp("original") / "set"
  inputs = [
    Input("train", numbered.Source(0, 40)),
    Input("test", numbered.Source(40, 44)),
  ]
  build.build(inputs, out, {}, shard_units=8)
  return out


@pytest.fixture
def folder(original, tmp_path):
  """A copy to be damaged."""
  return pathlib.Path(shutil.copytree(original, tmp_path / "set"))


def damage(path, share=0.5):
  """Sixteen bytes of a record are others now."""
  data = bytearray(path.read_bytes())
  place = data.find(b"\x89PNG", int(len(data) * share)) + 400
  data[place : place + 16] = bytes(byte ^ 0x55 for byte in data[place:][:16])
  path.write_bytes(data)


def ids(folder):
  """What another process reads."""
  return [stored.id for stored in Shards(folder, "train")]


def test_samples_come_at_random_as_they_were(original):
  built = Shards(original, "train")
  assert len(built) == len(WANTED)
  for place in np.random.default_rng(0).permutation(len(WANTED)):
    one, stored = WANTED[place], built[int(place)]
    assert stored.id == one.id
    assert stored.classes == one.classes
    assert stored.modality == one.modality
    assert stored.dataset == one.source
    assert stored.description == one.description
    triplet = stored.load()
    np.testing.assert_array_equal(triplet.image_IJC, one.image_IJC)
    np.testing.assert_array_equal(triplet.masks_GIJ, one.masks_GIJ)
    assert triplet.spacing_mm == one.spacing_mm
    assert (triplet.license, triplet.group) == (one.license, one.group)


def test_it_is_a_sequence(original):
  built = Shards(original, "train")
  assert built[-1].id == WANTED[-1].id
  assert [stored.id for stored in built[3:6]] == [one.id for one in WANTED[3:6]]
  assert list(built) == [built[place] for place in range(len(built))]
  with pytest.raises(IndexError):
    built[len(built)]


def test_samples_tell_the_files_that_hold_them(original):
  for stored in Shards(original, "train"):
    (path,) = stored.files
    assert stored.id.encode() in pathlib.Path(path).read_bytes()


def test_classes_are_known_without_headers(original, monkeypatch):
  built = Shards(original, "train")
  slow = readers.class_table(list(built))
  monkeypatch.setattr(shards, "_open", None)
  assert built.class_table() == slow


def test_it_moves_to_other_processes(original):
  built = pickle.loads(pickle.dumps(Shards(original, "train")))
  assert built[5].load().id == WANTED[5].id
  with multiprocessing.get_context("spawn").Pool(1) as pool:
    assert pool.apply(ids, (original,)) == [one.id for one in WANTED]


def test_threads_share_one(original, monkeypatch):
  monkeypatch.setattr(shards, "MOST_OPEN", 1)  # they close each other's files
  built = Shards(original, "train")
  wrong = []

  def read(seed):
    for place in np.random.default_rng(seed).permutation(len(WANTED)):
      triplet = built[int(place)].load()
      if not np.array_equal(triplet.image_IJC, WANTED[place].image_IJC):
        wrong.append(place)

  threads = [threading.Thread(target=read, args=(n,)) for n in range(6)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong


def test_splits_are_named(original):
  with pytest.raises(DataError, match=r"one of test, train.*set:test"):
    Shards(original)
  with pytest.raises(DataError, match="received 'val'"):
    Shards(original, "val")


def test_a_damaged_record_is_named_and_the_others_are_read(folder):
  name = "rcmed-train.array_record-00002"
  damage(folder / name)
  built = Shards(folder, "train")
  bad = []
  for stored, one in zip(built, WANTED, strict=True):
    try:
      triplet = stored.load()
    except DataError as error:
      bad.append(error.path)
      continue
    np.testing.assert_array_equal(triplet.image_IJC, one.image_IJC)
  (path,) = bad
  assert path.startswith(f"{folder / name}[")


def test_damaged_headers_are_named(folder):
  path = folder / "headers/rcmed-train-00001"
  data = bytearray(path.read_bytes())
  data[2000:2016] = bytes(16)  # within the first record or two
  path.write_bytes(data)
  built = Shards(folder, "train")
  faults, good = [], 0
  for place in range(len(built)):
    try:
      assert built[place].id == WANTED[place].id
      good += 1
    except DataError as error:
      faults.append(error.path)
  assert faults and good
  assert all(fault.startswith(f"{path}[") for fault in faults)


@pytest.mark.parametrize("cut", ["shorter", "gone"])
def test_files_that_lack_bytes_are_refused_on_opening(folder, cut):
  path = folder / "rcmed-train.array_record-00001"
  data = path.read_bytes()
  path.unlink() if cut == "gone" else path.write_bytes(data[:-1])
  with pytest.raises(DataError) as caught:
    Shards(folder, "train")
  assert caught.value.path == str(path)


def test_other_versions_and_folders_are_refused(folder, tmp_path):
  path = folder / shards.MANIFEST
  values = json.loads(path.read_text())
  path.write_text(json.dumps(values | {"version": 99}))
  with pytest.raises(DataError, match="version 99, expected 1"):
    Shards(folder, "train")
  path.write_text("{")
  with pytest.raises(DataError, match="cannot be read"):
    Shards(folder, "train")
  with pytest.raises(DataError, match=r"holds no manifest.json"):
    Shards(tmp_path)
