"""The starter with programs of a line; see several_test.py for real ones."""

import os
import signal
import subprocess
import sys
import time

import imports
import pytest

from launch import local

INDEX = "import os, sys, time; i = int(os.environ['JAX_PROCESS_ID']); "


def run(program, processes=3, **options):
  environments = [
    local.environment(i, processes, 2, 1234, os.environ)
    for i in range(processes)
  ]
  command = [sys.executable, "-c", INDEX + program]
  return local.run(command, environments, **options)


def test_every_line_says_whose_it_is(capsys):
  program = "print('a\\nb'); print('err', i, file=sys.stderr)"
  assert run(program, processes=2) == 0
  out, err = capsys.readouterr()
  assert sorted(out.splitlines()) == ["[0] a", "[0] b", "[1] a", "[1] b"]
  assert {"[0] err 0", "[1] err 1"} <= set(err.splitlines())


@pytest.mark.parametrize(
  "program, code",
  [
    ("sys.exit(0)", 0),
    ("sys.exit(75)", 75),  # all saved and stopped
    ("sys.exit([75, 0, 75][i])", 75),
    ("time.sleep([.9, .5, 0][i]); sys.exit([75, 7, 0][i])", 7),
    ("os.kill(os.getpid(), 9) if i == 1 else None", 137),
  ],
)
def test_exit_code_of_all(program, code):
  assert run(program) == code


@pytest.mark.parametrize(
  "first, code",
  # Of one that saved while others hang, nobody may think that all is saved.
  [(3, 3), (75, 1)],
)
def test_where_one_fails_the_others_are_killed(first, code, capsys):
  since = time.monotonic()
  program = f"time.sleep(600) if i else sys.exit({first})"
  assert run(program, grace_s=0.5) == code
  assert time.monotonic() - since < 60
  assert "[2] killed: another process failed" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signals_reach_every_process(tmp_path, name):
  program = f"""
import os, signal, sys
from launch import local
code = '''
{INDEX}
import signal
signal.signal(signal.{name}, lambda *_: sys.exit(75))
print("ready", flush=True)
while True:  # one long sleep could begin just after the signal came
  time.sleep(0.1)
'''
environments = [dict(os.environ, JAX_PROCESS_ID=str(i)) for i in range(2)]
sys.exit(local.run([sys.executable, "-c", code], environments))
"""
  child = subprocess.Popen(
    [sys.executable, "-c", program],
    cwd=imports.ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  assert child.stdout
  lines = {child.stdout.readline() for _ in range(2)}
  assert lines == {"[0] ready\n", "[1] ready\n"}
  child.send_signal(signal.Signals[name])
  assert child.wait(timeout=60) == 75
  child.stdout.close()


def test_virtual_devices_replace_those_that_were_asked_before():
  before = {"XLA_FLAGS": "--a=1 --xla_force_host_platform_device_count=8"}
  told = local.environment(1, 2, 4, 99, before)
  flags = "--a=1  --xla_force_host_platform_device_count=4"
  assert told["XLA_FLAGS"].split() == flags.split()
  assert told["JAX_PLATFORMS"] == "cpu"
  assert told["JAX_COORDINATOR_ADDRESS"] == "127.0.0.1:99"
  assert (told["JAX_NUM_PROCESSES"], told["JAX_PROCESS_ID"]) == ("2", "1")


def test_gpus_are_divided():
  gpus = ["0", "3", "5", "7"]
  shares = [
    local.environment(i, 2, 2, 99, {}, gpus=gpus)["CUDA_VISIBLE_DEVICES"]
    for i in range(2)
  ]
  assert shares == ["0,3", "5,7"]
  with pytest.raises(ValueError, match=r"need 6.*names 4"):
    local.environment(0, 3, 2, 99, {}, gpus=gpus)


def test_wrong_numbers_are_refused(capsys):
  with pytest.raises(SystemExit) as caught:
    local.main(["--processes", "0", "--", "train"])
  assert caught.value.code == 2
  assert "must be at least 1" in capsys.readouterr().err
