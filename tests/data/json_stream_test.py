import json

import pytest

from rcmed_jax.data import json_stream
from rcmed_jax.data.checks import DataError


def entries(path):
  return list(json_stream.entries(path, "index", "{...}"))


@pytest.mark.parametrize(
  "text",
  [
    "{}",
    '{"a": [], "b": [{"m.png": "liver"}]}',
    ' {"\\u00e4\\n\\"/": [[1, 2.5, -3e2, true, null, {"x": {}}]], "": 0}\n',
    '{"a": 9007199254740993}',
  ],
)
def test_the_stream_reads_what_json_reads(tmp_path, text):
  path = tmp_path / "a.json"
  path.write_text(text)
  assert entries(path) == list(json.loads(text).items())


def test_depth_is_bounded(tmp_path):
  path = tmp_path / "a.json"
  path.write_text('{"ct--s--1.png": ' + "[" * 1_000_000)
  with pytest.raises(DataError, match="more than 64 levels deep"):
    entries(path)


def test_elements_are_those_under_the_key(tmp_path):
  path = tmp_path / "a.json"
  path.write_text('{"b": {"a": [0]}, "a": [1, {"c": [2]}, []], "c": [3]}')
  found = json_stream.elements(path, "index", "{...}", "a")
  assert list(found) == [1, {"c": [2]}, []]
  with pytest.raises(DataError, match="'b' holds no array"):
    list(json_stream.elements(path, "index", "{...}", "b"))


@pytest.mark.parametrize(
  ("text", "expected"),
  [
    ('{"a.png": []}', ("a.png", "[")),
    (' \n{ "a\\"b" :\t{', ('a\\"b', "{")),
    ("[1]", ("", "")),
    ("{}", ("", "")),
    ('{"a', ("", "")),
    ("", ("", "")),
  ],
)
def test_the_first_key_tells_what_a_file_is(tmp_path, text, expected):
  path = tmp_path / "a.json"
  path.write_text(text)
  assert json_stream.first_key(path) == expected


def test_what_an_object_has_twice_is_told(tmp_path):
  path = tmp_path / "a.json"
  path.write_text('{"a": [{"b": 1, "b": 2}], "a": {"b": {"c": 1, "c": 3}}}')
  twice = []
  found = list(json_stream.entries(path, "index", "{...}", twice.append))
  assert found == [("a", [{"b": 2}]), ("a", {"b": {"c": 3}})]
  assert twice == ["b", "c"]
