import json

import pytest

from rcmed_jax.data import readers
from rcmed_jax.data.checks import DataError, Quarantine
from rcmed_jax.data.readers import MODALITIES, modality_name


def write(path, content):
  path.write_text(content if isinstance(content, str) else json.dumps(content))
  return path


@pytest.fixture
def index(tmp_path):
  return write(
    tmp_path / "image2label_train.json",
    {
      "images/ct--amos--2.png": [
        {"masks/a.png": "left_kidney"},
        {"masks/b.png": "gall_bladder", "masks/c.png": "left_kidney"},
        {"masks/d.png": "gallbladder"},
      ],
      "images/x--chest--1.png": [],
    },
  )


def test_records_hold_what_the_index_says(index, tmp_path):
  first, second = readers.read_index(index)
  assert first.id == "images/ct--amos--2.png"
  assert first.image == str(tmp_path / "images/ct--amos--2.png")
  assert first.masks == (
    (str(tmp_path / "masks/a.png"), "left kidney"),
    (str(tmp_path / "masks/b.png"), "gallbladder"),
    (str(tmp_path / "masks/c.png"), "left kidney"),
    (str(tmp_path / "masks/d.png"), "gallbladder"),
  )
  assert first.classes == ("left kidney", "gallbladder")
  assert (first.modality, first.dataset) == ("computed tomography", "amos")
  assert (second.modality, second.dataset) == ("X-Ray", "chest")
  assert (second.masks, second.description) == ((), None)


def test_paths_are_absolute_wherever_one_stands(index, tmp_path, monkeypatch):
  (tmp_path / "deeper").mkdir()
  monkeypatch.chdir(tmp_path / "deeper")
  relative = readers.read_index(f"../{index.name}")
  assert relative == readers.read_index(index)


# Descriptions.


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(
  ("told", "expected"),
  [
    ("It is round.", "It is round."),
    (["It is round. ", "It is big."], "It is round. It is big."),
  ],
)
def test_descriptions_by_relative_or_absolute_path(
  index, tmp_path, monkeypatch, absolute, told, expected
):
  image = "images/ct--amos--2.png"
  key = str(tmp_path / image) if absolute else image
  path = write(tmp_path / "texts.json", {key: told})
  monkeypatch.chdir(tmp_path)
  first, second = readers.read_index(index.name, path)
  assert (first.description, second.description) == (expected, None)


def test_descriptions_of_other_images_are_no_descriptions(index, tmp_path):
  path = write(
    tmp_path / "texts.json", {"/elsewhere/ct--amos--2.png": "Round."}
  )
  with pytest.raises(
    DataError, match=r"texts.json: descriptions: none of its 1.*as the index"
  ):
    readers.read_index(index, path)


# Class names and modalities.


def test_only_classes_of_the_same_data_may_be_absent(tmp_path):
  index = write(
    tmp_path / "index.json",
    {
      "ct--amos--1.png": [{"a.png": "spleen"}],
      "ct--amos--2.png": [{"b.png": "liver"}, {"c.png": "spleen"}],
      "mr--amos--3.png": [{"d.png": "prostate"}],
      "ct--other--4.png": [{"e.png": "lung"}],
      "ct--none--5.png": [],
    },
  )
  assert readers.class_table(readers.read_index(index)) == {
    ("amos", "computed tomography"): ("liver", "spleen"),
    ("amos", "magnetic resonance"): ("prostate",),
    ("other", "computed tomography"): ("lung",),
    ("none", "computed tomography"): (),
  }


@pytest.mark.parametrize(
  ("first", "expected"),
  [
    ("ct", "computed tomography"),
    ("CT", "computed tomography"),
    ("mr_flair", "magnetic resonance"),
    ("mri", "magnetic resonance"),
    ("x", "X-Ray"),
    ("x-ray", "X-Ray"),
    ("oct", "oct"),  # the release: computed tomography
    ("electron_microscopy", "microscopy"),  # so here
  ],
)
def test_modalities_go_by_whole_words(first, expected):
  assert modality_name(f"a/{first}--set--1.png", MODALITIES) == expected


