"""A data set built into a bucket, on a fake of Google's storage."""

import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.request

import imports
import pytest

from launch import local

pytestmark = pytest.mark.heavy

SERVER = "import sys; from gcp_storage_emulator.__main__ import main; main()"

# Builds in two runs, the first of which is cut short, and here for comparison.
PROGRAM = """
import sys
from etils import epath
import numbered
from rcmed_jax.ingest.building import build
from rcmed_jax.ingest.building.build import Input

inputs = [Input("train", numbered.Source(0, 20))]

class EnoughError(Exception):
  pass

def stop(shard):
  if shard.number == 2:
    raise EnoughError

def files(folder):
  for path in folder.iterdir():
    if path.is_dir():
      yield from files(path)
    else:
      yield path

def contents(folder):
  return {
    str(path).removeprefix(str(folder)): path.read_bytes()
    for path in files(folder)
    if path.name != "build.lock"
  }

bucket, disk = map(epath.Path, sys.argv[1:])
try:
  build.build(inputs, bucket, {}, shard_units=4, on_shard=stop)
except EnoughError:
  print("stopped")
assert not (bucket / "manifest.json").exists()
totals = build.build(inputs, bucket, {}, shard_units=4)
assert totals == build.build(inputs, disk, {}, shard_units=4)
assert contents(bucket) == contents(disk)
print("same", totals.triplets)
"""


@pytest.fixture
def environ():
  """The environment in which gs://bkt is a fake, kept in memory."""
  for name in ("gcp_storage_emulator", "gcsfs"):
    if importlib.util.find_spec(name) is None:
      pytest.skip(f"{name} is not installed")
  port = local.free_port()
  server = subprocess.Popen(
    [
      *(sys.executable, "-c", SERVER),
      *("start", "--host=127.0.0.1", f"--port={port}", "--in-memory"),
      "--default-bucket=bkt",
    ],
    stderr=subprocess.DEVNULL,
  )
  address = f"http://127.0.0.1:{port}"
  anonymous = json.dumps({"token": "anon"})
  try:
    for _ in range(120):
      try:
        urllib.request.urlopen(f"{address}/storage/v1/b/bkt", timeout=5)
        break
      except OSError:
        assert server.poll() is None
        time.sleep(0.5)
    yield dict(os.environ) | {
      "STORAGE_EMULATOR_HOST": address,
      "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
      "NO_GCE_CHECK": "true",
      "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
      "FSSPEC_GCS": anonymous,
      "FSSPEC_GS": anonymous,
      "PYTHONPATH": f"{imports.ROOT}:{imports.ROOT / 'tests'}",
    }
  finally:
    server.terminate()
    server.wait(timeout=60)


def test_a_bucket_holds_what_a_disk_would(environ, tmp_path):
  result = subprocess.run(
    [sys.executable, "-c", PROGRAM, "gs://bkt/set", str(tmp_path / "set")],
    env=environ,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert result.returncode == 0, result.stdout + result.stderr
  assert result.stdout.startswith("stopped\nsame ")
