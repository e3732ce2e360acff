"""MONAI Label's infer: pictures, volumes, series; what is refused."""

import io
import json
import zipfile

import cv2
import dicom_files
import highdicom
import nibabel
import nrrd
import numpy as np
import pydicom
import pytest
import requests
import served
import slicer
import volume_files

from rcmed_jax.serve import volume_jobs

# Grey values of a volume whose label 2 is seen as bright.
TOLD = {"prompt": "light", "modality": "magnetic resonance"}


@pytest.fixture(scope="module")
def at():
  with served.running(voxels=50_000) as found:
    yield found


def _mask(reply):
  said, name, data = slicer.answered(reply)
  assert name == "label.png"
  return said, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)


def _volume(tmp_path, code="RAS"):
  """The bytes of a NIfTI volume, what is bright in it, and its affine."""
  _, labels, affine = volume_files.patient()
  labels, affine = volume_files.turned(labels, affine, code)
  path = tmp_path / "made.nii.gz"
  image = (labels * 120).astype(np.uint8)
  nibabel.save(nibabel.Nifti1Image(image, affine), path)
  return path.read_bytes(), labels == 2, affine


def _series(tmp_path, code="SPL"):
  """Name -> bytes of a series' files, what is bright, and its affine.

  Slices, rows and columns are the axes.
  """
  _, labels, affine = volume_files.patient()
  labels, affine = volume_files.turned(labels, affine, code)
  voxels = (labels * 120).astype(np.int16)
  datasets = dicom_files.series(voxels, affine, "MR", intercept=0)
  dicom_files.save_series(datasets, tmp_path / "series")
  files = {
    path.name: path.read_bytes()
    for path in sorted((tmp_path / "series").iterdir())
  }
  return files, labels == 2, affine


def _session(at, files):
  reply = requests.put(
    at.url + "/session/",
    files=[("files", (f"C:\\x\\{name}", data)) for name, data in files.items()],
    timeout=20,
  )
  assert reply.status_code == 200, reply.text
  return reply.json()["session_id"]


def _zip(files):
  made = io.BytesIO()
  with zipfile.ZipFile(made, "w") as packed:
    for name, data in files.items():
      packed.writestr(f"series/{name}", data)
  return made.getvalue()


