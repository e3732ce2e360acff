import http.server
import threading

import pytest

from rcmed_jax.parallel import places

ENVIRONMENT = {
  "JAX_COORDINATOR_ADDRESS": "10.0.0.1:99",
  "JAX_NUM_PROCESSES": "4",
  "JAX_PROCESS_ID": "3",
}
SLURM = {
  "SLURM_JOB_ID": "4097",
  "SLURM_STEP_NODELIST": "gpu[07-08,11]",
  "SLURM_NTASKS": "6",
  "SLURM_NTASKS_PER_NODE": "2",
  "SLURM_PROCID": "5",
  "SLURM_LOCALID": "1",
}
GKE = {"TPU_WORKER_HOSTNAMES": "w-0.s,w-1.s", "TPU_WORKER_ID": "1"}
SLICES = {
  "MEGASCALE_COORDINATOR_ADDRESS": "w-slice-0-0.w:8080",
  "MEGASCALE_NUM_SLICES": "3",
  "MEGASCALE_SLICE_ID": "2",
}


def summary(place):
  return place.process, place.processes, place.coordinator


def test_nothing_told_is_one_process():
  place = places.find(environ={})
  assert summary(place) == (0, 1, "")
  assert "one process" in str(place)


@pytest.mark.parametrize(
  "environ, expected, why",
  [
    (ENVIRONMENT | SLURM | GKE, (3, 4, "10.0.0.1:99"), "JAX_PROCESS_ID"),
    (SLURM | GKE, (5, 6, "gpu07:61441"), "Slurm job 4097"),
    (GKE, (1, 2, "w-0.s:8482"), "TPU_WORKER_ID"),
    (GKE | SLICES, (5, 6, "w-slice-0-0.w:8482"), "MEGASCALE_SLICE_ID"),
    # libtpu wants a name on a machine of its own as well.
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, (0, 1, ""), "nothing"),
    # What it leaves to its children once it has found no number.
    (
      {
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_WORKER_ID": "WARNING: could not determine TPU worker number",
      },
      (0, 1, ""),
      "nothing",
    ),
    # A batch script's own shell is in the job, but in no step.
    ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1"}, (0, 1, ""), "nothing"),
  ],
)
def test_the_first_source_that_knows_decides(environ, expected, why):
  place = places.find(environ=environ)
  assert summary(place) == expected
  assert why in str(place)


def test_flags_come_first():
  place = places.find("h:1", 2, 0, environ=ENVIRONMENT | SLURM)
  assert summary(place) == (0, 2, "h:1")
  assert "flags" in str(place)


@pytest.mark.parametrize(
  "missing, environ",
  [
    *((name, ENVIRONMENT) for name in ENVIRONMENT),
    *((name, SLURM) for name in ("SLURM_PROCID", "SLURM_LOCALID")),
    ("srun", SLURM),
    *((name, GKE | SLICES) for name in SLICES),
    *((name, GKE | SLICES) for name in GKE),
    ("TPU_WORKER_ID", GKE),
  ],
)
def test_half_a_place_is_an_error_that_names_what_is_missing(missing, environ):
  gone = "SLURM_STEP_NODELIST" if missing == "srun" else missing
  left = {name: value for name, value in environ.items() if name != gone}
  with pytest.raises(ValueError, match=missing):
    places.find(environ=left)


def test_half_of_the_flags_is_an_error():
  with pytest.raises(ValueError, match="without --processes, --process"):
    places.find("h:1", environ={})


@pytest.mark.parametrize(
  "flags, message",
  [
    (("h:1", 2, 2), "process 2 of 2"),
    (("h:1", 0, 0), "process 0 of 0"),
    (("h", 2, 0), "HOST:PORT"),
  ],
)
def test_what_cannot_be_is_refused(flags, message):
  with pytest.raises(ValueError, match=message):
    places.find(*flags, environ={})
  with pytest.raises(ValueError, match="JAX_NUM_PROCESSES='two'"):
    places.find(environ=ENVIRONMENT | {"JAX_NUM_PROCESSES": "two"})


