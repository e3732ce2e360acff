"""Pictures on the page, in a browser: asked about, seen, saved."""

import dataclasses
import io
import json

import browsing
import cv2
import numpy as np
import PIL.Image
import pytest
import served

from rcmed_jax.serve.assistant import Answer, Found

pytestmark = pytest.mark.heavy

COLOUR = np.array([86, 180, 233])  # of the first target
BOX = (60, 30, 90, 50)


@pytest.fixture(scope="module")
def browser():
  with browsing.chromium() as found:
    yield found


@pytest.fixture(scope="module")
def at(browser):
  with served.running(classes=("bright", "heart", "left lung")) as found:
    yield found


def picture():
  """uint8[I, J, 3]: noise, and a white box at BOX."""
  made_IJC = np.random.default_rng(0).integers(20, 90, (80, 120, 1), np.uint8)
  made_IJC = np.repeat(made_IJC, 3, axis=2)
  made_IJC[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
  return made_IJC


def place(seen):
  """Scale and corner of the picture on a canvas that it is fitted into."""
  rows, columns = seen.shape[:2]
  scale = min(columns / 120, rows / 80)
  return scale, (columns - 120 * scale) / 2, (rows - 80 * scale) / 2


def changed(one, other):
  """Box of the pixels that differ, in pixels of the picture."""
  scale, x, y = place(one)
  differs = np.abs(one - other).max(2) > 8
  return (browsing.box(differs) - [x, y, x, y]) / scale


def middle(seen):
  """The colour in the middle of BOX."""
  scale, x, y = place(seen)
  column = int(x + (BOX[0] + BOX[2]) / 2 * scale)
  return seen[int(y + (BOX[1] + BOX[3]) / 2 * scale), column]


def test_an_answer_is_seen_where_it_is_and_saved_as_it_is(browser, at):
  with browsing.page(browser, at.url + "/") as page:
    browsing.open_files(page, [("scan.png", served.png(picture()))])
    before = browsing.shot(page, "#picture")
    assert not page.locator("#findings").is_visible()
    browsing.ask(page, "Where is the light?")
    assert at.assistant.texts[-1] == "Where is the light?"
    told = page.locator("#turns .words").inner_text()
    assert told == "This is a X-Ray image. The image contains bright."
    row = page.locator("#targets li").inner_text()
    assert "bright" in row and "75 %" in row and "30 × 20 px at 60, 30" in row
    after = browsing.shot(page, "#picture")
    np.testing.assert_allclose(changed(before, after), BOX, atol=0.5)
    mixed = 255 + 0.45 * (COLOUR - 255)
    np.testing.assert_allclose(middle(after), mixed, atol=3)
    page.locator("#targets input").uncheck()
    # Chromium may round a pixel otherwise from one time to the next.
    again = browsing.shot(page, "#picture")
    np.testing.assert_allclose(again, before, atol=2)
    page.locator("#targets input").check()
    page.fill("#opacity", "100")
    seen = browsing.shot(page, "#picture")
    np.testing.assert_allclose(middle(seen), COLOUR, atol=2)
    page.fill("#opacity", "0")
    seen = browsing.shot(page, "#picture")
    np.testing.assert_array_equal(middle(seen), [255, 255, 255])
    np.testing.assert_allclose(changed(before, seen), BOX, atol=0.5)
    _check_files(page)


def _check_files(page):
  click = page.get_by_role("button", name="Save the mask of bright").click
  name, data = browsing.saved(page, click)
  mask_IJ = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  assert name == "bright.png"
  np.testing.assert_array_equal(mask_IJ > 0, picture()[..., 0] == 255)
  page.fill("#opacity", "50")
  name, data = browsing.saved(page, page.locator("#snapshot").click)
  view = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
  assert name == "view.png" and view.shape == (80, 120, 3)
  outside = np.ones((80, 120), bool)
  outside[BOX[1] - 1 : BOX[3] + 1, BOX[0] - 1 : BOX[2] + 1] = False
  np.testing.assert_array_equal(view[outside], picture()[outside])
  mixed = (255 + COLOUR) / 2
  np.testing.assert_allclose(view[40, 75], mixed, atol=2)
  click = page.get_by_role("button", name="Save answer.json").click
  name, data = browsing.saved(page, click)
  said = json.loads(data)
  assert said["targets"][0]["box"] == list(BOX)
  assert "[SEG]" in said["text"]


def test_follow_ups_stay_with_the_image_and_absence_is_named(browser, at):
  with browsing.page(browser, at.url + "/") as page:
    browsing.open_files(page, [("scan.png", served.png(picture()))])
    page.get_by_role("button", name="bright", exact=True).click()
    page.wait_for_selector("#targets li")
    asked = "Can you segment the bright in this image?"
    assert at.assistant.texts[-1] == asked
    browsing.ask(page, "And the light again?")
    assert at.assistant.texts[-1] == "And the light again?"
    # Named again, it is the same target in the same colour.
    assert page.locator("#targets li").count() == 1
    assert page.locator("#turns > li").count() == 2
    page.locator("#turns .goes").last.click()
    assert "near" in page.locator("#picture").get_attribute("class")
    page.get_by_role("button", name="New image").click()
    assert page.locator("#drop").is_visible()
    black = np.full((40, 50, 3), 10, np.uint8)
    browsing.open_files(page, [("dark.png", served.png(black))])
    assert page.locator("#turns > li").count() == 0
    browsing.ask(page, "Where is the light?")
    assert "not found on this image" in page.locator("#targets").inner_text()
    assert page.locator("#targets input").count() == 0
    assert page.locator("#turns strong.absent").inner_text() == "bright"


def test_where_words_and_mask_contradict_each_other_it_is_said(browser):
  def doubtful(question):
    there = served.bright(question)
    (found,) = there.targets
    denied = dataclasses.replace(found, present=False, mask_IJ=None, box=None)
    return dataclasses.replace(there, targets=(denied,))

  with (
    served.running(served.Assistant(answer=doubtful)) as doubting,
    browsing.page(browser, doubting.url + "/") as page,
  ):
    browsing.open_files(page, [("scan.png", served.png(picture()))])
    browsing.ask(page, "Where is the light?")
    said = page.locator("#turns .words").inner_text()
    assert said.endswith("contains bright (said, but not found).")
    assert "not found on this image" in page.locator("#targets").inner_text()


def test_words_are_seen_while_they_are_said(browser, at):
  with browsing.page(browser, at.url + "/") as page:
    browsing.open_files(page, [("scan.png", served.png(picture()))])
    at.assistant.said.clear()
    try:
      page.fill("#question", "Where is the light?")
      page.press("#question", "Enter")
      page.wait_for_selector("#turns li[aria-busy] .words:not(:empty)")
      said = page.locator("#turns .words").inner_text()
      assert "This is".startswith(said[:4]) and "bright" not in said
      assert not page.locator("#findings").is_visible()
    finally:
      at.assistant.said.set()
    page.wait_for_selector("#targets li")
    assert "contains bright." in page.locator("#turns .words").inner_text()


def test_a_conversation_that_is_too_long_begins_anew(browser):
  class Forgetful(served.Assistant):
    def kind(self, question):
      if len(question.earlier) > 1:
        raise ValueError("the conversation is longer than 192 tokens.")
      return super().kind(question)

  with (
    served.running(Forgetful()) as at,
    browsing.page(browser, at.url + "/", faults=("422",)) as page,
  ):
    browsing.open_files(page, [("scan.png", served.png(picture()))])
    for number in range(3):
      browsing.ask(page, f"Question {number}?")
    told = [len(one.earlier) for one in at.assistant.questions]
    assert told == [0, 1, 0]
    assert at.assistant.questions[1].earlier[0][0] == "Question 0?"
    notes = page.locator("#turns .state").all_inner_texts()
    assert ["left out" in note for note in notes] == [False, False, True]


def test_a_newer_image_takes_the_place_of_one_that_is_asked_about(browser, at):
  with browsing.page(browser, at.url + "/") as page:
    browsing.open_files(page, [("a.png", served.png(picture()))])
    at.assistant.free.clear()
    try:
      page.fill("#question", "Where is the light?")
      page.press("#question", "Enter")
      page.wait_for_selector("#stop:not([hidden])")
      small = served.png(np.full((40, 50, 3), 10, np.uint8))
      browsing.open_files(page, [("b.png", small)])
    finally:
      at.assistant.free.set()
    page.wait_for_selector('#picture[aria-label*="50 × 40"]')
    assert page.locator("#turns > li").count() == 0
    browsing.ask(page, "Where is the light?")
    assert page.locator(".state.failed").count() == 0
    assert "not found" in page.locator("#targets").inner_text()


def test_files_may_be_dropped(browser, at):
  drop = """data => {
    const transfer = new DataTransfer();
    const bytes = Uint8Array.from(data);
    transfer.items.add(new File([bytes], "a.png", {type: "image/png"}));
    const options = {dataTransfer: transfer, bubbles: true, cancelable: true};
    for (const kind of ["dragover", "drop"]) {
      document.body.dispatchEvent(new DragEvent(kind, options));
    }
  }"""
  with browsing.page(browser, at.url + "/") as page:
    page.evaluate(drop, list(served.png(picture())))
    page.wait_for_selector("body[data-state=open]")
    assert "120 × 80" in page.locator("#picture").get_attribute("aria-label")


def test_a_keyboard_is_enough(browser, at):
  with browsing.page(browser, at.url + "/") as page:

    def tab(to, back=False):
      for _ in range(40):
        page.keyboard.press("Shift+Tab" if back else "Tab")
        if page.evaluate("to => document.activeElement?.matches(to)", to):
          return
      raise AssertionError(f"the keyboard does not reach {to}")

    choosers = []
    page.on("filechooser", lambda one: choosers.append(one))
    tab(".skip")
    tab("#choose")
    page.keyboard.press("Enter")
    while not choosers:
      page.wait_for_timeout(20)
    data = served.png(picture())
    choosers[0].set_files(
      {"name": "a.png", "mimeType": "image/png", "buffer": data}
    )
    page.wait_for_selector("body[data-state=open]")
    # The question is where one goes on.
    page.wait_for_selector("#question:focus")
    before = browsing.shot(page, "#picture")
    page.keyboard.type("Where is the light?")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("Please.")
    page.keyboard.press("Enter")
    page.wait_for_selector("#targets li")
    assert at.assistant.texts[-1] == "Where is the light?\nPlease."
    tab("#targets input", back=True)
    page.keyboard.press("Space")
    seen = browsing.shot(page, "#picture")
    np.testing.assert_allclose(seen, before, atol=2)
    assert page.evaluate("document.activeElement.type") == "checkbox"
    page.keyboard.press("Space")
    label = page.locator("#picture").get_attribute("aria-label")
    assert "Masks shown: bright" in label
    tab("#opacity", back=True)
    page.keyboard.press("End")
    assert page.locator("#opacity-now").inner_text() == "100 %"
    tab("#picture", back=True)
    page.keyboard.press("+")
    assert "near" in page.locator("#picture").get_attribute("class")
    page.keyboard.press("0")
    tab("#targets li button:last-child")
    with page.expect_download():
      page.keyboard.press("Enter")


def test_what_is_said_is_shown_as_text_and_nothing_else(browser):
  evil = '<img src=x onerror="alert(1)"><script>alert(2)</script>'

  def answer(question):
    mask_IJ = np.zeros(question.image_IJC.shape[:2], bool)
    mask_IJ[2:5, 2:5] = True
    found = Found(evil, True, mask_IJ, (2, 2, 5, 5), 0.5)
    return Answer(f"See <p> {evil} </p> [SEG] {evil}", evil, (found,))

  with (
    served.running(served.Assistant(answer=answer), classes=(evil,)) as at,
    browsing.page(browser, at.url + "/") as page,
  ):
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    browsing.open_files(page, [("a.png", served.png(picture()))])
    browsing.ask(page, evil)
    assert page.locator("main img, main script").count() == 0
    assert page.locator("#turns .words").inner_text().count(evil) == 2
    assert evil in page.locator("#targets").inner_text()
    name, _ = browsing.saved(
      page, page.get_by_role("button", name="Save the mask").click
    )
    assert name == "_img_src_x_onerror_alert_1_script_alert_2_script_.png"


def test_a_key_is_asked_for_and_kept_nowhere(browser):
  with (
    served.running(keys={"ward": served.KEY}) as at,
    browsing.page(browser, at.url + "/", ready=False, faults=("401",)) as page,
  ):
    page.wait_for_selector("#key-dialog[open]")
    page.wait_for_selector("#key:focus")
    page.keyboard.type("no-key-of-this-server")
    page.keyboard.press("Enter")
    page.wait_for_selector("#key-wrong:not([hidden])")
    page.fill("#key", served.KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector(".server.ready")
    browsing.open_files(page, [("a.png", served.png(picture()))])
    browsing.ask(page, "Where is the light?")
    assert page.locator("#targets li").count() == 1
    assert served.KEY not in page.content()
    page.reload()
    page.wait_for_selector("#key-dialog[open]")
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_selector("#alert:not([hidden])")
    assert "key" in page.locator("#alert").inner_text()


def test_what_goes_wrong_is_said_and_can_be_stopped(browser, at):
  with browsing.page(
    browser, at.url + "/", faults=("400", "500", "422")
  ) as page:

    def given(*files):
      page.set_input_files(
        "#file",
        [
          {"name": name, "mimeType": "text/plain", "buffer": data}
          for name, data in files
        ],
      )
      page.wait_for_selector("#alert:not([hidden])")
      return page.locator("#alert").inner_text()

    assert "no PNG" in given(("notes.txt", b"hello"))
    assert page.locator("#drop").is_visible()
    two = [("a.png", served.png()), ("b.png", served.png())]
    assert "one picture" in given(*two)
    browsing.open_files(page, [("a.png", served.png(picture()))])
    assert not page.locator("#alert").is_visible()
    browsing.ask(page, "fault")
    assert "X-Request-ID" in page.locator(".state.failed").inner_text()
    at.assistant.free.clear()
    try:
      page.fill("#question", "Where is the light?")
      page.press("#question", "Enter")
      page.locator("#stop").click()
      page.wait_for_selector(".state.failed >> text=Stopped")
    finally:
      at.assistant.free.set()
    assert page.input_value("#question") == "Where is the light?"
    browsing.ask(page, "Where is the light?")
    assert page.locator("#targets li").count() == 1


def test_what_the_server_would_not_take_is_not_sent(browser):
  noise_IJC = np.random.default_rng(0).integers(0, 255, (400, 400, 3), np.uint8)
  with (
    served.running(body_bytes=300_000) as at,
    browsing.page(browser, at.url + "/") as page,
  ):
    data = served.png(noise_IJC)
    page.set_input_files(
      "#file", [{"name": "a.png", "mimeType": "image/png", "buffer": data}]
    )
    page.wait_for_selector("#alert:not([hidden])")
    assert "the server takes 1 MB" in page.locator("#alert").inner_text()
    assert not [one for one in at.log if one.get("route") == "/v1/picture"]


def test_axe_finds_nothing(browser, at):
  with browsing.page(browser, at.url + "/", bypass_csp=True) as page:
    browsing.accessible(page)
    page.locator("#change-key").click()
    browsing.accessible(page)
    page.get_by_role("button", name="Cancel").click()
    browsing.open_files(page, [("a.png", served.png(picture()))])
    browsing.ask(page, "Where is the light?")
    browsing.accessible(page)


def test_it_fits_every_width(browser, at):
  def check():
    for width in (320, 390, 768, 899, 900, 1280):
      page.set_viewport_size({"width": width, "height": 800})
      wide = page.evaluate("document.documentElement.scrollWidth")
      assert wide <= width
      assert page.get_by_text("Not a medical device").is_visible()

  with browsing.page(browser, at.url + "/") as page:
    check()
    browsing.open_files(page, [("a.png", served.png(picture()))])
    browsing.ask(page, "Where is the light?")
    check()
    page.set_viewport_size({"width": 390, "height": 800})
    assert page.locator("#picture").bounding_box()["width"] > 350
