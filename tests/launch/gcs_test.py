"""A run whose folder is a bucket, on a fake of Google's storage; minutes."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.request

import imports
import pytest

from launch import local
from rcmed_jax.data import phantoms

pytestmark = pytest.mark.heavy

# The fake forgets which version of an object it hands out, without which no
# reader can ask to replace that version alone.
SERVER = """
import sys
from gcp_storage_emulator import exceptions
from gcp_storage_emulator.handlers import objects

plain = objects.download

def download(request, response, storage, *others, **more):
  told = request.params
  try:
    held = storage.get_file_obj(told["bucket_name"], told["object_id"])
    response["x-goog-generation"] = held["generation"]
  except exceptions.NotFound:
    pass  # the plain answer says so
  plain(request, response, storage, *others, **more)

objects.download = download
from gcp_storage_emulator.__main__ import main
sys.exit(main())
"""

# What trains, stops nowhere, and reads its own folder again.
PROGRAM = """
import sys
from etils import epath
from rcmed_jax import cli
from rcmed_jax.apps import answering, settings
from rcmed_jax.train import checkpoints

workdir, index = sys.argv[1:]
told = ["train", "--config=configs/demo.py:tiny", "--workdir=" + workdir,
        "--config.data.index=" + index, "--config.model.correlation.steps=0"]
assert cli.main(told) == 0
# Finished: this reads checkpoint, settings and tokenizer, and trains no step.
assert cli.main([*told, "--resume=required"]) == 0
assert cli.main([*told, "--resume=never"]) == 2
assert settings.load(workdir).train.steps == 6
with checkpoints.Checkpoints(workdir) as saved:
  assert saved.latest() == 6
assert cli.main(["evaluate", "--workdir=" + workdir, "--index=" + index]) == 2
assert cli.main(["convert", "export", workdir, index + ".out"]) == 0
assert (epath.Path(index + ".out") / "tokenizer.model").exists()
assistant = answering.load_assistant(workdir)
print("found:", *sorted(path.name for path in epath.Path(workdir).iterdir()))
"""


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
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
  try:
    for _ in range(240):
      try:
        urllib.request.urlopen(f"{address}/storage/v1/b/bkt", timeout=5)
        break
      except OSError:
        assert server.poll() is None
        time.sleep(0.5)
    anonymous = json.dumps({"token": "anon"})
    yield (
      address,
      dict(os.environ)
      | {
        "XLA_FLAGS": "",  # one device
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
        "NO_GCE_CHECK": "true",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
        "FSSPEC_GCS": anonymous,
        "FSSPEC_GS": anonymous,
      },
    )
  finally:
    server.terminate()
    server.wait(timeout=60)


def test_a_run_lives_in_a_bucket(bucket, tmp_path):
  address, environ = bucket
  phantoms.write(tmp_path, 9, seed=0)
  index = tmp_path / "image2label_train.json"
  first = sorted((tmp_path / "images").iterdir())[0]
  first.write_bytes(b"no picture")
  result = subprocess.run(
    [sys.executable, "-c", PROGRAM, "gs://bkt/run", str(index)],
    env=environ,
    cwd=imports.ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert result.returncode == 0, result.stdout + result.stderr
  assert (
    "found: checkpoints frozen metrics.jsonl quarantine.jsonl run.json "
    "settings.json tensorboard tokenizer.model" in result.stdout
  )
  assert "give --out" in result.stderr
  assert not pathlib.Path("gs:").exists()

  def read(name):
    url = f"{address}/storage/v1/b/bkt/o/run%2F{name}?alt=media"
    with urllib.request.urlopen(url) as reply:
      return reply.read().decode()

  rows = [json.loads(line) for line in read("metrics.jsonl").splitlines()]
  assert [row["step"] for row in rows] == [2, 4, 6]
  (fault,) = read("quarantine.jsonl").splitlines()
  assert json.loads(fault)["path"] == str(first)
