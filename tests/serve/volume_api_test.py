"""Volumes over HTTP: the files that come back lie on the grid that was sent."""

import base64
import gzip
import io
import json
import tempfile
import time
import zipfile

import cv2
import dicom_files
import fake_assistant
import highdicom
import nibabel
import numpy as np
import pytest
import requests
import served
import slicer
import volume_files

from rcmed_jax.apps import serve_volumes
from rcmed_jax.serve import volume_jobs

URL = "/v1/segment_volume"
MR = {"prompt": "the kidney", "modality": "magnetic resonance"}


@pytest.fixture(scope="module")
def at():
  with served.running(
    served.Assistant(answer=fake_assistant.Fake().answer),
    write_answer=serve_volumes.write_answer,
  ) as found:
    yield found


def nifti(code="LAS"):
  """A NIfTI file's bytes, its labels and its image."""
  image, labels, affine = volume_files.patient()
  voxels, turned = volume_files.turned(image, affine, code)
  made = nibabel.Nifti1Image(voxels, turned)
  made.header.set_xyzt_units("mm")
  data = gzip.compress(made.to_bytes(), 1)
  return data, volume_files.turned(labels, affine, code)[0], made


def series(code="SPL"):
  """Files of a DICOM series, its labels, its datasets and its affine."""
  image, labels, affine = volume_files.patient()
  voxels, turned = volume_files.turned(image, affine, code)
  datasets = dicom_files.series(voxels, turned, "MR", intercept=0)
  files = []
  for dataset in datasets:
    made = io.BytesIO()
    dataset.save_as(made, enforce_file_format=True)
    files.append(("image", ("IM0001.dcm", made.getvalue())))
  # In an order that tells nothing, all under one name.
  files = files[::-1]
  labels = volume_files.turned(labels, affine, code)[0]
  return files, labels, datasets, turned


def post(at, files, **fields):
  data = {name: str(value) for name, value in fields.items()}
  return requests.post(at.url + URL, files=files, data=data, timeout=60)


def opened(data):
  return nibabel.Nifti1Image.from_bytes(gzip.decompress(data))


def files_of(answer):
  return {
    name: base64.b64decode(text) for name, text in answer["files"].items()
  }


@pytest.mark.parametrize("code", ["LAS", "PIR"])
def test_a_nifti_file_is_answered_on_its_own_grid(at, code):
  data, labels, image = nifti(code)
  reply = post(at, {"image": ("scan.nii.gz", data)}, **MR)
  assert reply.status_code == 200, reply.text
  answer = reply.json()
  assert answer["image"] == "nifti"
  assert answer["timings"]["slices"] == 18
  files = files_of(answer)
  names = {target["class"]: target for target in answer["targets"]}
  assert not names["heart"]["present"]
  for name, value in (("kidney", 1), ("spleen", 2)):
    found = opened(files[names[name]["mask"]])
    np.testing.assert_array_equal(found.affine, image.affine)
    np.testing.assert_array_equal(found.get_fdata(), labels == value)
  assert "answer.json" not in files


def test_a_zip_holds_what_the_command_line_writes(at):
  data, labels, _ = nifti()
  reply = post(at, {"image": ("a.nii.gz", data)}, output="zip", **MR)
  assert reply.headers["content-type"] == "application/zip"
  packed = zipfile.ZipFile(io.BytesIO(reply.content))
  answer = json.loads(packed.read("answer.json"))
  assert str(at.app.folder) not in json.dumps(answer)
  assert answer["image"] == "nifti" and answer["prompt"] == MR["prompt"]
  found = opened(packed.read(answer["labels"])).get_fdata()
  for number, target in enumerate(answer["targets"], 1):
    value = {"kidney": 1, "spleen": 2}.get(target["class"])
    if value:
      np.testing.assert_array_equal(found == number, labels == value)


