"""Launch files, against what they claim and against fakes of what they call."""

import re
import shlex
import shutil
import subprocess

import imports
import pytest
import yaml

from rcmed_jax import cli
from rcmed_jax.apps import runs
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
WATCHDOG, UNREACHED = 77, 69
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
  assert set(spec) == {
    *("failurePolicy", "replicatedJobs", "ttlSecondsAfterFinished")
  }
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
  # All others restart all and count; these must.
  for code in (hosts.LOST, WATCHDOG, UNREACHED):
    assert code not in rules["FailJob"]["values"] + rules["Ignore"]["values"]
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


def test_jobset_mounts_the_data_and_may_read_it(launch):
  template = jobset(launch)["spec"]["replicatedJobs"][0]["template"]["spec"]
  plain = template["template"]
  assert set(plain) == {"spec"}
  assert not {"volumes", "serviceAccountName"} & set(plain["spec"])
  told = {"DATA_BUCKET": "images", "SERVICE_ACCOUNT": "trainer"}
  template = jobset(launch, **told)["spec"]["replicatedJobs"][0]["template"]
  pod = template["spec"]["template"]
  # Without it GKE adds no mounting container to the pod.
  assert pod["metadata"]["annotations"] == {"gke-gcsfuse/volumes": "true"}
  assert pod["spec"]["serviceAccountName"] == "trainer"
  (volume,) = pod["spec"]["volumes"]
  assert volume["csi"]["driver"] == "gcsfuse.csi.storage.gke.io"
  assert volume["csi"]["volumeAttributes"]["bucketName"] == "images"
  (container,) = pod["spec"]["containers"]
  (mount,) = container["volumeMounts"]
  assert (mount["name"], mount["mountPath"]) == (volume["name"], "/data")


