"""What hostile or hasty clients meet."""

import asyncio
import base64
import contextlib
import json
import os
import pathlib
import socket
import struct
import tempfile
import threading
import time
import zlib

import numpy as np
import pytest
import requests
import served
from starlette.requests import Request

from rcmed_jax.serve import forms, limits, server


def _chunk(kind, data):
  body = kind + data
  return (
    struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
  )


def _bomb(columns, rows):
  """A PNG that says to be large and holds a few bytes."""
  header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n"
    + _chunk(b"IHDR", header)
    + _chunk(b"IDAT", zlib.compress(bytes(10_000)))
    + _chunk(b"IEND", b"")
  )


def _post(at, data, **more):
  return requests.post(
    at.url + "/v1/segment",
    files={"image": ("a.png", data)},
    data={"prompt": "light"},
    timeout=20,
    **more,
  )


def test_large_bodies_and_images_are_refused():
  with served.running(
    body_bytes=100_000, upload_bytes=200_000, pixels=10_000
  ) as at:
    assert _post(at, served.png()).status_code == 200
    assert _post(at, bytes(300_000)).status_code == 413
    # Not too much for a form, but for a picture.
    assert _post(at, served.png() + bytes(150_000)).status_code == 413
    body = {"prompt": "light", "image": "A" * 150_000}
    reply = requests.post(at.url + "/v1/segment", json=body, timeout=20)
    assert reply.status_code == 413
    large = served.png(served.image(shape=(101, 100)))
    assert _post(at, large).status_code == 413
    began = time.monotonic()
    for sides in ((60_000, 60_000), (2**31 - 1, 2**31 - 1), (200, 200)):
      assert _post(at, _bomb(*sides)).status_code in (400, 413), sides
    assert time.monotonic() - began < 5
    # What a form may send, JSON may not, whatever it says to be.
    for path in ("/v1/segment", "/v1/chat/completions"):
      reply = requests.post(
        at.url + path,
        data=b" " * 150_000,
        headers={"Content-Type": "multipart/form-data; boundary=x"},
        timeout=20,
      )
      assert reply.status_code in (400, 415)
    # Without a length, the bytes themselves are counted.
    chunks = (bytes(10_000) for _ in range(100))
    try:
      reply = requests.post(
        at.url + "/v1/segment",
        data=chunks,
        headers={"Content-Type": "application/json"},
        timeout=20,
      )
      assert reply.status_code == 413
    except requests.ConnectionError:
      pass  # refused while it was still sending
    assert _post(at, served.png()).status_code == 200


def test_what_is_packed_tightly_is_not_unpacked():
  """Of pictures whose header is small and whose content is not."""
  with served.running(pixels=10_000) as at:
    before = _memory()
    bombs = [
      # 20 kB of pixels that unpack to 20 MB.
      _png(100, 100, zlib.compress(bytes(20_000_000), 9)),
      # A comment likewise.
      _png(100, 100, zlib.compress(bytes(30_100)), _comment(20_000_000)),
      _tiff(2**31 - 1, 2**31 - 1),
      _tiff(90, 90, strips=10_000_000),
    ]
    for data in bombs:
      assert len(data) < 100_000
      assert _post(at, data).status_code in (200, 400, 413)
    assert _memory() - before < 100e6
    assert _post(at, served.png()).status_code == 200


def _png(columns, rows, packed, more=b""):
  header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
  return (
    b"\x89PNG\r\n\x1a\n"
    + _chunk(b"IHDR", header)
    + more
    + _chunk(b"IDAT", packed)
    + _chunk(b"IEND", b"")
  )


def _comment(size):
  return _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(size), 9))


def _tiff(columns, rows, strips=1):
  """A TIFF of one directory whose strips lie nowhere."""
  entries = [
    (256, 4, 1, columns),
    (257, 4, 1, rows),
    (258, 3, 1, 8),
    (259, 3, 1, 1),
    (262, 3, 1, 1),
    (273, 4, strips, 8),
    (278, 4, 1, 1),
    (279, 4, strips, 8),
  ]
  packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
  head = b"II*\0" + struct.pack("<IH", 8, len(entries))
  return head + packed + bytes(4)


def _memory():
  """Bytes that this process, and so the server, holds."""
  pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
  return int(pages) * os.sysconf("SC_PAGE_SIZE")


