"""launch/tpu_vm.sh against a TPU whose machines are folders of this one."""

import signal
import subprocess
import threading
import time

import imports
import psutil
import pytest

from rcmed_jax.parallel import hosts

SPACED = "--config.data.index=/a folder/index.json"
TOLD = {
  "NAME": "mine",
  "ZONE": "us-west4-a",
  "PROJECT": "p",
  "ACCELERATOR": "v5litepod-16",
  "WORKDIR": "gs://bucket/mine",
  "POLL_S": "0.05",
  "GRACE_S": "1",
  "SETUP": "true",
}

# `state` holds what the TPU is, `machines` how many a slice has; a line of
# `breaks` says how often a connection breaks, and whether before or after the
# command was carried out. As the real one, it drops the code of several
# machines, and gives a command again where the connection broke.
GCLOUD = """#!/usr/bin/env bash
{ printf '%s\\n' "$(basename "$0")" "$@"; echo; } >> "$CALLS"
state=$(cat "$FAKE/state")
case " $* " in
  *" tpu-vm describe "*)
    sed 's/^/10.0.0./' <(seq "$(cat "$FAKE/machines")") ;;
  *" queued-resources describe "*)
    if [[ -s $FAKE/faults ]]; then
      sed -i 1d "$FAKE/faults"
      echo "ERROR: UNAUTHENTICATED: log in again" >&2; exit 1
    elif [[ $state == NONE ]]; then
      echo "ERROR: (gcloud) NOT_FOUND: Resource '$4' was not found" >&2; exit 1
    fi
    echo "$state"
    if [[ $state == PROVISIONING ]]; then echo ACTIVE > "$FAKE/state"; fi ;;
  *" create "*)
    if [[ $(grep -c '^create$' "$CALLS") == "${REFUSE:-}" ]]; then
      echo "ERROR: UNAVAILABLE" >&2; exit 1
    fi
    [[ $state == NONE ]] || { echo ALREADY_EXISTS >&2; exit 1; }
    echo PROVISIONING > "$FAKE/state" ;;
  *" delete "*) echo NONE > "$FAKE/state"; rm -rf "$FAKE"/home-* ;;
  *" scp "* | *" ssh "*)
    [[ $state == ACTIVE ]] || exit 1
    broken=""
    if [[ -s $FAKE/breaks ]]; then
      broken=$(head -n 1 "$FAKE/breaks"); sed -i 1d "$FAKE/breaks"
    fi
    [[ $broken != before ]] || exit 255
    for flag in "$@"; do
      case $flag in --command=*) command=${flag#--command=} ;; esac
    done
    for ((i = 0; i < $(cat "$FAKE/machines"); i++)); do
      export WORKER="$5-$i" HOME="$FAKE/home-$5-$i"
      mkdir -p "$HOME"
      case " $* " in
        *" scp "*)
          mkdir -p "$FAKE/home-${6%:*}-$i"
          cp "$5" "$FAKE/home-${6%:*}-$i/" ;;
        *)
          (cd; bash -c "$command")
          if [[ $broken == after ]]; then (cd; bash -c "$command"); fi ;;
      esac
    done
    [[ $broken != after ]] || exit 255 ;;
esac
"""
HOSTNAME = '#!/usr/bin/env bash\necho "$WORKER"\n'

# `rcmed` on a machine: notes that it began, and leaves as the next line of
# `codes` of its machine says.
RCMED = """#!/usr/bin/env bash
printf '%s\\n' "$WORKER" "$JAX_COMPILATION_CACHE_DIR" "$@" \\
  > "$FAKE/told-$WORKER"
echo "$WORKER" >> "$FAKE/begun"
code=$(head -n 1 "$FAKE/codes-$WORKER")
sed -i 1d "$FAKE/codes-$WORKER"
echo "a line of the log"
case $code in
  wait) until [[ -e $FAKE/go ]]; do sleep 0.05; done; exit 0 ;;
  hang) exec sleep 613.25 ;;
  taken) echo SUSPENDED > "$FAKE/state"; exit 143 ;;
  boots) kill -KILL $PPID; exit 1 ;;
  *) exit "$code" ;;
esac
"""


