"""A page in headless Chromium, and what it may not do there."""

import contextlib
import io
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest
from scipy import ndimage

from rcmed_jax.serve import page as pages

_FLAGS = (
  "--no-sandbox",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  # Explicit: WebGL runs on the CPU.
  "--use-angle=swiftshader",
  "--enable-unsafe-swiftshader",
)
_CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
AXE = (
  pathlib.Path(__file__).parents[1]
  / ".cache/page/node_modules/axe-core/axe.min.js"
)


@contextlib.contextmanager
def chromium(*, built=True):
  """A browser; the test is skipped where there is none.

  Args:
    built: whether it needs the server's page, and is skipped without.
  """
  api = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed"
  )
  where = next(filter(None, map(shutil.which, _CHROMIUM)), None)
  if where is None:
    pytest.skip("Chromium is not installed")
  if built and not (pages.DIST / "index.html").is_file():
    pytest.skip("the page is not built; run `make page`")
  with api.sync_playwright() as driver:
    browser = driver.chromium.launch(
      executable_path=where, headless=True, args=_FLAGS
    )
    try:
      yield browser
    finally:
      browser.close()


@contextlib.contextmanager
def page(browser, url, *, ready=True, faults=(), **options):
  """A page that was opened; it must ask no other host and report no error.

  Args:
    ready: whether the server is asked without a key.
    faults: parts of messages that the console may show.
  """
  options = {"viewport": {"width": 1100, "height": 760}, **options}
  context = browser.new_context(accept_downloads=True, **options)
  made = context.new_page()
  asked, told = [], []
  made.on("request", lambda request: asked.append(request.url))
  made.on("pageerror", lambda error: told.append(str(error)))
  made.on(
    "console",
    lambda one: told.append(one.text) if one.type == "error" else None,
  )
  try:
    made.goto(url)
    if ready:
      made.wait_for_selector(".server.ready")
    yield made
    if made.url.startswith(url):
      kept = "[localStorage.length, sessionStorage.length, document.cookie]"
      assert made.evaluate(kept) == [0, 0, ""]
  finally:
    context.close()
  own = (url, "blob:", "data:")
  assert not [address for address in asked if not address.startswith(own)]
  assert not [
    text for text in told if not any(fault in text for fault in faults)
  ]


def open_files(made, files, timeout_s=40):
  """Chooses files; each is (name, bytes)."""
  made.set_input_files(
    "#file",
    [
      {"name": name, "mimeType": "application/octet-stream", "buffer": data}
      for name, data in files
    ],
  )
  made.wait_for_selector("body[data-state=open]", timeout=timeout_s * 1000)


def ask(made, text, timeout_s=40):
  """Asks, and waits for the answer."""
  before = made.locator("#turns > li").count()
  made.fill("#question", text)
  made.press("#question", "Enter")
  # Not wait_for_function: the page's policy forbids what it evaluates.
  done = made.locator("#turns > li:not([aria-busy])").nth(before)
  done.wait_for(timeout=timeout_s * 1000)


def shot(made, canvas):
  """int16[I, J, 3]: a canvas as it is seen, once it stands still."""
  before = None
  for _ in range(20):
    made.mouse.move(1, 1)
    data = made.locator(canvas).screenshot()
    picture = np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
    if before is not None and np.array_equal(picture, before):
      return picture.astype(np.int16)
    before = picture
    made.wait_for_timeout(120)
  raise AssertionError("the canvas does not stand still")


def accessible(made):
  """Fails where axe finds a fault, in the light or in the dark.

  The page must have been opened with bypass_csp=True.
  """
  if not AXE.is_file():
    pytest.skip("axe-core is not there; run `make page`")
  made.add_script_tag(content=AXE.read_text(encoding="utf-8"))
  for scheme in ("light", "dark"):
    made.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    found = made.evaluate("axe.run({resultTypes: ['violations']})")
    faults = [
      (one["id"], [node["html"] for node in one["nodes"]])
      for one in found["violations"]
    ]
    assert not faults, scheme


def saved(made, click):
  """The name and the bytes of a file that a click saves."""
  with made.expect_download() as told:
    click()
  return told.value.suggested_filename, pathlib.Path(
    told.value.path()
  ).read_bytes()


def box(mask_IJ):
  """x0, y0, x1, y1 of what is set, the last two behind it."""
  rows, columns = (np.flatnonzero(mask_IJ.any(axis)) for axis in (1, 0))
  return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])


def body(picture_IJC):
  """bool[I, J]: the largest grey piece that is not black.

  Not crosshairs, which are coloured, nor letters, which are small.
  """
  grey = np.ptp(picture_IJC, axis=2) < 12
  there = ndimage.binary_closing(grey & (picture_IJC.max(2) > 25), iterations=3)
  pieces, count = ndimage.label(there)
  assert count
  sizes = np.bincount(pieces.ravel())
  sizes[0] = 0
  return pieces == sizes.argmax()
