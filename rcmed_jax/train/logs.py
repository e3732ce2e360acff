"""What a run shows while it runs: a bar, TensorBoard files, metrics.jsonl."""

import json
import os
import pathlib
import sys
import tempfile
import time

from etils import epath
import tensorboardX
import tqdm

from rcmed_jax.data import files


class Log:
  """Writes the metrics of one run; use as a context manager.

  `workdir/metrics.jsonl` holds one JSON object a line, each with its "step";
  `workdir/tensorboard/` the same numbers as event files, which come there at
  the end where `workdir` lies in a bucket.
  """

  def __init__(
    self, workdir: str | os.PathLike[str], *, start: int, steps: int
  ):
    """Opens the files to go on after step `start`.

    What an interrupted run wrote after its last checkpoint is dropped: those
    steps run again.
    """
    workdir = epath.Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    self._file = files.LineFile(workdir / "metrics.jsonl")
    self._file.replace(_lines_until(self._file.lines(), start))
    self._tensorboard = workdir / "tensorboard"
    # Event files grow by every number, as nothing in a bucket can.
    self._spool = (
      tempfile.TemporaryDirectory() if files.is_remote(workdir) else None
    )
    folder = self._spool.name if self._spool else self._tensorboard
    self._events = tensorboardX.SummaryWriter(str(folder), purge_step=start + 1)
    # Where nobody watches, a line every ten seconds is enough.
    self._bar = tqdm.tqdm(
      initial=start,
      total=steps,
      unit="step",
      mininterval=0.1 if sys.stderr.isatty() else 10.0,
    )
    self._rate_since = time.perf_counter()
    self._images = 0

  def __enter__(self) -> "Log":
    return self

  def __exit__(self, *_: object) -> None:
    self._bar.close()
    self._events.close()
    self._file.flush()
    if self._spool:
      self._tensorboard.mkdir(parents=True, exist_ok=True)
      for path in pathlib.Path(self._spool.name).iterdir():
        (self._tensorboard / path.name).write_bytes(path.read_bytes())
      self._spool.cleanup()

  def advance(self, images: int) -> None:
    """One step of `images` images was given to the device."""
    self._images += images
    self._bar.update()

  def restart_clock(self) -> None:
    """What was done since the last write counts for no rate."""
    self._rate_since = time.perf_counter()
    self._images = 0

  def write_training(self, step: int, metrics: dict[str, float]) -> None:
    """Training metrics, with the images per second since the last call."""
    rate = self._images / (time.perf_counter() - self._rate_since)
    self.restart_clock()
    self._bar.set_postfix_str(
      f"loss={metrics['loss']:.4f}, {rate:.1f} images/s", refresh=False
    )
    self.write(step, {**metrics, "images_per_s": rate})

  def write(self, step: int, metrics: dict[str, float]) -> None:
    """One line of metrics.jsonl and one TensorBoard scalar a number."""
    self._file.add(json.dumps({"step": step, **metrics}))
    for name, value in metrics.items():
      self._events.add_scalar(name, value, step)
    self._events.flush()

  def say(self, message: str) -> None:
    """A sentence above the bar."""
    self._bar.write(message, file=sys.stderr)


class Silence:
  """The log of a process that leaves writing to another: nothing."""

  def __enter__(self) -> "Silence":
    return self

  def __exit__(self, *_: object) -> None:
    pass

  def advance(self, images: int) -> None:
    pass

  def restart_clock(self) -> None:
    pass

  def write_training(self, step: int, metrics: dict[str, float]) -> None:
    pass

  def write(self, step: int, metrics: dict[str, float]) -> None:
    pass

  def say(self, message: str) -> None:
    pass


def _lines_until(lines: list[str], step: int) -> list[str]:
  """Complete lines of metrics.jsonl up to and including `step`."""
  # The last line of a killed run may be cut short.
  whole = [line for line in lines if line.endswith("}\n")]
  return [line for line in whole if json.loads(line)["step"] <= step]
