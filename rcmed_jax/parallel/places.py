"""Which process of how many this one is, and who says so.

Asked in this order; the first that knows decides, and one that knows only half
is an error, because processes that miss each other train apart in silence:

  flags         --coordinator, --processes, --process
  environment   JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID
  Slurm         SLURM_*, as srun sets them
  GKE           TPU_WORKER_*, and MEGASCALE_* where there are several slices
  TPU metadata  of a TPU VM, asked over its link-local network
"""

from collections.abc import Mapping
import dataclasses
import glob
import importlib.util
import os
import re
import urllib.error
import urllib.request

# Where TPUs show themselves on a TPU VM. GPUs that are passed through lie in
# vfio as well, but nobody installs libtpu beside them.
TPU_FILES = ("/dev/accel*", "/dev/vfio/[0-9]*")

# The port of process 0 on a TPU, where nobody can be asked for a free one.
# Source: jax._src.clusters.cloud_tpu_cluster.
TPU_PORT = 8482
# Slurm's jobs share machines: each has its own of the last 4096 ports. Source:
# jax._src.clusters.slurm_cluster.
SLURM_PORTS = range(61440, 65536)

METADATA_TIMEOUT_S = 5


@dataclasses.dataclass(frozen=True)
class Place:
  """One process among those of a run."""

  process: int  # 0 writes
  processes: int
  coordinator: str  # host:port where process 0 listens; "" for one process
  devices: tuple[int, ...] | None  # GPUs of this machine to take; None: all
  found: str  # why it is believed to be so

  def __post_init__(self) -> None:
    if not 0 <= self.process < self.processes:
      raise ValueError(
        f"process {self.process} of {self.processes} ({self.found}): expected "
        "0 <= process < processes; correct these settings."
      )
    host, _, port = self.coordinator.rpartition(":")
    if self.processes > 1 and not (host and port.isdigit()):
      raise ValueError(
        f"coordinator {self.coordinator!r} ({self.found}): expected HOST:PORT "
        "of process 0, as in 10.0.0.2:8476."
      )

  def __str__(self) -> str:
    if self.processes == 1:
      return f"one process ({self.found})"
    return (
      f"process {self.process} of {self.processes}, coordinator "
      f"{self.coordinator} ({self.found})"
    )


def find(
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
  environ: Mapping[str, str] = os.environ,
) -> Place:
  """The place of this process.

  Args:
    coordinator, processes, process: flags; all three or none.
    environ: environment variables.

  Raises:
    ValueError: a source knows only a part, or says what cannot be.
  """
  return (
    _from_flags(coordinator, processes, process)
    or _from_environment(environ)
    or _from_slurm(environ)
    or _from_gke(environ)
    or _from_metadata(environ)
    or Place(0, 1, "", None, "nothing tells of others")
  )


def _from_flags(
  coordinator: str | None, processes: int | None, process: int | None
) -> Place | None:
  given = _all_or_none(
    {
      "--coordinator": coordinator,
      "--processes": None if processes is None else str(processes),
      "--process": None if process is None else str(process),
    },
    "Give all three, or none to have the place looked up.",
  )
  if given is None:
    return None
  return Place(
    _number("--process", given["--process"]),
    _number("--processes", given["--processes"]),
    given["--coordinator"],
    None,  # JAX_LOCAL_DEVICE_IDS may name them
    "told by flags",
  )


def _from_environment(environ: Mapping[str, str]) -> Place | None:
  names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
  given = _all_or_none(
    {name: environ.get(name) for name in names},
    "Set all three, or none to have the place looked up elsewhere.",
  )
  if given is None:
    return None
  address, processes, process = names
  return Place(
    _number(process, given[process]),
    _number(processes, given[processes]),
    given[address],
    None,
    f"told by {process} and its fellows",
  )


