"""Starts one run as several processes on this machine.

  python launch/local.py --processes 2 --devices 4 -- \\
    train --config=configs/demo.py:tiny --workdir=runs/two ...

Every process runs `rcmed` with what stands after `--`, on `--devices` virtual
CPU devices of its own, or on its share of the GPUs with `--gpus`. Their output
comes out line by line, the process in front. SIGINT and SIGTERM go to all of
them. Where one fails, the others, which would wait for it for ever, are killed.

Exit code: 0 where all leave with 0; else that of the first process to fail,
128 + signal where a signal ended it; 75 where all saved and stopped on request.
"""

import argparse
from collections.abc import Mapping, Sequence
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO

# Saved, stopped on request: no failure of a process. Source:
# rcmed_jax/parallel/hosts.py, which takes seconds to import.
STOPPED = 75

# Left because another was gone: no cause of its own. Source: as above.
LOST = 76

# How long the others may still speak, or save, after the first has left.
GRACE_S = 30.0

# Of XLA for each virtual device.
THREADS = 4
_DEVICE_COUNT = r"--xla_force_host_platform_device_count=\d+"


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command line and returns the exit code."""
  args = _arguments(argv)
  gpus = None
  if args.gpus:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = args.processes * args.devices
    gpus = listed.split(",") if listed else [str(i) for i in range(count)]
  port = free_port()
  try:
    environments = [
      environment(
        index, args.processes, args.devices, port, os.environ, gpus=gpus
      )
      for index in range(args.processes)
    ]
  except ValueError as error:
    print(f"local.py: {error}", file=sys.stderr)
    return 2
  command = [sys.executable, "-m", "rcmed_jax", *args.command]
  return run(command, environments)


def environment(
  index: int,
  processes: int,
  devices: int,
  port: int,
  environ: Mapping[str, str],
  *,
  gpus: Sequence[str] | None = None,
) -> dict[str, str]:
  """The environment of process `index`.

  Args:
    gpus: of this machine, as CUDA names them; None: virtual CPU devices.

  Raises:
    ValueError: there are too few GPUs.
  """
  address = f"127.0.0.1:{port}"
  told = dict(environ) | {
    "JAX_COORDINATOR_ADDRESS": address,
    "JAX_COORDINATOR_BIND_ADDRESS": address,
    "JAX_NUM_PROCESSES": str(processes),
    "JAX_PROCESS_ID": str(index),
    "PYTHONUNBUFFERED": "1",
  }
  if gpus is None:
    flags = re.sub(_DEVICE_COUNT, "", environ.get("XLA_FLAGS", ""))
    told["XLA_FLAGS"] = (
      f"{flags} --xla_force_host_platform_device_count={devices}".strip()
    )
    told["JAX_PLATFORMS"] = "cpu"
    # XLA's threads: a device holds one in each collective that it has begun,
    # and with as few as there are cores all may wait for each other.
    told.setdefault("NPROC", str(THREADS * devices))
    return told
  if len(gpus) < processes * devices:
    raise ValueError(
      f"{processes} processes of {devices} GPUs need {processes * devices}; "
      f"CUDA_VISIBLE_DEVICES={','.join(gpus)} names {len(gpus)}. Lower "
      "--processes or --devices."
    )
  share = gpus[index * devices : (index + 1) * devices]
  told["CUDA_VISIBLE_DEVICES"] = ",".join(share)
  return told


def run(
  command: Sequence[str],
  environments: Sequence[Mapping[str, str]],
  *,
  grace_s: float = GRACE_S,
) -> int:
  """Runs the command once in each environment; the exit code of all.

  Args:
    grace_s: how long the others may go on after the first has failed.
  """
  # Sessions of their own, so that Ctrl-C reaches each once: through us.
  children = [
    subprocess.Popen(
      command,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      start_new_session=True,
      text=True,
      errors="replace",
    )
    for environment in environments
  ]
  readers = [
    threading.Thread(target=_relay, args=(index, source, target))
    for index, child in enumerate(children)
    for source, target in (
      (child.stdout, sys.stdout),
      (child.stderr, sys.stderr),
    )
  ]

  def forward(number: int, _: object) -> None:
    for child in children:
      child.send_signal(number)  # of no effect where it has ended

  before = {
    number: signal.signal(number, forward)
    for number in (signal.SIGINT, signal.SIGTERM)
  }
  for reader in readers:  # what a child says must not come before
    reader.start()
  try:
    code = _wait(children, grace_s)
  finally:
    for child in children:
      child.kill()
      child.wait()
    for reader in readers:
      reader.join()
    for number, handler in before.items():
      signal.signal(number, handler)
  return code


def free_port() -> int:
  """A port of the loopback interface that nobody uses now."""
  with socket.socket() as probe:
    probe.bind(("127.0.0.1", 0))
    return probe.getsockname()[1]


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
  first, *_ = (__doc__ or "").splitlines()
  parser = argparse.ArgumentParser(
    "local.py", description=first, allow_abbrev=False
  )
  parser.add_argument("--processes", type=int, default=2)
  parser.add_argument("--devices", type=int, default=4, help="of each process")
  parser.add_argument(
    "--gpus", action="store_true", help="GPUs instead of virtual CPU devices"
  )
  parser.add_argument(
    "command", nargs="+", metavar="-- COMMAND", help="of rcmed"
  )
  args = parser.parse_args(argv)
  if args.processes < 1 or args.devices < 1:
    parser.error("--processes and --devices must be at least 1")
  return args


def _relay(index: int, source: IO[str], target: IO[str]) -> None:
  """Passes lines on, the process in front, until its end closes the pipe."""
  with source:
    for line in source:
      target.write(f"[{index}] {line.rstrip()}\n")
      target.flush()


def _wait(children: Sequence[subprocess.Popen[str]], grace_s: float) -> int:
  """Waits for all, or for `grace_s` after the first failure."""
  failed: list[int] = []  # exit codes in the order in which they came
  running = list(enumerate(children))
  deadline = None
  while running and (deadline is None or time.monotonic() < deadline):
    time.sleep(0.05)
    for index, child in list(running):
      code = child.poll()
      if code is None:
        continue
      running.remove((index, child))
      if code:
        failed.append(code if code > 0 else 128 - code)
        deadline = deadline or time.monotonic() + grace_s
        print(f"[{index}] left with {failed[-1]}", file=sys.stderr)
  for index, _ in running:
    print(f"[{index}] killed: another process failed", file=sys.stderr)
  if running and failed and set(failed) == {STOPPED}:
    return 1  # some never saved
  causes = [code for code in failed if code not in (STOPPED, LOST)]
  faults = causes or [code for code in failed if code != STOPPED]
  return next(iter(faults or failed), 0)


if __name__ == "__main__":
  sys.exit(main())
