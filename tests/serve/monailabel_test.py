"""MONAI Label's protocol, by its contract: what 3D Slicer sends and reads."""

import email.parser
import email.policy
import json
import time

import cv2
import dicom_files
import nrrd
import numpy as np
import pytest
import requests
import served

from rcmed_jax.data import checks
from rcmed_jax.serve import monailabel, shelf
from rcmed_jax.serve.assistant import Answer, Found

INFER = f"/infer/{served.NAME}"


@pytest.fixture(scope="module")
def at():
  with served.running() as found:
    yield found


def _parts(kind, body):
  """name -> (file name, content) of a multipart body, as a parser sees it."""
  whole = b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body
  policy = email.policy.HTTP
  message = email.parser.BytesParser(policy=policy).parsebytes(whole)
  return {
    part.get_param("name", header="content-disposition"): (
      part.get_filename(),
      part.get_payload(decode=True),
    )
    for part in message.iter_parts()
  }


def _infer(at, query="", params=None, name="a.png", data=None):
  files = {"params": (None, json.dumps(params or {"prompt": "light"}))}
  if name:
    files["file"] = (name, served.png() if data is None else data)
  return requests.post(at.url + INFER + query, files=files, timeout=20)


def _mask(reply):
  assert reply.status_code == 200, reply.text
  parts = _parts(reply.headers["content-type"], reply.content)
  name, data = parts["image"]
  assert name == "label.png"
  mask = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  return json.loads(parts["params"][1]), mask


def test_info_holds_what_the_viewer_reads(at):
  told = requests.get(at.url + "/info/", timeout=20).json()
  names = "name labels models trainers strategies scoring train_stats datastore"
  assert told.keys() >= set(names.split())
  model = told["models"][served.NAME]
  assert model["type"] == "segmentation"
  assert (model["dimension"], model["labels"]) == (2, ["bright"])
  assert model["config"] == {"prompt": ""}
  # It follows no redirect.
  reply = requests.get(at.url + "/info", timeout=20, allow_redirects=False)
  assert reply.status_code == 404


