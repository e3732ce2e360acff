"""Running a sweep's tasks in turn, each command in a process of its own.

A process gives all its memory back, and takes nothing down with it where it
crashes. `state.json` in a task's folder tells how far it has come, so that a
sweep that was stopped, or killed, goes on where it was. A task's log is locked
while its process lives: two sweeps of one folder share its tasks.
"""

from collections.abc import Callable, Sequence
import dataclasses
import fcntl
import json
import os
import pathlib
import platform
import re
import signal
import subprocess
import sys
import time
from typing import Any, Protocol

from rcmed_jax.apps import sweep_cells
from rcmed_jax.apps.sweep_cells import Task
from rcmed_jax.data import files
from rcmed_jax.parallel import faults

STATE = "state.json"

# What is done to a task, in this order.
STAGES = ("train", "evaluate")

# The split's name in the files of an evaluation.
SPLIT = "test"

# The end of a log in which the reason of a failure is looked for.
LOG_END_BYTES = 64 << 10

# A progress bar's last state is no reason. Source: tqdm's format.
_BAR = re.compile(r"\d+%\|.*\||\d+(step|image)s? \[")


class Runner(Protocol):
  """Runs `rcmed` with arguments, its output at the end of a log."""

  @property
  def stopped(self) -> int:
    """The signal that asked for the end of all, 0 where none came."""
    ...

  def __call__(self, arguments: Sequence[str], log: pathlib.Path) -> int:
    """The exit code; BlockingIOError where another process does the same."""
    ...


@dataclasses.dataclass(frozen=True)
class State:
  """How far a task has come."""

  # missing: not begun; begun: stopped or running; failed; finished
  state: str = "missing"
  stage: str = STAGES[0]  # that it is in, or failed in
  error: str = ""  # last line that the failed stage said
  index: str = ""  # of the images it is tested on
  seconds: float = 0.0  # spent on it


