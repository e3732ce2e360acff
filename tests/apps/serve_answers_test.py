"""One answer by every way: from Python, the command line, and over HTTP."""

import base64
import collections
import concurrent.futures
import itertools
import json
import signal
import time

import cv2
import dicom_files
import highdicom
import nibabel
import numpy as np
import openai
import pytest
import requests
import scripted
import served
import serving
import slicer
import volume_files

from rcmed_jax import cli
from rcmed_jax.apps import answering
from rcmed_jax.ingest.pictures import rle
from rcmed_jax.serve.questions import Question

pytestmark = pytest.mark.heavy
ROWS = 8
ASKED = scripted.QUESTION


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "scripted"
  scripted.write(workdir)
  return workdir


@pytest.fixture(scope="module")
def assistant(run):
  return answering.load_assistant(run, rows=ROWS)


@pytest.fixture(scope="module")
def at(run, tmp_path_factory):
  folder = tmp_path_factory.mktemp("server")
  with serving.process(
    run, folder, f"--rows={ROWS}", "--rate=1e6", "--most-waiting=4"
  ) as made:
    yield made


def _predict(run, image, out, *flags):
  told = ("--workdir", run, "--image", image, "--prompt", ASKED, "--out", out)
  assert cli.main(["predict", *map(str, told), f"--batch={ROWS}", *flags]) == 0
  return json.loads((out / "answer.json").read_text())


def _picture(number=0):
  return served.image(2 * number, number, 20 + 3 * number, 16 + 2 * number)


def test_a_picture_has_one_answer(run, assistant, at, tmp_path):
  image_IJC = _picture(2)
  path = tmp_path / "a.png"
  path.write_bytes(served.png(image_IJC))
  answer = assistant.ask(image_IJC, ASKED)
  (target,) = answer.targets
  assert answer.text == scripted.ANSWER.removesuffix("</s>")
  assert 0 < target.mask_IJ.mean() < 1  # else all ways would agree on nothing

  held = _predict(run, path, tmp_path / "out")
  assert held["text"] == answer.text
  assert tuple(held["targets"][0]["box_xyxy"]) == target.box
  mask = cv2.imread(str(tmp_path / "out" / held["targets"][0]["mask"]), 0)
  np.testing.assert_array_equal(mask > 0, target.mask_IJ)

  told = requests.post(
    at.url + "/v1/segment",
    files={"image": ("a.png", path.read_bytes())},
    data={"prompt": ASKED},
    timeout=60,
  ).json()
  assert (told["text"], told["modality"]) == (answer.text, answer.modality)
  found = told["targets"][0]
  assert tuple(found["box"]) == target.box
  assert found["confidence"] == round(target.confidence, 4)
  data = np.frombuffer(base64.b64decode(found["mask"]["data"]), np.uint8)
  mask = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
  np.testing.assert_array_equal(mask > 0, target.mask_IJ)

  said, _, data = slicer.answered(
    slicer.infer(at, params={"prompt": ASKED}, data=path.read_bytes())
  )
  assert (said["text"], said["label_names"]) == (answer.text, {"heart": 1})
  assert tuple(said["targets"][0]["box"]) == target.box
  labels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
  np.testing.assert_array_equal(labels > 0, target.mask_IJ)


def test_a_chat_says_the_same_at_once_and_word_by_word(assistant, at):
  image_IJC = _picture(1)
  answer = assistant.ask(image_IJC, ASKED)
  client = openai.OpenAI(
    base_url=at.url + "/v1", api_key="none", max_retries=0, timeout=60
  )
  url = "data:image/png;base64,"
  url += base64.b64encode(served.png(image_IJC)).decode()
  parts = [
    {"type": "text", "text": ASKED},
    {"type": "image_url", "image_url": {"url": url}},
  ]
  asked = dict(
    model="rcmed",
    messages=[{"role": "user", "content": parts}],
    extra_body={"masks": "rle"},
  )
  made = client.chat.completions.create(**asked)
  message = made.choices[0].message
  assert message.content == answer.text
  assert (made.choices[0].finish_reason, made.usage.completion_tokens) == (
    "stop",
    answer.tokens.answer,
  )
  chunks = list(client.chat.completions.create(**asked, stream=True))
  deltas = [chunk.choices[0].delta for chunk in chunks]
  assert "".join(delta.content or "" for delta in deltas) == answer.text
  assert deltas[-1].targets == message.targets
  (target,) = message.targets
  mask_IJ = rle.decode(target["mask"]["counts"], tuple(target["mask"]["size"]))
  np.testing.assert_array_equal(mask_IJ, answer.targets[0].mask_IJ)


