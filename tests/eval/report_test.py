import dataclasses
import functools
import html.parser
import itertools
import json
import re

import cv2
import numpy as np
import pytest

from rcmed_jax.eval import cards, charts, overlays, report
from rcmed_jax.eval import rows as rows_lib
from rcmed_jax.eval.evaluate import EvalConfig, evaluate

VOID = {"meta", "img"}  # the elements of the page that have no end tag
EVIL = '<script>alert("x")</script>'


class _Parser(html.parser.HTMLParser):
  """Collects tags and text, and fails on a tag closed out of order."""

  def __init__(self):
    super().__init__()
    self.open, self.tags, self.text, self.ids, self.links = [], [], [], [], []

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    attributes = dict(attrs)
    self.ids += [attributes["id"]] if "id" in attributes else []
    self.links += [attributes["href"]] if tag == "a" else []
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)

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


@pytest.fixture
def summary(world, oracle, tmp_path):
  config = EvalConfig(bootstrap=100, gallery=1, worst=2)
  model = oracle(world, shift=2, blind=("hair",))
  return evaluate(world, model, config, tmp_path / "eval")


@pytest.fixture
def page(summary, tmp_path):
  training = tmp_path / "metrics.jsonl"
  rows = [
    {"step": step, "loss": 4 / (step + 1), "text": 1.0, "learning_rate": 1e-3}
    for step in range(50)
  ]
  training.write_text("".join(json.dumps(row) + "\n" for row in rows))
  path = report.write_report(
    tmp_path / "report/index.html",
    summary,
    title="A & B",
    training=training,
    facts={"Settings": {"seed": 0, "note": EVIL}},
  )
  return path.read_text(encoding="utf-8")


def test_page_is_well_formed_and_its_links_lead_somewhere(page):
  parser = _parse(page)
  assert "A & B" in parser.text
  assert [f"#{id}" for id in parser.ids] == parser.links
  assert len(parser.ids) == len(set(parser.ids)) == 14
  # One a modality; the best, the median, two of the worst; one missed.
  assert parser.tags.count("article") == 3 + 1 + 1 + 2 + 1
  assert "$" not in page


def test_page_needs_nothing_else(page):
  assert not re.findall(r"https?:|@import|<link|url\((?!data:)", page)
  sources = re.findall(r'src="([^"]{0,30})', page)
  assert sources
  assert all(source.startswith("data:image/png;base64,") for source in sources)


def test_page_shows_the_numbers(page, summary):
  text = " ".join(_parse(page).text)
  for value in (summary.dice, summary.iou, summary.false_rejection):
    assert f"{value:.3f}" in text
  for row in summary.tables["by_task"]:
    assert row["class"] in text
    assert f"{row['dice']:.3f}" in text
  assert "Wrong class name" in text
  assert "Loss by term" in text


def test_page_shows_what_to_trust(page, summary):
  text = " ".join(_parse(page).text)
  found = summary.tables["calibration"]
  for value in (found["ece"], found["brier"], found["aurc"]):
    assert f"{value:.3f}" in text
  assert "By region of the body" in text
  assert "Area under the ROC curve" in text
  hair = summary.tables["instances"][0]
  assert f"{hair['aji']:.3f}" in text
  assert "Other words" not in text  # not asked


def test_page_says_why_masks_failed_and_shows_each_reason(summary, page):
  text = " ".join(_parse(page).text)
  hair = summary.failures["missed"]
  assert "hair" in hair.classes
  assert re.findall(r"<header><b>([^<]*:[^<]*)", page) == [
    "Missed entirely: hair"
  ]
  (row,) = summary.tables["failures"]["by_task"]
  assert (row["reason"], row["class"], row["count"]) == ("missed", "hair", 4)
  assert f"Of {summary.masks} masks asked for by name 4 have a Dice" in text
  assert row["example"] in text


def test_false_alarm_has_a_picture_and_no_place_among_the_worst(
  world, oracle, tmp_path
):
  class Claims(oracle):
    def found(self, name, masks):
      target = super().found(name, masks)
      if target.present:
        return target
      mask_IJ = np.eye(*next(iter(masks.values())).shape, dtype=bool)
      return dataclasses.replace(
        target, present=True, mask_IJ=mask_IJ, confidence=0.6
      )

  config = EvalConfig(bootstrap=0, controls=(), worst=40)
  summary = evaluate(world, Claims(world, shift=2), config, tmp_path)
  alarm = summary.failures["false_alarm"]
  assert alarm.record == min(
    row["example"] for row in summary.tables["failures"]["by_task"]
  )
  assert alarm not in [*summary.lowest, *summary.highest, *summary.median]
  assert len(summary.lowest) == summary.images
  page = report.write_report(tmp_path / "a.html", summary).read_text()
  assert f"<header><b>False alarm: {alarm.classes[0]}</b>" in page
  assert "not in the image" in page


