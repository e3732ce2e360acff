"""The 7B on one GPU: training, answering and kernels, beside PyTorch.

  pip install '.[cuda]'                       # and, for `torch`, CUDA's PyTorch
  python benchmarks/gpu.py all --seconds 700  # docs/gpu.md: fewer at a time
  python benchmarks/gpu.py --toy all          # the same code on a CPU

Random weights at full size, images of 1024 x 1024, 1,024 visual and 200 text
tokens. Each part runs in a process of its own, which gives all memory back:

  kernels      our attention against XLA, cuDNN, PyTorch; what the parts after
               it let the image encoder use
  train        the step that `rcmed train` runs, by batch
  torch        all four parts in PyTorch, of transformers' SAM and LLaMA
  evaluate     image and whole answer to masks
  prefill      image and question to the first token
  decode       more tokens
  correlation  our correlation attention against others

Rows go to OUT/gpu.jsonl as they are measured, the table to OUT/gpu.md. A part
that is measured again replaces its rows.
"""

import argparse
import datetime
import json
import os
import pathlib
import shlex
import subprocess
import sys
import time
from typing import Any

import gpu_report

# Part -> its share of the seconds.
PARTS = {
  "kernels": 3,
  "train": 9,
  "torch": 6,
  "evaluate": 4,
  "prefill": 2,
  "decode": 2,
  "correlation": 3,
}
OTHERS = ("train", "evaluate", "prefill", "decode")  # of torch
GRACE = 30  # seconds beyond its own that a part may take to end

HERE = pathlib.Path(__file__).parent


def main() -> None:
  """Runs the parts that are asked for."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("part", choices=("all", *PARTS), nargs="+")
  parser.add_argument("--toy", action="store_true", help="sizes for a CPU")
  parser.add_argument(
    "--seconds", type=float, default=700, help="for all parts together"
  )
  parser.add_argument(
    "--attention",
    help="of the image encoder; default: the fastest of `kernels`, or auto",
  )
  parser.add_argument("--out", type=pathlib.Path, default="runs/gpu")
  parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
  told = shlex.join(["python", "benchmarks/gpu.py", *sys.argv[1:]])
  parser.add_argument("--told", default=told, help=argparse.SUPPRESS)
  args = parser.parse_args()
  args.out.mkdir(parents=True, exist_ok=True)
  if args.here:
    _here(args.part[0], args)
    return
  parts = list(PARTS) if "all" in args.part else args.part
  end = time.monotonic() + args.seconds
  for index, part in enumerate(parts):
    left = end - time.monotonic()
    share = PARTS[part] / sum(PARTS[name] for name in parts[index:])
    gpu_report.forget(args.out, part)
    _process(part, left * share, args)
    failed = not gpu_report.measured(args.out, part)
    if failed and args.attention != "auto" and part in OTHERS:
      print(f"{part}: nothing could be measured; again with auto", flush=True)
      _process(part, left * share, args, "auto")
    gpu_report.write(args.out)
  print((args.out / gpu_report.TABLE).read_text())


def _process(
  part: str, seconds: float, args: argparse.Namespace, attention: str = ""
) -> None:
  """One part in a process of its own, ended where it takes too long."""
  attention = attention or args.attention or gpu_report.fastest(args.out)
  command = [sys.executable, __file__, part, "--here", f"--out={args.out}"]
  command += [f"--seconds={seconds:.0f}", f"--attention={attention}"]
  command += [f"--told={args.told}", *["--toy"] * args.toy]
  # Read when JAX first looks at the device. Kernels run beside PyTorch's, all
  # else has the card for itself.
  settings = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.94"}
  if part in ("kernels", "correlation"):
    settings = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
  if args.toy:  # compiling is what takes a toy's time
    settings["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
  print(f"--- {part}, {seconds:.0f} s, attention {attention}", flush=True)
  try:
    done = subprocess.run(
      command, env=settings | os.environ, timeout=seconds + GRACE, check=False
    )
  except subprocess.TimeoutExpired:
    _emitter(part, args)({"failed": f"stopped after {seconds:.0f} s"})
    return
  if done.returncode:
    _emitter(part, args)({"failed": f"the process left with {done.returncode}"})


def _here(part: str, args: argparse.Namespace) -> None:
  """One part, in this process."""
  import gpu_cases

  emit = _emitter(part, args)
  given, clock = gpu_cases.sizes(args.toy), gpu_cases.Clock(args.seconds)
  start = time.monotonic()
  if part in ("kernels", "correlation"):
    _kernels(part, args, emit)
    return
  if part == "torch":
    import gpu_torch

    theirs = gpu_torch.Theirs(given, emit, clock)
    emit(_facts(theirs.facts(), args) | {"ready_s": time.monotonic() - start})
    for index, other in enumerate(OTHERS):
      left = args.seconds - (time.monotonic() - start)
      theirs.clock = gpu_cases.Clock(
        left * PARTS[other] / sum(PARTS[name] for name in OTHERS[index:])
      )
      theirs.emit = lambda row, other=other: emit(row | {"step": other})
      getattr(theirs, other)()
    return
  import gpu_ours

  ours = gpu_ours.Ours(given, args.attention or "auto", emit, clock)
  emit(_facts(ours.facts(), args) | {"ready_s": time.monotonic() - start})
  getattr(ours, part)()


def _kernels(
  part: str, args: argparse.Namespace, emit: gpu_report.Emit
) -> None:
  import kernels_gpu

  names = ("a b", "global", "windows") if part == "kernels" else ("corr",)
  emit(_facts(kernels_gpu.facts(), args))
  for row in kernels_gpu.measured(args.toy, names, gpu_report.KERNEL_ROUNDS):
    emit(row)


def _facts(found: gpu_report.Row, args: argparse.Namespace) -> gpu_report.Row:
  return found | {
    "facts": True,
    "toy": args.toy,
    "date": datetime.date.today().isoformat(),
    "python": sys.version.split()[0],
    "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    "command": args.told,
  }


def _emitter(part: str, args: argparse.Namespace) -> gpu_report.Emit:
  """Takes rows of a part: prints them, and keeps them at once."""

  def emit(row: dict[str, Any]) -> None:
    row = {"part": part, **row}
    with (args.out / gpu_report.ROWS).open("a") as file:
      file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)

  return emit


if __name__ == "__main__":
  main()
