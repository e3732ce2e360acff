import json

import layouts
import pytest

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import formats, sources

BOX = (3, 20, 4, 15)
PET = sources.Options(modality="pet", key=b"k" * 32)


def index(folder):
  return layouts.index(folder, {"ct--a--1.png": {"liver": BOX}})


def coco(folder):
  path = folder / "coco.json"
  path.write_text(json.dumps({"images": [], "annotations": []}))
  return path


def plain(folder):
  layouts.save(folder / "images/a.png", layouts.picture(0))
  layouts.save(folder / "masks/liver/a.png", layouts.mask(BOX))
  return folder


def biomedparse(folder):
  layouts.save(folder / "train/a_CT_b.png", layouts.picture(0))
  layouts.save(folder / "train_mask/a_CT_b_liver.png", layouts.mask(BOX))
  return folder


def slides(folder):
  layouts.save(folder / "slides/a.tif", layouts.picture(0))
  layouts.save(folder / "masks/liver/a.tif", layouts.mask(BOX))
  return folder


MADE = {
  "index": index,
  "coco": coco,
  "folder": plain,
  "biomedparse": biomedparse,
  "tiles": slides,
}


@pytest.mark.parametrize("name", MADE)
def test_each_format_is_known_by_its_looks(tmp_path, name):
  assert formats.detect(MADE[name](tmp_path)) == name


def test_real_data_is_known(shared):
  assert formats.detect(shared / "data/real9") == "index"
  assert formats.detect(shared / "data/liver_mr") == "nifti"


def test_every_format_has_a_module_and_says_what_it_looks_like(tmp_path):
  assert formats.LOOKS.keys() == formats.FORMATS.keys()
  for name in formats.FORMATS:
    assert not formats._module(name).matches(tmp_path)


def test_what_is_unknown_is_said_with_what_was_expected(tmp_path):
  (tmp_path / "notes.txt").write_text("")
  (tmp_path / "more").mkdir()
  with pytest.raises(DataError) as info:
    formats.open_source(tmp_path, PET)
  assert "found a folder with 1 folders, 1 .txt files" in info.value.message
  for name in formats.FORMATS:
    assert f"{name}: " in info.value.remedy
  with pytest.raises(DataError, match=r"a file of 0 bytes named notes\.txt"):
    formats.open_source(tmp_path / "notes.txt", PET)
  with pytest.raises(DataError, match="an empty folder"):
    formats.open_source(tmp_path / "more", PET)


def test_what_may_be_two_is_asked_for(tmp_path):
  biomedparse(plain(tmp_path))
  with pytest.raises(DataError, match=r"biomedparse or as folder.*--format"):
    formats.open_source(tmp_path, PET)
  source = formats.open_source(tmp_path, PET, "folder")
  assert [unit.id for unit in source.units(pytest.fail)] == ["images/a.png"]


@pytest.mark.parametrize(
  ("path", "says"),
  [("gs://bucket/a", "from disks"), ("/nowhere/at/all", "no such file")],
)
def test_what_cannot_be_read_is_said(path, says):
  with pytest.raises(DataError, match=says):
    formats.open_source(path, PET)


def test_a_format_that_is_none_is_named(tmp_path):
  with pytest.raises(ValueError, match="format='cococo' is none of index, co"):
    formats.open_source(tmp_path, PET, "cococo")
