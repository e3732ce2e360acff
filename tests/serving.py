"""`rcmed serve` as users run it, in a process of its own."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import requests
import served

_ROOT = pathlib.Path(__file__).parents[1]


class Process:
  """A server that is ready.

  Attributes:
    url: where it is.
    files: its working folder.
  """

  def __init__(self, one, port, files, log):
    self.one = one
    self.port = port
    self.url = f"http://127.0.0.1:{port}"
    self.files = files
    self._log = log

  def log(self):
    """The events that it wrote so far."""
    lines = self._log.read_text().splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]

  def terminate(self):
    """Its exit code after SIGTERM."""
    self.one.send_signal(signal.SIGTERM)
    return self.one.wait(60)

  def rss_bytes(self):
    """Memory that it holds now."""
    pages = pathlib.Path(f"/proc/{self.one.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def process(workdir, folder, *flags, wait_s=300):
  """`rcmed serve` of a run, its files, its log and TMPDIR in a folder.

  It runs there as well, so that what it writes elsewhere by accident is seen.
  """
  tmp = folder / "tmp"
  tmp.mkdir(parents=True)
  port, log = served.free_port(), folder / "log"
  command = (
    *(sys.executable, "-m", "rcmed_jax", "serve"),
    *("--workdir", workdir, "--port", port, "--files", folder / "files"),
    *flags,
  )
  with log.open("wb") as out:
    one = subprocess.Popen(
      list(map(str, command)),
      cwd=folder,
      env=os.environ | {"PYTHONPATH": str(_ROOT), "TMPDIR": str(tmp)},
      stdout=out,
      stderr=subprocess.STDOUT,
    )
  made = Process(one, port, folder / "files", log)
  try:
    served.until(lambda: _is_ready(made), wait_s)
    yield made
  finally:
    one.kill()
    one.wait()


def _is_ready(made):
  if made.one.poll() is not None:
    raise RuntimeError(f"it ended with {made.one.returncode}: {made.log()}")
  try:
    return requests.get(made.url + "/readyz", timeout=5).status_code == 200
  except requests.ConnectionError:
    return False
