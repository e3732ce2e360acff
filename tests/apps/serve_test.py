"""`rcmed serve`: its flags, and what it refuses to begin."""

import dataclasses
import importlib
import tempfile
import threading

import pytest
import requests
import served

from rcmed_jax.apps import answering, predict_tasks, serve
from rcmed_jax.serve import engine, server, shelf


def _tools():
  pytest.importorskip("mcp", reason="mcp is not installed")
  return importlib.import_module("rcmed_jax.serve.mcp_tools")


TRAINED = {"X-Ray": ("heart", "lung"), "pet": ("heart",)}


@pytest.fixture
def begun(monkeypatch):
  """What `main` would serve, where and for how long."""
  seen = {}

  def load(workdir, **told):
    seen.update(workdir=str(workdir), **told)
    return served.Assistant(rows=told["rows"])

  def run(app, **told):
    seen.update(app=app, **told)
    app.service.engine.start()
    served.until(lambda: app.service.engine.ready)
    app.service.engine.stop()
    return 0

  monkeypatch.setattr(answering, "load_assistant", load)
  monkeypatch.setattr(predict_tasks, "trained", lambda workdir: TRAINED)
  monkeypatch.setattr(tempfile, "tempdir", tempfile.tempdir)
  monkeypatch.setattr(server, "run", run)

  def begin(*argv):
    assert serve.main([*argv, "--workdir=runs/one"]) == 0
    return seen

  return begin


def test_its_flags_reach_what_they_mean(begun, tmp_path):
  keys = tmp_path / "keys"
  keys.write_text(f"ward {served.KEY}\n")
  seen = begun(
    "--host=0.0.0.0",
    "--port=81",
    f"--keys={keys}",
    "--rows=8",
    "--most-mb=5",
    "--most-upload-mb=50",
    f"--files={tmp_path / 'files'}",
    "--log-prompts",
  )
  assert (seen["host"], seen["port"], seen["rows"]) == ("0.0.0.0", 81, 8)
  service = seen["app"].service
  assert service.keys.owner(served.KEY) == "ward"
  assert service.limits.body_bytes == 5_000_000
  assert service.limits.upload_bytes == 50_000_000
  assert service.modalities == ("X-Ray", "pet")
  assert service.classes == ("heart", "lung")
  assert service.log_prompts
  assert (tmp_path / "files" / "sessions").is_dir()
  # What libraries put aside of bodies lies there, too.
  with tempfile.NamedTemporaryFile() as one:
    assert one.name.startswith(str(tmp_path / "files"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_it_is_not_open_to_others_without_being_told(begun, host):
  with pytest.raises(ValueError, match="--keys"):
    begun(f"--host={host}")
  assert begun(f"--host={host}", "--no-keys")["host"] == host


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_on_its_own_machine_it_needs_no_key(begun, host):
  app = begun(f"--host={host}")["app"]
  assert not app.service.keys
  refused = app.gate._refused
  scope = {"path": "/info/", "headers": [(b"host", b"evil.example:80")]}
  assert refused(scope).status_code == 403
  assert "call it by localhost" in refused(scope).detail
  assert "--keys" in refused(scope).detail


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "LOCALHOST"])
def test_it_answers_to_every_name_of_its_own_machine(begun, host):
  gate = begun(f"--host={host}")["app"].gate
  own = f"[{host}]" if ":" in host else host
  names = ("localhost", "LocalHost:8000", "[::1]", "[::1]:80", own, f"{own}:80")
  for name in names:
    headers = [(b"host", name.encode())]
    scope = {"path": "/healthz", "headers": headers}
    assert gate._refused(scope) is None, name
  for name in ("", ":80", "[", "[::1].evil.example", "localhost.evil.example"):
    headers = [(b"host", name.encode())]
    assert gate._refused({"path": "/healthz", "headers": headers}), name


def test_tools_are_served_where_they_are_asked_for(
  begun, monkeypatch, tmp_path
):
  seen = {}

  class Made:
    def run(self):
      seen["service"] = seen["load"]()

  def make(load, **told):
    seen.update(load=load, **told)
    return Made()

  monkeypatch.setattr(_tools(), "make", make)
  begun("--mcp", f"--mcp-images={tmp_path}", "--most-pixels=99")
  assert seen["folder"] == tmp_path
  assert seen["service"].limits.pixels == 99
  seen["service"].engine.stop()
  with pytest.raises(ValueError, match="no folder"):
    begun("--mcp", f"--mcp-images={tmp_path / 'none'}")


def test_a_model_that_cannot_be_loaded_ends_in_an_exit_code(
  monkeypatch, capsys
):
  def load(workdir, **told):
    raise FileNotFoundError("there is no run")

  def make(load, **told):
    class Made:
      def run(self):
        with pytest.raises(FileNotFoundError):
          load()

    return Made()

  monkeypatch.setattr(answering, "load_assistant", load)
  monkeypatch.setattr(predict_tasks, "trained", lambda workdir: TRAINED)
  monkeypatch.setattr(_tools(), "make", make)
  assert serve.main(["--mcp", "--workdir=runs/one"]) == 1
  assert "there is no run" in capsys.readouterr().err


def test_limits_are_above_zero(begun):
  with pytest.raises(ValueError, match="rate"):
    begun("--rate=0")


@pytest.mark.parametrize("flag", ["--rows=0", "--most-waiting=-1"])
def test_counts_are_one_or_more(begun, flag, capsys):
  with pytest.raises(SystemExit):
    begun(flag)
  assert "expected 1 or more" in capsys.readouterr().err


def test_help_tells_every_default():
  text = serve._parser().format_help()
  for action in serve._parser()._actions:
    if isinstance(action.default, (int, float)) and action.default is not False:
      assert "%(default)s" in action.help, action.option_strings
  assert "8000" in text


def test_it_lives_while_its_weights_are_read(tmp_path):
  with served.running() as at:
    asked = at.app.service
  free, ended = threading.Event(), []

  def load():
    free.wait(20)
    raise FileNotFoundError("there is no run")

  service = dataclasses.replace(asked, engine=engine.Engine(load))
  app = server.Application(
    service, shelf.Shelf(tmp_path), log=lambda **told: None
  )
  port = served.free_port()

  def run():
    try:
      server.run(app, host="127.0.0.1", port=port, drain_s=1)
    except OSError as error:
      ended.append(error)

  thread = threading.Thread(target=run)
  thread.start()
  url = f"http://127.0.0.1:{port}"
  served.until(lambda: _status(url + "/healthz") == 200)
  assert requests.get(url + "/capabilities", timeout=20).json()["batch"] is None
  reply = requests.get(url + "/readyz", timeout=20)
  assert reply.status_code == 503 and reply.headers["retry-after"]
  files = {"image": ("a.png", served.png())}
  data = {"prompt": "light"}
  reply = requests.post(url + "/v1/segment", files=files, data=data, timeout=20)
  assert reply.status_code == 503 and reply.headers["retry-after"]
  free.set()
  thread.join(20)
  assert isinstance(ended[0], FileNotFoundError)


def _status(url):
  try:
    return requests.get(url, timeout=20).status_code
  except requests.ConnectionError:
    return None


def test_a_port_that_is_taken_is_said(tmp_path):
  with served.running() as at:
    service = dataclasses.replace(
      at.app.service, engine=engine.Engine(served.Assistant())
    )
    app = server.Application(service, shelf.Shelf(tmp_path))
    with pytest.raises(OSError, match=str(at.port)):
      server.run(app, host="127.0.0.1", port=at.port, drain_s=1)
    # Before anything is loaded.
    assert not service.engine._thread.is_alive()