class Children:
  """The runner of commands in child processes; use as a context manager.

  SIGINT and SIGTERM go on to the child, which saves and leaves. A second one
  reaches it as well, and ends it at once.

  Args:
    compiled: takes compiled programs, so that the seeds of a cell share them;
      unless JAX_COMPILATION_CACHE_DIR says where.
  """

  def __init__(self, compiled: pathlib.Path) -> None:
    self.stopped = 0
    # A folder a machine: what is compiled for one CPU may fail on another.
    folder = str(compiled / platform.node())
    self._environ = {"JAX_COMPILATION_CACHE_DIR": folder, **os.environ}
    self._child: subprocess.Popen[bytes] | None = None
    self._before: dict[signal.Signals, Any] = {}

  def __enter__(self) -> "Children":
    for number in (signal.SIGINT, signal.SIGTERM):
      self._before[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._before.items():
      signal.signal(number, handler)
    if self._child is not None:  # an error here: nothing may run on
      self._child.kill()
      self._child.wait()

  def __call__(self, arguments: Sequence[str], log: pathlib.Path) -> int:
    with log.open("ab") as output:
      # The child holds it on, even where this process is killed.
      fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
      # A session of its own: Ctrl-C reaches it once, through us.
      self._child = subprocess.Popen(
        [sys.executable, "-m", "rcmed_jax", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=self._environ,
      )
    if self.stopped:  # it came while the child started
      self._child.send_signal(self.stopped)
    code = self._child.wait()
    self._child = None
    return code

  def _note(self, number: int, _: object) -> None:
    self.stopped = number
    if self._child is not None:
      self._child.send_signal(number)  # of no effect where it has ended


def state(task: Task) -> State:
  """How far a task has come, as its folder tells."""
  path = task.folder / STATE
  if not path.exists():
    return State()
  return State(**json.loads(path.read_text(encoding="utf-8")))


def run(
  tasks: Sequence[Task],
  runner: Runner,
  *,
  index: str,
  train_flags: Sequence[str] = (),
  evaluate_flags: Sequence[str] = (),
  retry_failed: bool = False,
  say: Callable[[str], None] = print,
  clock: Callable[[], float] = time.monotonic,
) -> int:
  """The exit code of a sweep, after running what is not finished.

    0 all are finished; 1 some failed
    75 stopped by SIGTERM, 130 by SIGINT; 75 where another process still runs
    some; 69 a bucket or a service did not answer one: the same command goes on

  Args:
    index: of the images that every task is tested on.
    train_flags, evaluate_flags: further arguments of the two commands.
    retry_failed: try what failed before again.
    say: takes one line a task.
    clock: seconds.

  Raises:
    ValueError: a folder holds a run with other settings, or one that was
      tested on other images; before anything is run.
  """
  for task in tasks:
    sweep_cells.prepare(task)
    _require_index(task, index)
  found = {task.name: state(task) for task in tasks}
  due = [
    task
    for task in tasks
    if found[task.name].state != "finished"
    and (retry_failed or found[task.name].state != "failed")
  ]
  flags = {"train": train_flags, "evaluate": evaluate_flags}
  since = clock()
  say(_opening(found, len(due), retry_failed))
  for place, task in enumerate(due):
    if runner.stopped:  # between two tasks
      return _stopped(runner)
    begun = clock()
    try:
      code, after = _advance(task, runner, index, flags, clock)
    except BlockingIOError:
      say(f"sweep: {task.name} is run by another process; left to it")
      continue
    if after.state == "begun" and code == faults.UNREACHED:
      said = _reason(task.folder / f"{after.stage}.log", 0, code)
      say(f"sweep: {task.name}: {said}; the same command goes on with it.")
      return code
    if after.state == "begun":
      say(f"sweep: {task.name} stopped; the same command goes on with it.")
      return _stopped(runner)
    elapsed = clock() - since
    left = elapsed / (place + 1) * (len(due) - place - 1)
    outcome = "finished"
    if after.state == "failed":
      outcome = f"FAILED in {after.stage} (code {code}): {after.error}"
    say(
      f"sweep: {place + 1}/{len(due)} {task.name} {outcome}; "
      f"{duration(clock() - begun)}, {duration(elapsed)} in all, about "
      f"{duration(left)} left"
    )
  ends = {state(task).state for task in tasks}
  if "failed" in ends:
    return 1
  return 0 if ends <= {"finished"} else faults.STOPPED


def duration(seconds: float) -> str:
  """Seconds as minutes, 2:05, or hours, 1:02:05."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def commands(
  task: Task,
  index: str,
  train_flags: Sequence[str] = (),
  evaluate_flags: Sequence[str] = (),
) -> dict[str, list[str]]:
  """Stage -> what `rcmed` is told in it: an ordinary run, by hand as well."""
  workdir = f"--workdir={task.folder}"
  told = f"--config={task.folder / sweep_cells.TOLD}"
  asked = (f"--index={index}", f"--split={SPLIT}")
  return {
    "train": ["train", told, workdir, *train_flags],
    "evaluate": ["evaluate", workdir, *asked, *evaluate_flags],
  }


def _advance(
  task: Task,
  runner: Runner,
  index: str,
  flags: dict[str, Sequence[str]],
  clock: Callable[[], float],
) -> tuple[int, State]:
  """Runs the stages that are left; the last exit code, and what came of it."""
  now = state(task)
  if now.state == "finished":  # by another process, meanwhile
    return 0, now
  told = commands(task, index, flags["train"], flags["evaluate"])
  code = 0
  for stage in STAGES[STAGES.index(now.stage) :]:
    now = State("begun", stage, "", index, now.seconds)
    _write(task, now)
    since = clock()
    log = task.folder / f"{stage}.log"
    start = log.stat().st_size if log.exists() else 0
    code = runner(told[stage], log)
    now = dataclasses.replace(now, seconds=now.seconds + clock() - since)
    # A bucket that does not answer one run would fail all that follow.
    if code and (runner.stopped or code in (faults.STOPPED, faults.UNREACHED)):
      _write(task, now)
      return code, now
    if code:
      now = dataclasses.replace(
        now, state="failed", error=_reason(log, start, code)
      )
      break
    if runner.stopped and stage != STAGES[-1]:  # between the two
      now = dataclasses.replace(now, stage=STAGES[-1])
      _write(task, now)
      return code, now
  else:
    now = dataclasses.replace(now, state="finished")
  _write(task, now)
  return code, now


def _reason(log: pathlib.Path, start: int, code: int) -> str:
  """The last line that a failed stage said; bars are none."""
  if code < 0:
    name = signal.Signals(-code).name
    more = ": out of memory?" if name == "SIGKILL" else ""
    return f"killed by {name}{more}"
  if not log.exists():
    return f"it left with code {code} and said nothing"
  with log.open("rb") as file:
    file.seek(max(start, log.stat().st_size - LOG_END_BYTES))
    text = file.read().decode(errors="replace")
  lines = [line.strip() for line in text.replace("\r", "\n").splitlines()]
  said = [line for line in lines if line and not _BAR.search(line)]
  return said[-1] if said else f"it left with code {code} and said nothing"


def _write(task: Task, now: State) -> None:
  text = json.dumps(dataclasses.asdict(now), indent=2) + "\n"
  files.write_whole(task.folder / STATE, text)


def _require_index(task: Task, index: str) -> None:
  before = state(task).index
  if before and before != index:
    raise ValueError(
      f"{task.folder} is tested on {before}, not on {index}; give the same "
      "--index, or another --workdir."
    )


def _stopped(runner: Runner) -> int:
  """The exit code of a stopped sweep, as `rcmed train` leaves."""
  if runner.stopped in (0, signal.SIGTERM):  # 0: the child alone was told
    return faults.STOPPED
  return 128 + runner.stopped


def _opening(found: dict[str, State], due: int, retry_failed: bool) -> str:
  counts = {
    name: sum(one.state == name for one in found.values())
    for name in ("finished", "failed", "begun", "missing")
  }
  told = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
  text = f"sweep: {len(found)} runs ({told}); {due} to run"
  if counts["failed"] and not retry_failed:
    text += "; --retry-failed tries those that failed again"
  return text