@pytest.mark.parametrize(
  "nodes, host",
  [
    ("node1", "node1"),
    ("node1,node2", "node1"),
    ("gpu[07-09,12],login", "gpu07"),
    ("gpu[7,9]", "gpu7"),
    ("rack[2-3]-gpu[04-05]", "rack2-gpu04"),
  ],
)
def test_first_host_of_a_node_list(nodes, host):
  assert places.first_host(nodes) == host


@pytest.mark.parametrize(
  "extra, devices",
  [
    ({}, None),  # no GPUs
    # Both tasks of the machine see all four: the second takes the second half.
    ({"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_GPUS_ON_NODE": "4"}, (2, 3)),
    # Slurm has shared them out: what is seen is its own.
    ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_ON_NODE": "4"}, None),
    ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"}, None),
    # Of a step that was told no --ntasks-per-node.
    (
      {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_NTASKS_PER_NODE": ""}
      | {"SLURM_STEP_TASKS_PER_NODE": "2(x3)"},
      (2, 3),
    ),
    (
      {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_NODEID": "2"}
      | {"SLURM_STEP_TASKS_PER_NODE": "1(x2),4"},
      (1,),
    ),
    # Alone on the machine.
    ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_NTASKS_PER_NODE": "1"}, None),
  ],
)
def test_tasks_of_a_machine_share_its_gpus(extra, devices):
  assert places.find(environ=SLURM | extra).devices == devices


def test_gpus_that_do_not_share_out():
  with pytest.raises(ValueError, match="3 GPUs do not share out among"):
    places.find(environ=SLURM | {"CUDA_VISIBLE_DEVICES": "0,1,2"})


@pytest.mark.parametrize("told", ["two", "2(y3)", "1,2"])
def test_tasks_of_a_machine_that_slurm_does_not_tell(told):
  gpus = {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_NODEID": "2"}
  with pytest.raises(ValueError, match="SLURM_STEP_TASKS_PER_NODE"):
    places.find(environ=SLURM | gpus | {"SLURM_STEP_TASKS_PER_NODE": told})


@pytest.fixture
def metadata(tmp_path, monkeypatch):
  """A TPU VM's metadata server: what it knows, and its address."""
  known = {}

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      key = self.path.rpartition("/")[2]
      google = self.headers["Metadata-Flavor"] == "Google"
      self.send_response(200 if google and key in known else 404)
      self.end_headers()
      self.wfile.write(known.get(key, "").encode())

    def log_message(self, *_):
      pass

  server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
  thread = threading.Thread(target=server.serve_forever)
  thread.start()
  monkeypatch.setattr(places, "TPU_FILES", (str(tmp_path / "accel*"),))
  monkeypatch.setattr(places.importlib.util, "find_spec", lambda name: name)
  (tmp_path / "accel0").touch()
  yield known, {"GCE_METADATA_IP": f"127.0.0.1:{server.server_port}"}
  server.shutdown()
  thread.join()
  server.server_close()


@pytest.mark.parametrize(
  "endpoints", ["10.0.0.2,10.0.0.3", "a:b:10.0.0.2,c:d:x"]
)
def test_a_tpu_vm_asks_its_metadata(metadata, endpoints):
  known, environ = metadata
  known |= {
    "agent-worker-number": "1",
    "worker-network-endpoints": endpoints,
    "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-8'\n",
  }
  place = places.find(environ=environ)
  assert summary(place) == (1, 2, "10.0.0.2:8482")
  assert "metadata" in str(place)
  known["tpu-env"] += "".join(f"{k}: '{v}'\n" for k, v in SLICES.items())
  place = places.find(environ=environ)
  assert summary(place) == (5, 6, "w-slice-0-0.w:8482")


def test_metadata_is_asked_only_where_a_tpu_may_be(metadata):
  known, environ = metadata
  assert places.find(environ=environ).processes == 1  # no TPU VM: 404
  known |= {"agent-worker-number": "0", "worker-network-endpoints": "a,b"}
  assert places.find(environ=environ).processes == 2
  for told in ({"JAX_PLATFORMS": "cpu"}, {"TPU_SKIP_MDS_QUERY": "1"}):
    assert places.find(environ=environ | told).processes == 1


def test_metadata_that_does_not_answer_is_no_single_host(metadata):
  with pytest.raises(ValueError, match="TPU_SKIP_MDS_QUERY=1"):
    places.find(environ={"GCE_METADATA_IP": "127.0.0.1:1"})
