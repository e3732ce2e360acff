"""Two processes of four devices train as one of eight does; minutes."""

from collections.abc import Sequence
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import imports
import jax
import numpy as np
import psutil
import pytest
import toy

from launch import local
from rcmed_jax.data import phantoms
from rcmed_jax.parallel import hosts
from rcmed_jax.train import checkpoints

pytestmark = pytest.mark.heavy

STEPS = 20


class Training:
  """Starts `rcmed train` of the toy, on one process or on two."""

  def __init__(self, data: pathlib.Path):
    self.data = data

  def __call__(self, workdir: pathlib.Path, processes: int, *arguments: str):
    command = (
      *("train", "--config=configs/demo.py:tiny", f"--workdir={workdir}"),
      f"--config.data.index={self.data / 'image2label_train.json'}",
      *("--config.mesh.data=-1", "--config.mesh.fsdp=2"),
      *("--config.train.batch_size=8", f"--config.train.steps={STEPS}"),
      # Noise of a gradient that should be zero moves no weight: meshes_test.
      *("--config.optimizer.rule=adamw", "--config.optimizer.eps=1e-4"),
      *("--config.train.log_every=1", "--config.train.checkpoint_every=1000"),
      *arguments,
    )
    return self.started(processes, command)

  def started(self, processes: int, command: Sequence[str]):
    local = ("launch/local.py", "--processes", "2", "--devices", "4", "--")
    starter = local if processes == 2 else ("-m", "rcmed_jax")
    # Compiling takes most of the time, and each step is run a few times.
    flags = f"{os.environ['XLA_FLAGS']} --xla_backend_optimization_level=0"
    return subprocess.Popen(
      [sys.executable, *starter, *command],
      cwd=imports.ROOT,
      env=os.environ | {"XLA_FLAGS": flags},
      stderr=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )


@pytest.fixture(scope="module")
def train(tmp_path_factory):
  data = tmp_path_factory.mktemp("data")
  phantoms.write(data, 27, seed=0)
  # A picture that is none, and a mask that is: each fault once for all.
  broken = sorted((data / "images").iterdir())[5]
  broken.write_bytes(b"no picture")
  return Training(data)


def finish(child):
  """Waits for the end; exit code and all that was said."""
  out, err = child.communicate()
  return child.returncode, out + err


def losses(workdir):
  """Step -> loss."""
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return {row["step"]: row["loss"] for row in map(json.loads, lines)}


def weights(workdir):
  with checkpoints.Checkpoints(workdir) as saved:
    assert saved.latest() == STEPS
    return saved.weights()


def assert_close(one, other):
  np.testing.assert_allclose(
    list(one.values()), list(other.values()), rtol=1e-5
  )


@pytest.fixture(scope="module")
def two(train, tmp_path_factory):
  """The folder of a run of two processes without a break."""
  workdir = tmp_path_factory.mktemp("runs") / "two"
  code, said = finish(train(workdir, 2))
  assert code == 0, said
  assert said.count("[0] train: 1 items could not be used") == 1
  assert "[1] train: 1 items" not in said
  return workdir


@pytest.fixture(scope="module")
def stopped(train, two, tmp_path_factory):
  """Folders of one run that stopped at some step, twice."""
  first, second = (tmp_path_factory.mktemp("runs") / name for name in "ab")
  child = train(first, 2)
  wanted = random.randrange(3, STEPS - 6)
  log = first / "metrics.jsonl"
  while child.poll() is None:
    if log.exists() and len(log.read_text().splitlines()) >= wanted:
      break
    time.sleep(0.02)
  assert child.poll() is None, finish(child)
  # One alone is told, and not the one that writes.
  _, other = sorted(psutil.Process(child.pid).children(), key=lambda p: p.pid)
  other.send_signal(signal.SIGTERM)
  code, said = finish(child)
  assert code == hosts.STOPPED, said
  assert "[0] Stopped by SIGTERM after step" in said
  assert wanted <= len(losses(first)) < STEPS
  second.parent.mkdir(exist_ok=True)
  subprocess.run(["cp", "-r", first, second], check=True)
  return first, second


def test_two_processes_equal_one(train, two, tmp_path):
  code, said = finish(train(tmp_path / "one", 1))
  assert code == 0, said
  one = losses(tmp_path / "one")
  assert list(one) == list(range(1, STEPS + 1))
  assert_close(losses(two), one)
  toy.assert_same_weights(weights(two), weights(tmp_path / "one"))


def test_two_processes_evaluate_as_one(two, train, tmp_path):
  """Half of the chunks each, the same files to the last byte."""
  outputs = []
  for processes in (1, 2):
    out = tmp_path / str(processes)
    argv = (
      *("evaluate", f"--workdir={two}", f"--out={out}"),
      f"--index={train.data / 'image2label_train.json'}",
      *("--config.eval.chunk=4", "--config.eval.limit=10"),
      *("--config.eval.max_new=4", "--config.eval.bootstrap=0"),
    )
    code, said = finish(train.started(processes, argv))
    assert code == 0, said
    assert said.count("evaluate: dice=") == 1
    outputs.append({path.name: path.read_bytes() for path in out.iterdir()})
  assert "summary--test.json" in outputs[0]
  assert outputs[0] == outputs[1]


SHARED = """
import jax
from rcmed_jax.apps import runs
from rcmed_jax.parallel import hosts, places

with hosts.started(places.find()):
  runs.require_shared("one", "--out")
  try:
    runs.require_shared(f"of-{jax.process_index()}", "--out")
  except ValueError as error:
    print("told:", error)
"""


def test_disks_of_their_own_are_told_to_both(tmp_path, capsys):
  program = tmp_path / "program.py"
  program.write_text(
    SHARED.replace('"one', f'"{tmp_path}/one').replace(
      'f"of', f'f"{tmp_path}/of'
    )
  )
  port = local.free_port()
  environ = os.environ | {"PYTHONPATH": str(imports.ROOT)}
  both = [local.environment(i, 2, 2, port, environ) for i in range(2)]
  assert local.run([sys.executable, str(program)], both) == 0
  out = capsys.readouterr().out
  for process in range(2):
    assert f"[{process}] told: process 1 of 2 does not see {tmp_path}/of" in out
  assert not list((tmp_path / "one").iterdir())


def test_only_one_process_writes(two):
  found = {path.name for path in two.iterdir()}
  assert found == {
    *("checkpoints", "frozen", "metrics.jsonl", "quarantine.jsonl"),
    *("run.json", "settings.json", "tensorboard", "tokenizer.model"),
  }
  assert len(list((two / "tensorboard").iterdir())) == 1
  (fault,) = (two / "quarantine.jsonl").read_text().splitlines()
  assert json.loads(fault)["field"] == "image"


def test_stopped_and_resumed_equals_uninterrupted(train, two, stopped):
  workdir, _ = stopped
  code, said = finish(train(workdir, 2, "--resume=required"))
  assert code == 0, said
  assert losses(workdir) == losses(two)  # to the last bit
  jax.tree.map(np.testing.assert_array_equal, weights(workdir), weights(two))


def test_resumed_by_one_process_takes_the_same_samples(train, two, stopped):
  _, workdir = stopped
  code, said = finish(train(workdir, 1, "--resume=required"))
  assert code == 0, said
  # Other samples, or another order, would show in the second digit.
  assert list(losses(workdir)) == list(range(1, STEPS + 1))
  assert_close(losses(workdir), losses(two))
