"""SIGTERM: what was accepted is answered, what is new is not."""

import concurrent.futures
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import requests
import served

# A server as `rcmed serve` runs it, with an assistant that takes its time.
_PROGRAM = """
import pathlib, sys, served
from rcmed_jax.serve import asking, engine, limits, server, shelf
assistant = served.Assistant(rows=2, batch_s=0.3)
service = asking.Service(
  engine=engine.Engine(assistant),
  limits=limits.Limits(),
  keys=limits.Keys(),
  name=served.NAME,
)
app = server.Application(service, shelf.Shelf(pathlib.Path(sys.argv[2])))
port = int(sys.argv[1])
print(server.run(app, host="127.0.0.1", port=port, drain_s=20), flush=True)
"""


@pytest.fixture
def process(tmp_path):
  port = served.free_port()
  here = pathlib.Path(served.__file__).parents[1]
  paths = [str(here), str(here / "tests")]
  # To a file: a pipe that nobody reads is full after a few hundred lines.
  log = tmp_path / "log"
  with log.open("w") as out:
    one = subprocess.Popen(
      [sys.executable, "-c", _PROGRAM, str(port), str(tmp_path / "shelf")],
      env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
      stdout=subprocess.PIPE,
      stderr=out,
      text=True,
    )
  try:
    url = f"http://127.0.0.1:{port}"
    served.until(lambda: _status(url + "/readyz") == 200, 60)
    yield one, url, log
  finally:
    one.kill()
    one.communicate()


def _status(url):
  try:
    return requests.get(url, timeout=5).status_code
  except (requests.ConnectionError, requests.Timeout):  # a busy machine
    return None


def _inside(url):
  """How many requests are being answered, without the one that asks."""
  page = requests.get(url + "/metrics", timeout=5).text
  (line,) = [one for one in page.splitlines() if one.startswith("rcmed_inside")]
  return int(float(line.split()[1])) - 1


def _done(futures):
  return sum(future.done() for future in futures)


def _ask(url):
  reply = requests.post(
    url + "/v1/segment",
    files={"image": ("a.png", served.png())},
    data={"prompt": "light"},
    timeout=30,
  )
  return reply.status_code


def test_sigterm_answers_what_was_accepted_and_refuses_what_is_new(process):
  one, url, log = process
  with concurrent.futures.ThreadPoolExecutor(12) as pool:
    accepted = [pool.submit(_ask, url) for _ in range(12)]
    served.until(lambda: _inside(url) + _done(accepted) >= 12)
    assert _done(accepted) < 12
    one.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert _ask(url) == 503
    assert _status(url + "/healthz") == 200
    assert [future.result(30) for future in accepted] == [200] * 12
  out, _ = one.communicate(timeout=20)
  assert one.returncode == 0
  assert out == "0\n"
  assert '"event": "stop", "unanswered": 0' in log.read_text()
  assert "Traceback" not in log.read_text()


def test_readiness_ends_with_the_first_signal_and_life_with_the_second(process):
  one, url, log = process
  with concurrent.futures.ThreadPoolExecutor(20) as pool:
    for _ in range(20):
      pool.submit(_ask_quietly, url)
    served.until(lambda: _inside(url) > 12)
    one.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert _status(url + "/readyz") == 503
    one.send_signal(signal.SIGTERM)
    out, _ = one.communicate(timeout=10)
  assert one.returncode == 0
  assert int(out) > 0
  assert f'"event": "stop", "unanswered": {out.strip()}' in log.read_text()


def _ask_quietly(url):
  with contextlib.suppress(requests.RequestException):
    _ask(url)