@pytest.mark.parametrize("name", ["electron--a--1.png", "pet_ct--a--1.png"])
def test_an_unknown_modality_says_how_to_name_it(name):
  word = name.split("--")[0]
  with pytest.raises(DataError) as info:
    modality_name(name, MODALITIES)
  assert str(info.value).startswith(f"{name}: modality: expected a file name")
  assert f"received '{word}'" in str(info.value)
  assert f'data.modality_words, for example (("{word}", ' in str(info.value)


def test_a_file_name_of_another_form_is_not_guessed_at():
  with pytest.raises(DataError, match="<modality>--<dataset>--<rest>"):
    modality_name("patient_us_001.png", MODALITIES)


def test_more_words_can_be_named(tmp_path):
  index = write(
    tmp_path / "index.json", {"PET_CT--a--1.png": [], "ct--a--2.png": []}
  )
  told = {"Pet_CT": "fused tomography", "ct": "CT"}
  found = readers.read_index(index, modality_words=told)
  assert [record.modality for record in found] == ["fused tomography", "CT"]


# What is wrong is named.


def test_a_missing_index_says_how_to_get_one(tmp_path):
  with pytest.raises(
    DataError, match=r"nowhere.json: index: there is no such file. Give a JSON"
  ):
    readers.read_index(tmp_path / "nowhere.json")


@pytest.mark.parametrize("content", ["{", "\xff", '["a.png"]', "{}", "3"])
def test_an_index_of_another_form_is_named(tmp_path, content):
  path = tmp_path / "index.json"
  path.write_bytes(content.encode("latin-1"))
  with pytest.raises(DataError, match=r"index.json: index: .*Expected \{image"):
    readers.read_index(path)


@pytest.mark.parametrize("content", ["{", "[]"])
def test_descriptions_of_another_form_are_named(index, tmp_path, content):
  path = write(tmp_path / "texts.json", content)
  with pytest.raises(DataError, match=r"texts.json: descriptions: .*Expected"):
    readers.read_index(index, path)
  with pytest.raises(DataError, match=r"nowhere.json: descriptions: there is"):
    readers.read_index(index, tmp_path / "nowhere.json")


@pytest.mark.parametrize(
  "masks",
  [
    "a.png",
    {"a.png": "liver"},
    ["a.png"],
    [{"a.png": 3}],
    [{"a.png": ""}],
    [{"a.png": "_"}],
    [{"a.png": "liver </p> [SEG]"}],
  ],
)
def test_an_entry_that_cannot_be_used_is_left_out_and_noted(tmp_path, masks):
  index = write(
    tmp_path / "index.json", {"ct--a--1.png": masks, "ct--a--2.png": []}
  )
  with pytest.raises(DataError, match=r"index.json: ct--a--1.png: .*Correct"):
    readers.read_index(index)
  quarantine = Quarantine(tmp_path / "quarantine.jsonl")
  (kept,) = readers.read_index(index, quarantine=quarantine)
  assert kept.id == "ct--a--2.png"
  assert len(quarantine) == 1


@pytest.mark.parametrize("told", [3, [4], "An <image>.", {"a": "b"}])
def test_a_description_that_is_no_plain_text(tmp_path, told):
  index = write(tmp_path / "index.json", {"ct--a--1.png": []})
  texts = write(tmp_path / "texts.json", {"ct--a--1.png": told})
  with pytest.raises(
    DataError, match=r"ct--a--1.png: description: expected text"
  ):
    readers.read_index(index, texts)


def test_an_index_with_nothing_usable_is_an_error_even_so(tmp_path):
  index = write(tmp_path / "index.json", {"odd--a--1.png": []})
  quarantine = Quarantine(tmp_path / "quarantine.jsonl")
  with pytest.raises(DataError, match="none of its 1 entries can be used"):
    readers.read_index(index, quarantine=quarantine)
  assert "odd--a--1.png" in quarantine.path.read_text()
