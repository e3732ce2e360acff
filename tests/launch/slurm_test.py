"""launch/slurm.sbatch under a real Slurm of one node; minutes, and root."""

import os
import pathlib
import shutil
import socket
import subprocess
import sys
import time

import imports
import pytest

from launch import local
from rcmed_jax.data import phantoms

pytestmark = pytest.mark.heavy

DAEMONS = ("munged", "slurmctld", "slurmd")
CONFIG = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def path_of(daemon):
  return shutil.which(daemon, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
  """The environment in which Slurm's commands find a cluster of one node."""
  missing = [name for name in DAEMONS if path_of(name) is None]
  if missing:
    pytest.skip(
      f"not installed: {', '.join(missing)} (Debian: slurmctld, "
      "slurmd, slurm-client, munge)"
    )
  if os.geteuid():
    pytest.skip("Slurm's daemons want root")
  folder = tmp_path_factory.mktemp("slurm")
  for parent in (folder, *folder.parents):
    if parent != pathlib.Path("/") and parent != pathlib.Path("/tmp"):
      parent.chmod(0o755)  # munge's user passes through
  for name in ("state", "spool", "munge"):
    (folder / name).mkdir()
  key = folder / "munge/key"
  key.write_bytes(os.urandom(1024))
  key.chmod(0o600)
  shutil.chown(folder / "munge", "munge")
  shutil.chown(key, "munge")
  config = folder / "slurm.conf"
  config.write_text(
    CONFIG.format(
      folder=folder,
      host=socket.gethostname().partition(".")[0],
      controller=local.free_port(),
      node=local.free_port(),
    )
  )
  environ = dict(os.environ) | {"SLURM_CONF": str(config)}
  munged = [
    *("runuser", "-u", "munge", "--", path_of("munged"), "--foreground"),
    *("--force", f"--socket={folder}/munge/socket", f"--key-file={key}"),
    *(f"--pid-file={folder}/munge/pid", f"--log-file={folder}/munge/log"),
    f"--seed-file={folder}/munge/seed",
  ]
  config.write_text(config.read_text().replace("munge.socket", "munge/socket"))
  started = [
    subprocess.Popen(command, env=environ)
    for command in (
      munged,
      [path_of("slurmctld"), "-D"],
      [path_of("slurmd"), "-D", "-N", socket.gethostname().partition(".")[0]],
    )
  ]
  try:
    wait_until(lambda: "idle" in told(environ, "sinfo", "--noheader"))
    yield environ
  finally:
    for daemon in reversed(started):
      daemon.terminate()
      daemon.wait(timeout=60)


def told(environ, *command):
  result = subprocess.run(
    command, env=environ, capture_output=True, text=True, check=False
  )
  return result.stdout + result.stderr


def wait_until(true, seconds=120.0):
  deadline = time.monotonic() + seconds
  while not true():
    assert time.monotonic() < deadline, "waited in vain"
    time.sleep(0.5)


@pytest.fixture
def job(slurm, tmp_path):
  """Hands the script in with two tasks; the environment and its log."""
  data = tmp_path / "data"
  phantoms.write(data, 9, seed=0)
  command = tmp_path / "rcmed"
  command.write_text(
    f'#!/bin/bash\nexec "{sys.executable}" -m rcmed_jax "$@"\n'
  )
  command.chmod(0o755)
  environ = slurm | {
    "CONFIG": "configs/demo.py:tiny",
    "WORKDIR": str(tmp_path / "run"),
    "RCMED": str(command),
    "PYTHONPATH": str(imports.ROOT),
    "XLA_FLAGS": "",  # one device a task
  }

  def submit(*options):
    return subprocess.run(
      [
        *("sbatch", "--ntasks-per-node=2", "--nodes=1"),
        *("--cpus-per-task=1", *options),
        *(f"--chdir={imports.ROOT}", f"--output={tmp_path}/log"),
        "launch/slurm.sbatch",
        f"--config.data.index={data / 'image2label_train.json'}",
        *("--config.mesh.data=-1", "--config.train.batch_size=8"),
        *("--config.train.log_every=1", "--config.train.steps=40"),
        "--config.train.checkpoint_every=1000",
      ],
      env=environ,
      cwd=imports.ROOT,
      capture_output=True,
      text=True,
      check=False,
    )

  return environ, tmp_path, submit


def test_two_tasks_train_stop_go_back_in_line_and_go_on(job):
  environ, folder, submit = job
  result = submit("--parsable")
  assert result.returncode == 0, result.stderr
  number = result.stdout.strip()
  log, metrics = folder / "log", folder / "run/metrics.jsonl"
  wait_until(metrics.exists, 600)
  wait_until(lambda: len(metrics.read_text().splitlines()) >= 2, 600)
  # What Slurm sends before the time limit: to the tasks, not to the script.
  told(environ, "scancel", "--signal=TERM", number)
  wait_until(lambda: "Stopped by SIGTERM" in log.read_text(), 600)
  steps = len(metrics.read_text().splitlines())
  assert steps < 40
  # Jobs that come back wait two minutes, unless they are let go.
  wait_until(lambda: "PENDING" in told(environ, "squeue", "-ho%T"), 120)
  told(environ, "scontrol", "update", f"JobId={number}", "StartTime=now")
  wait_until(lambda: not told(environ, "squeue", "-ho%T").strip(), 900)
  text = log.read_text()
  assert "process 1 of 2, coordinator" in text
  assert f"Slurm job {number}" in text
  assert f"going on after step {steps}" in text
  assert "train: 40 steps, saved in" in text
  assert len(metrics.read_text().splitlines()) == 40


def test_what_no_cluster_has_is_refused_at_once(job):
  _, _, submit = job
  assert submit("--test-only").returncode == 0
  assert submit("--test-only", "--nodes=4").returncode == 1
