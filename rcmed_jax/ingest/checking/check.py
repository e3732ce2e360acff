"""Data looked through before anything is built of it.

Every unit of every source is read; what it gave is counted, what was wrong is
written to `quarantine.jsonl`. Then what only shows over all of it is looked
for: pictures that are there twice, patients on both sides of a split, classes
spelt in several ways.
"""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import pathlib
import re
import signal
import tempfile
import threading
import time
from typing import Any

from rcmed_jax.data.checks import DataError
from rcmed_jax.ingest.checking import findings, readout
from rcmed_jax.ingest.checking.tally import Tally
from rcmed_jax.ingest.sources import Faults, Source, Unit

QUARANTINE = "quarantine.jsonl"

# Seconds between lines of progress; the first comes after the first.
PROGRESS_S = 2.0

# Bits in which hashes of near pictures differ at most, see `duplicates`. The
# hash has as many ones as zeros, so that differences are even.
NEAR_BITS = 4


@dataclasses.dataclass(frozen=True)
class Settings:
  """How to look."""

  decode: bool = True  # False: names and whether files are there, no pixels
  processes: int = 1
  near_bits: int = NEAR_BITS
  # Finds the patient or volume in an id, where readers do not say it.
  group: str = ""

  def __post_init__(self) -> None:
    try:
      re.compile(self.group)
    except re.error as error:
      raise ValueError(
        f"group={self.group!r} is no pattern: {error}"
      ) from error


def check(
  sources: Sequence[tuple[str, pathlib.Path, Source]],
  out: pathlib.Path,
  settings: Settings,
  progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
  """The report, as `check_report` takes it and `report.json` holds it.

  Ctrl-C ends the reading; what was seen until then is reported, and the report
  says that it is not all.

  Args:
    sources: (split, path, source).
    out: folder for `quarantine.jsonl`, which is written anew.
    settings: how to look.
    progress: takes a line every two seconds.

  Raises:
    ImportError: a library is missing that a source cannot be read without.
    RuntimeError: the counts do not add up, which is a fault of this program.
  """
  out.mkdir(parents=True, exist_ok=True)
  group = re.compile(settings.group) if settings.group else None
  began = time.monotonic()
  with (
    tempfile.TemporaryFile(dir=out) as ids,
    (out / QUARANTINE).open("w", encoding="utf-8") as quarantine,
  ):
    tally = Tally(ids, quarantine, group)
    finished = _read(tally, sources, settings, _Progress(tally, progress))
    tally.check()
    progress("check: compares the pictures with one another")
    report = findings.report(tally, settings.near_bits)
  report["finished"] = finished
  report["decoded"] = settings.decode
  report["seconds"] = round(time.monotonic() - began, 1)
  return report


def _read(
  tally: Tally,
  sources: Sequence[tuple[str, pathlib.Path, Source]],
  settings: Settings,
  progress: "_Progress",
) -> bool:
  """Counts all units; whether there was no Ctrl-C."""
  try:
    with _Interrupts() as interrupts:
      outside = interrupts.held(tally.fault_outside)
      add = interrupts.held(tally.add)
      for number, (split, path, source) in enumerate(sources):
        tally.start(split, path)
        progress.write(f"check: {split}: {path}")
        units = _units(source, outside)
        for unit in readout.read(units, settings.processes, settings.decode):
          add(unit, number)
          progress.tell()
    progress.tell(last=True)
  except KeyboardInterrupt:
    return False
  return True


def _units(source: Source, faults: Faults) -> Iterator[Unit]:
  """The source's units; a source that cannot be read ends with a fault."""
  try:
    yield from source.units(faults)
  except DataError as error:
    faults(error)


class _Progress:
  """A line now and then."""

  def __init__(self, tally: Tally, write: Callable[[str], None]):
    self._tally, self.write = tally, write
    self._began = time.monotonic()
    self._next = self._began + PROGRESS_S

  def tell(self, last: bool = False) -> None:
    """Writes a line if it is time."""
    now = time.monotonic()
    if now < self._next and not last:
      return
    self._next = now + PROGRESS_S
    tally, seconds = self._tally, max(now - self._began, 1e-6)
    self.write(
      f"check: {tally.units:,} units, {tally.triplets:,} triplets, "
      f"{tally.faults:,} faults, {tally.units / seconds:,.0f} units/s"
    )


class _Interrupts:
  """Ctrl-C between counts and never within one, so that they add up."""

  def __init__(self):
    self._busy = self._waiting = False
    self._before: Any = None

  def __enter__(self) -> "_Interrupts":
    # Elsewhere nobody is interrupted.
    if threading.current_thread() is threading.main_thread():
      self._before = signal.signal(signal.SIGINT, self._interrupt)
    return self

  def __exit__(self, *_: object) -> None:
    if self._before is not None:
      signal.signal(signal.SIGINT, self._before)

  def held(self, count: Callable[..., None]) -> Callable[..., None]:
    """The function, after whose end alone there is an interrupt."""

    def whole(*args: Any) -> None:
      self._busy = True
      count(*args)
      self._busy = False
      if self._waiting:
        raise KeyboardInterrupt

    return whole

  def _interrupt(self, number: int, frame: object) -> None:
    del number, frame
    if not self._busy:
      raise KeyboardInterrupt
    self._waiting = True
