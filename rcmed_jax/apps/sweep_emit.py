"""A sweep as a file for a scheduler: a Slurm array, or a JobSet of GKE.

Each task of either runs `rcmed sweep --only CELL/seedN` on one machine, with
all its devices. The tasks stand in the file by name, so that a later change of
the sweep file cannot exchange them.
"""

from collections.abc import Sequence
import dataclasses
import json
import pathlib
import re
import shlex
import string

from rcmed_jax.parallel import faults

FORMS = ("slurm", "jobset")

# Labels of Kubernetes. Pods add a suffix to it, of 63 letters in all.
NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")

# How often a run that was killed before it could save is tried again.
RETRIES = 3

_SLURM = string.Template(r"""#!/usr/bin/env bash
# A sweep as a Slurm array: one task a run, each on one node. Written by
# `rcmed sweep --emit slurm`.
#
#   sbatch --gpus-per-node=8 --time=24:00:00 FILE
#
# `--array=0-$last%4` runs four at a time. Arguments go to `rcmed sweep`, such
# as --retry-failed. When all have ended, this writes the table once more:
#
#   $report
#SBATCH --job-name=$name
#SBATCH --array=0-$last
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --output=$name-%A_%a.log
#SBATCH --open-mode=append
# A node that fails, or a job of higher priority, puts a task back in line.
#SBATCH --requeue
# Two minutes before the time limit the run, not this script, is told to save.
#SBATCH --signal=TERM@120
set -euo pipefail

RCMED=$${RCMED:-rcmed}              # the command on every node
MAX_RESTARTS=$${MAX_RESTARTS:-100}
# Exit codes after which the same task goes on: saved and stopped, a bucket that
# did not answer.
AGAIN=" $stopped $unreached "
tasks=(
$tasks
)

restarts=$${SLURM_RESTART_COUNT:-0}
code=0
srun --kill-on-bad-exit=0 "$$RCMED" $arguments \
  --only="$${tasks[SLURM_ARRAY_TASK_ID]}" "$$@" || code=$$?

if [[ $$AGAIN == *" $$code "* ]]; then
  if ((restarts >= MAX_RESTARTS)); then
    echo "left with $$code; not started again after $$restarts restarts" >&2
  else
    # Not SLURM_JOB_ID: one task of an array has the number of the whole array.
    scontrol requeue "$${SLURM_ARRAY_JOB_ID}_$${SLURM_ARRAY_TASK_ID}"
  fi
fi
exit "$$code"
""")

_JOBSET = string.Template("""\
# A sweep as a JobSet: one pod a run, each on one machine. Written by
# `rcmed sweep --emit jobset`.
#
#   kubectl apply --filename=FILE
#
# When all have ended, this writes the table once more, where the folder is:
#
#   $report
apiVersion: jobset.x-k8s.io/v1alpha2
kind: JobSet
metadata:
  name: $name
spec:
  failurePolicy:
    # Runs do not need each other: none starts again because another failed.
    maxRestarts: 0
  replicatedJobs:
    - name: run
      replicas: 1
      template:
        spec:
          completionMode: Indexed
          completions: $count
          parallelism: $parallel
          # Killed before it could save, or no bucket answered (69): it goes on
          # from its checkpoint.
          backoffLimitPerIndex: $retries
          podFailurePolicy:
            rules:
              # Failed, or bad input: stays so; the other runs go on.
              - action: FailIndex
                onExitCodes:
                  containerName: rcmed
                  operator: In
                  values: [1, 2]
              # Stopped by SIGTERM and saved: a new pod, no retry counted.
              - action: Ignore
                onExitCodes:
                  containerName: rcmed
                  operator: In
                  values: [$stopped]
          template:
            spec:
              restartPolicy: Never
              # Time to end a step and to save.
              terminationGracePeriodSeconds: $grace_s
              nodeSelector:
                cloud.google.com/gke-tpu-accelerator: $accelerator
                cloud.google.com/gke-tpu-topology: $topology
$spot              containers:
                - name: rcmed
                  image: $image
                  command: $command
                  args: $arguments
                  resources:
                    requests:
                      google.com/tpu: $chips
                    limits:
                      google.com/tpu: $chips
""")
_SPOT = '                cloud.google.com/gke-spot: "true"\n'


@dataclasses.dataclass(frozen=True)
class Machines:
  """On what a JobSet's pods run."""

  image: str  # that holds rcmed-jax[tpu]
  accelerator: str  # labels of the node pool, "tpu-v5-lite-podslice"
  topology: str  # of one machine: "2x2"
  chips: int = 4
  parallel: int = 0  # pods at a time; 0: all
  spot: bool = False  # machines that may be taken away
  grace_s: int = 300  # from SIGTERM to SIGKILL


def slurm(name: str, tasks: Sequence[str], arguments: Sequence[str]) -> str:
  """The text of a script for sbatch.

  Args:
    name: of the job.
    tasks: as `--only` takes them.
    arguments: of `rcmed`, "sweep" and its flags; without --only.

  Raises:
    ValueError: there is no task.
  """
  _require(tasks)
  return _SLURM.substitute(
    name=name,
    last=len(tasks) - 1,
    stopped=faults.STOPPED,
    unreached=faults.UNREACHED,
    tasks="\n".join(f"  {shlex.quote(task)}" for task in tasks),
    arguments=shlex.join(arguments),
    report=shlex.join(["rcmed", *arguments, "--report"]),
  )


def jobset(
  name: str,
  tasks: Sequence[str],
  arguments: Sequence[str],
  machines: Machines,
) -> str:
  """The text of a manifest; arguments as of `slurm`.

  Raises:
    ValueError: there is no task, or a name that Kubernetes does not take.
  """
  _require(tasks)
  if not NAME.fullmatch(name):
    raise ValueError(
      f"--name={name} is no name for a JobSet; use at most 40 of a-z, 0-9, -, "
      "the first a letter."
    )
  # Bash, because the pod's number is known to it alone.
  script = (
    f"tasks=({shlex.join(tasks)}); "
    'exec rcmed "$@" --only="${tasks[$JOB_COMPLETION_INDEX]}"'
  )
  return _JOBSET.substitute(
    name=name,
    count=len(tasks),
    parallel=machines.parallel or len(tasks),
    retries=RETRIES,
    stopped=faults.STOPPED,
    grace_s=machines.grace_s,
    accelerator=json.dumps(machines.accelerator),
    topology=json.dumps(machines.topology),
    spot=_SPOT if machines.spot else "",
    image=json.dumps(machines.image),
    command=json.dumps(["bash", "-c", script, "rcmed"]),
    arguments=json.dumps(list(arguments)),
    chips=machines.chips,
    report=shlex.join(["rcmed", *arguments, "--report"]),
  )


def job_name(sweep: str) -> str:
  """A name for the job of a sweep file: sweep-correlation."""
  file, _, variant = sweep.partition(".py")
  words = ("sweep", pathlib.Path(file).name, variant.removeprefix(":"))
  name = "-".join(word for word in words if word).lower()
  return re.sub(r"[^a-z0-9-]", "-", name)


def _require(tasks: Sequence[str]) -> None:
  if not tasks:
    raise ValueError("there is no run to emit.")
