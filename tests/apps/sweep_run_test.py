import fcntl
import os
import signal
import subprocess
import sys
import time

import pytest

from rcmed_jax.apps import sweep_cells, sweep_file, sweep_run
from rcmed_jax.parallel import faults

INDEX = "/data/test.json"
SWEEP = sweep_file.read(
  "x.py",
  {
    "config": "configs/demo.py:tiny",
    "grid": {"model.correlation.steps": (0, 1, 2)},
  },
)


class Fake:
  """A runner that notes its calls and leaves as it was told.

  Args:
    codes: "steps=0/seed0 train" -> exit code; the others leave with 0.
    said: what a command says before it fails.
    stop_in: the command in which a signal comes.
  """

  def __init__(self, codes=None, said="", stop_in="", number=signal.SIGTERM):
    self.codes, self.said = codes or {}, said
    self.stop_in, self.number = stop_in, number
    self.stopped = 0
    self.calls = []

  def __call__(self, arguments, log):
    (workdir,) = (a for a in arguments if a.startswith("--workdir="))
    call = f"{'/'.join(workdir.split('/')[-2:])} {arguments[0]}"
    self.calls.append(call)
    with log.open("a") as file:
      file.write(self.said)
    if call == self.stop_in:
      self.stopped = self.number
      return faults.STOPPED if arguments[0] == "train" else -self.number
    return self.codes.get(call, 0)


@pytest.fixture
def tasks(tmp_path):
  return sweep_cells.tasks(SWEEP, tmp_path, seeds=1)


def run(tasks, runner, **told):
  lines = []
  code = sweep_run.run(tasks, runner, index=INDEX, say=lines.append, **told)
  return code, lines


ALL = [
  f"steps={steps}/seed0 {stage}"
  for steps in (0, 1, 2)
  for stage in ("train", "evaluate")
]


def test_all_are_run_in_turn_and_then_never_again(tasks):
  ticks = iter(range(0, 10_000, 60))
  fake = Fake()
  code, lines = run(tasks, fake, clock=lambda: float(next(ticks)))
  assert (code, fake.calls) == (0, ALL)
  assert len(lines) == 1 + 3
  assert lines[0] == "sweep: 3 runs (3 missing); 3 to run"
  assert lines[1].startswith("sweep: 1/3 steps=0/seed0 finished; ")
  assert lines[3].endswith("about 0:00 left")
  again = Fake()
  code, lines = run(tasks, again)
  assert (code, again.calls) == (0, [])
  assert lines == ["sweep: 3 runs (3 finished); 0 to run"]


def test_commands_are_those_of_an_ordinary_run(tasks):
  (first, *_) = tasks
  told = sweep_run.commands(first, INDEX, ["--from=w"], ["--mesh=data=2"])
  assert told["train"] == [
    "train",
    f"--config={first.folder}/told.json",
    f"--workdir={first.folder}",
    "--from=w",
  ]
  assert told["evaluate"] == [
    "evaluate",
    f"--workdir={first.folder}",
    f"--index={INDEX}",
    "--split=test",
    "--mesh=data=2",
  ]


def test_failure_is_shown_spoils_nothing_and_is_retried_on_demand(tasks):
  said = (
    "  3%|▎ | 8/240 [00:04<02:13, 1.7step/s]\r"
    "Traceback (most recent call last):\nFloatingPointError: step 9\n"
    " 40%|███ | 96/240 [00:40<01:00, 2.4step/s]\n"
  )
  fake = Fake({"steps=1/seed0 train": 1}, said)
  code, lines = run(tasks, fake)
  assert code == 1
  assert fake.calls == [call for call in ALL if call != ALL[3]]
  failed = "steps=1/seed0 FAILED in train (code 1): FloatingPointError: step 9;"
  assert failed in lines[2]
  assert sweep_run.state(tasks[1]).error == "FloatingPointError: step 9"

  left = Fake()
  code, lines = run(tasks, left)
  assert (code, left.calls) == (1, [])
  assert lines == [
    "sweep: 3 runs (2 finished, 1 failed); 0 to run; --retry-failed tries "
    "those that failed again"
  ]
  tried = Fake()
  code, _ = run(tasks, tried, retry_failed=True)
  assert (code, tried.calls) == (0, ALL[2:4])


def test_scoring_that_failed_does_not_train_again(tasks):
  run(tasks, Fake({"steps=0/seed0 evaluate": -9}))
  assert sweep_run.state(tasks[0]).error == "killed by SIGKILL: out of memory?"
  tried = Fake()
  run(tasks, tried, retry_failed=True)
  assert tried.calls == ["steps=0/seed0 evaluate"]


@pytest.mark.parametrize(
  ("number", "stage", "code"),
  [
    (signal.SIGTERM, "train", faults.STOPPED),
    (signal.SIGINT, "train", 130),
    (signal.SIGTERM, "evaluate", faults.STOPPED),
  ],
)
def test_signal_ends_the_sweep_and_the_same_command_goes_on(
  tasks, number, stage, code
):
  fake = Fake(stop_in=f"steps=1/seed0 {stage}", number=number)
  assert run(tasks, fake)[0] == code
  assert fake.calls[-1] == fake.stop_in
  again = Fake()
  assert run(tasks, again)[0] == 0
  assert again.calls == ALL[ALL.index(fake.stop_in) :]