def environ_of(told):
  template = told["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]
  (container,) = template["spec"]["containers"]
  return {one["name"]: one["value"] for one in container["env"]}


def test_jobset_keeps_compiled_programs_and_knows_its_launch(launch):
  found = environ_of(jobset(launch))
  assert found["JAX_COMPILATION_CACHE_DIR"] == "gs://bucket/mine/compiled"
  assert found[runs.LAUNCHED_AS] != environ_of(jobset(launch))[runs.LAUNCHED_AS]
  found = environ_of(jobset(launch, COMPILED="/data/c"))
  assert found["JAX_COMPILATION_CACHE_DIR"] == "/data/c"


@pytest.mark.parametrize("mounted", [{}, {"DATA_BUCKET": "b"}])
def test_jobset_holds_a_job_that_kubernetes_takes(launch, mounted):
  validate = pytest.importorskip("kubernetes_validate")
  told = jobset(launch, SPOT="1", SERVICE_ACCOUNT="s", **mounted)
  template = told["spec"]["replicatedJobs"][0]["template"]
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


# A cluster that holds `jobset`, a name and how it ended.
KUBECTL = (
  RECORD
  + """
case $1 in
  get) printf '%s' "$(cat "$FAKE/jobset")" ;;
  apply) cat > "$FAKE/applied" ;;
esac
"""
)


def test_jobset_is_applied_and_numbers_are_checked(launch, tmp_path):
  (tmp_path / "jobset").write_text("")
  result, calls = launch("gke.sh", GKE, kubectl=KUBECTL)
  assert result.returncode == 0, result.stderr
  assert [call[1] for call in calls] == ["get", "apply"]
  assert calls[1] == ["kubectl", "apply", "--filename=-"]
  assert yaml.safe_load((tmp_path / "applied").read_text())["kind"] == "JobSet"
  result, _ = launch("gke.sh", GKE | {"HOSTS": "four"}, kubectl=KUBECTL)
  assert (result.returncode, result.stderr) == (
    2,
    "HOSTS=four: expected a number\n",
  )


@pytest.mark.parametrize("ended", ["Completed", "Failed"])
def test_jobset_that_has_ended_gives_way(launch, tmp_path, ended):
  """Applied again it would be called unchanged, and start nothing."""
  (tmp_path / "jobset").write_text(f"mine {ended}")
  result, calls = launch("gke.sh", GKE, kubectl=KUBECTL)
  assert result.returncode == 0, result.stderr
  assert [call[1] for call in calls] == ["get", "delete", "apply"]
  assert calls[1][2:4] == ["jobset", "mine"]
  assert f"mine {ended}: deleted, to start again" in result.stderr


def test_jobset_that_runs_is_left_alone(launch, tmp_path):
  (tmp_path / "jobset").write_text("mine ")
  result, calls = launch("gke.sh", GKE, kubectl=KUBECTL)
  assert result.returncode == 1
  assert [call[1] for call in calls] == ["get"]
  assert "has not ended" in result.stderr


def test_xpk_is_told_to_restart_what_saved(launch):
  environ = XPK | {"SLICES": "2", "MAX_RESTARTS": "5", "SPOT": "1"}
  result, calls = launch("xpk.sh", environ, SPACED, xpk=RECORD)
  assert result.returncode == 0, result.stderr
  (call,) = calls
  assert call[:3] == ["xpk", "workload", "create"]
  told = dict(flag.partition("=")[::2] for flag in call[3:])
  # xpk ends a workload at any code that it was not told, below 127.
  restarting = {
    int(code) for code in told["--restart-on-exit-codes"].split(",")
  }
  assert restarting == {UNREACHED, hosts.STOPPED, hosts.LOST, WATCHDOG}
  variables = dict(
    flag.removeprefix("--env=").split("=")
    for flag in call
    if flag.startswith("--env=")
  )
  assert variables["JAX_COMPILATION_CACHE_DIR"] == "gs://bucket/mine/compiled"
  assert variables[runs.LAUNCHED_AS]
  assert "--storage" not in told
  assert told["--max-restarts"] == "5"
  assert told["--num-slices"] == "2"
  assert "--spot" in told and "--dry-run" not in told
  assert shlex.split(told["--command"]) == [
    *("exec", "rcmed", "train", "--config=configs/finetune.py"),
    *("--workdir=gs://bucket/mine", "--resume=auto", "--config.mesh.slice=2"),
    SPACED,
  ]


def test_xpk_is_told_which_storage_holds_the_data(launch):
  _, calls = launch("xpk.sh", XPK | {"STORAGE": "images"}, xpk=RECORD)
  assert "--storage=images" in calls[0]


def test_xpk_itself_takes_it(launch):
  if shutil.which("xpk") is None:
    pytest.skip("xpk is not installed")
  result, _ = launch("xpk.sh", XPK | {"DRY_RUN": "1"}, SPACED)
  assert result.returncode == 0, result.stdout + result.stderr
  codes = f"{UNREACHED},{hosts.STOPPED},{hosts.LOST},{WATCHDOG}"
  assert f"values: [42,{codes},127," in result.stdout
  assert 'value: "gs://bucket/mine/compiled"' in result.stdout
  assert "maxRestarts: 10" in result.stdout
  assert "(exec rcmed train --config=configs/finetune.py" in result.stdout


@pytest.mark.parametrize(
  "code, environ, again",
  [
    (hosts.STOPPED, {}, True),
    (hosts.STOPPED, {"REQUEUE": "0"}, False),
    (hosts.STOPPED, {"SLURM_RESTART_COUNT": "9"}, True),
    (hosts.STOPPED, {"SLURM_RESTART_COUNT": "9", "MAX_RESTARTS": "9"}, False),
    (hosts.LOST, {}, True),
    (WATCHDOG, {}, True),
    (UNREACHED, {}, True),
    (134, {}, True),  # JAX's own service
    (0, {}, False),
    (2, {}, False),
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


def test_slurm_job_with_a_faulty_task_does_not_go_back_in_line(launch):
  """The others leave with a larger code, and so does srun."""
  error = "srun: error: n2: task 1: Exited with exit code 2"
  srun = RECORD + f"echo '{error}' >&2; exit {hosts.LOST}"
  result, calls = launch("slurm.sbatch", SLURM, srun=srun, scontrol=RECORD)
  assert result.returncode == 2
  assert error in result.stderr
  assert [call[0] for call in calls] == ["srun"]


def test_slurm_tasks_get_their_cpus(launch):
  """srun asks for one CPU a task unless it is told again."""
  told = SLURM | {"SLURM_CPUS_PER_TASK": "32"}
  result, calls = launch("slurm.sbatch", told, srun=RECORD)
  assert result.returncode == 0, result.stderr
  assert "--cpus-per-task=32" in calls[0]
  _, calls = launch("slurm.sbatch", SLURM, srun=RECORD)
  assert not [flag for flag in calls[0] if "cpus" in flag]


@pytest.mark.parametrize(
  "told, fraction, compiled",
  [
    ({}, "0.94", "/shared/mine/compiled"),
    (
      {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5", "COMPILED": "/c"},
      *("0.5", "/c"),
    ),
  ],
)
def test_slurm_tasks_get_their_environment(
  launch, tmp_path, told, fraction, compiled
):
  srun = '#!/usr/bin/env bash\nenv > "$FAKE/env"\n'
  result, _ = launch("slurm.sbatch", SLURM | told, srun=srun)
  assert result.returncode == 0, result.stderr
  lines = (tmp_path / "env").read_text().splitlines()
  assert f"XLA_PYTHON_CLIENT_MEM_FRACTION={fraction}" in lines
  assert f"JAX_COMPILATION_CACHE_DIR={compiled}" in lines


def test_slurm_leaves_time_to_save():
  """Two steps of a minute, and the checkpoint."""
  text = (FOLDER / "slurm.sbatch").read_text(encoding="utf-8")
  (seconds,) = re.findall(r"^#SBATCH --signal=TERM@(\d+)$", text, re.M)
  assert int(seconds) >= 300


def test_image_that_trains_has_the_configs_and_serving_comes_last():
  """CONFIG is a path; `docker build` without a target makes the last."""
  text = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
  stages = re.split(r"^FROM \S+ AS (\w+)$", text, flags=re.M)[1:]
  assert stages[::2] == ["page", "train", "serve"]
  train = stages[3]
  assert "COPY configs configs" in train
  assert 'ARG EXTRA="tpu"' in train and ".[gcs${EXTRA:+,$EXTRA}]" in train


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
