"""MONAI Label's protocol, by its contract: what viewers send and read."""

import http.client
import io
import json
import time
import urllib.parse
import zipfile

import cv2
import dicom_files
import nibabel
import nrrd
import numpy as np
import pytest
import requests
import served
import slicer
import volume_files

from rcmed_jax.serve import errors, payload, shelf


@pytest.fixture(scope="module")
def at():
  with served.running() as found:
    yield found


def test_info_holds_what_the_viewer_reads(at):
  told = requests.get(at.url + "/info/", timeout=20).json()
  names = "name labels models trainers strategies scoring train_stats datastore"
  assert told.keys() >= set(names.split())
  model = told["models"][served.NAME]
  assert model["type"] == "segmentation"
  assert (model["dimension"], model["labels"]) == (3, ["bright"])
  assert told["labels"] == ["bright"]
  # A list is a choice to the viewer, whose first is told; see `_asked`.
  assert model["config"]["prompt"] == ""
  assert model["config"]["axis"][0] == "axial"
  assert not told["config"]  # else the viewer asks for a newer server
  # It follows no redirect.
  reply = requests.get(at.url + "/info", timeout=20, allow_redirects=False)
  assert reply.status_code == 404


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
  query = f"?image=x&session_id={name}"
  said, _, data = slicer.answered(slicer.infer(at, query, name=None))
  assert said["label_names"] == {"bright": 1}
  mask_IJ = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  assert mask_IJ.shape == (32, 48)
  assert requests.delete(url, timeout=20).status_code == 200
  assert requests.get(url, timeout=20).status_code == 404
  assert slicer.infer(at, query, name=None).status_code == 404
  assert not list((at.app.folder / "shelf" / "sessions").iterdir())


def test_images_and_labels_are_kept(at):
  url = at.url + "/datastore/"
  files = {"file": ("/home/jane/scan.png", served.png())}
  reply = requests.put(url + "?image=one", files=files, timeout=20)
  assert reply.json() == {"image": "one"}
  said, _, _ = slicer.answered(slicer.infer(at, "?image=one", name=None))
  assert said["label_names"] == {"bright": 1}
  told = requests.post(at.url + "/activelearning/first", timeout=20).json()
  assert (told["id"], told["name"]) == ("one", "scan.png")
  assert told["checksum"].startswith("SHA256:")
  info = {"label_info": [{"name": "bright", "idx": 1}]}
  files = {
    "label": ("label.nii.gz", b"label"),
    "params": (None, json.dumps(info)),
  }
  where = url + "label?image=one"
  assert requests.put(where, files=files, timeout=20).status_code == 200
  told = requests.get(url + "?output=all", timeout=20).json()
  assert told["objects"]["one"] == {
    "image": {"ext": ".png", "info": {}},
    "labels": {"final": {"ext": ".nii.gz", "info": {"params": info}}},
  }
  assert (told["total"], told["completed"]) == (1, 1)
  assert (
    requests.post(at.url + "/activelearning/first", timeout=20).json() == {}
  )
  reply = requests.get(url + "label?label=one&tag=final", timeout=20)
  assert reply.content == b"label"
  assert "label.nii.gz" in reply.headers["content-disposition"]
  reply = requests.get(url + "image?image=one", timeout=20)
  assert reply.content == served.png()
  # What is put again takes the place of what was there.
  files = {"file": ("other.png", served.png(served.image(0, 0, 2, 2)))}
  requests.put(url + "image?image=one", files=files, timeout=20)
  assert requests.get(url + "image?image=one", timeout=20).content != (
    served.png()
  )
  files = {"label": ("label.nrrd", b"label")}
  where = url + "label?image=unknown"
  assert requests.put(where, files=files, timeout=20).status_code == 404


