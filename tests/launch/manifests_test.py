"""Launch files, against what they claim and against fakes of what they call."""

import re
import shlex
import shutil
import subprocess

import imports
import pytest
import yaml

from rcmed_jax import cli
from rcmed_jax.parallel import hosts

FOLDER = imports.ROOT / "launch"
SCRIPTS = sorted({*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch")})
SPACED = "--config.data.index=/a folder/index.json"

GKE = {
  "NAME": "mine",
  "IMAGE": "registry/rcmed:1",
  "WORKDIR": "gs://bucket/mine",
  "ACCELERATOR": "tpu-v5-lite-podslice",
  "TOPOLOGY": "4x4",
  "HOSTS": "4",
}
XPK = {
  "CLUSTER": "c",
  "PROJECT": "p",
  "ZONE": "us-east5-a",
  "NAME": "mine",
  "TPU_TYPE": "v5litepod-16",
  "IMAGE": "registry/rcmed:1",
  "WORKDIR": "gs://bucket/mine",
}
TPU_VM = {
  "NAME": "mine",
  "ZONE": "us-west4-a",
  "PROJECT": "p",
  "ACCELERATOR": "v5litepod-16",
  "WORKDIR": "gs://bucket/mine",
  "POLL_S": "0",
}
SLURM = {"WORKDIR": "/shared/mine", "SLURM_JOB_ID": "7"}

# Each is called as what it stands for, writes down its arguments, and answers.
RECORD = """#!/usr/bin/env bash
{ printf '%s\\n' "$(basename "$0")" "$@"; echo; } >> "$CALLS"
"""


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path):
  if shutil.which("shellcheck") is None:
    pytest.skip("shellcheck is not installed")
  subprocess.run(["shellcheck", "-S", "warning", str(path)], check=True)


@pytest.mark.parametrize(
  "script, environ",
  [
    ("gke.sh", GKE),
    ("xpk.sh", XPK),
    ("tpu_vm.sh", {k: v for k, v in TPU_VM.items() if k != "POLL_S"}),
    ("slurm.sbatch", {"WORKDIR": "/shared/mine"}),
  ],
)
def test_what_has_no_default_is_asked_for(launch, script, environ):
  for name in environ:
    left = {key: value for key, value in environ.items() if key != name}
    result, _ = launch(script, left, gcloud=RECORD + "exit 1", srun=RECORD)
    assert result.returncode != 0
    assert f"set {name}" in result.stderr


def jobset(launch, *arguments, **environ):
  told = GKE | environ | {"DRY_RUN": "1"}
  result, _ = launch("gke.sh", told, *arguments)
  assert result.returncode == 0, result.stderr
  return yaml.safe_load(result.stdout)


def test_jobset_restarts_what_can_go_on_and_nothing_else(launch):
  spec = jobset(launch, SLICES="3", MAX_RESTARTS="7")["spec"]
  assert set(spec) == {"failurePolicy", "replicatedJobs"}
  assert spec["failurePolicy"] == {
    "maxRestarts": 7,
    "rules": [
      {
        "name": "bad-input",
        "action": "FailJobSet",
        "onJobFailureReasons": ["PodFailurePolicy"],
      }
    ],
  }
  (job,) = spec["replicatedJobs"]
  assert set(job) == {"name", "replicas", "template"}
  assert job["replicas"] == 3
  inner = job["template"]["spec"]
  assert inner["completionMode"] == "Indexed"
  assert inner["completions"] == inner["parallelism"] == 4
  assert inner["backoffLimit"] == 0  # the JobSet starts all hosts again
  pod = inner["template"]["spec"]
  assert pod["restartPolicy"] == "Never"  # podFailurePolicy demands it
  (container,) = pod["containers"]
  rules = {
    rule["action"]: rule["onExitCodes"]
    for rule in inner["podFailurePolicy"]["rules"]
  }
  assert rules["FailJob"]["values"] == [cli.BAD_INPUT]
  assert rules["Ignore"]["values"] == [hosts.STOPPED]
  for rule in rules.values():
    assert rule["containerName"] == container["name"]
    assert rule["operator"] == "In"


def test_jobset_passes_what_it_was_told(launch):
  told = jobset(
    launch, SPACED, RESUME="never", SLICES="2", GRACE_S="99", CHIPS="8"
  )
  assert told["metadata"]["name"] == "mine"
  inner = told["spec"]["replicatedJobs"][0]["template"]["spec"]
  pod = inner["template"]["spec"]
  (container,) = pod["containers"]
  assert container["command"] == ["rcmed", "train"]
  assert container["args"] == [
    "--config=configs/finetune.py",
    "--workdir=gs://bucket/mine",
    "--resume=never",
    "--config.mesh.slice=2",
    SPACED,
  ]
  assert container["image"] == "registry/rcmed:1"
  chips = {"google.com/tpu": 8}
  assert container["resources"] == {"requests": chips, "limits": chips}
  assert pod["terminationGracePeriodSeconds"] == 99
  nodes = {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "4x4",
  }
  assert pod["nodeSelector"] == nodes
  spot = jobset(launch, SPOT="1")["spec"]["replicatedJobs"][0]["template"]
  assert spot["spec"]["template"]["spec"]["nodeSelector"] == nodes | {
    "cloud.google.com/gke-spot": "true"
  }


def test_jobset_holds_a_job_that_kubernetes_takes(launch):
  validate = pytest.importorskip("kubernetes_validate")
  template = jobset(launch)["spec"]["replicatedJobs"][0]["template"]
  job = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"name": "slice"},
    **template,
  }
  validate.validate(job, "1.31", strict=True)
  job["spec"]["paralelism"] = 1
  with pytest.raises(validate.ValidationError):
    validate.validate(job, "1.31", strict=True)


