"""Batches whose loss or gradient is not finite: kept, then stopped or skipped.

`workdir/bad_batches.jsonl` holds one JSON object for each: the step, records of
its rows, its metrics and where the data iterator stood before it, which is
enough to run it again (`rcmed train --replay STEP`).
"""

from collections.abc import Sequence
import dataclasses
import json
from typing import Any

from etils import epath
import jax
import numpy as np

from rcmed_jax.data import files
from rcmed_jax.parallel import hosts

FILE = "bad_batches.jsonl"

POLICIES = ("stop", "skip")

# Bad data comes now and then; bad weights make every batch look bad.
MOST_IN_A_ROW = 10


@dataclasses.dataclass(frozen=True)
class Done:
  """A step that was given to the devices."""

  step: int
  metrics: dict[str, jax.Array]
  records: np.ndarray  # int64[B], of this process's rows
  data_state: Any  # of the iterator before the batch


@dataclasses.dataclass(frozen=True)
class BadBatch:
  """A batch that was kept, as it lies in the file."""

  step: int
  records: list[int]  # of all processes
  metrics: dict[str, str]  # JSON knows no NaN
  data_state: Any


class Guard:
  """Looks at the steps of a run, each once, and acts on those not finite."""

  def __init__(self, policy: str, workdir: epath.Path):
    """Keeps what it finds in `workdir`; `policy` is one of POLICIES."""
    self._policy = policy
    self._workdir = workdir
    self._seen = 0  # the last step looked at
    self._in_a_row = 0

  def look(self, done: Sequence[Done], upto: int) -> list[str]:
    """Waits for the steps up to `upto`; a sentence for each that was skipped.

    Raises:
      FloatingPointError: one is not finite and the policy is to stop, or too
        many are in a row.
    """
    sentences = []
    for one in done:
      if not self._seen < one.step <= upto:
        continue
      self._seen = one.step
      if not one.metrics["non_finite"]:
        self._in_a_row = 0
        continue
      self._in_a_row += 1
      bad = _bad_batch(one)
      if hosts.is_first():
        line = json.dumps(dataclasses.asdict(bad))
        file = files.LineFile(self._workdir / FILE)
        file.add(line)
        file.flush()
      if self._policy == "stop" or self._in_a_row >= MOST_IN_A_ROW:
        raise FloatingPointError(self._stopped(bad))
      sentences.append(
        f"step {bad.step} was skipped: its loss or gradient is not finite. "
        f"Records of the batch: {bad.records}; kept in {FILE}."
      )
    return sentences

  def _stopped(self, bad: BadBatch) -> str:
    many = (
      f", as were the {MOST_IN_A_ROW - 1} before it"
      if self._policy == "skip"
      else ""
    )
    return (
      f"step {bad.step}: the loss or its gradient is not finite{many}: "
      f"{bad.metrics}. Records of the batch: {bad.records}. The weights were "
      "left as they were before it, the last checkpoint in "
      f"{self._workdir} is whole. The batch is in {FILE}: `rcmed train "
      f"--replay {bad.step}` with the same settings says which record it is. "
      "train.not_finite=skip goes on without such batches; or lower "
      "optimizer.learning_rate."
    )


def read(workdir: epath.Path, step: int) -> BadBatch:
  """What was kept of a step, the last time that it ran.

  Raises:
    ValueError: nothing was; names the steps there are.
  """
  path = workdir / FILE
  kept = [json.loads(line) for line in files.LineFile(path).lines()]
  found = [one for one in kept if one["step"] == step]
  if not found:
    steps = sorted({one["step"] for one in kept})
    raise ValueError(
      f"{path} holds no batch of step {step}; it holds those of "
      f"{', '.join(map(str, steps)) or 'none'}."
    )
  return BadBatch(**found[-1])


def _bad_batch(one: Done) -> BadBatch:
  records = hosts.all_of(one.records)
  metrics = jax.device_get(one.metrics)
  values = {name: f"{float(value):.6g}" for name, value in metrics.items()}
  return BadBatch(one.step, records.tolist(), values, one.data_state)