def test_a_volume_has_one_answer(run, at, tmp_path):
  image, _, affine = volume_files.patient()
  voxels, turned = volume_files.turned(image, affine, "PIR")
  path = tmp_path / "x-ray.nii.gz"
  nibabel.save(nibabel.Nifti1Image(voxels, turned), path)
  held = _predict(run, path, tmp_path / "out", "--largest")
  told = {"prompt": ASKED, "largest": True}
  said, name, data = slicer.answered(
    slicer.infer(at, params=told, name=path.name, data=path.read_bytes())
  )
  assert said["text"] == held["text"]
  assert said["targets"][0]["box"] == held["targets"][0]["box_voxels"]
  assert said["targets"][0]["ml"] == held["targets"][0]["ml"]
  (tmp_path / name).write_bytes(data)
  one = nibabel.load(tmp_path / name)
  other = nibabel.load(tmp_path / "out" / held["targets"][0]["mask"])
  np.testing.assert_array_equal(one.affine, other.affine)
  mask = np.asarray(one.dataobj)
  np.testing.assert_array_equal(mask, np.asarray(other.dataobj))
  assert 0 < mask.mean() < 1


def test_a_series_has_one_answer(run, at, tmp_path):
  image, _, affine = volume_files.patient()
  voxels, turned = volume_files.turned(image, affine, "SPL")
  datasets = dicom_files.series(voxels, turned, "MR", intercept=0)
  dicom_files.save_series(datasets, tmp_path / "series")
  held = _predict(run, tmp_path / "series", tmp_path / "out")
  assert held["targets"][0]["segment"] == 1
  files = [
    ("files", (path.name, path.read_bytes()))
    for path in sorted((tmp_path / "series").iterdir())
  ]
  told = requests.put(at.url + "/session/", files=files, timeout=60).json()
  query = f"?session_id={told['session_id']}"
  said, name, data = slicer.answered(
    slicer.infer(at, query, {"prompt": ASKED}, None)
  )
  (tmp_path / name).write_bytes(data)
  mask = np.asarray(nibabel.load(tmp_path / name).dataobj)
  assert said["text"] == held["text"]
  uids = [one.SOPInstanceUID for one in datasets]
  for path in (tmp_path / "out/segmentation.dcm", tmp_path / "seg.dcm"):
    if not path.exists():
      reply = slicer.infer(
        at, query + "&output=dicom_seg", {"prompt": ASKED}, None
      )
      path.write_bytes(reply.content)
    frames = highdicom.seg.segread(path).get_pixels_by_source_instance(
      uids, combine_segments=True, assert_missing_frames_are_empty=True
    )
    np.testing.assert_array_equal(frames.transpose(2, 1, 0), mask)


def test_many_at_once_get_their_own_answers_until_it_is_told_to_end(
  assistant, at
):
  images = [_picture(number) for number in range(10)]
  answers = assistant.ask_many([Question(one, ASKED) for one in images])
  wanted = [answer.targets[0].mask_IJ for answer in answers]
  assert len({mask.tobytes() for mask in wanted}) > 5
  files = [served.png(one) for one in images]
  until = time.monotonic() + 10
  before, count = at.rss_bytes(), _answered(at)

  def ask(client):
    counts = collections.Counter()
    with requests.Session() as session:
      for turn in itertools.count():
        number = (client + turn) % len(images)
        try:
          reply = session.post(
            at.url + "/v1/segment",
            files={"image": ("a.png", files[number])},
            data={"prompt": ASKED, "masks": "rle"},
            timeout=60,
          )
        except requests.ConnectionError:  # it has ended
          return counts
        counts[reply.status_code] += 1
        if reply.status_code == 200:
          mask = reply.json()["targets"][0]["mask"]
          mask_IJ = rle.decode(mask["counts"], tuple(mask["size"]))
          counts["wrong"] += not np.array_equal(mask_IJ, wanted[number])
        elif reply.status_code == 429:
          assert int(reply.headers["Retry-After"]) >= 1
          time.sleep(0.2)
        else:
          assert reply.status_code == 503  # being stopped
          return counts

  with concurrent.futures.ThreadPoolExecutor(50) as pool:
    futures = [pool.submit(ask, client) for client in range(50)]
    time.sleep(max(until - time.monotonic(), 0))
    held = at.rss_bytes()
    at.one.send_signal(signal.SIGTERM)
    counts = collections.Counter()
    for future in futures:
      counts.update(future.result(90))
  assert at.one.wait(60) == 0
  assert counts["wrong"] == 0
  assert counts[200] > 200
  assert counts[429] > 0  # 50 clients, and 4 may wait
  assert counts[200] == _answered(at) - count
  assert at.log()[-1]["unanswered"] == 0
  assert not [line for line in at.log() if "fault" in line]
  # Whatever was sent, nothing lies outside of its folder.
  folder = at.files.parent
  assert {path.name for path in folder.iterdir()} == {"files", "log", "tmp"}
  assert not list((folder / "tmp").iterdir())
  assert not list((at.files / "scratch").iterdir())
  assert held - before < 200e6


def _answered(at):
  """How many pictures the server says to have answered."""
  return sum(
    one.get("route") == "/v1/segment" and one["status"] == 200
    for one in at.log()
  )