def _colors(png):
  """The colours of an overlay's fill, RGB."""
  image_IJC = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
  filled = image_IJC[image_IJC[..., 3] == overlays.FILL][:, 2::-1]
  return set(map(tuple, np.unique(filled, axis=0).tolist()))


def test_wrong_name_has_a_picture_and_no_place_among_the_worst(
  world, oracle, tmp_path
):
  class Mistakes(oracle):
    def answer(self, request):
      answer = super().answer(request)
      if request.classes is not None:  # asked by name, it is right
        return answer
      targets = tuple(
        dataclasses.replace(target, name="liver")
        if target.name == "heart"
        else target
        for target in answer.targets
      )
      return dataclasses.replace(answer, targets=targets)

  config = EvalConfig(bootstrap=0, controls=(), worst=40)
  summary = evaluate(world, Mistakes(world), config, tmp_path)
  wrong = summary.failures["wrong_name"]
  assert wrong.classes == ("heart", "liver")
  assert wrong.present == (False, True)
  assert wrong.dice == (0.0, None)
  assert _colors(wrong.reference) == {overlays.color(0)}  # where it is
  assert _colors(wrong.prediction) == {overlays.color(1)}  # what it is called
  (row,) = summary.tables["failures"]["by_task"]
  assert (row["class"], row["said"]) == ("heart", "liver")
  assert row["example"] == wrong.record
  assert wrong not in [*summary.lowest, *summary.highest, *summary.median]
  page = report.write_report(tmp_path / "a.html", summary).read_text()
  assert "<header><b>Wrong name: heart</b>" in page
  assert 'heart <b class="missed">left out</b>' in page
  assert 'liver <b class="missed">not in the image</b>' in page


def test_page_holds_boxes_and_descriptions(summary, page):
  text = " ".join(_parse(page).text)
  assert f"{summary.tables['box_ap']['ap75']:.3f}" in text
  assert f"{summary.tables['wording']['rougeL']:.3f}" in text
  assert summary.tables["wording"]["signature"] in text


def test_dice_of_named_masks_leaves_out_those_not_named(summary, page):
  found = summary.tables["recognition"]
  assert found["dice_named"] > found["dice"] + 0.05  # hair is never named
  assert "Dice of the masks whose class was named" in page
  assert "Dice of all reference masks, 0 where not named" in page


def test_long_quarantine_is_cut_and_its_file_named(summary, tmp_path):
  rows = [rows_lib.Quarantined(f"r{n:03d}", "p", "f", "why") for n in range(60)]
  long = dataclasses.replace(summary, quarantine=rows)
  text = report.write_report(tmp_path / "a.html", long).read_text()
  assert "r049" in text and "r050" not in text
  assert "And 10 more, in quarantine--test.jsonl." in text


def test_what_was_not_asked_is_not_0_of_0(world, oracle, tmp_path):
  config = EvalConfig(protocols=("named",), controls=(), bootstrap=0, worst=0)
  summary = evaluate(world, oracle(world), config, tmp_path)
  page = report.write_report(tmp_path / "a.html", summary).read_text()
  assert "0 of 0" not in page
  assert "not asked" in page


def test_tables_of_numbers_sort_and_totals_stay_below(page):
  heads = re.findall(r"<thead>(.*?)</thead>", page)
  sortable = [head for head in heads if "<button>" in head]
  # Others are lists of single things in an order that says something.
  assert all(
    "<th" in h and h.count("<th") == 2 for h in heads if h not in sortable
  )
  for word in ("AJI", "Rightly rejected", "Said instead", "Tasks", "Wrong"):
    assert any(word in head for head in sortable), word
  assert page.count("<tfoot>") == 1


