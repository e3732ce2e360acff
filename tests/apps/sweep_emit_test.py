"""What `rcmed sweep --emit` writes, against what it claims."""

import os
import shlex
import shutil
import subprocess

import pytest
import yaml

from rcmed_jax import cli
from rcmed_jax.apps import sweep_emit
from rcmed_jax.parallel import faults

TASKS = ["K=0/seed0", "K=2/seed0", "K=0/seed1"]
ARGUMENTS = [
  *("sweep", "--sweep=configs/sweeps/correlation.py", "--workdir=/a folder"),
  "--config.data.index=/a folder/index.json",
]
MACHINES = sweep_emit.Machines(
  "registry/rcmed:1", "tpu-v5-lite-podslice", "2x2", parallel=2, grace_s=99
)
# Writes down what it was called as and with.
RECORD = """#!/usr/bin/env bash
{ printf '%s\\n' "$(basename "$0")" "$@"; echo; } >> "$CALLS"
"""


@pytest.fixture
def script(tmp_path):
  path = tmp_path / "array.sbatch"
  path.write_text(sweep_emit.slurm("sweep-correlation", TASKS, ARGUMENTS))
  return path


@pytest.fixture
def launch(script, tmp_path):
  """Runs the script as one task of an array; result and calls."""

  def start(code, *arguments, **environ):
    tools = tmp_path / "bin"
    tools.mkdir(exist_ok=True)
    for name, text in (("srun", f"{RECORD}exit {code}"), ("scontrol", RECORD)):
      (tools / name).write_text(text)
      (tools / name).chmod(0o755)
    calls = tmp_path / "calls"
    calls.write_text("")
    result = subprocess.run(
      ["bash", str(script), *arguments],
      env={
        "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
        "CALLS": str(calls),
        # The last task of an array has the number of the array.
        **{"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7"},
        "SLURM_ARRAY_TASK_ID": "2",
        **environ,
      },
      capture_output=True,
      text=True,
      check=False,
    )
    made = calls.read_text().strip("\n").split("\n\n")
    return result, [call.split("\n") for call in made]

  return start


def test_shellcheck_finds_nothing(script):
  if shutil.which("shellcheck") is None:
    pytest.skip("shellcheck is not installed")
  subprocess.run(["shellcheck", "-S", "warning", str(script)], check=True)


def test_slurm_starts_a_task_a_run(script, launch):
  text = script.read_text()
  assert "#SBATCH --array=0-2\n" in text
  assert "#SBATCH --requeue\n" in text
  assert "#SBATCH --signal=TERM@120\n" in text
  assert "$last" not in text and "$report" not in text
  result, calls = launch(0, "--retry-failed", RCMED="/opt/rcmed")
  assert result.returncode == 0, result.stderr
  assert calls == [
    [
      *("srun", "--kill-on-bad-exit=0", "/opt/rcmed", *ARGUMENTS),
      *("--only=K=0/seed1", "--retry-failed"),
    ]
  ]


@pytest.mark.parametrize(
  ("code", "environ", "again"),
  [
    (faults.STOPPED, {}, True),
    (faults.UNREACHED, {}, True),
    (faults.STOPPED, {"SLURM_RESTART_COUNT": "100"}, False),
    (1, {}, False),
    (0, {}, False),
  ],
)
def test_slurm_task_goes_back_in_line_alone_to_go_on(
  launch, code, environ, again
):
  result, calls = launch(code, **environ)
  assert result.returncode == code
  assert calls[1:] == ([["scontrol", "requeue", "7_2"]] if again else [])


def jobset(**changes):
  told = {"name": "mine", "tasks": TASKS, "arguments": ARGUMENTS} | changes
  return yaml.safe_load(sweep_emit.jobset(**{"machines": MACHINES} | told))


def test_jobset_runs_each_by_itself():
  told = jobset()
  assert told["metadata"] == {"name": "mine"}
  spec = told["spec"]
  assert set(spec) == {"failurePolicy", "replicatedJobs"}
  assert spec["failurePolicy"] == {"maxRestarts": 0}
  (job,) = spec["replicatedJobs"]
  assert set(job) == {"name", "replicas", "template"} and job["replicas"] == 1
  inner = job["template"]["spec"]
  assert inner["completionMode"] == "Indexed"
  assert (inner["completions"], inner["parallelism"]) == (3, 2)
  pod = inner["template"]["spec"]
  (container,) = pod["containers"]
  rules = {
    rule["action"]: rule["onExitCodes"]
    for rule in inner["podFailurePolicy"]["rules"]
  }
  assert rules["FailIndex"]["values"] == [1, cli.BAD_INPUT]
  assert rules["Ignore"]["values"] == [faults.STOPPED]
  assert {r["containerName"] for r in rules.values()} == {container["name"]}
  assert pod["restartPolicy"] == "Never"  # podFailurePolicy demands it
  assert pod["terminationGracePeriodSeconds"] == 99
  assert container["resources"]["limits"] == {"google.com/tpu": 4}
  spot = sweep_emit.Machines("i", "a", "2x2", spot=True)
  nodes = {
    "cloud.google.com/gke-tpu-accelerator": "a",
    "cloud.google.com/gke-tpu-topology": "2x2",
    "cloud.google.com/gke-spot": "true",
  }
  (job,) = jobset(machines=spot)["spec"]["replicatedJobs"]
  pod = job["template"]["spec"]["template"]["spec"]
  assert pod["nodeSelector"] == nodes
  assert job["template"]["spec"]["parallelism"] == 3


def test_pod_finds_its_run_by_its_number(tmp_path):
  (job,) = jobset()["spec"]["replicatedJobs"]
  (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
  (tmp_path / "rcmed").write_text(RECORD)
  (tmp_path / "rcmed").chmod(0o755)
  subprocess.run(
    [*container["command"], *container["args"]],
    env={
      "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
      "CALLS": str(tmp_path / "calls"),
      "JOB_COMPLETION_INDEX": "1",
    },
    check=True,
  )
  called = (tmp_path / "calls").read_text().strip("\n").split("\n")
  assert called == ["rcmed", *ARGUMENTS, "--only=K=2/seed0"]


def test_jobset_holds_a_job_that_kubernetes_takes():
  validate = pytest.importorskip("kubernetes_validate")
  (held,) = jobset()["spec"]["replicatedJobs"]
  job = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "run"},
    **held["template"],
  }
  validate.validate(job, "1.31", strict=True)
  job["spec"]["backofLimitPerIndex"] = 1
  with pytest.raises(validate.ValidationError):
    validate.validate(job, "1.31", strict=True)


def test_names():
  assert sweep_emit.job_name("configs/sweeps/lora.py") == "sweep-lora"
  assert sweep_emit.job_name("a/My_own.py:tiny") == "sweep-my-own-tiny"
  with pytest.raises(ValueError, match="is no name for a JobSet"):
    jobset(name="Mine")
  with pytest.raises(ValueError, match="no run to emit"):
    sweep_emit.slurm("a", [], ARGUMENTS)


def test_report_command_can_be_pasted(script):
  (line,) = (
    line for line in script.read_text().splitlines() if "--report" in line
  )
  words = shlex.split(line.removeprefix("#"))
  assert words == ["rcmed", *ARGUMENTS, "--report"]