def _from_slurm(environ: Mapping[str, str]) -> Place | None:
  if "SLURM_JOB_ID" not in environ:
    return None
  nodes = environ.get("SLURM_STEP_NODELIST")
  if nodes is None:
    # A batch script or salloc's shell: one process, outside of any step.
    tasks = _number("SLURM_NTASKS", environ.get("SLURM_NTASKS", "1"))
    if tasks > 1:
      raise ValueError(
        f"this is Slurm job {environ['SLURM_JOB_ID']} with SLURM_NTASKS="
        f"{tasks}, but SLURM_STEP_NODELIST is missing: this process was not "
        "started by srun. Write `srun rcmed train ...`."
      )
    return None
  given = _all_or_none(
    {
      name: environ.get(name)
      for name in ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
    },
    "Start it with srun, and let it keep the variables (no --export=NONE).",
  )
  if given is None:
    raise ValueError(
      "SLURM_STEP_NODELIST is set, but neither SLURM_NTASKS nor SLURM_PROCID; "
      "start it with srun, and let it keep the variables."
    )
  job = _number("SLURM_JOB_ID", environ["SLURM_JOB_ID"])
  port = SLURM_PORTS[job % len(SLURM_PORTS)]
  return Place(
    _number("SLURM_PROCID", given["SLURM_PROCID"]),
    _number("SLURM_NTASKS", given["SLURM_NTASKS"]),
    f"{first_host(nodes)}:{port}",
    _slurm_devices(environ, _number("SLURM_LOCALID", given["SLURM_LOCALID"])),
    f"Slurm job {job}",
  )


def first_host(nodes: str) -> str:
  """The first host of a Slurm node list: gpu[07-09,12],login -> gpu07."""
  first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
  if first is None:
    raise ValueError(f"SLURM_STEP_NODELIST={nodes!r} names no host.")
  return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group())


def _slurm_devices(
  environ: Mapping[str, str], local: int
) -> tuple[int, ...] | None:
  """This task's run of the GPUs that all tasks of its machine see.

  None: all that it sees are its own, because it is alone on the machine, or
  because Slurm has shared them out already.
  """
  tasks = _slurm_tasks(environ)
  visible = len(environ.get("CUDA_VISIBLE_DEVICES", "").split(","))
  shared_out = "SLURM_GPUS_PER_TASK" in environ or visible < _number(
    "SLURM_GPUS_ON_NODE", environ.get("SLURM_GPUS_ON_NODE", "0")
  )
  if "CUDA_VISIBLE_DEVICES" not in environ or tasks == 1 or shared_out:
    return None
  if visible % tasks:
    raise ValueError(
      f"{visible} GPUs do not share out among the {tasks} tasks that Slurm "
      "started on this machine; choose --ntasks-per-node that divides them, or "
      "1: one process can use all GPUs of a machine."
    )
  share = visible // tasks
  return tuple(range(local * share, (local + 1) * share))


def _slurm_tasks(environ: Mapping[str, str]) -> int:
  """Tasks on this machine: what srun started, or else what was asked for.

  Of several machines 8(x2),3 says 8, 8 and 3. SLURM_NTASKS_PER_NODE is there
  only where --ntasks-per-node was given.
  """
  name = "SLURM_STEP_TASKS_PER_NODE"
  told = environ.get(name)
  if told is None:
    name = "SLURM_NTASKS_PER_NODE"
    return _number(name, environ.get(name, "1"))
  counts: list[int] = []
  for part in told.split(","):
    one = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
    if one is None:
      raise ValueError(f"{name}={told!r}: expected numbers as in 8(x2),3.")
    counts += [int(one[1])] * int(one[2] or 1)
  node = 0
  if len(set(counts)) > 1:
    node = _number("SLURM_NODEID", environ.get("SLURM_NODEID", "0"))
  if node >= len(counts):
    raise ValueError(f"SLURM_NODEID={node}, but {name}={told!r}.")
  return counts[node]


def _from_gke(environ: Mapping[str, str]) -> Place | None:
  worker = environ.get("TPU_WORKER_ID")
  # libtpu leaves a warning there where it found no number, and programs that
  # are started from one that has loaded it inherit that.
  if worker and worker.startswith("WARNING"):
    worker = None
  workers = _all_or_none(
    {
      # One name is no clue: libtpu wants it on a machine of its own, too.
      "TPU_WORKER_HOSTNAMES": environ.get("TPU_WORKER_HOSTNAMES"),
      "TPU_WORKER_ID": worker,
    },
    "GKE sets both in pods that ask for google.com/tpu and have a headless "
    "service, as JobSet makes one.",
    optional=environ.get("TPU_WORKER_HOSTNAMES", "").count(",") == 0,
  )
  slices = _all_or_none(
    {
      name: environ.get(name)
      for name in (
        "MEGASCALE_COORDINATOR_ADDRESS",
        "MEGASCALE_NUM_SLICES",
        "MEGASCALE_SLICE_ID",
      )
    },
    "GKE sets all three in the pods of a JobSet with several slices.",
  )
  if workers is None:
    if slices is not None:
      raise ValueError(
        "MEGASCALE_* tell of several slices, but TPU_WORKER_HOSTNAMES and "
        "TPU_WORKER_ID are missing; run it in a pod that asks for "
        "google.com/tpu."
      )
    return None
  return _of_slices(
    workers["TPU_WORKER_HOSTNAMES"].split(","),
    workers["TPU_WORKER_ID"],
    slices,
    "GKE's TPU_WORKER_ID" + (" and MEGASCALE_SLICE_ID" if slices else ""),
  )