def test_jobset_is_applied_and_numbers_are_checked(launch):
  kubectl = RECORD + 'cat > "$FAKE/applied"'
  result, calls = launch("gke.sh", GKE, kubectl=kubectl)
  assert result.returncode == 0, result.stderr
  assert calls == [["kubectl", "apply", "--filename=-"]]
  result, _ = launch("gke.sh", GKE | {"HOSTS": "four"}, kubectl=kubectl)
  assert (result.returncode, result.stderr) == (
    2,
    "HOSTS=four: expected a number\n",
  )


def test_xpk_is_told_to_restart_what_saved(launch):
  environ = XPK | {"SLICES": "2", "MAX_RESTARTS": "5", "SPOT": "1"}
  result, calls = launch("xpk.sh", environ, SPACED, xpk=RECORD)
  assert result.returncode == 0, result.stderr
  (call,) = calls
  assert call[:3] == ["xpk", "workload", "create"]
  told = dict(flag.partition("=")[::2] for flag in call[3:])
  assert told["--restart-on-exit-codes"] == str(hosts.STOPPED)
  assert told["--max-restarts"] == "5"
  assert told["--num-slices"] == "2"
  assert "--spot" in told and "--dry-run" not in told
  assert shlex.split(told["--command"]) == [
    *("exec", "rcmed", "train", "--config=configs/finetune.py"),
    *("--workdir=gs://bucket/mine", "--resume=auto", "--config.mesh.slice=2"),
    SPACED,
  ]


def test_xpk_itself_takes_it(launch):
  if shutil.which("xpk") is None:
    pytest.skip("xpk is not installed")
  result, _ = launch("xpk.sh", XPK | {"DRY_RUN": "1"}, SPACED)
  assert result.returncode == 0, result.stdout + result.stderr
  assert f"values: [42,{hosts.STOPPED},127," in result.stdout
  assert "maxRestarts: 10" in result.stdout
  assert "(exec rcmed train --config=configs/finetune.py" in result.stdout


@pytest.mark.parametrize(
  "code, environ, again",
  [
    (hosts.STOPPED, {}, True),
    (hosts.STOPPED, {"REQUEUE": "0"}, False),
    (hosts.STOPPED, {"SLURM_RESTART_COUNT": "9"}, True),
    (hosts.STOPPED, {"SLURM_RESTART_COUNT": "9", "MAX_RESTARTS": "9"}, False),
    (0, {}, False),
    (143, {}, False),  # killed by SIGTERM: nothing was saved
  ],
)
def test_slurm_job_goes_back_in_line_only_if_it_saved(
  launch, code, environ, again
):
  told = SLURM | {"RESUME": "never"} | environ
  result, calls = launch(
    "slurm.sbatch", told, SPACED, srun=RECORD + f"exit {code}", scontrol=RECORD
  )
  assert result.returncode == code
  resume = "auto" if "SLURM_RESTART_COUNT" in environ else "never"
  assert calls[0][-6:] == [
    *("rcmed", "train", "--config=configs/finetune.py"),
    *("--workdir=/shared/mine", f"--resume={resume}", SPACED),
  ]
  assert calls[1:] == ([["scontrol", "requeue", "7"]] if again else [])


def test_readme_names_every_file_and_variable():
  text = (FOLDER / "README.md").read_text(encoding="utf-8")
  for path in {*FOLDER.glob("*.*")} - {FOLDER / "README.md"}:
    assert f"`{path.name}`" in text, path.name
  for path in SCRIPTS:
    # NAME=${NAME:-default} and : "${NAME:?what to set it to}".
    told = re.findall(r"\$\{([A-Z_]+):[-?]", path.read_text(encoding="utf-8"))
    assert len(told) > 4
    for name in set(told) - {"SLURM_RESTART_COUNT"}:
      assert f"`{name}`" in text, f"{path.name}: {name}"
  assert f"| {hosts.STOPPED} |" in text