def test_pages_of_splits_stay_and_the_newest_links_to_all(summary, tmp_path):
  other = dataclasses.replace(summary, split="a&b", dice=0.123456)
  report.write_pages(tmp_path, other)
  assert "Evaluated splits" not in (tmp_path / "index.html").read_text()
  first = (tmp_path / "index--a&b.html").read_bytes()
  report.write_pages(tmp_path, summary)
  assert (tmp_path / "index--a&b.html").read_bytes() == first
  newest = _parse((tmp_path / "index.html").read_text())
  assert "Split test" in " ".join(newest.text)
  pages = [link for link in newest.links if not link.startswith("#")]
  assert pages == ["index--a%26b.html", "index--test.html"]


def test_how_it_was_made_is_told(world, oracle, tmp_path):
  made = {"weights": {"step": 360, "averaged": True}, "temperature": None}
  config = EvalConfig(bootstrap=0, limit=5, seed=7)
  found = evaluate(world, oracle(world), config, tmp_path, made=made)
  page = report.write_report(tmp_path / "a.html", found).read_text()
  rows = re.findall(r'<td class="text">(.*?)</td>', page)
  told = dict(itertools.pairwise(rows))
  assert told["weights, step"] == "360"
  assert told["weights, averaged"] == "yes"
  assert told["temperature"] == "none"
  assert told["records, asked about"] == "5"
  assert told["evaluation, seed"] == "7"
  assert "a draw of 5 of 12 records" in page
  written = json.loads((tmp_path / "summary--test.json").read_text())
  assert written["made"]["weights"] == made["weights"]
  assert written["made"]["records"] == {"in the index": 12, "asked about": 5}


def test_order_of_answers_changes_no_byte_of_the_page(world, oracle, tmp_path):
  class InOrder(oracle):
    def __call__(self, requests):
      for number, request in enumerate(requests):
        yield number, self.answer(request)

  config = EvalConfig(
    chunk=50, bootstrap=0, gallery=1, worst=1, classes_per_question=1
  )
  pages = []
  for name, model in (("a", oracle), ("b", InOrder)):
    blind = ("hair", "liver", "heart")  # ties at the Dice of 0
    answers = model(world, shift=2, blind=blind)
    found = evaluate(world, answers, config, tmp_path / name)
    pages.append(
      report.write_report(tmp_path / f"{name}.html", found).read_bytes()
    )
  assert pages[0] == pages[1]


def test_text_from_data_is_escaped(summary, tmp_path):
  sample = dataclasses.replace(
    summary.examples[0],
    record=EVIL,
    question=EVIL,
    answer=f"This is a <p> {EVIL} </p> [SEG] {EVIL}",
    classes=(EVIL, "b"),
  )
  tables = json.loads(
    json.dumps(dict(summary.tables)).replace("left lung", "<script>")
  )
  evil = dataclasses.replace(summary, examples=(sample,), tables=tables)
  path = report.write_report(
    tmp_path / "evil.html", evil, facts={EVIL: {EVIL: EVIL}}
  )
  text = path.read_text()
  assert EVIL not in text
  assert _parse(text).tags.count("script") == 1  # the page's own


def test_report_without_extras(summary, tmp_path):
  tables = {
    **summary.tables,
    **dict(recognition=None, calibration=None, controls={}, instances=[]),
    **dict(wording=None),
  }
  bare = dataclasses.replace(
    summary,
    tables=tables,
    **dict.fromkeys(("examples", "lowest", "highest", "median"), ()),
    failures={},
    recognition=None,
  )
  path = report.write_report(tmp_path / "bare.html", bare)
  parser = _parse(path.read_text())
  assert parser.ids == [
    *("failures", "modalities-and-tasks", "presence", "boxes"),
    *("quarantine", "how-this-was-made"),
  ]


def test_same_summary_same_bytes(summary, tmp_path):
  first = report.write_report(tmp_path / "a.html", summary).read_bytes()
  assert first == report.write_report(tmp_path / "b.html", summary).read_bytes()


def test_curves_are_read_by_name(tmp_path):
  path = tmp_path / "metrics.jsonl"
  assert report.read_curves(path) == {}
  whole = '{"step": 1, "loss": 2.0, "host": "x"}\n{"step": 3, "lr": 1}\n'
  path.write_text(whole + '{"step": 4, "lo')  # as a kill leaves it
  assert report.read_curves(path) == {"loss": ([1], [2.0]), "lr": ([3], [1])}
  path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo\n')
  with pytest.raises(ValueError, match=r"line 2: expected.*repair"):
    report.read_curves(path)


