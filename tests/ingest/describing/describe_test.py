import dataclasses
import json

import numpy as np
import pytest

from rcmed_jax.data import describe as geometry
from rcmed_jax.data import phantoms, readers
from rcmed_jax.data.checks import DataError
from rcmed_jax.data.records import Triplet
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.describing import describe
from rcmed_jax.ingest.describing.texts import Texts
from rcmed_jax.ingest.pictures import index_file


@dataclasses.dataclass(frozen=True)
class Unit:
  id: str
  kind: str = "good"

  def triplets(self, faults):
    if self.kind == "broken":
      faults(DataError(self.id, "image", "it is broken", "Mend it"))
      return
    image_IJC = np.full((32, 32, 3), 80, np.uint8)
    masks_GIJ = np.zeros((1, 32, 32), bool)
    masks_GIJ[0, 4:12, 4:12] = self.kind != "empty"
    blank = self.kind == "blank"
    yield Triplet(
      id=self.id,
      image_IJC=image_IJC,
      masks_GIJ=masks_GIJ[:0] if blank else masks_GIJ,
      classes=() if blank else ("cyst",),
      modality="ultrasound",
      description=None,
      spacing_mm=None,
      source="set",
      license=None,
    )


@dataclasses.dataclass(frozen=True)
class Source:
  kinds: tuple[str, ...]

  def units(self, faults):
    for number, kind in enumerate(self.kinds):
      yield Unit("0" if kind == "twice" else str(number), kind)


def run(tmp_path, kinds, **more):
  wrong = []
  limit = more.pop("limit", 0)
  counts = describe.built_in(
    [Source(kinds)],
    tmp_path / "out.json",
    describe.Wish(limit=limit),
    wrong.append,
    **more,
  )
  return counts, json.loads((tmp_path / "out.json").read_text()), wrong


def test_every_image_is_counted_once(tmp_path):
  kinds = ("good", "broken", "blank", "empty", "twice", "good")
  counts, texts, wrong = run(tmp_path, kinds)
  assert counts == describe.Counts(built_in=2, failed=2, blank=1)
  assert list(texts) == ["0", "5"]
  assert [(e.path, e.field) for e in wrong] == [
    ("1", "image"),
    ("3", "description"),
    ("0", "description"),
  ]


def test_processes_change_nothing(tmp_path):
  kinds = ("good", "broken", "blank", "empty", "twice", *["good"] * 30)
  (tmp_path / "two").mkdir()
  one = run(tmp_path, kinds, limit=30)
  two = run(tmp_path / "two", kinds, limit=30, processes=2)
  assert one[:2] == two[:2]
  assert list(map(str, one[2])) == list(map(str, two[2]))
  files = (tmp_path / "out.json", tmp_path / "two" / "out.json")
  assert files[0].read_bytes() == files[1].read_bytes()


def test_limit(tmp_path):
  counts, texts, _ = run(tmp_path, ("good",) * 30, limit=3)
  assert counts.images == len(texts) == 3


def test_real_images_get_what_the_describer_says(tmp_path, shared):
  index = shared / "data" / "real9" / "image2label_real9.json"
  source = index_file.open_source(index, sources.Options())
  out = tmp_path / "descriptions.json"
  wrong = []
  counts = describe.built_in(
    [source], out, describe.Wish(detail=True), wrong.append
  )
  assert counts.built_in == counts.images == 10 and not wrong
  for record in readers.read_index(index, out):
    triplet = record.load()
    assert record.description == geometry.describe(
      triplet.image_IJC, triplet.masks_GIJ, triplet.classes, detail=True
    )


def test_phantoms_get_their_own_descriptions_again(tmp_path):
  phantoms.write(tmp_path / "data", 9, size=64)
  index = tmp_path / "data" / "image2label_train.json"
  out = tmp_path / "out.json"
  describe.built_in(
    [index_file.open_source(index, sources.Options())],
    out,
    describe.Wish(),
    pytest.fail,
  )
  own = tmp_path / "data" / "descriptions_train.json"
  assert json.loads(out.read_text()) == json.loads(own.read_text())


def test_the_file_is_whole_or_as_it_was(tmp_path):
  path = tmp_path / "out.json"
  path.write_text("{}")
  with pytest.raises(RuntimeError), Texts(path) as texts:
    texts.add("a", "text")
    raise RuntimeError
  assert path.read_text() == "{}"
  assert list(tmp_path.iterdir()) == [path]


def test_texts_come_in_order(tmp_path):
  path = tmp_path / "deep" / "out.json"
  with Texts(path) as texts:
    for number in (2, 0, 3, 1):
      said = None if number == 2 else f"text {number}"
      texts.put(number, f'{number} "ü"', said)
  assert list(json.loads(path.read_text()).items()) == [
    (f'{number} "ü"', f"text {number}") for number in (0, 1, 3)
  ]
  with Texts(path):
    pass
  assert json.loads(path.read_text()) == {}
