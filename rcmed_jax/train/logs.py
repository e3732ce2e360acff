"""What a run shows while it runs: a bar, TensorBoard files, metrics.jsonl."""

import json
import pathlib
import sys
import time

import tensorboardX
import tqdm


class Log:
  """Writes the metrics of one run; use as a context manager.

  `workdir/metrics.jsonl` holds one JSON object a line, each with its "step";
  `workdir/tensorboard/` the same numbers as event files.
  """

  def __init__(self, workdir: pathlib.Path, *, start: int, steps: int):
    """Opens the files to go on after step `start`.

    What an interrupted run wrote after its last checkpoint is dropped: those
    steps run again.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    path = workdir / "metrics.jsonl"
    kept = _lines_until(path, start)
    path.write_text("".join(kept))
    self._file = path.open("a", buffering=1)
    self._events = tensorboardX.SummaryWriter(
      str(workdir / "tensorboard"), purge_step=start + 1
    )
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
    self._file.close()

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
    self._file.write(json.dumps({"step": step, **metrics}) + "\n")
    for name, value in metrics.items():
      self._events.add_scalar(name, value, step)
    self._events.flush()

  def say(self, message: str) -> None:
    """A sentence above the bar."""
    self._bar.write(message, file=sys.stderr)


def _lines_until(path: pathlib.Path, step: int) -> list[str]:
  """Complete lines of metrics.jsonl up to and including `step`."""
  if not path.exists():
    return []
  lines = path.read_text().splitlines(keepends=True)
  # The last line of a killed run may be cut short.
  whole = [line for line in lines if line.endswith("}\n")]
  return [line for line in whole if json.loads(line)["step"] <= step]
