"""The page in a browser, from disk: it sorts by keyboard and fits a phone."""

import browsing
import pytest

from rcmed_jax.eval import report
from rcmed_jax.eval.evaluate import EvalConfig, evaluate

ROWS = (
  "[...document.querySelectorAll('#presence table')[2].tBodies[0].rows]"
  ".map(row => row.cells[5].textContent)"
)


@pytest.fixture
def opened(world, oracle, tmp_path):
  """Opens the page at a size; it may ask for nothing beside itself."""
  model = oracle(world, shift=2, blind=("hair",))
  summary = evaluate(world, model, EvalConfig(bootstrap=0), tmp_path / "eval")
  path = report.write_pages(tmp_path / "report", summary)
  with browsing.chromium(built=False) as browser:

    def at(width):
      page = browser.new_page(viewport={"width": width, "height": 800})
      page.on("request", lambda one: asked.append(one.url))
      page.goto(path.as_uri())
      return page

    asked = []
    yield at
    others = [url for url in asked if not url.startswith("data:")]
    assert set(others) == {path.as_uri()}


def test_tables_sort_by_keyboard_and_missing_values_stay_last(opened):
  page = opened(1200)
  page.evaluate("document.querySelectorAll('details').forEach(d => d.open = 1)")
  head = page.locator("#presence details th").nth(5)
  head.locator("button").focus()
  for wanted in ("descending", "ascending"):
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == wanted
    # The two classes of dermoscopy have no sibling to be absent.
    # The liver, drawn for no question about what is there.
    assert page.evaluate(ROWS)[-1] == "–"
  total = page.locator("#presence tfoot td").first
  assert total.text_content() == "All"


def test_page_is_no_wider_than_a_phone(opened):
  page = opened(390)
  page.evaluate("document.querySelectorAll('details').forEach(d => d.open = 1)")
  assert page.evaluate("document.documentElement.scrollWidth") == 390
