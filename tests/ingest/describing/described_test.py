import json
import pickle

import pytest

from rcmed_jax.data import phantoms, readers
from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest import sources
from rcmed_jax.ingest.describing.described import DescribedSource
from rcmed_jax.ingest.pictures import index_file


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  phantoms.write(folder, 6, size=48)
  return folder


def read(data, path):
  index = data / "image2label_train.json"
  source = index_file.open_source(index, sources.Options())
  wrong = []
  units = list(DescribedSource(source, path).units(wrong.append))
  units = pickle.loads(pickle.dumps(units))
  return [t for unit in units for t in unit.triplets(wrong.append)], wrong


def test_images_have_the_descriptions_that_an_index_would_give(data):
  texts = data / "descriptions_train.json"
  found, wrong = read(data, texts)
  records = readers.read_index(data / "image2label_train.json", texts)
  assert [t.description for t in found] == [r.description for r in records]
  assert all(t.description for t in found) and not wrong


def test_what_is_not_named_stays_as_it_was(data, tmp_path):
  path = tmp_path / "some.json"
  first = next(iter(json.loads((data / "image2label_train.json").read_text())))
  path.write_text(json.dumps({first: [" One.", "Two. "], "other": "Three."}))
  found, wrong = read(data, path)
  assert [t.description for t in found] == ["One. Two.", *[None] * 5]
  assert not wrong


@pytest.mark.parametrize("text", [3, "", [], ["a", None], "a [SEG]", {}])
def test_texts_that_cannot_be_used_are_faults(data, tmp_path, text):
  path = tmp_path / "bad.json"
  first = next(iter(json.loads((data / "image2label_train.json").read_text())))
  path.write_text(json.dumps({first: text}))
  found, wrong = read(data, path)
  assert len(found) == 6 and found[0].description is None
  assert [(e.path, e.field) for e in wrong] == [(str(path), first)]


@pytest.mark.parametrize("content", [None, "{", "[]", "[" * 100_000])
def test_other_files_are_refused(data, tmp_path, content):
  path = tmp_path / "no.json"
  if content is not None:
    path.write_text(content)
  with pytest.raises(DataError, match="as rcmed data describe writes it"):
    read(data, path)
