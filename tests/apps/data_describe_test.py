"""`rcmed data describe` as it is run."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time

from ingest.describing import vlm_server
import numpy as np
import pytest

from rcmed_jax import cli
from rcmed_jax.data import phantoms, readers

KEY = "sk-hidden-0123456789"
IMAGES = 9


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("data")
  phantoms.write(folder, IMAGES, size=64)
  return folder / "image2label_train.json"


@pytest.fixture(autouse=True)
def key(monkeypatch):
  monkeypatch.setenv("OPENAI_API_KEY", KEY)
  monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


def arguments(data, out, url="", *more):
  told = ["data", "describe", str(data), "--out", str(out)]
  if url:
    told += ["--describer", "server", "--base-url", url, "--model", "eye"]
  return [*told, *more]


def test_geometry_is_the_default_and_needs_no_network(data, tmp_path, capsys):
  out = tmp_path / "descriptions.json"
  assert cli.main(arguments(data, out, "", "--processes", "1")) == 0
  own = data.with_name("descriptions_train.json")
  assert json.loads(out.read_text()) == json.loads(own.read_text())
  printed = capsys.readouterr().out
  assert printed == f"describe: 9 images = 9 from geometry; {out}\n"


def test_a_model_is_asked_after_the_estimate(data, tmp_path, capsys):
  out = tmp_path / "descriptions.json"
  more = ("--yes", "--price-in", "2", "--price-out", "8", "--rate", "6000")
  with vlm_server.serve() as running:
    assert cli.main(arguments(data, out, running.url, *more)) == 0
  printed = capsys.readouterr().out.splitlines()
  assert (
    "9 images, 0 without targets; 9 pictures, 0 answered before" in (printed[0])
  )
  assert "9 to ask eye at http://127.0.0.1" in printed[0]
  assert printed[2].startswith("describe: about 0.0")
  assert "at least 0.0 minutes at 6000 requests a minute" in printed[3]
  # 9 answers of 1000 tokens in and 50 out.
  assert printed[-2] == "describe: 9 requests, 0.0216 spent"
  assert printed[-1] == f"describe: 9 images = 9 asked; {out}"
  records = readers.read_index(data, out)
  assert all(record.description for record in records)


def test_nobody_is_asked_without_consent(data, tmp_path, monkeypatch, capsys):
  out = tmp_path / "descriptions.json"
  with vlm_server.serve() as running:
    told = arguments(data, out, running.url, "--limit", "2")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert cli.main(told) == cli.BAD_INPUT
    assert "say --yes" in capsys.readouterr().err
    for answer, code in (("", 1), ("n", 1), ("y", 0)):
      monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
      monkeypatch.setattr("builtins.input", lambda _, answer=answer: answer)
      asked = len(running.requests)
      assert cli.main(told) == code
      assert out.exists() == (len(running.requests) > asked) == (code == 0)
    # What is all kept needs no consent.
    monkeypatch.setattr("builtins.input", pytest.fail)
    assert cli.main(told) == 0
    assert len(running.requests) == 2


def test_the_key_is_nowhere(data, tmp_path, capfd, caplog):
  caplog.set_level("DEBUG")
  script = ["-echo", "-echo 400"]
  with vlm_server.serve(lambda n, _: script[n % 2]) as running:
    more = ("--yes", "--limit", "3", "--attempts", "1", "--timeout", "5")
    cli.main(arguments(data, tmp_path / "out.json", running.url, *more))
    faults = (tmp_path / "out.faults.jsonl").read_text()
    assert "answered 400" in faults and "[key]" in faults
    cli.main(arguments(data, tmp_path / "out.json", running.url, *more))
  with vlm_server.serve(lambda *_: "-echo 401") as running:
    told = arguments(data, tmp_path / "out.json", running.url, *more)
    assert cli.main([*told, "--cache", str(tmp_path / "other")]) == 2
  printed = capfd.readouterr()
  assert "the key was refused" in printed.err
  written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
  assert KEY not in "".join([*printed, caplog.text, faults, *written])


def test_faults_of_the_last_run_are_gone(data, tmp_path, capsys):
  out = tmp_path / "out.json"
  faults = tmp_path / "out.faults.jsonl"
  more = ("--yes", "--limit", "2", "--attempts", "1")
  with vlm_server.serve(lambda *_: "No.") as running:
    assert cli.main(arguments(data, out, running.url, *more)) == 1
    assert len(faults.read_text().splitlines()) == 2
    told = (*more, "--fallback", "geometry")
    assert cli.main(arguments(data, out, running.url, *told)) == 1
    assert len(json.loads(out.read_text())) == 2
  assert "2 of those that failed have the built-in" in capsys.readouterr().out
  with vlm_server.serve() as running:
    assert cli.main(arguments(data, out, running.url, *more)) == 0
  assert not faults.exists()


@pytest.mark.parametrize(
  ("more", "words"),
  [
    (("--model", ""), "say --model"),
    (("--base-url", "127.0.0.1:8000"), "expected http://HOST"),
    (("--base-url", f"http://me:{KEY}@127.0.0.1/v1"), "holds a name"),
    (("--api-key-env", "NO_SUCH_KEY"), "NO_SUCH_KEY holds no key"),
    (("--max-cost", "1"), "--max-cost needs prices"),
    (("--rate", "-1"), "must not be negative"),
    (("--price-in", "nan"), "must not be negative"),
  ],
)
def test_wrong_input_is_one_line(data, tmp_path, more, words, capsys):
  told = arguments(data, tmp_path / "o.json", "http://127.0.0.1:9/v1", *more)
  assert cli.main(told) == cli.BAD_INPUT
  said = capsys.readouterr().err
  assert words in said and len(said.splitlines()) == 1 and KEY not in said


def test_openai_itself_needs_a_key(data, tmp_path, monkeypatch, capsys):
  monkeypatch.delenv("OPENAI_API_KEY")
  told = arguments(data, tmp_path / "o.json", "", "--describer", "server")
  assert cli.main([*told, "--model", "eye"]) == cli.BAD_INPUT
  assert "OPENAI_API_KEY holds no key" in capsys.readouterr().err


def test_a_missing_package_is_named(data, tmp_path, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, "openai", None)
  told = arguments(data, tmp_path / "o.json", "http://127.0.0.1:9/v1", "--yes")
  assert cli.main(told) == cli.BAD_INPUT
  assert 'pip install "rcmed-jax[describe]"' in capsys.readouterr().err


def test_dicom_needs_a_key_that_lasts(tmp_path, capsys):
  pydicom = pytest.importorskip("pydicom")
  folder = tmp_path / "patient"
  folder.mkdir()
  file = pydicom.data.get_testdata_file("CT_small.dcm")
  shutil.copy(file, folder)
  told = arguments(folder, tmp_path / "o.json", "", "--processes", "1")
  told += ["--unlabelled", "keep"]
  assert cli.main(told) == cli.BAD_INPUT
  assert "need --pseudonym-key" in capsys.readouterr().err
  told += ["--pseudonym-key", str(tmp_path / "key")]
  assert cli.main(told) == 0
  assert "1 images = 1 without targets" in capsys.readouterr().out


def start(data, out, url):
  told = arguments(data, out, url, "--yes", "--concurrency", "2")
  return subprocess.Popen(
    [sys.executable, "-m", "rcmed_jax", *told],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def stop_after(process, running, requests, how):
  """Ends the process when the server has had so many requests."""
  until_s = time.monotonic() + 60
  while len(running.requests) < requests and process.poll() is None:
    assert time.monotonic() < until_s
    time.sleep(0.01)
  process.send_signal(how)
  return process.communicate(timeout=60)


def slowly(number, asked):
  time.sleep(0.5)  # longer than a busy machine takes to look
  return vlm_server.describing(number, asked)


def test_ctrl_c_keeps_the_answers(data, tmp_path):
  out = tmp_path / "out.json"
  with vlm_server.serve(slowly) as running:
    process = start(data, out, running.url)
    told, _ = stop_after(process, running, 4, signal.SIGINT)
    assert process.returncode == 130
    assert "stopped; " in told and "the same command goes on" in told
    assert not out.exists()
    assert not list(tmp_path.glob(".out.json*"))
    assert cli.main(arguments(data, out, running.url, "--yes")) == 0
  assert len(json.loads(out.read_text())) == IMAGES
  # Those in flight were asked for twice.
  assert IMAGES <= len(running.requests) <= IMAGES + 2


@pytest.mark.heavy
def test_kill_9_at_ten_moments_costs_only_what_is_in_flight(tmp_path):
  many = 36
  phantoms.write(tmp_path / "data", many, size=64)
  data = tmp_path / "data" / "image2label_train.json"
  whole, out = tmp_path / "whole.json", tmp_path / "out.json"
  with vlm_server.serve() as running:
    assert cli.main(arguments(data, whole, running.url, "--yes")) == 0
  rng = np.random.default_rng(0)
  with vlm_server.serve(slowly) as running:
    for _ in range(10):
      process = start(data, out, running.url)
      more = int(rng.integers(1, 4))
      stop_after(process, running, len(running.requests) + more, signal.SIGKILL)
      assert process.returncode == -signal.SIGKILL
      assert not out.exists()
    assert cli.main(arguments(data, out, running.url, "--yes")) == 0
    # Two were in flight at each kill.
    assert many <= len(running.requests) <= many + 2 * 10
  assert out.read_bytes() == whole.read_bytes()