def test_a_series_is_answered_as_dicom_and_as_nifti_that_agree(at):
  files, labels, datasets, affine = series()
  # Beside it, what systems leave in folders.
  beside = [("image", (name, b"x")) for name in (".DS_Store", "DICOMDIR")]
  reply = post(at, files + beside, **MR)
  assert reply.status_code == 200, reply.text
  answer = reply.json()
  held = files_of(answer)
  with io.BytesIO(held["segmentation.dcm"]) as made:
    seg = highdicom.seg.segread(made)
  found = seg.get_pixels_by_source_instance(
    [dataset.SOPInstanceUID for dataset in datasets],
    assert_missing_frames_are_empty=True,
  )
  values = {"kidney": 1, "spleen": 2}
  wanted = {name: labels == value for name, value in values.items()}
  for target in answer["targets"]:
    if target["present"]:
      mask = wanted[target["class"]]
      np.testing.assert_array_equal(found[..., target["segment"] - 1], mask)
      nearby = opened(held[target["nifti"]])
      world_agrees(nearby, mask, affine)


def world_agrees(found, voxels, affine):
  """Whether an image holds the same values at the same places in mm.

  The two may count voxels in other orders; each voxel of one is looked up in
  the other by its place.
  """
  assert found.get_fdata().size == voxels.size
  places = np.argwhere(np.ones(voxels.shape, bool))
  mm = nibabel.affines.apply_affine(affine, places)
  back = nibabel.affines.apply_affine(np.linalg.inv(found.affine), mm)
  index = np.rint(back).astype(int)
  assert np.abs(back - index).max() < 1e-3
  np.testing.assert_array_equal(
    found.get_fdata()[tuple(index.T)], voxels.ravel()
  )


def test_a_session_is_asked_again_without_being_sent_again(at):
  files, _, datasets, affine = series("IPL")
  sent = [
    ("files", (f"{number}.dcm", data))
    for number, (_, (_, data)) in enumerate(files)
  ]
  reply = requests.put(at.url + "/session/", files=sent, timeout=20)
  name = reply.json()["session_id"]
  url = f"{at.url}/v1/volumes/{name}"
  told = requests.get(url, timeout=20).json()
  assert told["kind"] == "dicom" and told["slices"] == 18
  image = requests.get(url + "/image", timeout=20)
  voxels = np.stack([dataset.pixel_array for dataset in datasets])
  world_agrees(opened(image.content), voxels, affine)
  picture = requests.get(url + "/picture?number=6", timeout=20).content
  found = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_UNCHANGED)
  assert found.shape == (24, 20, 3)
  none = requests.get(url + "/picture?number=18", timeout=20)
  assert none.status_code == 404
  assert none.json()["error"]["param"] == "number"
  for prompt in ("the kidney", "the spleen"):
    answer = post(at, {"session": (None, name)}, prompt=prompt).json()
    assert answer["prompt"] == prompt
    assert {one["class"] for one in answer["targets"] if one["present"]} == {
      "kidney",
      "spleen",
    }
  requests.delete(f"{at.url}/session/{name}", timeout=20)
  assert requests.get(url, timeout=20).status_code == 404
  assert post(at, {"session": (None, name)}, **MR).status_code == 404


def test_one_picture_in_dicom_comes_as_png_too(at):
  dataset = dicom_files.new("DX")
  dicom_files.put_pixels(dataset, served.image()[..., 0])
  made = io.BytesIO()
  dataset.save_as(made, enforce_file_format=True)
  answer = post(at, {"image": ("a.dcm", made.getvalue())}, describe=True).json()
  assert answer["timings"]["slices"] == 1
  target = next(one for one in answer["targets"] if one["present"])
  files = files_of(answer)
  mask_IJ = cv2.imdecode(np.frombuffer(files[target["png"]], np.uint8), -1)
  np.testing.assert_array_equal(mask_IJ, served.image()[..., 0])
  assert b"DICM" in files["segmentation.dcm"][:132]


def events(at, files, **fields):
  """What a stream tells, parsed."""
  reply = requests.post(
    at.url + URL,
    files=files,
    data={"stream": "true", **fields},
    stream=True,
    timeout=60,
  )
  assert reply.headers["content-type"].startswith("text/event-stream")
  lines = [line for line in reply.iter_lines() if line]
  assert lines[-1] == b"data: [DONE]"
  return [json.loads(line.removeprefix(b"data: ")) for line in lines[:-1]]