def test_answer_is_marked_in_the_colours_of_its_masks():
  text = "This is a <p> CT </p> image with <p> Liver </p> [SEG].</s>"
  marked = cards.marked_answer(text, ("spleen", "liver"))
  red, green, blue = overlays.color(1)
  assert f"rgb({red},{green},{blue})" in marked
  assert marked.count("<i ") == 1
  plain = re.sub(r"<[^>]+>", "", marked)
  assert plain == "This is a CT image with Liver."


def test_overlay_is_clear_outside_and_coloured_inside():
  mask_IJ = np.zeros((60, 40), bool)
  mask_IJ[20:40, 10:30] = True
  png = overlays.overlay_png([mask_IJ], outlines=[~mask_IJ])
  pixels_IJC = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
  assert pixels_IJC.shape == (overlays.OVERLAY_SIDE, 256, 4)
  centre, corner = pixels_IJC[192, 128], pixels_IJC[30, 30]
  assert tuple(centre[2::-1]) == overlays.color(0)
  assert centre[3] == overlays.FILL
  assert corner[3] == 0


@pytest.mark.parametrize("shape", [(1, 1, 3), (9, 700, 3), (300, 200, 3)])
def test_image_png_is_small_and_rgb(shape):
  image_IJC = np.full(shape, (250, 120, 10), np.uint8)
  png = overlays.image_png(image_IJC)
  bgr_IJC = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
  assert max(bgr_IJC.shape) <= overlays.IMAGE_SIDE
  assert tuple(bgr_IJC[0, 0, ::-1]) == (250, 120, 10)


def test_gallery_keeps_the_lowest_whatever_the_order(summary):
  samples = [
    dataclasses.replace(
      summary.examples[0],
      record=str(n // 2),
      question=f"{n % 2}",
      dice=(n // 4 / 10, 1.0),  # two records, two questions each, tie
      reasons=("too_small" if n in (5, 9) else "", ""),
    )
    for n in range(16)
  ]
  for order in (samples, samples[::-1], samples[3:] + samples[:3]):
    gallery = overlays.Gallery({"6"}, worst=3, candidates={"3", "5"})
    for sample in order:
      rank = (sample.mean_dice, *sample.key)
      if gallery.wants(rank, sample.reasons):
        gallery.add(sample)
    kept = {
      "examples": gallery.examples,
      "lowest": gallery.lowest,
      "highest": gallery.highest,
      "median": gallery.near(0.56),
      "failed": gallery.failures.values(),
    }
    assert {name: [s.key for s in some] for name, some in kept.items()} == {
      "examples": [("6", "0"), ("6", "1")],
      "lowest": [("0", "0"), ("0", "1"), ("1", "0")],
      "highest": [("6", "0"), ("6", "1")],
      "median": [("3", "0"), ("3", "1")],
      "failed": [("2", "1")],
    }
    assert not gallery.wants((0.58, "2", "0"), ("",))
    assert gallery.wants((0.52, "2", "0"), ("too_small",))


def test_line_chart_maps_values_to_its_frame():
  svg = charts.line_chart("t", {"a": ([0, 10], [0.0, 5.0])}, over="weeks")
  assert 'aria-label="t, over weeks"' in svg
  points = re.search(r'points="([^"]+)"', svg).group(1).split()
  left, right = (
    tuple(map(float, point.split(","))) for point in (points[0], points[-1])
  )
  bottom = charts.HEIGHT - charts.BOTTOM
  assert left == (charts.LEFT, bottom)
  assert right == (charts.WIDTH - charts.RIGHT, charts.TOP)


def test_line_chart_thins_and_drops_what_is_not_finite():
  steps = list(range(10_000))
  values = [float("nan"), *([1.0] * 9_999)]
  svg = charts.line_chart("t", {"a": (steps, values)}, over="x")
  points = re.search(r'points="([^"]+)"', svg).group(1).split()
  assert len(points) == charts.POINTS
  assert "nan" not in svg
  assert charts.line_chart("t", {"a": ([1], [float("inf")])}, over="x") == ""
  assert "<circle" in charts.line_chart("t", {"a": ([1], [0.0])}, over="x")


def test_log_axis_only_where_values_span_much():
  wide, narrow = ([1, 2], [0.001, 1.0]), ([1, 2], [0.5, 1.0])
  line = functools.partial(charts.line_chart, "t", over="x")
  assert "log scale" in line({"a": wide}, log=True)
  assert "log scale" not in line({"a": narrow}, log=True)
  assert "log scale" not in line({"a": wide})
