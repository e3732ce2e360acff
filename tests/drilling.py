"""A run of `rcmed train` that is small enough to be broken many times."""

from collections.abc import Callable, Sequence
import json
import os
import pathlib
import subprocess
import sys
import time
from typing import Any

import imports
import jax
import numpy as np

from rcmed_jax.data import mixture
from rcmed_jax.train import checkpoints

STEPS = 12
BATCH = 4
IMAGES = 36  # nine batches see each once

# `rcmed` without PyTorch, as most have it: TensorBoard's writer would import it
# where it is, for seconds a start.
BEGIN = """
import sys
sys.modules["torch"] = None
from rcmed_jax import cli
sys.exit(cli.main(sys.argv[1:]))
"""

# A child that does not come so far has failed; machines may be slow.
PATIENCE_S = 300


def flags(
  workdir: pathlib.Path, data: pathlib.Path, *more: str, steps: int = STEPS
) -> list[str]:
  """What `rcmed` is told: every organ, and no more of any than must be."""
  return [
    *("train", "--config=configs/demo.py:tiny", f"--workdir={workdir}"),
    f"--config.data.index={data / 'image2label_train.json'}",
    *("--config.data.lengths=(208,)", "--config.data.mask_size=16"),
    *("--config.data.noise_share=0", "--config.data.vocabulary=640"),
    *("--config.model.image.width=16", "--config.model.language.width=16"),
    *("--config.model.language.depth=1", "--config.model.language.hidden=32"),
    *("--config.model.decoder.width=16", "--config.model.decoder.depth=1"),
    *("--config.model.decoder.hidden=32", "--config.model.correlation.steps=0"),
    "--config.model.correlation.deep_supervision=False",
    *("--config.optimizer.rule=adamw", "--config.train.log_every=1"),
    *(f"--config.train.steps={steps}", f"--config.train.batch_size={BATCH}"),
    *("--config.train.checkpoint_every=2", "--config.train.keep=3"),
    *more,
  ]


def start(
  told: list[str], *program: str, processes: int = 1, **options: Any
) -> subprocess.Popen[str]:
  """Starts `rcmed`, or a program in its place, as one process or several."""
  begin = program or ("-c", BEGIN)
  if processes > 1:
    several = ("--processes", str(processes), "--devices", "1", "--")
    begin = ("launch/local.py", *several)
  one = "--xla_force_host_platform_device_count=1"
  world = {
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {one}",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  return subprocess.Popen(
    [sys.executable, *begin, *told],
    cwd=imports.ROOT,
    env=os.environ | world,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    **options,
  )


def finish(
  child: subprocess.Popen[str], *, patience_s: float = PATIENCE_S
) -> tuple[int, str]:
  """Waits for the end; exit code and all that was said."""
  said, _ = child.communicate(timeout=patience_s)
  return child.returncode, said


def wait(child: subprocess.Popen[str], until: Callable[[], bool]) -> None:
  """Returns once it is so; the child must not end before."""
  deadline = time.monotonic() + PATIENCE_S
  while not until():
    assert child.poll() is None, child.communicate()[0]
    assert time.monotonic() < deadline, "the child does not come so far"
    time.sleep(0.001)


def rows(workdir: pathlib.Path) -> list[dict[str, float]]:
  """The whole lines of metrics.jsonl."""
  path = workdir / "metrics.jsonl"
  lines = path.read_text().splitlines(keepends=True) if path.exists() else []
  return [json.loads(line) for line in lines if line.endswith("}\n")]


def saved_steps(workdir: pathlib.Path) -> list[int]:
  """Steps whose checkpoints are complete, by their names alone."""
  folder = workdir / "checkpoints"
  names = os.listdir(folder) if folder.exists() else []
  return sorted(int(name) for name in names if name.isdigit())


def weights(workdir: pathlib.Path) -> Any:
  """Of the newest checkpoint."""
  with checkpoints.Checkpoints(workdir) as saved:
    return jax.device_get(saved.weights())


def assert_as_if_nothing_had_happened(
  workdir: pathlib.Path, whole: pathlib.Path
) -> None:
  """Weights, losses and the steps that were logged, to the last bit."""
  jax.tree.map(np.testing.assert_array_equal, weights(workdir), weights(whole))
  timeless = ("_s", "memory_gib", "mfu")
  told, wanted = (
    [
      {k: v for k, v in row.items() if not k.endswith(timeless)}
      for row in rows(path)
    ]
    for path in (workdir, whole)
  )
  assert told == wanted


def first_epoch(index: Sequence[Any]) -> list[np.ndarray]:
  """The records of each batch of a run's first epoch."""
  order = mixture.order(index, seed=0)
  taken = [order[place] for place in range(len(index))]
  return [
    np.array(taken[begin : begin + BATCH])
    for begin in range(0, len(taken), BATCH)
  ]
