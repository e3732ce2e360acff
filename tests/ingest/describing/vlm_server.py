"""A server on loopback that answers as models do, or misbehaves as servers do.

Every request is kept as it came, so that a test sees what leaves the machine.
"""

import base64
from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import email.utils
import http.server
import json
import re
import socket
import struct
import threading
import time
from typing import Any

import cv2
import numpy as np

ASKED = re.compile(r'"the (\w+) (regions?)"')

# What a request is answered with: a reply's text, or one of the names of
# `_Handler`'s methods without their "do_".
Script = Callable[[int, dict[str, Any]], str]


@dataclasses.dataclass
class Request:
  """As it came."""

  path: str
  headers: dict[str, str]  # names in lower case
  body: bytes
  at_s: float

  @property
  def json(self) -> dict[str, Any]:
    return json.loads(self.body)


@dataclasses.dataclass
class Running:
  """A running server."""

  url: str
  requests: list[Request]
  most_at_once: int = 0


def describing(_: int, asked: dict[str, Any]) -> str:
  """A well-behaved model: a sentence for each region that is asked about."""
  prompt = words(asked["messages"][0])
  listed = prompt.split("painted over: ")[1].split(". The paint")[0]
  sentences = [
    f"The {colour} {noun} {'is' if noun == 'region' else 'are'} oval with a "
    "smooth boundary and an even texture."
    for colour, noun in ASKED.findall(listed)
  ]
  return " ".join(sentences)


def words(message: dict[str, Any]) -> str:
  """The text of a message."""
  content = message["content"]
  if isinstance(content, str):
    return content
  return " ".join(part["text"] for part in content if part["type"] == "text")


def pictures(asked: dict[str, Any]) -> list[bytes]:
  """The files of the images in a request."""
  urls = [
    part["image_url"]["url"]
    for message in asked["messages"]
    if not isinstance(message["content"], str)
    for part in message["content"]
    if part["type"] == "image_url"
  ]
  heads, datas = zip(*(url.split(",", 1) for url in urls), strict=True)
  assert set(heads) == {"data:image/jpeg;base64"}
  return [base64.b64decode(data, validate=True) for data in datas]


def decoded(data: bytes) -> np.ndarray:
  """uint8[I, J, 3], RGB."""
  return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[
    ..., ::-1
  ]


@contextlib.contextmanager
def serve(script: Script = describing) -> Iterator[Running]:
  """A server that answers the n-th request as `script(n, request)` says."""
  lock = threading.Lock()
  inside = 0

  class Handler(_Handler):
    def do_POST(self) -> None:
      nonlocal inside
      body = self.rfile.read(int(self.headers["content-length"]))
      headers = {name.lower(): value for name, value in self.headers.items()}
      request = Request(self.path, headers, body, time.monotonic())
      with lock:
        number = len(running.requests)
        running.requests.append(request)
        inside += 1
        running.most_at_once = max(running.most_at_once, inside)
      try:
        self.answer(script(number, request.json))
      finally:
        with lock:
          inside -= 1

  server = _Server(("127.0.0.1", 0), Handler)
  running = Running(f"http://127.0.0.1:{server.server_port}/v1", [])
  thread = threading.Thread(target=server.serve_forever, args=(0.02,))
  thread.start()
  try:
    yield running
  finally:
    server.shutdown()
    server.server_close()
    thread.join()


class _Server(http.server.ThreadingHTTPServer):
  daemon_threads = True  # nobody waits for those that are silent
  request_queue_size = 128


class _Handler(http.server.BaseHTTPRequestHandler):
  """Ways to answer; "-name value" in a script is a way, all else is a text."""

  protocol_version = "HTTP/1.1"

  def log_message(self, *args: object) -> None:
    """Tests print nothing."""

  def answer(self, told: str) -> None:
    if told.startswith("-"):
      way, _, value = told[1:].partition(" ")
      with contextlib.suppress(OSError):  # the client may have gone
        getattr(self, f"be_{way}")(value)
    else:
      self.reply(completion(told))

  def reply(
    self, body: bytes, status: int = 200, kind: str = "application/json", **more
  ) -> None:
    self.send_response(status)
    self.send_header("content-type", kind)
    self.send_header("content-length", str(len(body)))
    for name, value in more.items():
      self.send_header(name.replace("_", "-"), value)
    self.end_headers()
    self.wfile.write(body)

  def be_status(self, value: str) -> None:
    status, _, text = value.partition(" ")
    told = {"error": {"message": text or "no", "code": text}}
    self.reply(json.dumps(told).encode(), int(status))

  def be_busy(self, value: str) -> None:
    self.reply(b"{}", 429, retry_after=value)

  def be_busy_until(self, value: str) -> None:
    until = email.utils.formatdate(time.time() + float(value), usegmt=True)
    self.reply(b"{}", 503, retry_after=until)

  def be_body(self, value: str) -> None:
    self.reply(value.encode())

  def be_page(self, value: str) -> None:
    self.reply(b"<html>Welcome</html>", kind="text/html")

  def be_silent(self, value: str) -> None:
    time.sleep(float(value))

  def be_slow(self, value: str) -> None:
    """Sends a byte now and then, so that no single read takes long."""
    self.send_response(200)
    self.send_header("content-length", "100000")
    self.end_headers()
    until_s = time.monotonic() + float(value)
    while time.monotonic() < until_s:
      self.wfile.write(b" ")
      self.wfile.flush()
      time.sleep(0.02)

  def be_cut(self, value: str) -> None:
    """Ends in the middle of the body."""
    self.send_response(200)
    self.send_header("content-length", "1000")
    self.end_headers()
    self.wfile.write(b'{"choices": [')
    self.close_connection = True

  def be_reset(self, value: str) -> None:
    self.connection.setsockopt(
      socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )
    self.connection.close()

  def be_garbage(self, value: str) -> None:
    self.wfile.write(b"\x00\x01 not HTTP at all\r\n\r\n")
    self.close_connection = True

  def be_elsewhere(self, value: str) -> None:
    self.reply(b"", 307, location=value)

  def be_long(self, value: str) -> None:
    self.reply(completion(value, finish_reason="length"))

  def be_echo(self, value: str) -> None:
    """Says back what it should not: the key."""
    key = self.headers["authorization"].removeprefix("Bearer ")
    if value:
      told = {"error": {"message": f"Incorrect key {key}", "code": key}}
      self.reply(json.dumps(told).encode(), int(value))
    else:
      self.reply(completion(f"The red region is round. {key} {key}"))


def completion(text: str, **choice: Any) -> bytes:
  """The body of an answer with its usage."""
  message = {"role": "assistant", "content": text}
  entry = {"index": 0, "finish_reason": "stop", "message": message, **choice}
  usage = {"prompt_tokens": 1000, "completion_tokens": 50}
  return json.dumps({"choices": [entry], "usage": usage}).encode()