def test_a_prompt_in_params_is_answered_with_a_label_map(at):
  said, mask_IJ = _mask(_infer(at, "?image=a"))
  assert said["label_names"] == {"bright": 1}
  assert said["targets"][0]["box"] == [4, 8, 20, 16]
  np.testing.assert_array_equal(mask_IJ, served.image()[..., 0] // 255)
  assert at.assistant.texts[-1] == "light"
  _mask(_infer(at, params={"client_id": "user"}))
  assert "image" in at.assistant.texts[-1]


def test_the_reply_comes_in_one_piece_with_a_mask_even_if_empty(at):
  black = served.png(np.zeros((32, 32, 3), np.uint8))
  line = "----x"
  body = (
    f'--{line}\r\nContent-Disposition: form-data; name="params"\r\n\r\n'
    '{"prompt": "light"}\r\n'
    f'--{line}\r\nContent-Disposition: form-data; name="file"; '
    'filename="/home/jane/b.png"\r\n'
    "Content-Type: application/octet-stream\r\n\r\n"
  ).encode()
  body += black + f"\r\n--{line}--\r\n".encode()
  head = (
    f"POST {INFER}?image=b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
    f"Content-Type: multipart/form-data; boundary={line}\r\n"
    f"Content-Length: {len(body)}\r\n\r\n"
  )
  reply = served.raw(at.port, head.encode() + body)
  head, _, rest = reply.partition(b"\r\n\r\n")
  headers = dict(
    one.split(": ", 1) for one in head.decode().lower().split("\r\n")[1:]
  )
  assert head.startswith(b"HTTP/1.1 200")
  assert "transfer-encoding" not in headers
  assert int(headers["content-length"]) == len(rest)
  parts = _parts(headers["content-type"], rest)
  assert json.loads(parts["params"][1])["label_names"] == {}
  name, data = parts["image"]
  assert name == "label.png"
  mask_IJ = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  assert mask_IJ.shape == (32, 32)
  assert not mask_IJ.any()


def test_other_outputs(at, tmp_path):
  reply = _infer(at, "?output=json")
  assert reply.json()["label_names"] == {"bright": 1}
  reply = _infer(at, params={"prompt": "a", "result_extension": ".nrrd"})
  parts = _parts(reply.headers["content-type"], reply.content)
  name, data = parts["image"]
  assert name == "label.nrrd"
  (tmp_path / name).write_bytes(data)
  voxels, _ = nrrd.read(str(tmp_path / name))
  np.testing.assert_array_equal(voxels[..., 0].T, served.image()[..., 0] // 255)
  bad = _infer(at, params={"prompt": "a", "result_extension": "/../x"})
  assert bad.status_code == 422


def test_a_session_holds_an_image_until_it_ends(at):
  dataset = dicom_files.new("DX")
  dicom_files.put_pixels(dataset, served.image()[..., 0])
  path = at.app.folder / "made.dcm"
  dicom_files.save(dataset, path)
  files = {"files": ("C:\\scans\\Jane.dcm", path.read_bytes())}
  reply = requests.put(
    at.url + "/session/", files=files, data={"client_id": "u"}, timeout=20
  )
  told = reply.json()
  assert "session_info" in told
  name = told["session_id"]
  url = f"{at.url}/session/{name}"
  assert requests.get(url, timeout=20).status_code == 200
  said, mask_IJ = _mask(_infer(at, f"?image=x&session_id={name}", name=None))
  assert said["label_names"] == {"bright": 1}
  assert mask_IJ.shape == (32, 48)
  assert requests.delete(url, timeout=20).status_code == 200
  assert requests.get(url, timeout=20).status_code == 404
  assert _infer(at, f"?session_id={name}", name=None).status_code == 404
  assert not list((at.app.folder / "shelf" / "sessions").iterdir())


def test_images_and_labels_are_kept(at):
  url = at.url + "/datastore/"
  files = {"file": ("/home/jane/scan.png", served.png())}
  reply = requests.put(url + "?image=one.png", files=files, timeout=20)
  assert reply.json() == {"image": "one.png"}
  _, mask_IJ = _mask(_infer(at, "?image=one.png", name=None))
  assert mask_IJ.any()
  files = {"label": ("label.nrrd", b"label"), "params": (None, "{}")}
  where = url + "label?image=one.png&tag=final"
  assert requests.put(where, files=files, timeout=20).status_code == 200
  told = requests.get(url + "?output=all", timeout=20).json()
  assert told["objects"]["one.png"] == {"labels": ["final"]}
  assert (told["total"], told["completed"]) == (1, 1)
  reply = requests.get(url + "label?label=one.png&tag=final", timeout=20)
  assert reply.content == b"label"
  assert "label.nrrd" in reply.headers["content-disposition"]
  reply = requests.get(url + "image?image=one.png", timeout=20)
  assert reply.content == served.png()
  files = {"label": ("label.nrrd", b"label")}
  where = url + "label?image=unknown"
  assert requests.put(where, files=files, timeout=20).status_code == 404


@pytest.mark.parametrize(
  "name", ["..", ".", "../../etc/x/..", "a\x00b", ".bashrc", "x" * 300, "a:b"]
)
def test_nothing_is_written_outside(at, name):
  before = sorted(at.app.folder.rglob("*"))
  url = at.url + "/datastore/"
  files = {"file": ("a.png", served.png()), "label": ("b.png", b"b")}
  for method, path, query in (
    ("PUT", "", {"image": name}),
    ("PUT", "label", {"image": name}),
    ("GET", "image", {"image": name}),
    ("GET", "label", {"label": name}),
  ):
    reply = requests.request(
      method, url + path, params=query, files=files, timeout=20
    )
    assert reply.status_code == 400, (method, path, reply.text)
  if name.isprintable():
    files = {"files": (name, served.png())}
    reply = requests.put(at.url + "/session/", files=files, timeout=20)
    assert reply.status_code == 400
  after = sorted(at.app.folder.rglob("*"))
  assert after == before


def test_a_path_is_cut_to_its_base_name(at):
  files = {"file": ("a.png", served.png())}
  where = at.url + "/datastore/?image=../../../two.png"
  reply = requests.put(where, files=files, timeout=20)
  assert reply.json() == {"image": "two.png"}
  assert (at.app.folder / "shelf" / "images" / "two.png").is_file()
  for path in ("/session/..%2f..%2fx", "/session/../images/two.png"):
    head = f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    assert b" 404 " in served.raw(at.port, head.encode())


def test_what_cannot_be_answered_is_said(at):
  assert _infer(at, name="a.nii.gz", data=b"x").status_code == 501
  reply = requests.post(at.url + "/infer/other", timeout=20)
  assert reply.status_code == 404
  assert _infer(at, name=None).status_code == 400
  assert _infer(at, params={"prompt": 5}).status_code == 422
  assert _infer(at, params=["prompt"]).status_code == 422
  assert _infer(at, data=b"noise").status_code == 400
  reply = requests.post(at.url + INFER, data="params={}", timeout=20)
  assert reply.status_code == 415
  files = {"params": (None, "{"), "file": ("a.png", served.png())}
  reply = requests.post(at.url + INFER, files=files, timeout=20)
  assert reply.status_code == 400


def test_a_key_is_a_password_and_sessions_are_its_owner_s():
  keys = {"ward": served.KEY, "lab": served.OTHER_KEY}
  with served.running(keys=keys) as at:
    auth = at.url + "/auth/"
    assert requests.get(auth, timeout=20).json() == {"enabled": True}
    form = {"username": "ward", "password": served.KEY}
    form["grant_type"] = "password"
    told = requests.post(auth + "token", data=form, timeout=20).json()
    one = {"Authorization": f"{told['token_type']} {told['access_token']}"}
    valid = auth + "token/valid"
    assert requests.get(valid, headers=one, timeout=20).status_code == 200
    assert requests.get(valid, timeout=20).status_code == 401
    form["password"] = "wrong"
    reply = requests.post(auth + "token", data=form, timeout=20)
    assert reply.status_code == 401
    files = {"files": ("a.png", served.png())}
    url = at.url + "/session/"
    reply = requests.put(url, files=files, headers=one, timeout=20)
    name = reply.json()["session_id"]
    other = {"Authorization": f"Bearer {served.OTHER_KEY}"}
    assert requests.get(url + name, headers=one, timeout=20).ok
    reply = requests.get(url + name, headers=other, timeout=20)
    assert reply.status_code == 404


def test_sessions_end_by_themselves(tmp_path, monkeypatch):
  kept = shelf.Shelf(tmp_path)
  write = lambda path: path.write_bytes(b"x")  # noqa: E731
  one = kept.open_session([("a.png", write)], owner=None, lasts_s=1)
  now = time.monotonic()
  monkeypatch.setattr(time, "monotonic", lambda: now + 2)
  kept.open_session([("a.png", write)], owner=None)
  assert not one.folder.exists()
  assert len(list((tmp_path / "sessions").iterdir())) == 1


def test_volumes_go_to_what_answers_them(monkeypatch):
  seen = []

  def answer_volume(engine, path, text, out, *, describe):
    if text == "bad":
      raise checks.DataError(path, "image", "it is bad", "Get another")
    if text == "other":
      raise NotImplementedError("only NIfTI is answered")
    names = sorted(one.name for one in path.iterdir()) if path.is_dir() else []
    seen.append((engine.rows, names or [path.name], text, describe))
    out.write_bytes(b"volume")
    return {"bright": 1}

  monkeypatch.setattr(served, "ANSWER_VOLUME", answer_volume)
  with served.running() as at:
    reply = _infer(at, name="/x/a.nii.gz", data=b"x")
    parts = _parts(reply.headers["content-type"], reply.content)
    assert parts["image"] == ("label.nii.gz", b"volume")
    assert json.loads(parts["params"][1]) == {"label_names": {"bright": 1}}
    files = [("files", (name, b"x")) for name in ("1.dcm", "2.dcm")]
    told = requests.put(at.url + "/session/", files=files, timeout=20).json()
    _infer(at, f"?session_id={told['session_id']}", name=None)
    for text, status in (("bad", 400), ("other", 501)):
      reply = _infer(at, params={"prompt": text}, name="Jane.nii", data=b"x")
      assert reply.status_code == status
      assert "Jane" not in reply.text
  assert seen[0] == (4, ["a.nii.gz"], "light", False)
  assert seen[1] == (4, ["1.dcm", "2.dcm"], "light", False)


def test_where_masks_overlap_the_last_is_seen():
  one, other = np.zeros((2, 4, 4), bool)
  one[:3], other[2:] = True, True
  found = [
    Found("a", True, one, None, 1.0),
    Found("b", True, other, None, 1.0),
    Found("c", False, None, None, 0.0),
  ]
  labels_IJ, said = monailabel.label_map(Answer("", None, tuple(found)), (4, 4))
  assert labels_IJ[:, 0].tolist() == [1, 1, 2, 2]
  assert said["label_names"] == {"a": 1, "b": 2}
