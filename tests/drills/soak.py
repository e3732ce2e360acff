"""A long run, killed again and again, against one without a break.

  PYTHONPATH=.:tests python tests/drills/soak.py --steps=2000 --every=100

Trains a toy twice, each in processes of their own: once undisturbed, and once
killed with SIGKILL at random moments, on average after `--every` steps, and
started again with the same command. Compares weights and losses bit for bit and
prints what each kill cost. Its exit code is 1 where anything differs.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import statistics
import sys
import tempfile
import time

import drilling

from rcmed_jax.data import phantoms

# More than a line of metrics.jsonl.
_END_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Loss:
  """What a kill cost."""

  at: int  # the last step that was logged
  saved: int  # the step gone on from
  in_commit: bool  # whether a checkpoint was half written
  back_s: float  # from the start of the next process to its first new step


def main(argv: list[str] | None = None) -> int:
  """Prints the outcome; see the module."""
  parser = argparse.ArgumentParser()
  parser.add_argument("--steps", type=int, default=2000)
  parser.add_argument("--every", type=int, default=100, help="steps a kill")
  parser.add_argument("--save", type=int, default=20, help="steps a checkpoint")
  parser.add_argument("--seed", type=int, default=0, help="of the moments")
  args = parser.parse_args(argv)
  with tempfile.TemporaryDirectory() as folder:
    where = pathlib.Path(folder)
    # So that a process is back in seconds.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(where / "cache"))
    phantoms.write(where / "data", drilling.IMAGES, seed=0)
    since = time.monotonic()
    whole = drilling.start(_told(where / "whole", where, args))
    code, said = drilling.finish(whole, patience_s=3600)
    assert code == 0, said
    undisturbed_s = time.monotonic() - since
    since = time.monotonic()
    losses = torn(where / "torn", where, args)
    seconds = time.monotonic() - since
    print(_report(losses, args.steps, seconds, undisturbed_s), flush=True)
    drilling.assert_as_if_nothing_had_happened(where / "torn", where / "whole")
  print("Weights and logged losses equal those of the run without a break.")
  return 0


def torn(
  workdir: pathlib.Path, where: pathlib.Path, args: argparse.Namespace
) -> list[Loss]:
  """Runs to the end, killed on the way."""
  moments, losses = random.Random(args.seed), []
  while True:
    saved = max(drilling.saved_steps(workdir), default=0)
    since = time.monotonic()
    child = drilling.start(_told(workdir, where, args))
    wanted = saved + moments.randint(1, 2 * args.every - 1)
    back_s = _first_new(child, workdir, saved) - since
    if losses:
      losses[-1] = dataclasses.replace(losses[-1], saved=saved, back_s=back_s)
    while child.poll() is None and _last(workdir) < wanted:
      time.sleep(0.002)
    time.sleep(moments.uniform(0, 0.05))
    if wanted >= args.steps:
      code, said = drilling.finish(child, patience_s=3600)
      assert code == 0, said
      return losses
    child.kill()
    drilling.finish(child)
    names = os.listdir(workdir / "checkpoints")
    half = any("tmp" in name for name in names)
    losses.append(Loss(_last(workdir), 0, half, 0.0))


def _told(
  workdir: pathlib.Path, where: pathlib.Path, args: argparse.Namespace
) -> list[str]:
  return drilling.flags(
    workdir,
    where / "data",
    f"--config.train.checkpoint_every={args.save}",
    "--config.data.cache=True",
    steps=args.steps,
  )


def _first_new(child, workdir: pathlib.Path, saved: int) -> float:
  """When the first step after those that were saved was logged."""
  path = workdir / "metrics.jsonl"
  before = path.stat().st_ino if path.exists() else None
  # Its start writes the log anew, without what runs again.
  drilling.wait(
    child,
    lambda: (
      path.exists() and path.stat().st_ino != before and _last(workdir) > saved
    ),
  )
  return time.monotonic()


def _last(workdir: pathlib.Path) -> int:
  """The last step in the log, of which only the end is read."""
  path = workdir / "metrics.jsonl"
  if not path.exists():
    return 0
  with path.open("rb") as file:
    file.seek(max(0, path.stat().st_size - _END_BYTES))
    whole, _, _ = file.read().rpartition(b"\n")
  _, _, line = whole.rpartition(b"\n")
  return int(json.loads(line)["step"]) if line else 0


def _report(
  losses: list[Loss], steps: int, seconds: float, undisturbed_s: float
) -> str:
  again = [loss.at - loss.saved for loss in losses]
  back = [loss.back_s for loss in losses]
  return (
    f"{steps} steps, {len(losses)} kills, "
    f"{sum(loss.in_commit for loss in losses)} of them while a checkpoint was "
    f"written. {sum(again)} steps ran again, {statistics.fmean(again):.0f} a "
    f"kill, {max(again)} at most. Back at a new step "
    f"{statistics.median(back):.1f} s after the start, the median; "
    f"{max(back):.1f} s at most. "
    f"{seconds:.0f} s in all, {undisturbed_s:.0f} s without a break."
  )


if __name__ == "__main__":
  sys.exit(main())