@pytest.fixture
def tpu(launch, tmp_path):
  """Runs the script beside a TPU; `run.begun` says who trained, in turn."""

  def run(*, state="NONE", codes=(("0",),), breaks=(), faults=0, **environ):
    slices = int(environ.get("SLICES", "1"))
    nodes = ["mine"] if slices == 1 else [f"mine-{i}" for i in range(slices)]
    (tmp_path / "machines").write_text(str(len(codes) // slices))
    (tmp_path / "state").write_text(state + "\n")
    (tmp_path / "breaks").write_text("".join(f"{b}\n" for b in breaks))
    (tmp_path / "faults").write_text("fault\n" * faults)
    for node in nodes:
      for i in range(len(codes) // slices):
        (tmp_path / f"codes-{node}-{i}").write_text("\n".join(codes[i]) + "\n")
    (tmp_path / "begun").write_text("")
    program = tmp_path / "bin/rcmed"
    program.parent.mkdir(exist_ok=True)
    program.write_text(RCMED)
    program.chmod(0o755)
    return again(**environ)

  def again(**environ):
    told = TOLD | {"RCMED": str(tmp_path / "bin/rcmed")} | environ
    told = {key: value for key, value in told.items() if value is not None}
    result, calls = launch(
      "tpu_vm.sh", told, SPACED, gcloud=GCLOUD, hostname=HOSTNAME
    )
    words = ("create", "delete", "scp", "ssh")
    done = [next((w for w in words if w in call), "") for call in calls]
    begun = (tmp_path / "begun").read_text().split()
    return (
      result,
      [word for word in done if word in ("create", "delete")],
      begun,
    )

  run.again = again
  run.calls = lambda: (tmp_path / "calls").read_text()
  run.told = lambda name: (tmp_path / f"told-{name}").read_text().splitlines()
  run.state = lambda: (tmp_path / "state").read_text().strip()
  return run


def test_tpu_is_asked_for_used_and_given_back(tpu):
  result, done, begun = tpu(codes=[["0"], ["0"]], SPOT="1")
  assert result.returncode == 0, result.stderr
  assert done == ["create", "delete"]
  assert begun.count("mine-0") == begun.count("mine-1") == 1
  assert tpu.state() == "NONE"
  assert "may still be there" not in result.stderr
  calls = tpu.calls()
  for word in (
    *("--spot", "--node-id=mine", "--accelerator-type=v5litepod-16"),
    "--worker=all",
  ):
    assert f"\n{word}\n" in calls
  assert tpu.told("mine-1") == [
    *("mine-1", "gs://bucket/mine/compiled", "train"),
    *("--config=configs/finetune.py", "--workdir=gs://bucket/mine"),
    *("--config.mesh.slice=1", SPACED, "--resume=auto"),
  ]


def test_broken_connections_begin_nothing_twice_and_delete_nothing(tpu):
  """Begun once, though its command came twice; looked at until it ends."""
  # existing, setup, begin, and looks.
  breaks = ("none", "after", "after", "before", "after", "before")
  result, done, begun = tpu(codes=[["0"], ["0"]], breaks=breaks)
  assert result.returncode == 0, result.stderr
  assert done == ["create", "delete"]
  assert sorted(begun) == ["mine-0", "mine-1"]
  assert "0 of 2 machines answer, the TPU is ACTIVE" in result.stderr


def test_begin_that_reaches_no_machine_is_repeated(tpu):
  result, done, begun = tpu(breaks=("none", "none", "before"))
  assert result.returncode == 0, result.stderr
  assert begun == ["mine-0"]
  assert done == ["create", "delete"]


def test_script_that_ends_leaves_the_run_and_the_next_one_follows_it(
  tpu, tmp_path
):
  """Ctrl-C says how to delete; the same command does not start a second."""
  answer = []
  thread = threading.Thread(target=lambda: answer.append(tpu(codes=[["wait"]])))
  thread.start()
  deadline = time.monotonic() + 60
  begun = tmp_path / "begun"
  while not (begun.exists() and begun.read_text()):
    assert time.monotonic() < deadline
    time.sleep(0.05)
  script = str(imports.ROOT / "launch/tpu_vm.sh")
  for process in psutil.process_iter(["cmdline"]):
    line = process.info["cmdline"] or []
    if script in line and process.environ().get("FAKE") == str(tmp_path):
      process.send_signal(signal.SIGINT)
  thread.join(60)
  result, done, _ = answer[0]
  assert result.returncode == 130
  assert done == ["create"]
  assert "queued-resources delete mine" in result.stderr
  (tmp_path / "go").touch()
  result, done, begun = tpu.again()
  assert result.returncode == 0, result.stderr
  assert "which is there already" in result.stderr
  assert begun == ["mine-0"]
  assert done == ["delete"]


def test_tpu_that_was_taken_away_is_asked_for_again(tpu):
  result, done, begun = tpu(
    codes=[["taken", "0"]], RESUME="never", MAX_RESTARTS="1"
  )
  assert result.returncode == 0, result.stderr
  assert done == ["create", "delete", "create", "delete"]
  assert begun == ["mine-0"] * 2
  assert tpu.told("mine-0")[-1] == "--resume=auto"  # what it began itself


def test_request_that_fails_once_is_repeated_later_not_at_first(tpu):
  """At first it is wrong; later the run is worth another try."""
  result, done, begun = tpu(codes=[["taken", "0"]], REFUSE="2")
  assert result.returncode == 0, result.stderr
  assert done == ["create", "delete", "create", "create", "delete"]
  assert begun == ["mine-0"] * 2
  result, done, begun = tpu(REFUSE="1")
  assert result.returncode == 1
  assert (done, begun) == (["create"], [])


@pytest.mark.parametrize(
  "code", [hosts.STOPPED, hosts.LOST, 69, 77, 137, "boots"]
)
def test_run_that_can_go_on_does_where_it_is(tpu, code):
  result, done, begun = tpu(codes=[[str(code), "0"]], KEEP="1")
  assert result.returncode == 0, result.stderr
  assert done == ["create"]
  assert begun == ["mine-0"] * 2
  assert "queued-resources delete mine" in result.stderr  # it still costs


def test_restarts_are_counted(tpu):
  result, done, begun = tpu(codes=[["77"] * 3], MAX_RESTARTS="1")
  assert result.returncode == 77
  assert begun == ["mine-0"] * 2
  assert "given up after 1 restarts" in result.stderr
  assert done == ["create", "delete"]


def test_fault_of_one_machine_ends_all_and_is_told(tpu):
  """It would come again; the others, who hang, are ended."""
  codes = [["hang"], ["2"], [str(hosts.LOST)]]
  result, done, begun = tpu(codes=codes)
  assert result.returncode == 2, result.stderr
  assert len(begun) == 3
  assert done == ["create", "delete"]
  assert "the others did not leave within 1 s" in result.stderr
  assert "mine-1: a line of the log" in result.stderr
  left = subprocess.run(["pgrep", "-fx", "sleep 613.25"], capture_output=True)
  assert not left.stdout


def test_no_answer_about_the_tpu_is_not_taken_for_no_tpu(tpu):
  """As where the login has run out: no second TPU, nothing left unsaid."""
  result, done, begun = tpu(state="ACTIVE", faults=3)
  assert result.returncode == 0, result.stderr
  assert done == ["delete"]
  result, done, begun = tpu(state="ACTIVE", faults=100)
  assert result.returncode == 1
  assert (done, begun) == ([], [])
  assert "is gcloud logged in?" in result.stderr
  assert tpu.state() == "ACTIVE"


def test_machines_that_no_key_opens_are_left_and_told(tpu):
  result, done, begun = tpu(breaks=["before"] * 100)
  assert result.returncode == 1
  assert (done, begun) == (["create"], [])
  assert "ssh-add" in result.stderr
  assert "queued-resources delete mine" in result.stderr


def test_setup_that_fails_gives_the_tpu_back(tpu):
  result, done, begun = tpu(SETUP="echo no such package; false")
  assert result.returncode == 1
  assert (done, begun) == (["create", "delete"], [])
  assert "mine-0: no such package" in result.stderr


def test_setup_makes_a_newer_python_from_this_checkout(tpu, tmp_path):
  """The image has Python 3.10; the package asks for 3.11."""
  python = tmp_path / "bin/python3"
  python.parent.mkdir()
  python.write_text(
    "#!/usr/bin/env bash\n"
    '[[ -e rcmed/pyproject.toml ]] && echo "$*" >> "$FAKE/python"\n'
  )
  python.chmod(0o755)
  result, _, begun = tpu(SETUP=None, DATA_SETUP="mkdir brought")
  assert result.returncode == 0, result.stderr
  assert begun == ["mine-0"]
  told = (tmp_path / "python").read_text().splitlines()
  assert "-m uv venv --quiet --allow-existing --python 3.12 rcmed-env" in told
  assert told[-1].endswith("rcmed-env/bin/python ./rcmed[tpu,gcs]")


def test_slices_run_together(tpu):
  codes = [["0"], ["0"]]
  result, _, begun = tpu(codes=codes, SLICES="2", KEEP="1")
  assert result.returncode == 0, result.stderr
  assert "\n--node-prefix=mine\n--node-count=2\n" in tpu.calls()
  assert sorted(begun) == ["mine-0-0", "mine-1-0"]
