"""Examples of a class: an index or a plain folder."""

import json

import pytest

from rcmed_jax.data import supports
from rcmed_jax.data.checks import DataError


@pytest.fixture
def folder(tmp_path):
  for kind in ("images", "masks"):
    (tmp_path / kind).mkdir()
    for name in ("ct--a--0.png", "ct--a--1.png"):
      (tmp_path / kind / name).touch()
  return tmp_path


def test_a_folder_pairs_images_and_masks_by_name(folder):
  found = supports.read(folder, "lump")
  assert [record.id for record in found] == [
    "images/ct--a--0.png",
    "images/ct--a--1.png",
  ]
  assert {record.modality for record in found} == {"computed tomography"}
  assert found[0].masks == ((str(folder / "masks/ct--a--0.png"), "lump"),)


def test_a_modality_may_be_said(folder):
  for path in folder.glob("*/*"):
    path.rename(path.with_name(path.name.replace("ct--a--", "scan")))
  with pytest.raises(DataError, match="modality"):
    supports.read(folder, "lump")
  found = supports.read(folder, "lump", "pet")
  assert {record.modality for record in found} == {"pet"}


def test_a_name_that_says_no_modality_asks_for_the_flag(folder):
  for path in folder.glob("*/*"):
    path.rename(path.with_name(path.name.replace("ct--a--", "a")))
  with pytest.raises(DataError, match="its name does not say") as error:
    supports.read(folder, "bone island")
  assert "--modality X-ray" in error.value.remedy
  assert "modality_words" not in str(error.value)
  for said in "x-ray", "X-Ray", "DX":
    found = supports.read(folder, "bone island", said)
    assert {record.modality for record in found} == {"X-Ray"}
  with pytest.raises(ValueError, match="did you mean 'X-Ray'"):
    supports.read(folder, "bone island", "x-rayy")


def test_a_name_may_hold_what_means_more_to_globs(folder):
  for path in folder.glob("*/*"):
    path.rename(path.with_name(path.name.replace("--0", "--scan[1]")))
  assert len(supports.read(folder, "lump")) == 2


def test_an_image_without_its_mask_is_named(folder):
  (folder / "masks/ct--a--1.png").unlink()
  with pytest.raises(DataError, match=r"ct--a--1\.png.*found 0"):
    supports.read(folder, "lump")


def test_an_index_gives_the_images_that_have_the_class(tmp_path):
  entries = {
    "ct--a--0.png": [
      {"m0.png": "lump"},
      {"m1.png": "bone"},
      {"m2.png": "lump"},
    ],
    "ct--a--1.png": [{"m3.png": "bone"}],
  }
  (tmp_path / "image2label_x.json").write_text(json.dumps(entries))
  (record,) = supports.read(tmp_path, "lump")
  assert record.id == "ct--a--0.png"
  assert record.classes == ("lump",)
  assert len(record.masks) == 2
  with pytest.raises(DataError, match=r"no image has 'cyst'.*bone, lump"):
    supports.read(tmp_path, "cyst")
  (tmp_path / "image2label_y.json").write_text("{}")
  with pytest.raises(DataError, match="Leave one index"):
    supports.read(tmp_path, "lump")


def test_examples_of_two_modalities_are_refused(tmp_path):
  entries = {f"{m}--a--0.png": [{"m.png": "lump"}] for m in ("ct", "mr")}
  (tmp_path / "image2label_x.json").write_text(json.dumps(entries))
  with pytest.raises(DataError, match="say --modality"):
    supports.read(tmp_path, "lump")
  assert len(supports.read(tmp_path, "lump", "pet")) == 2


def test_an_empty_folder_tells_the_form(tmp_path):
  with pytest.raises(DataError, match=r"images/NAME\.png"):
    supports.read(tmp_path, "lump")