def test_a_stream_tells_of_each_slice_and_ends_in_the_answer(at):
  data, _, _ = nifti()
  told = events(at, {"image": ("a.nii.gz", data)}, **MR)
  assert told[:-1] == [{"slice": n, "slices": 18} for n in range(1, 19)]
  plain = post(at, {"image": ("a.nii.gz", data)}, **MR).json()
  answer = told[-1]["answer"]
  assert answer["files"].keys() == plain["files"].keys()
  assert answer["text"] == plain["text"]
  broken = gzip.compress(gzip.decompress(data)[:-900])
  told = events(at, {"image": ("a.nii.gz", broken)}, **MR)
  assert told[-1]["error"]["param"] == "image"
  assert "/" not in told[-1]["error"]["message"]


def test_what_is_sent_wrongly_is_said(at):
  data, _, _ = nifti()
  image = {"image": ("a.nii.gz", data)}
  cases = [
    (422, image, {}),
    (422, image, {**MR, "classes": "liver"}),
    (422, image, {**MR, "axis": "upwards"}),
    (422, image, {**MR, "window": "none"}),
    (422, image, {**MR, "modality": "computed tomograhpy"}),
    (422, image, {**MR, "min_mm3": "nan"}),
    (422, image, {**MR, "other": "1"}),
    (422, {"image": ("a.png", served.png())}, MR),
    (422, {"image": (None, "text")}, MR),
    (400, {"image": ("a.nii.gz", b"no nifti at all")}, MR),
    (400, {"image": ("../..", data)}, MR),
    (422, {**image, "session": (None, "a")}, MR),
    (404, {"session": (None, "../../etc")}, MR),
    (422, {**image, "mask": ("a.png", b"")}, MR),
  ]
  for status, files, fields in cases:
    reply = post(at, files, **fields)
    assert reply.status_code == status, (reply.text, fields)
    assert reply.json()["error"]["message"]
    assert "/tmp" not in reply.text
    if "tomograhpy" in fields.get("modality", ""):
      assert reply.json()["error"]["param"] == "modality"


def test_ct_is_shown_as_the_run_learnt_it():
  """Values of -1000 and more, which nothing but the request calls CT."""
  image, _, affine = volume_files.patient()
  made = nibabel.Nifti1Image((image - 1000).astype(np.int16), affine)
  files = {"image": ("a.nii.gz", gzip.compress(made.to_bytes(), 1))}
  with served.running(
    served.Assistant(answer=fake_assistant.Fake().answer),
    write_answer=serve_volumes.write_answer,
    windows=("lung",),
  ) as own:
    reply = post(own, files, prompt="the liver", modality="CT")
    assert reply.json()["shown"]["window"] == "lung"
    reply = post(own, files, prompt="the liver")
    assert reply.status_code == 422, reply.text
    assert reply.json()["error"]["param"] == "modality"
    assert "Hounsfield" in reply.json()["error"]["message"]
    reply = slicer.infer(
      own, params={}, name="a.nii.gz", data=files["image"][1]
    )
    assert reply.status_code == 422 and "Hounsfield" in reply.text


@pytest.mark.parametrize("limit", ["pixels", "voxels"])
def test_too_much_is_refused(limit):
  data, _, _ = nifti()
  with served.running(
    write_answer=serve_volumes.write_answer, **{limit: 100}
  ) as at:
    reply = post(at, {"image": ("a.nii.gz", data)}, **MR)
  assert reply.status_code == 413
  assert limit in reply.text


@pytest.fixture
def folders(tmp_path, monkeypatch):
  """Where jobs keep their files."""
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
  return lambda: (
    list(tmp_path.glob("tmp*/answer/..")) + list(tmp_path.glob("tmp*/image"))
  )


def slow(batch_s=0.1):
  fake = fake_assistant.Fake()
  return served.Assistant(rows=1, batch_s=batch_s, answer=fake.answer)


def test_a_client_that_leaves_ends_its_job_and_gives_back_its_place(folders):
  data, _, _ = nifti()
  image = {"image": ("a.nii.gz", data)}
  with served.running(
    slow(0.2),
    write_answer=serve_volumes.write_answer,
    volumes=volume_jobs.Jobs(most_waiting=0),
  ) as slowly:
    began = [
      requests.post(
        slowly.url + URL,
        files=image,
        data={**MR, "stream": "true"},
        stream=True,
        timeout=20,
      )
      for _ in range(volume_jobs.AT_ONCE)
    ]
    lines = [reply.iter_lines() for reply in began]
    assert all(b'"slice": 1,' in next(one) for one in lines)
    full = post(slowly, image, **MR)
    assert full.status_code == 429 and int(full.headers["retry-after"]) > 0
    for reply in began:
      reply.close()
    served.until(lambda: not folders())
    count = len(slowly.assistant.texts)
    assert count < 18 * volume_jobs.AT_ONCE
    with pytest.raises(requests.Timeout):
      requests.post(slowly.url + URL, files=image, data=MR, timeout=0.5)
    served.until(lambda: not folders())
    assert len(slowly.assistant.texts) < count + 18


