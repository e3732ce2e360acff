import html.parser
import json
import re

import numpy as np
import pytest

from rcmed_jax.eval import compare_report, verdict
from rcmed_jax.eval.compare import compare
from rcmed_jax.eval.pairing import Pair, Pairing
from rcmed_jax.eval.tasks import Task

EVIL = '<script>alert("x")</script>'
NAMES = ("old & tried", "new")


class _Parser(html.parser.HTMLParser):
  """Collects tags, text and anchors; fails on a tag closed out of order."""

  def __init__(self):
    super().__init__()
    self.open, self.tags, self.text, self.ids, self.links = [], [], [], [], []

  def handle_starttag(self, tag, attrs):
    attributes = dict(attrs)
    self.tags.append(tag)
    self.ids += [attributes["id"]] if "id" in attributes else []
    self.links += [attributes["href"]] if tag == "a" else []
    self.open += [] if tag == "meta" else [tag]

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


def _parse(text: str) -> _Parser:
  parser = _Parser()
  parser.feed(text)
  parser.close()
  assert parser.open == []
  return parser


def _pairs(name="liver", images=40):
  random = np.random.default_rng(0)
  pairs = []
  for number in range(images):
    noises = random.normal(0, 0.02, 2)
    even = (-1) ** number * (1 + number // 2) / 1000  # as often up as down
    for task, shift in (
      (name, 0.1 + noises[0]),
      ("spleen", -0.1 + noises[1]),
      ("aorta", even),
    ):
      pairs.append(Pair(f"{number:02d}", Task("ct", task), 0.5, 0.5 + shift))
  return [*pairs, Pair("00", Task("x", "heart"), 0.5, 0.6)]


def _write(folder, pairs=None, only_a=(), only_b=(), names=NAMES):
  pairs = pairs or _pairs()
  result = compare(pairs, draws=200)
  pairing = Pairing(tuple(pairs), tuple(only_a), tuple(only_b))
  facts = {"split": "test"}
  page = compare_report.write(
    result, folder, names=names, pairing=pairing, facts=facts
  )
  numbers = (folder / "comparison.json").read_text(encoding="utf-8")
  return result, page.read_text(encoding="utf-8"), json.loads(numbers)


def test_page_is_well_formed_and_needs_nothing_else(tmp_path):
  _, page, _ = _write(tmp_path)
  parser = _parse(page)
  assert parser.links == ["#verdict", "#tasks", "#method"]
  assert [f"#{id}" for id in parser.ids] == parser.links
  assert not re.findall(r"https?:|@import|<link|url\((?!data:)", page)
  assert "$" not in page
  assert "nan" not in page.lower().split()


def test_page_shows_numbers_and_verdict(tmp_path):
  result, page, _ = _write(tmp_path)
  text = " ".join(_parse(page).text)
  assert verdict.signed(result.macro.difference) in text
  for sentence in verdict.sentences(result, NAMES):
    assert sentence in text
  for row in result.tasks:
    assert row.task.name in text
    assert f"{row.dice.b:.3f}" in text
  assert text.count("unclear") == 2 + 1  # aorta and heart; the tile
  assert "no interval" in text  # of the only heart


def test_bars_grow_to_the_side_of_the_better_run(tmp_path):
  result, page, _ = _write(tmp_path)
  found = {
    row.task.name: float(left)
    for row, left in zip(
      result.tasks, re.findall(r'<b style="left:([\d.]+)%', page), strict=True
    )
  }
  assert found["liver"] == 50
  assert found["spleen"] < 40
  for left, width in re.findall(r"left:([\d.-]+)%;width:([\d.-]+)", page):
    assert 0 <= float(left) <= float(left) + float(width) <= 100.1


def test_numbers_hold_everything(tmp_path):
  result, _, numbers = _write(tmp_path, only_b=[("9", "liver")])
  assert numbers["macro"]["difference"] == result.macro.difference
  assert numbers["outcomes"] == {"win": 1, "tie": 2, "loss": 1}
  assert numbers["only_in_b"] == [{"record": "9", "class": "liver"}]
  assert numbers["only_in_a"] == []
  liver = next(row for row in numbers["tasks"] if row["class"] == "liver")
  assert (liver["modality"], liver["outcome"]) == ("ct", "win")
  assert liver["signs"]["better"] == 40
  assert numbers["verdict"] == list(verdict.sentences(result, NAMES))
  assert numbers["facts"] == {"split": "test"}


def test_masks_of_one_run_only_are_listed(tmp_path):
  only = [(f"r{number:03d}", "liver") for number in range(60)]
  _, page, _ = _write(tmp_path, only_a=only)
  text = " ".join(_parse(page).text)
  assert "60 masks of old & tried only" in text
  assert "And 10 more, in comparison.json." in text
  assert "r049" in text
  assert "r050" not in text


def test_text_from_data_is_escaped(tmp_path):
  _, page, _ = _write(
    tmp_path, _pairs(EVIL), only_a=[(EVIL, EVIL)], names=(EVIL, "b")
  )
  assert EVIL not in page
  assert _parse(page).tags.count("script") == 1  # the page's own


def test_same_scores_same_bytes(tmp_path):
  for folder in ("a", "b"):
    _write(tmp_path / folder)
  for name in ("index.html", "comparison.json"):
    one, other = ((tmp_path / f / name).read_bytes() for f in ("a", "b"))
    assert one == other


@pytest.mark.parametrize("draws", [0, 100])
def test_identical_runs_and_no_intervals(tmp_path, draws):
  pairs = [Pair(f"{n}", Task("ct", "liver"), 0.5, 0.5) for n in range(3)]
  result = compare(pairs, draws=draws)
  page = compare_report.write(
    result, tmp_path, pairing=Pairing(tuple(pairs), (), ())
  )
  text = " ".join(_parse(page.read_text(encoding="utf-8")).text)
  assert "the same Dice on every one of 3 masks" in text