def test_run_that_was_told_alone_ends_the_sweep_too(tasks):
  code, _ = run(tasks, Fake({"steps=0/seed0 train": faults.STOPPED}))
  assert code == faults.STOPPED


@pytest.mark.parametrize("stage", ["train", "evaluate"])
def test_bucket_that_does_not_answer_fails_no_run(tasks, stage):
  call = f"steps=0/seed0 {stage}"
  fake = Fake({call: faults.UNREACHED}, said="gs://bucket: UNAVAILABLE: no\n")
  code, lines = run(tasks, fake)
  assert code == faults.UNREACHED
  assert fake.calls[-1] == call  # nor is the next one tried
  assert "gs://bucket: UNAVAILABLE: no; the same command goes on" in lines[-1]
  assert sweep_run.state(tasks[0]).state == "begun"
  again = Fake()
  assert run(tasks, again)[0] == 0
  assert again.calls == ALL[ALL.index(call) :]


def test_time_adds_up_over_interruptions(tasks):
  ticks = iter(range(0, 100_000, 10))
  clock = lambda: float(next(ticks))  # noqa: E731
  run(tasks, Fake(stop_in=ALL[0]), clock=clock)
  before = sweep_run.state(tasks[0]).seconds
  run(tasks, Fake(), clock=clock)
  assert sweep_run.state(tasks[0]).seconds == 3 * before == 30


def test_other_images_to_score_on_are_refused_before_anything_runs(tasks):
  run(tasks[:1], Fake())
  fake = Fake()
  with pytest.raises(
    ValueError, match=r"is tested on /data/test\.json, not on"
  ):
    sweep_run.run(tasks, fake, index="/other.json", say=lambda _: None)
  assert not fake.calls


def test_what_another_process_runs_is_left_to_it(tasks):
  log = tasks[1].folder / "train.log"
  for task in tasks:
    sweep_cells.prepare(task)
  with sweep_run.Children(log.parent) as children, log.open("a") as held:
    fcntl.flock(held, fcntl.LOCK_EX)
    with pytest.raises(BlockingIOError):
      children(["--version"], log)
  assert not log.read_text()

  class Busy(Fake):
    def __call__(self, arguments, log):
      if log.parent == tasks[1].folder:
        raise BlockingIOError
      return super().__call__(arguments, log)

  code, lines = run(tasks, Busy())
  assert code == faults.STOPPED
  assert "steps=1/seed0 is run by another process" in lines[2]
  assert [sweep_run.state(task).state for task in tasks] == [
    *("finished", "begun", "finished")
  ]
  assert run(tasks, Fake())[0] == 0


def test_commands_run_in_processes_of_their_own(tmp_path):
  log = tmp_path / "log"
  with sweep_run.Children(tmp_path) as children:
    assert children(["--version"], log) == 0
    assert children(["trian"], log) == 2
  assert "rcmed " in log.read_text() and "no command 'trian'" in log.read_text()


# A sweep whose child is a stand-in for `rcmed`: it says its number, waits for
# SIGTERM, then leaves as a training does.
STOP = """
import sys
from rcmed_jax.apps import sweep_run
child = [
  "import os, signal, sys, time",
  "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))",
  "print(os.getpid(), flush=True)",
  "time.sleep(120)",
]
class Python(sweep_run.subprocess.Popen):
  def __init__(self, command, **told):
    super().__init__([sys.executable, "-c", "\\n".join(child)], **told)
sweep_run.subprocess.Popen = Python
with sweep_run.Children(sweep_run.pathlib.Path()) as children:
  code = children([], sweep_run.pathlib.Path(sys.argv[1]))
print(code, children.stopped)
"""


@pytest.fixture
def begun(tmp_path):
  """Starts such a sweep; it, its log, and the number of its child."""
  log = tmp_path / "log"
  sweep = subprocess.Popen(
    [sys.executable, "-c", STOP, str(log)],
    stdout=subprocess.PIPE,
    text=True,
    env=dict(os.environ) | {"PYTHONPATH": os.pathsep.join(sys.path)},
  )
  deadline = time.monotonic() + 60
  while not (log.exists() and log.read_text().endswith("\n")):
    assert time.monotonic() < deadline
    time.sleep(0.05)
  yield sweep, log, int(log.read_text())
  sweep.kill()
  sweep.communicate()


def test_signal_goes_on_to_the_child_which_is_waited_for(begun):
  sweep, _, _ = begun
  sweep.send_signal(signal.SIGTERM)
  out, _ = sweep.communicate(timeout=60)
  assert out.split() == ["75", str(int(signal.SIGTERM))]


def test_child_that_outlives_its_sweep_is_not_joined_by_another(begun):
  sweep, log, child = begun
  sweep.kill()
  sweep.wait()
  with sweep_run.Children(log.parent) as children:
    with pytest.raises(BlockingIOError):
      children(["--version"], log)
    os.kill(child, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while True:
      try:
        assert children(["--version"], log) == 0
        break
      except BlockingIOError:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
  ("seconds", "text"), [(5, "0:05"), (125, "2:05"), (3725.4, "1:02:05")]
)
def test_duration(seconds, text):
  assert sweep_run.duration(seconds) == text