def test_noise_and_other_formats_are_no_images():
  rng = np.random.default_rng(0)
  with served.running() as at:
    for size in (0, 1, 200, 5000):
      reply = _post(at, rng.bytes(size))
      assert reply.status_code == 400, reply.text
    assert _post(at, b"GIF89a" + bytes(100)).status_code == 400
    assert _post(at, b"<svg xmlns='x'/>").status_code == 400
    whole = served.png()
    assert _post(at, whole[: len(whole) // 2]).status_code == 400


def test_keys_are_asked_for_and_rates_are_kept():
  with served.running(
    keys={"ward": served.KEY, "lab": served.OTHER_KEY}, rate=5
  ) as at:
    one = {"Authorization": f"Bearer {served.KEY}"}
    other = {"Authorization": f"bearer {served.OTHER_KEY}"}
    url = at.url + "/v1/models"
    assert requests.get(at.url + "/healthz", timeout=20).status_code == 200
    refused = requests.get(url, timeout=20)
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    wrong = {"Authorization": f"Bearer {served.KEY}x"}
    assert requests.get(url, headers=wrong, timeout=20).status_code == 401
    codes = [
      requests.get(url, headers=one, timeout=20).status_code for _ in range(7)
    ]
    assert codes == [200] * 5 + [429] * 2
    assert requests.get(url, headers=other, timeout=20).status_code == 200
    late = requests.get(url, headers=one, timeout=20)
    assert 1 <= int(late.headers["Retry-After"]) <= 12
    assert {"ward", "lab", None} == {line["caller"] for line in at.log}
    assert served.KEY not in str(at.log)


def test_other_origins_may_ask_only_where_they_are_named():
  named = "https://viewer.example.org"
  allowed = "Access-Control-Allow-Origin"
  with served.running(origins=(named,), keys={"ward": served.KEY}) as at:
    url = at.url + "/v1/models"
    key = {"Authorization": f"Bearer {served.KEY}"}
    for origin, status in ((named, 200), ("https://evil.example", 403)):
      asks = {"Origin": origin, "Access-Control-Request-Method": "GET"}
      asks["Access-Control-Request-Headers"] = "authorization"
      for reply in (
        requests.options(url, headers=asks, timeout=20),
        requests.get(url, headers=key | {"Origin": origin}, timeout=20),
      ):
        assert reply.status_code == status
        expected = named if status == 200 else None
        assert reply.headers.get(allowed) == expected
    own = requests.get(url, headers=key | {"Origin": at.url}, timeout=20)
    assert own.status_code == 200
  with served.running() as at:
    asks = {"Origin": named, "Access-Control-Request-Method": "POST"}
    reply = requests.options(at.url + "/v1/segment", headers=asks, timeout=20)
    assert (reply.status_code, reply.headers.get(allowed)) == (403, None)


def test_a_name_that_is_made_to_point_here_is_none_of_its_own():
  with served.running(hosts=("127.0.0.1", "[::1]")) as at:
    url = at.url + "/healthz"
    for host, status in (
      ("evil.example:8000", 403),
      ("evil.example", 403),
      ("127.0.0.1", 200),
      ("[::1]:80", 200),
    ):
      reply = requests.get(url, headers={"Host": host}, timeout=20)
      assert reply.status_code == status, host


def test_all_bodies_together_are_bounded():
  with served.running(bodies_bytes=150_000) as at:
    head = (
      b"POST /v1/segment HTTP/1.1\r\nHost: a\r\n"
      b"Content-Type: application/json\r\nContent-Length: 100001\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", at.port)) as one:
      one.sendall(head + bytes(100_000))
      served.until(lambda: at.app.gate.held == 100_000)
      reply = _post(at, bytes(60_000))
      assert reply.status_code == 503
      assert "Retry-After" in reply.headers
    served.until(lambda: at.app.gate.held == 0)
    assert _post(at, served.png()).status_code == 200


def test_slow_bodies_and_headers_are_ended(monkeypatch):
  monkeypatch.setattr(server, "HEADERS_S", 0.3)
  with served.running(body_s=0.3) as at:
    head = (
      b"POST /v1/segment HTTP/1.1\r\nHost: a\r\n"
      b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
    )
    began = time.monotonic()
    assert b" 408 " in served.raw(at.port, head)
    assert served.raw(at.port, b"GET /healthz HTTP/1.1\r\nHo") == b""
    assert served.raw(at.port, b"") == b""
    # Also of a second request on the same connection.
    two = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n" + b"GET /hea"
    assert served.raw(at.port, two).count(b"HTTP/1.1 200") == 1
    assert time.monotonic() - began < 8
    assert requests.get(at.url + "/healthz", timeout=20).status_code == 200


def test_a_full_queue_says_when_to_come_again():
  assistant = served.Assistant(rows=1)
  with served.running(assistant, most=2) as at:
    assistant.free.clear()
    codes, engine = [], at.app.service.engine

    def ask():
      codes.append(_post(at, served.png()).status_code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    threads[0].start()
    served.until(lambda: len(assistant.batches) == 1)
    for number, thread in enumerate(threads[1:3], 1):
      thread.start()
      served.until(lambda count=number: engine.waiting == count)
    reply = _post(at, served.png())
    assert reply.status_code == 429
    assert int(reply.headers["Retry-After"]) >= 1
    assistant.free.set()
    for thread in threads[:3]:
      thread.join(20)
    assert codes == [200] * 3


def test_no_answer_in_time_is_said_and_a_client_that_left_is_not_answered():
  assistant = served.Assistant(rows=1)
  with served.running(assistant, answer_s=0.5) as at:
    assistant.free.clear()
    blocked = threading.Thread(target=_post, args=(at, served.png()))
    blocked.start()
    served.until(lambda: len(assistant.batches) == 1)
    with pytest.raises(requests.Timeout):
      requests.post(
        at.url + "/v1/segment",
        files={"image": ("a.png", served.png())},
        data={"prompt": "left"},
        timeout=0.2,
      )
    served.until(lambda: any(line["status"] == 499 for line in at.log))
    assert _post(at, served.png()).status_code == 504
    assistant.free.set()
    blocked.join(20)
    served.until(lambda: not at.app.service.engine.waiting)
    assert _post(at, served.png()).status_code == 200
    assert "left" not in assistant.texts


def test_a_client_that_takes_no_answer_is_given_up():
  """Its answer is larger than what the network between them holds."""
  with served.running(send_s=0.5) as at:
    image = np.random.default_rng(0).integers(0, 255, (2000, 2000, 3), np.uint8)
    body = json.dumps(
      {
        "image": base64.b64encode(served.png(image)).decode(),
        "prompt": "light",
        "masks": "rle",
      }
    ).encode()
    head = (
      "POST /v1/segment HTTP/1.1\r\nHost: a\r\n"
      f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.socket() as one:
      one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
      one.connect(("127.0.0.1", at.port))
      one.sendall(head.encode() + body)
      served.until(lambda: at.app.gate.inside == 1)
      served.until(lambda: at.app.gate.inside == 0)
    assert _post(at, served.png()).status_code == 200
    assert not [line for line in at.log if "fault" in line]


def test_a_slow_but_steady_upload_is_taken():
  with served.running(body_s=0.3) as at:
    text = json.dumps({"image": "A" * 3_000_000, "prompt": "light"}).encode()
    head = (
      "POST /v1/segment HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
      f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", at.port), 20) as one:
      one.sendall(head.encode())
      for first in range(0, len(text), 500_000):
        one.sendall(text[first : first + 500_000])
        time.sleep(0.1)
      # Later than 0.3 s, and refused for what it holds alone.
      assert b" 400 " in one.recv(65536)


@pytest.mark.parametrize(("size", "rolled"), [(1000, False), (100_000, True)])
def test_files_of_a_form_go_to_disk(size, rolled):
  """A series of small slices would otherwise be held in memory, all of it."""
  body = (
    b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    + bytes(size)
    + b"\r\n--x--\r\n"
  )

  async def receive():
    return {"type": "http.request", "body": body}

  head = (b"content-type", b"multipart/form-data; boundary=x")
  request = Request({"type": "http", "headers": [head]}, receive)
  form = asyncio.run(forms.form_of(request))
  assert forms.file_of(form, "file").file._rolled is rolled


@pytest.mark.parametrize(
  "body",
  [
    b"",
    b"--x",
    b"--x--\r\n",
    b"--x\r\n\r\n\r\n--x--\r\n",
    b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--\r\n",
    b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\na\r\n--x--',
    b'--x\r\nContent-Disposition: form-data; name="\xff\xfe"\r\n\r\n--x--\r\n',
    b"--x\r\n" + b"A" * 20_000 + b": b\r\n\r\n--x--\r\n",
    b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 2000,
    b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n'
    b"\r\n\r\n" * 3000,
    b'--x\r\nContent-Disposition: form-data; name="prompt"\r\n\r\n'
    + b"a" * 2_000_000
    + b"\r\n--x--\r\n",
  ],
)
def test_damaged_forms_are_refused_everywhere(shared_server, body):
  kind = {"Content-Type": "multipart/form-data; boundary=x"}
  for method, path in (
    ("POST", "/v1/segment"),
    ("PUT", "/session/"),
    ("PUT", "/datastore/?image=a"),
    ("PUT", "/datastore/label?image=a"),
    ("POST", f"/infer/{served.NAME}"),
    ("POST", "/auth/token"),
  ):
    reply = requests.request(
      method, shared_server.url + path, data=body, headers=kind, timeout=20
    )
    assert reply.status_code in (400, 401, 404, 413, 422), (path, reply.text)
    assert reply.json()["error"]["message"]
  assert not [line for line in shared_server.log if "fault" in line]


@pytest.mark.parametrize(
  "head",
  [
    b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: " + b"a" * 100_000,
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/segment HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /x HTTP/1.1\r\n\r\n",
    b"POST /v1/segment HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
    b"Content-Type: application/json\r\n\r\nFFFFFFFFFFFFFFFF\r\n",
    b"POST /v1/segment HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n"
    b"Content-Length: 20\r\n\r\n",
  ],
)
def test_damaged_heads_are_refused(shared_server, head, monkeypatch):
  monkeypatch.setattr(server, "HEADERS_S", 0.5)
  with socket.create_connection(("127.0.0.1", shared_server.port), 20) as one:
    one.sendall(head)
    one.shutdown(socket.SHUT_WR)
    answer = b""
    with contextlib.suppress(ConnectionError):
      while part := one.recv(65536):
        answer += part
  assert not answer or answer.startswith((b"HTTP/1.1 4", b"HTTP/1.1 5"))
  assert b" 200 " not in answer
  assert not [line for line in shared_server.log if "fault" in line]


@pytest.fixture(scope="module")
def shared_server():
  with served.running() as found:
    yield found


def test_a_client_that_breaks_off_harms_nobody():
  with served.running() as at:
    for data in (b"\x00" * 100, b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n"):
      served.raw(at.port, data)
    head = b"POST /v1/segment HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
    with socket.create_connection(("127.0.0.1", at.port)) as one:
      one.sendall(head)
    assert _post(at, served.png()).status_code == 200


def test_files_of_keys(tmp_path):
  path = tmp_path / "keys"
  path.write_text(f"# who asks\n\nward {served.KEY}\nlab {served.OTHER_KEY}\n")
  keys = limits.read_keys(path)
  assert keys.owner(served.KEY) == "ward"
  assert keys.owner(served.OTHER_KEY) == "lab"
  assert keys.owner("") is None
  for text in ("", "ward short\n", f"a {served.KEY}\nb {served.KEY}\n"):
    path.write_text(text)
    with pytest.raises(ValueError) as caught:
      limits.read_keys(path)
    assert served.KEY not in str(caught.value)


def test_a_form_of_many_files_keeps_none_of_them_open(tmp_path, monkeypatch):
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  size, count = forms.IN_MEMORY + 5000, 300
  opened = lambda: len(os.listdir("/proc/self/fd"))  # noqa: E731
  before, most = opened(), 0

  async def receive():
    nonlocal most
    most = max(most, opened() - before)
    body = next(parts, None)
    more = body is not None
    return {"type": "http.request", "body": body or b"", "more_body": more}

  head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="%d"'
  parts = iter(
    [
      head % n + b"\r\n\r\n" + bytes([n % 251]) * size + b"\r\n"
      for n in range(count)
    ]
    + [b"--x--\r\n"]
  )
  headers = [(b"content-type", b"multipart/form-data; boundary=x")]

  async def written():
    request = Request({"type": "http", "headers": headers}, receive)
    form = await forms.form_of(request, files=count)
    out = tmp_path / "out"
    out.mkdir()
    for file in form.getlist("files"):
      name, write = forms.incoming_of(file)
      write(out / name)
    assert opened() - before < 20
    await form.close()
    return out

  out = asyncio.run(written())
  assert most < 20
  for n in range(count):
    assert (out / str(n)).read_bytes() == bytes([n % 251]) * size
  assert [path.name for path in tmp_path.iterdir()] == ["out"]
