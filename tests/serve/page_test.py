"""The page as a server sends it: its files, its headers, and what it is not."""

import re

import fastapi
import pytest
import requests
import served
from starlette.testclient import TestClient

from rcmed_jax.serve import page

NAMES = ("index.html", "page.css", "page.js", "volume.js", "icon.svg")


def client(folder):
  app = fastapi.FastAPI()
  app.include_router(page.router(folder))
  return TestClient(app)


@pytest.fixture
def built(tmp_path):
  for name in (*NAMES, "licences.txt", "secret.txt"):
    (tmp_path / name).write_text(f"{name} " * 200)
  return client(tmp_path)


def test_a_page_that_is_not_built_says_how_it_is(tmp_path):
  reply = client(tmp_path).get("/")
  assert reply.status_code == 503
  assert "make page" in reply.text
  assert "default-src 'none'" in reply.headers["content-security-policy"]


def test_its_files_are_served_and_no_other(built):
  for path in page.PATHS:
    reply = built.get(path)
    assert reply.status_code == 200
    name = path.rpartition("/")[2] or "index.html"
    assert reply.text.startswith(name)
  kinds = {
    "/": "text/html",
    "/page/page.js": "text/javascript",
    "/page/page.css": "text/css",
    "/page/icon.svg": "image/svg+xml",
  }
  for path, kind in kinds.items():
    assert built.get(path).headers["content-type"].startswith(kind)
  for path in ("/page/secret.txt", "/page/../page.py", "/page/%2e%2e/page.py"):
    assert built.get(path).status_code == 404


def test_nothing_from_elsewhere_may_run_or_be_loaded(built):
  headers = built.get("/").headers
  policy = dict(
    part.strip().split(" ", 1)
    for part in headers["content-security-policy"].split(";")
  )
  assert policy["default-src"] == "'none'"
  assert policy["script-src"] == policy["style-src"] == "'self'"
  assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
  assert not re.search(r"unsafe|\*|https?:", headers["content-security-policy"])
  assert headers["x-content-type-options"] == "nosniff"
  assert headers["referrer-policy"] == "no-referrer"


def test_the_source_has_no_inline_script_or_style_and_no_address():
  folder = page.DIST.parent
  text = (folder / "index.html").read_text(encoding="utf-8")
  assert not re.search(r"\son\w+=|<style|style=|javascript:", text)
  assert re.findall(r"<script[^>]*>(.*?)</script>", text) == [""]
  for path in folder.glob("*.*"):
    if path.suffix in (".html", ".css", ".js"):
      code = path.read_text(encoding="utf-8")
      assert not re.search(r"https?://|innerHTML|eval\(|localStorage", code)


def test_what_has_not_changed_is_not_sent_again(built):
  first = built.get("/page/page.js")
  assert first.headers["content-encoding"] == "gzip"
  again = built.get(
    "/page/page.js", headers={"If-None-Match": first.headers["etag"]}
  )
  assert again.status_code == 304 and not again.content
  plain = built.get("/page/page.js", headers={"Accept-Encoding": "identity"})
  assert "content-encoding" not in plain.headers
  assert plain.text == first.text


def test_the_page_needs_no_key_and_what_it_asks_does(tmp_path):
  with served.running(keys={"ward": served.KEY}) as at:
    for path in page.PATHS:
      reply = requests.get(at.url + path, timeout=20)
      assert reply.status_code in (200, 503)
    assert requests.get(at.url + "/capabilities", timeout=20).status_code == 401
    reply = requests.post(at.url + "/v1/picture", timeout=20)
    assert reply.status_code == 401


def test_the_lock_holds_hashes_and_no_address_but_the_public_one():
  folder = page.DIST.parent
  lock = (folder / "package-lock.json").read_text(encoding="utf-8")
  addresses = set(re.findall(r'"resolved": "(https?://[^/]+/)', lock))
  assert addresses <= {"https://registry.npmjs.org/"}
  assert lock.count('"integrity": "sha512-') == lock.count('"version":')
