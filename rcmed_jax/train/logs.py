"""What a run shows while it runs: a bar, TensorBoard files, metrics.jsonl."""

from collections.abc import Iterator
import contextlib
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
from rcmed_jax.train import meter as meters

# What a run does between steps that counts for no rate.
_ASIDE = ("checkpoint", "evaluate")


class Log:
  """Writes the metrics of one run; use as a context manager.

  `workdir/metrics.jsonl` holds one JSON object a line, each with its "step";
  `workdir/tensorboard/` the same numbers as event files, which come there at
  the end where `workdir` lies in a bucket.
  """

  def __init__(
    self,
    workdir: str | os.PathLike[str],
    *,
    start: int,
    steps: int,
    meter: meters.Meter | None = None,
  ):
    """Opens the files to go on after step `start`.

    What an interrupted run wrote after its last checkpoint is dropped: those
    steps run again. With a meter, the use of the devices is written as well.
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
      miniters=1,
    )
    # A wall clock that jumps back would make the bar stand still.
    self._bar._time = time.monotonic  # pyright: ignore
    self._bar.start_t = self._bar.last_print_t = time.monotonic()
    self._meter = meter
    self.restart_clock()

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

  def advance(self, images: int, work: float = 0.0) -> None:
    """One step of `images` images, `work` operations, went to the device."""
    self._images += images
    self._work += work
    self._steps += 1
    self._bar.update()

  @contextlib.contextmanager
  def spending(self, part: str) -> Iterator[None]:
    """What happens within it counts as the `part`'s time."""
    begin = time.perf_counter()
    yield
    spent = time.perf_counter() - begin
    self._spent[part] = self._spent.get(part, 0.0) + spent

  def restart_clock(self) -> None:
    """What was done since the last write counts for no rate."""
    self._since = time.perf_counter()
    self._images = self._steps = 0
    self._work = 0.0
    self._spent: dict[str, float] = {}

  def write_training(self, step: int, metrics: dict[str, float]) -> None:
    """Training metrics, with the speed and its parts since the last call.

    Adds images_per_s and step_s, which leave checkpoints and evaluation out;
    of a step the seconds that its host spent on `data_s` and, idle, on
    `wait_s` for the devices: where the first is large and the second is none,
    data holds the devices up. checkpoint_s and evaluate_s are those of all the
    steps since the last line.
    """
    spent = dict(self._spent)
    aside = {f"{p}_s": spent.pop(p) for p in _ASIDE if p in spent}
    seconds = time.perf_counter() - self._since - sum(aside.values())
    rate, timed = self._images / seconds, {}
    if self._steps:  # none where the clock was just set
      timed = {"step_s": seconds / self._steps}
      timed |= {f"{part}_s": s / self._steps for part, s in spent.items()}
      if self._meter:
        timed |= self._meter.numbers(self._work, seconds)
    self.restart_clock()
    if "loss" in metrics:
      self._bar.set_postfix_str(
        f"loss={metrics['loss']:.4f}, {rate:.1f} images/s", refresh=False
      )
    self.write(step, {**metrics, "images_per_s": rate, **timed, **aside})

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

  def advance(self, images: int, work: float = 0.0) -> None:
    pass

  def spending(self, part: str) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext()

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