def test_a_prompt_in_params_is_answered_with_a_label_map(at):
  said, mask_IJ = _mask(slicer.infer(at, "?image=a"))
  assert said["label_names"] == {"bright": 1}
  assert said["targets"][0]["box"] == [4, 8, 20, 16]
  np.testing.assert_array_equal(mask_IJ, served.image()[..., 0] // 255)
  assert at.assistant.texts[-1] == "light"
  _mask(slicer.infer(at, params={"client_id": "user"}))
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
    f"POST {slicer.INFER}?image=b HTTP/1.1\r\nHost: a\r\nConnection: close\r\n"
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
  parts = slicer.parts(headers["content-type"], rest)
  assert json.loads(parts["params"][1])["label_names"] == {}
  name, data = parts["image"]
  assert name == "label.png"
  mask_IJ = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  assert mask_IJ.shape == (32, 32)
  assert not mask_IJ.any()


def test_other_outputs(at, tmp_path):
  reply = slicer.infer(at, "?output=json")
  assert reply.json()["label_names"] == {"bright": 1}
  reply = slicer.infer(at, params={"prompt": "a", "result_extension": ".nrrd"})
  parts = slicer.parts(reply.headers["content-type"], reply.content)
  name, data = parts["image"]
  assert name == "label.nrrd"
  (tmp_path / name).write_bytes(data)
  voxels, _ = nrrd.read(str(tmp_path / name))
  np.testing.assert_array_equal(voxels[..., 0].T, served.image()[..., 0] // 255)
  bad = slicer.infer(at, params={"prompt": "a", "result_extension": "/../x"})
  assert bad.status_code == 422


def test_what_cannot_be_answered_is_said(at):
  for suffix in (".nii.gz", ".nii", ".nrrd", ".mha", ".dcm", ".zip"):
    reply = slicer.infer(at, name=f"Jane{suffix}", data=b"x")
    assert reply.status_code == 400, (suffix, reply.text)
    assert "Jane" not in reply.text and "/tmp" not in reply.text
  reply = requests.post(at.url + "/infer/other", timeout=20)
  assert reply.status_code == 404
  assert slicer.infer(at, name=None).status_code == 400
  for bad in (
    {"prompt": 5},
    {"prompt": "a", "axis": "skew"},
    {"prompt": "a", "largest": 1},
    {"prompt": "a", "min_mm3": True},
    {"prompt": "a", "min_mm3": -1},
    {"prompt": "a", "window": "none such"},
    {"prompt": "a" * 5000},
  ):
    assert slicer.infer(at, params=bad).status_code == 422, bad
  assert slicer.infer(at, "?output=gif").status_code == 422
  assert slicer.infer(at, "?output=dicom_seg").status_code == 422
  assert slicer.infer(at, params=["prompt"]).status_code == 422
  assert slicer.infer(at, data=b"noise").status_code == 400
  reply = requests.post(at.url + slicer.INFER, data="params={}", timeout=20)
  assert reply.status_code == 415
  files = {"params": (None, "{"), "file": ("a.png", served.png())}
  reply = requests.post(at.url + slicer.INFER, files=files, timeout=20)
  assert reply.status_code == 400


@pytest.mark.parametrize("code", ["RAS", "LSP", "PIR"])
def test_a_nifti_volume_is_answered_on_its_grid(at, tmp_path, code):
  data, bright, affine = _volume(tmp_path, code)
  reply = slicer.infer(at, params=TOLD, name="/x/a.nii.gz", data=data)
  said, name, made = slicer.answered(reply)
  assert name == "label.nii.gz"
  (tmp_path / name).write_bytes(made)
  labels = nibabel.load(tmp_path / name)
  np.testing.assert_array_equal(labels.affine, affine.astype(np.float32))
  np.testing.assert_array_equal(np.asarray(labels.dataobj), bright)
  assert said["label_names"] == {"bright": 1}
  (target,) = said["targets"]
  assert target["ml"] == pytest.approx(bright.sum() * 4.5 / 1000)
  place = np.argwhere(bright)
  assert target["box"] == [place.min(0).tolist(), (place.max(0) + 1).tolist()]
  assert said["timings"]["slices"] == 18
  assert "<p> bright </p> [SEG]" in said["text"]


def test_nrrd_comes_and_goes_as_it_is_asked_for(at, tmp_path):
  data, bright, affine = _volume(tmp_path, "LPS")
  told = {**TOLD, "result_extension": ".nrrd", "result_compress": False}
  reply = slicer.infer(at, "?output=image", told, "a.nii.gz", data)
  assert reply.status_code == 200
  assert reply.headers["content-type"] == "application/octet-stream"
  assert 'filename="label.nrrd"' in reply.headers["content-disposition"]
  (tmp_path / "label.nrrd").write_bytes(reply.content)
  voxels, header = nrrd.read(str(tmp_path / "label.nrrd"))
  assert (header["encoding"], header["type"]) == ("raw", "uint8")
  np.testing.assert_array_equal(voxels, bright)
  found = np.eye(4)
  found[:3, :3] = header["space directions"].T
  found[:3, 3] = header["space origin"]
  np.testing.assert_allclose(np.diag([-1, -1, 1, 1]) @ found, affine)
  image = np.asarray(nibabel.load(tmp_path / "made.nii.gz").dataobj)
  nrrd.write(str(tmp_path / "a.nrrd"), image, header)
  again = slicer.infer(
    at, params=TOLD, name="a.nrrd", data=(tmp_path / "a.nrrd").read_bytes()
  )
  _, name, made = slicer.answered(again)
  (tmp_path / name).write_bytes(made)
  labels = nibabel.load(tmp_path / name)
  np.testing.assert_allclose(labels.affine, affine)
  np.testing.assert_array_equal(np.asarray(labels.dataobj), bright)


@pytest.mark.parametrize("how", ["session", "archive", "kept"])
def test_a_dicom_series_is_answered_on_its_own_grid(at, tmp_path, how):
  files, bright, affine = _series(tmp_path)
  told = {**TOLD, "axis": "coronal"}
  if how == "session":
    query, name, data = f"?session_id={_session(at, files)}", None, None
  elif how == "archive":
    query, name, data = "", "series.zip", _zip(files)
  else:
    query, name, data = "?image=1.2.840", None, None
    requests.put(
      at.url + "/datastore/" + query,
      files={"file": ("series.zip", _zip(files))},
      timeout=20,
    )
  said, name, made = slicer.answered(slicer.infer(at, query, told, name, data))
  (tmp_path / name).write_bytes(made)
  labels = nibabel.load(tmp_path / name)
  # Columns, rows, slices, as other readers of series have them.
  turned = affine[:, [2, 1, 0, 3]]
  np.testing.assert_allclose(labels.affine, turned, atol=1e-4)
  np.testing.assert_array_equal(
    np.asarray(labels.dataobj), bright.transpose(2, 1, 0)
  )
  place = np.argwhere(bright.transpose(2, 1, 0))
  box = [place.min(0).tolist(), (place.max(0) + 1).tolist()]
  assert said["targets"][0]["box"] == box
  assert said["timings"]["slices"] == 24  # it was seen from the front


def test_a_series_gives_a_segmentation_of_its_frames(at, tmp_path):
  files, bright, _ = _series(tmp_path)
  session = _session(at, files)
  query = f"?session_id={session}&output=dicom_seg"
  reply = slicer.infer(at, query, TOLD, None)
  assert reply.status_code == 200, reply.text
  assert reply.headers["content-type"] == "application/dicom"
  found = highdicom.seg.segread(io.BytesIO(reply.content))
  sources = [pydicom.dcmread(io.BytesIO(data)) for data in files.values()]
  height = lambda one: one.ImagePositionPatient[2]  # noqa: E731
  sources.sort(key=height)
  masks = found.get_pixels_by_source_instance(
    [one.SOPInstanceUID for one in sources],
    combine_segments=True,
    assert_missing_frames_are_empty=True,
  )
  np.testing.assert_array_equal(masks, bright)
  dark = {name: data for name, data in files.items() if name < "002.dcm"}
  nothing = slicer.infer(
    at, f"?session_id={_session(at, dark)}&output=dicom_seg", TOLD, None
  )
  assert nothing.status_code == 404


def test_a_file_of_many_frames_is_a_volume(at, tmp_path):
  _, labels, affine = volume_files.patient()
  labels, affine = volume_files.turned(labels, affine, "SPL")
  datasets = dicom_files.series(
    (labels * 120).astype(np.int16), affine, "MR", intercept=0
  )
  made = dicom_files.enhanced(datasets, range(len(datasets) - 1, -1, -1))
  path = dicom_files.save(made, tmp_path / "a.dcm")
  reply = slicer.infer(at, params=TOLD, name="a.dcm", data=path.read_bytes())
  _, name, data = slicer.answered(reply)
  (tmp_path / name).write_bytes(data)
  found = np.asarray(nibabel.load(tmp_path / name).dataobj)
  np.testing.assert_array_equal(found, (labels == 2).transpose(2, 1, 0))


def test_a_damaged_series_is_refused_and_never_shortened(at, tmp_path):
  files, _, _ = _series(tmp_path)
  names = list(files)
  cut = files[names[0]]
  for damage, said in (
    ({names[0]: cut[:300]}, "holds no picture"),
    ({names[0]: cut[: len(cut) // 2]}, ""),
    ({names[0]: cut[:-100]}, ""),
    ({names[9]: None}, "mm apart"),
    ({"notes.dcm": b"notes"}, "no DICOM file"),
    ({names[1]: cut}, "lie where others do"),
  ):
    held = {**files, **damage}
    held = {name: data for name, data in held.items() if data is not None}
    reply = slicer.infer(at, f"?session_id={_session(at, held)}", TOLD, None)
    assert reply.status_code == 400, damage.keys()
    assert said in reply.text, reply.text
    assert "Doe" not in reply.text and "/tmp" not in reply.text


def test_volumes_are_bounded(at, tmp_path):
  path = tmp_path / "a.nii.gz"
  nibabel.save(
    nibabel.Nifti1Image(np.zeros((40, 40, 40), np.uint8), None), path
  )
  reply = slicer.infer(at, params=TOLD, name="a.nii.gz", data=path.read_bytes())
  assert reply.status_code == 413
  # A header that announces what the file cannot hold.
  image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), None)
  header = image.header.copy()
  header["dim"][1:4] = 30_000
  data = header.binaryblock + bytes(4)
  for name in ("a.nii", "a.nii.gz"):
    reply = slicer.infer(at, params=TOLD, name=name, data=data)
    assert reply.status_code == 400, reply.text


def test_a_volume_gives_way_to_others_and_ends_with_its_client(tmp_path):
  assistant = served.Assistant(rows=1, batch_s=0.05)
  data, _, _ = _volume(tmp_path)
  with served.running(assistant) as at:
    params = {"params": (None, json.dumps(TOLD))}
    with pytest.raises(requests.Timeout):
      requests.post(
        at.url + slicer.INFER,
        files={**params, "file": ("a.nii.gz", data)},
        timeout=0.4,
      )
    _mask(slicer.infer(at))  # long before its 18 slices
    served.until(lambda: any(line["status"] == 499 for line in at.log))
    count = len(assistant.texts)
    assert 1 < count < 18
    _mask(slicer.infer(at))
    assert len(assistant.texts) == count + 1


def test_too_many_volumes_are_told_to_come_again(tmp_path):
  data, _, _ = _volume(tmp_path)
  full = volume_jobs.Jobs(at_once=0, most_waiting=0)
  with served.running(volumes=full) as at:
    reply = slicer.infer(at, params=TOLD, name="a.nii", data=data)
    assert reply.status_code == 429
    assert "Retry-After" in reply.headers