@pytest.mark.parametrize(
  "name", ["..", ".", "../../etc/x/..", "a\x00b", "x" * 300]
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


def test_ids_are_names_of_nodes_and_no_paths(at):
  for name in ("6: CT/Thorax", ".hidden", "a%2Fb", "ä b", "C:\\scan"):
    files = {"file": ("/tmp/tmpx1.png", served.png())}
    query = urllib.parse.urlencode({"image": name})
    url = f"{at.url}/datastore/?{query}"
    reply = requests.put(url, files=files, timeout=20)
    assert reply.json() == {"image": name}
    assert slicer.infer(at, f"?{query}", name=None).status_code == 200
    held = requests.get(at.url + "/datastore/?output=all", timeout=20).json()
    assert name in held["objects"]
  made = [path.parent.parent for path in at.app.folder.rglob("tmpx1.png")]
  assert len(made) == 5
  assert {path.parent for path in made} == {at.app.folder / "shelf" / "images"}
  for path in ("/session/..%2f..%2fx", "/session/../images/two.png"):
    head = f"GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    assert b" 404 " in served.raw(at.port, head.encode())


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


def test_a_session_that_is_read_does_not_end(tmp_path, monkeypatch):
  kept = shelf.Shelf(tmp_path)
  write = lambda path: path.write_bytes(b"x")  # noqa: E731
  one = kept.open_session([("a.png", write)], owner=None, lasts_s=1)
  now = time.monotonic()
  with kept.use(one.id, None):
    monkeypatch.setattr(time, "monotonic", lambda: now + 2)
    kept.open_session([("a.png", write)], owner=None)
    assert one.path.is_file()
  assert kept.session(one.id, None)
  monkeypatch.setattr(time, "monotonic", lambda: now + 4)
  with pytest.raises(Exception, match="no such session"):
    kept.session(one.id, None)


def test_a_session_outlives_its_job_and_its_writing(tmp_path, monkeypatch):
  kept = shelf.Shelf(tmp_path)
  now = [time.monotonic()]
  monkeypatch.setattr(time, "monotonic", lambda: now[0])
  write = lambda path: path.write_bytes(b"x")  # noqa: E731

  def slow(path):
    write(path)
    now[0] += 5
    kept.open_session([("b.png", write)], owner=None)

  one = kept.open_session([("a.png", slow)], owner=None, lasts_s=1)
  assert one.path.is_file() and kept.session(one.id, None)
  with kept.use(one.id, None):
    kept.close_session(one.id, None)
    assert one.path.is_file()
    with pytest.raises(Exception, match="no such session"):
      kept.session(one.id, None)
  assert not one.folder.exists()


def test_a_folder_that_is_not_ours_loses_nothing(tmp_path):
  theirs = tmp_path / "scratch/thesis.txt"
  theirs.parent.mkdir()
  theirs.write_text("x")
  with pytest.raises(ValueError, match="give a new or an empty folder"):
    shelf.Shelf(tmp_path)
  assert [path.name for path in tmp_path.rglob("*")] == [
    "scratch",
    "thesis.txt",
  ]


def test_two_servers_do_not_share_a_folder(tmp_path):
  kept = shelf.Shelf(tmp_path / "new")
  write = lambda path: path.write_bytes(b"x")  # noqa: E731
  one = kept.open_session([("a.png", write)], owner=None)
  kept.put_image("a", ("a.png", write), {})
  with pytest.raises(ValueError, match="stop that one"):
    shelf.Shelf(tmp_path / "new")
  assert one.path.is_file()
  kept.close()
  again = shelf.Shelf(tmp_path / "new")
  assert not one.folder.exists() and again.image("a").is_file()


def _zip(members, kind=zipfile.ZIP_DEFLATED):
  made = io.BytesIO()
  with zipfile.ZipFile(made, "w", kind) as packed:
    for name, data in members:
      packed.writestr(name, data)
  return made.getvalue()


def test_an_archive_is_unpacked_flat(tmp_path):
  (tmp_path / "a.zip").write_bytes(
    _zip([("s/", ""), ("s/1.dcm", b"one"), ("../../2.dcm", b"two")])
  )
  out = tmp_path / "out" / "deep"
  out.mkdir(parents=True)
  payload.unpack(tmp_path / "a.zip", out, "files", most_files=2, most_bytes=100)
  found = {path.name: path.read_bytes() for path in out.iterdir()}
  assert found == {"00000-1.dcm": b"one", "00001-2.dcm": b"two"}
  assert len(list(tmp_path.iterdir())) == 2


# As Finder, Windows and burners of discs leave them beside a series.
BESIDE = (
  "__MACOSX/CT/._1.dcm",
  "CT/.DS_Store",
  "CT/Thumbs.db",
  "DICOMDIR",
  "desktop.ini",
)


def test_what_systems_lay_beside_a_series_is_left_out(tmp_path):
  members = [("CT/1.dcm", b"one"), *((name, b"x") for name in BESIDE)]
  (tmp_path / "a.zip").write_bytes(_zip(members))
  out = tmp_path / "out"
  out.mkdir()
  payload.unpack(tmp_path / "a.zip", out, "files", most_files=2, most_bytes=100)
  assert [path.name for path in out.iterdir()] == ["00000-1.dcm"]
  kept = shelf.Shelf(tmp_path / "shelf")
  write = lambda path: path.write_bytes(b"x")  # noqa: E731
  incoming = [("1.dcm", write), ("2.dcm", write)]
  incoming += [(name, write) for name in BESIDE]
  one = kept.open_session(incoming, owner=None)
  assert {path.name for path in one.folder.iterdir()} == {"1.dcm", "2.dcm"}
  with pytest.raises(errors.BadFieldError, match="file alone"):
    kept.open_session([("a.zip", write), ("b.zip", write)], owner=None)
  # A folder may be hidden where a client says whole paths.
  assert not payload.is_beside("/home/jane/.cache/1.dcm")


def test_long_names_in_an_archive_are_cut_by_bytes(tmp_path):
  (tmp_path / "a.zip").write_bytes(_zip([("\U00020000" * 90 + ".dcm", b"x")]))
  out = tmp_path / "out"
  out.mkdir()
  payload.unpack(tmp_path / "a.zip", out, "files", most_files=2, most_bytes=100)
  (path,) = out.iterdir()
  assert path.suffix == ".dcm" and len(path.name.encode()) <= 255


def _locked():
  """An archive whose flags say that it is encrypted."""
  data = bytearray(_zip([("a", b"x")], zipfile.ZIP_STORED))
  data[6] |= 1
  data[data.index(b"PK\x01\x02") + 8] |= 1
  return bytes(data)


@pytest.mark.parametrize(
  ("data", "status"),
  [
    (_zip([("a", bytes(10**7))]), 413),  # 10 kB that become 10 MB
    (_zip([(str(n), b"") for n in range(30)]), 413),
    (_zip([(str(n), b"") for n in range(900)]), 413),  # by its directory
    (_zip([]), 400),
    (_zip([("a", b"x" * 1000)])[:-30], 400),
    (_zip([("a", b"x")], zipfile.ZIP_STORED).replace(b"x", b"y"), 400),
    (_locked(), 400),
    (b"PK\x05\x06", 400),
    (b"noise" * 100, 400),
    (b"", 400),
  ],
  # Archives hold the time: processes that share tests would name them apart.
  ids=map(str, range(10)),
)
def test_archives_that_are_bombs_or_damaged_are_refused(data, status, tmp_path):
  path = tmp_path / "a.zip"
  path.write_bytes(data)
  (tmp_path / "out").mkdir()
  with pytest.raises(errors.BadFieldError) as caught:
    payload.unpack(
      path, tmp_path / "out", "files", most_files=20, most_bytes=10**6
    )
  assert caught.value.status == status
  written = sum(one.stat().st_size for one in (tmp_path / "out").iterdir())
  assert written <= 10**6


class Client:
  """Asks as 3D Slicer's client does: http.client, no redirects, one form."""

  LINE = "----------lImIt"

  def __init__(self, port):
    self._port = port

  def ask(self, method, path, body=None, **headers):
    one = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
    one.request(method, path, body, headers)
    reply = one.getresponse()
    assert reply.getheader("transfer-encoding") is None
    content = reply.fp.read(int(reply.getheader("content-length")))
    one.close()
    return reply.status, reply.getheader("content-type"), content

  def form(self, method, path, fields, files):
    lines = []
    for name, text in fields.items():
      lines += [
        f"--{self.LINE}",
        f'Content-Disposition: form-data; name="{name}"',
      ]
      lines += ["", text]
    for name, (local, data) in files.items():
      lines.append(f"--{self.LINE}")
      lines.append(
        f'Content-Disposition: form-data; name="{name}"; filename="{local}"'
      )
      lines += ["Content-Type: application/octet-stream", "", data]
    lines += [f"--{self.LINE}--", ""]
    body = b"\r\n".join(
      line if isinstance(line, bytes) else line.encode() for line in lines
    )
    kind = f"multipart/form-data; boundary={self.LINE}"
    return self.ask(method, path, body, **{"content-type": kind})


def test_a_visit_by_3d_slicer_in_its_documented_order(at, tmp_path):
  """From opening the module to a saved label, for a volume that is open."""
  client = Client(at.port)
  ask = lambda *told: json.loads(client.ask(*told)[2])  # noqa: E731
  assert ask("GET", "/auth/") == {"enabled": False}
  info = ask("GET", "/info/")
  assert client.ask("GET", "/train/?check_if_running=true")[0] != 200
  model = info["models"][served.NAME]
  # The options are the config, of a list the first, and what it always adds.
  params = {
    key: value[0] if isinstance(value, list) else value
    for key, value in model["config"].items()
  }
  params |= {"prompt": "light", "result_extension": ".nrrd"}
  params |= {"result_dtype": "uint8", "client_id": "user-xyz"}

  _, labels, affine = volume_files.patient()
  local = tmp_path / "tmp8x.nii.gz"
  nibabel.save(
    nibabel.Nifti1Image((labels * 120).astype(np.uint8), affine), local
  )
  form = requests.Request(
    "PUT",
    at.url + "/session/",
    files=[("files", (local.name, local.read_bytes()))],
    data={"client_id": "user-xyz"},
  ).prepare()
  reply = requests.Session().send(form)
  session = reply.json()["session_id"]
  assert client.ask("GET", f"/session/{session}")[0] == 200
  status, kind, body = client.form(
    "POST",
    f"{slicer.INFER}?image=6%3A+CT%2FThorax&session_id={session}",
    {"params": json.dumps(params)},
    {},
  )
  assert status == 200
  parts = slicer.parts(kind, body)
  names = json.loads(parts["params"][1])["label_names"]
  assert names == {"bright": 1}
  assert parts["image"][0] == "label.nrrd"
  (tmp_path / "label.nrrd").write_bytes(parts["image"][1])
  voxels, header = nrrd.read(str(tmp_path / "label.nrrd"))
  assert voxels.dtype == np.uint8
  np.testing.assert_array_equal(voxels > 0, labels == 2)
  np.testing.assert_allclose(
    header["space origin"], affine[:3, 3] * (-1, -1, 1)
  )

  # "Submit label": the image, then the label, both from temporary files.
  image_id = "/datastore/?image=6%3A+CT%2FThorax"
  fields = {"params": json.dumps({"client_id": "user-xyz"})}
  file = {"file": (str(local), local.read_bytes())}
  status, _, body = client.form("PUT", image_id, fields, file)
  assert (status, json.loads(body)) == (200, {"image": "6: CT/Thorax"})
  said = {"label_info": [{"name": "bright", "idx": 1}], "client_id": "u"}
  status, _, body = client.form(
    "PUT",
    "/datastore/label?image=6%3A+CT%2FThorax",
    {"params": json.dumps(said)},
    {"label": (str(tmp_path / "tmp9.nii.gz"), b"label")},
  )
  assert status == 200
  held = ask("GET", "/datastore/?output=all")["objects"]["6: CT/Thorax"]
  assert held["labels"]["final"]["info"]["params"] == said
  assert ask("GET", "/info/")["datastore"]["completed"] >= 1
  # The label map of the kept image is the same.
  status, kind, body = client.form(
    "POST",
    f"{slicer.INFER}?image=6%3A+CT%2FThorax",
    {"params": json.dumps(params)},
    {},
  )
  (tmp_path / "again.nrrd").write_bytes(slicer.parts(kind, body)["image"][1])
  again, _ = nrrd.read(str(tmp_path / "again.nrrd"))
  np.testing.assert_array_equal(again, voxels)
  assert client.ask("DELETE", f"/session/{session}")[0] == 200
  assert client.ask("GET", f"/session/{session}")[0] == 404
