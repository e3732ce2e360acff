"""The web page at `/`: its files, and what browsers may do with them.

`make page` bundles what lies in `page/` into `page/dist/`; a fixed list of
names is served from there and nothing else. The page needs no key: it holds
nothing, and asks for one. It loads nothing from elsewhere, runs no script but
its own, and may not be put into another page's frame.
"""

import functools
import gzip
import hashlib
import pathlib

from fastapi import APIRouter, Request
from starlette.responses import Response

DIST = pathlib.Path(__file__).parent / "page" / "dist"

# Path -> its file and kind.
_FILES = {
  "/": ("index.html", "text/html; charset=utf-8"),
  "/page/page.css": ("page.css", "text/css; charset=utf-8"),
  "/page/page.js": ("page.js", "text/javascript; charset=utf-8"),
  "/page/volume.js": ("volume.js", "text/javascript; charset=utf-8"),
  "/page/icon.svg": ("icon.svg", "image/svg+xml"),
  "/page/licences.txt": ("licences.txt", "text/plain; charset=utf-8"),
}
PATHS = tuple(_FILES)

# Images are drawn from memory (blob:, data:); no form is sent, no frame shown.
_POLICY = "; ".join(
  [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self' blob: data:",
    "connect-src 'self' blob: data:",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
  ]
)
_HEADERS = {
  "Content-Security-Policy": _POLICY,
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
  # Asked for each time, sent again only if it has changed.
  "Cache-Control": "no-cache",
}
# Smaller files are not worth the packing.
_PACKED_FROM = 1000

_UNBUILT = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>rcmed</title>
<h1>The page is not built</h1>
<p>This server answers over HTTP, but its web page is missing. In a checkout of
rcmed_jax, with Node 18 or newer and npm, build it and start the server again:
<pre>make page</pre>
<p>Wheels and the container image hold it already.
</html>
"""


def router(folder: pathlib.Path = DIST) -> APIRouter:
  """The paths of the page.

  Args:
    folder: with the built files; they are read when they are first asked for.
  """
  made = APIRouter(include_in_schema=False)
  for path, (name, kind) in _FILES.items():
    made.add_api_route(
      path, _sender(folder / name, kind), methods=["GET"], name=name
    )
  return made


def _sender(path: pathlib.Path, kind: str):
  """What answers a request for a file."""

  @functools.cache
  def contents() -> tuple[bytes, bytes, str]:
    data = path.read_bytes()
    packed = gzip.compress(data, mtime=0) if len(data) >= _PACKED_FROM else b""
    return data, packed, f'"{hashlib.sha256(data).hexdigest()[:32]}"'

  def send(request: Request) -> Response:
    if not path.is_file():
      return Response(_UNBUILT, 503, _HEADERS, "text/html; charset=utf-8")
    data, packed, tag = contents()
    headers = _HEADERS | {"ETag": tag, "Vary": "Accept-Encoding"}
    if request.headers.get("if-none-match") == tag:
      return Response(status_code=304, headers=headers)
    if packed and "gzip" in request.headers.get("accept-encoding", ""):
      headers["Content-Encoding"] = "gzip"
      data = packed
    return Response(data, 200, headers, kind)

  return send
