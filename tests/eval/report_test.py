import dataclasses
import html.parser
import json
import re

import cv2
import numpy as np
import pytest

from rcmed_jax.eval import cards, charts, overlays, report
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
  assert len(parser.ids) == len(set(parser.ids)) == 11
  assert parser.tags.count("article") == 3 + 2  # one a modality, two lowest
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
  }
  bare = dataclasses.replace(
    summary, tables=tables, examples=(), lowest=(), recognition=None
  )
  path = report.write_report(tmp_path / "bare.html", bare)
  parser = _parse(path.read_text())
  assert parser.ids == ["modalities-and-tasks", "presence", "quarantine"]


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
    dataclasses.replace(summary.examples[0], record=str(n), dice=(n / 10, 1.0))
    for n in range(8)
  ]
  for order in (samples, samples[::-1], samples[3:] + samples[:3]):
    gallery = overlays.Gallery({"6"}, worst=3)
    for sample in order:
      if gallery.wants(sample.record, sample.mean_dice):
        gallery.add(sample)
    assert [sample.record for sample in gallery.lowest] == ["0", "1", "2"]
    assert [sample.record for sample in gallery.examples] == ["6"]


def test_line_chart_maps_values_to_its_frame():
  svg = charts.line_chart("t", {"a": ([0, 10], [0.0, 5.0])})
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
  svg = charts.line_chart("t", {"a": (steps, values)})
  points = re.search(r'points="([^"]+)"', svg).group(1).split()
  assert len(points) == charts.POINTS
  assert "nan" not in svg
  assert charts.line_chart("t", {"a": ([1], [float("inf")])}) == ""
  assert "<circle" in charts.line_chart("t", {"a": ([1], [0.0])})


def test_log_axis_only_where_values_span_much():
  wide, narrow = ([1, 2], [0.001, 1.0]), ([1, 2], [0.5, 1.0])
  assert "log scale" in charts.line_chart("t", {"a": wide}, log=True)
  assert "log scale" not in charts.line_chart("t", {"a": narrow}, log=True)
  assert "log scale" not in charts.line_chart("t", {"a": wide})