@pytest.mark.parametrize("how", ["ended", "expired"])
def test_a_session_stays_while_its_volume_is_answered(how):
  files, _, _, _ = series()
  sent = [
    ("files", (f"{number}.dcm", data))
    for number, (_, (_, data)) in enumerate(files)
  ]
  with served.running(
    slow(), write_answer=serve_volumes.write_answer
  ) as slowly:
    url = slowly.url + "/session/"
    reply = requests.put(url + "?expiry=1", files=sent, timeout=20)
    name = reply.json()["session_id"]
    reply = requests.post(
      slowly.url + URL,
      files={"session": (None, name)},
      data={**MR, "stream": "true"},
      stream=True,
      timeout=20,
    )
    lines = reply.iter_lines()
    assert b'"slice": 1,' in next(lines)
    if how == "ended":
      requests.delete(url + name, timeout=20)
    else:
      time.sleep(1.2)
      requests.put(url, files=sent[:1], timeout=20)
    told = [json.loads(line[6:]) for line in lines if b"{" in line]
    assert "answer" in told[-1], told[-1]
    if how == "ended":
      served.until(
        lambda: not list((slowly.app.folder / "shelf/sessions").iterdir())
      )


def test_a_stream_ends_when_its_time_is_over(folders):
  data, _, _ = nifti()
  with served.running(
    slow(), write_answer=serve_volumes.write_answer, volume_s=0.5
  ) as slowly:
    told = events(slowly, {"image": ("a.nii.gz", data)}, **MR)
    assert "no answer in time" in told[-1]["error"]["message"]
    served.until(lambda: not folders())
    assert len(slowly.assistant.texts) < 18
    reply = post(slowly, {"image": ("a.nii.gz", data)}, **MR)
    assert reply.status_code == 504


def test_the_masks_of_all_volumes_have_one_bound(at):
  data, _, _ = nifti()  # of 8,640 voxels, where two classes are seen
  image = {"image": ("a.nii.gz", data)}
  with served.running(
    served.Assistant(answer=fake_assistant.Fake().answer),
    write_answer=serve_volumes.write_answer,
    mask_bytes=20_000,
  ) as small:
    assert post(small, image, **MR).status_code == 200
    memory = small.app.service.masks
    with memory.share() as take:
      take(5000)
      reply = post(small, image, **MR)
      assert reply.status_code == 503 and reply.headers["retry-after"]
      reply = slicer.infer(small, params=MR, name="a.nii.gz", data=data)
      assert reply.status_code == 503
    assert post(small, image, **MR).status_code == 200
    # A segmentation stacks them once more.
    reply = post(small, series()[0], **MR)
    assert reply.status_code == 422 and "ask for fewer" in reply.text
    assert reply.json()["error"]["param"] == "prompt"
    with memory.share() as take:
      take(20_000)  # all was given back


def test_pictures_come_back_as_the_model_sees_them(at):
  values_IJ = np.arange(32 * 48, dtype=np.uint16).reshape(32, 48)
  data = cv2.imencode(".tiff", values_IJ)[1].tobytes()
  files = {"image": ("a.tif", data)}
  reply = requests.post(at.url + "/v1/picture", files=files, timeout=20)
  assert reply.headers["content-type"] == "image/png"
  found = cv2.imdecode(np.frombuffer(reply.content, np.uint8), -1)
  # Of 11 bits that are in use, the upper eight.
  np.testing.assert_array_equal(found[..., 0], values_IJ >> 3)
  files = {"image": ("a.png", b"none")}
  reply = requests.post(at.url + "/v1/picture", files=files, timeout=20)
  assert reply.status_code == 400


def test_without_a_way_to_answer_volumes_it_says_so():
  data, _, _ = nifti()
  with served.running() as plain:
    reply = post(plain, {"image": ("a.nii.gz", data)}, **MR)
    assert reply.status_code == 501