def _from_metadata(environ: Mapping[str, str]) -> Place | None:
  platforms = environ.get("JAX_PLATFORMS") or "tpu"
  if (
    "TPU_SKIP_MDS_QUERY" in environ
    or "tpu" not in platforms.split(",")
    or not any(glob.glob(pattern) for pattern in TPU_FILES)
    or importlib.util.find_spec("libtpu") is None
  ):
    return None
  server = environ.get("GCE_METADATA_IP", "metadata.google.internal")
  worker = _metadata(server, "agent-worker-number")
  endpoints = _metadata(server, "worker-network-endpoints")
  if worker is None or endpoints is None:
    return None  # a machine of Google's, but no TPU VM
  # Lines such as MEGASCALE_NUM_SLICES: '2'.
  lines = (_metadata(server, "tpu-env") or "").splitlines()
  pairs = [line.partition(":") for line in lines]
  told = {name.strip(): value.strip(" '") for name, _, value in pairs}
  names = (
    "MEGASCALE_COORDINATOR_ADDRESS",
    "MEGASCALE_NUM_SLICES",
    "MEGASCALE_SLICE_ID",
  )
  slices = _all_or_none(
    {name: told.get(name) for name in names},
    "The TPU's metadata (tpu-env) should hold all three; create it again.",
  )
  # An address alone, or name:id:address.
  hosts = [end.rpartition(":")[2] for end in endpoints.split(",")]
  return _of_slices(hosts, worker, slices, "the TPU VM's metadata")


def _metadata(server: str, key: str) -> str | None:
  """An attribute of this virtual machine; None where it has none such."""
  url = f"http://{server}/computeMetadata/v1/instance/attributes/{key}"
  request = urllib.request.Request(url, headers={"Metadata-Flavor": "Google"})
  try:
    with urllib.request.urlopen(request, timeout=METADATA_TIMEOUT_S) as reply:
      return reply.read().decode()
  except urllib.error.HTTPError as error:
    if error.code == 404:
      return None
    raise ValueError(f"{url} answers {error}; try again.") from error
  except OSError as error:
    raise ValueError(
      f"there is a TPU here, but {url} does not answer ({error}), so its other "
      "hosts are unknown. Give --coordinator, --processes and --process, or "
      "set TPU_SKIP_MDS_QUERY=1 if this host has the whole TPU."
    ) from error


def _of_slices(
  hosts: list[str],
  worker: str,
  slices: Mapping[str, str] | None,
  found: str,
) -> Place:
  """The place of a worker of one of several slices of equal size."""
  count, index, coordinator = 1, 0, hosts[0]
  if slices is not None:
    count = _number("MEGASCALE_NUM_SLICES", slices["MEGASCALE_NUM_SLICES"])
    index = _number("MEGASCALE_SLICE_ID", slices["MEGASCALE_SLICE_ID"])
    coordinator = slices["MEGASCALE_COORDINATOR_ADDRESS"]
  host = coordinator.partition(":")[0]
  return Place(
    index * len(hosts) + _number("TPU_WORKER_ID", worker),
    count * len(hosts),
    f"{host}:{TPU_PORT}",
    None,
    found,
  )


def _all_or_none(
  values: Mapping[str, str | None], remedy: str, *, optional: bool = False
) -> dict[str, str] | None:
  """The values where all are there; None where none is, or it is optional."""
  given = {name: value for name, value in values.items() if value}
  missing = [name for name in values if name not in given]
  if not missing:
    return given
  if given and not optional:
    told = ", ".join(f"{name}={value}" for name, value in given.items())
    raise ValueError(
      f"{told} without {', '.join(missing)}: the place of this process among "
      f"others is half told. {remedy}"
    )
  return None


def _number(name: str, text: str) -> int:
  try:
    return int(text)
  except ValueError as error:
    raise ValueError(f"{name}={text!r}: expected a whole number.") from error
