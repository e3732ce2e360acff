"""POST /v1/segment, and what every path shares: states, metrics, logs."""

import base64
import concurrent.futures
import json
import logging
import re
import sys

import cv2
import dicom_files
import numpy as np
import pytest
import requests
import served

from rcmed_jax.ingest.pictures import rle
from rcmed_jax.serve import api, telemetry
from rcmed_jax.serve.questions import Answer, Found


@pytest.fixture(scope="module")
def at():
  with served.running() as found:
    yield found


def _post(at, **body):
  image = base64.b64encode(served.png()).decode()
  return requests.post(
    at.url + "/v1/segment", json={"image": image, **body}, timeout=20
  )


def test_a_prompt_as_json_is_answered_with_a_mask(at):
  reply = _post(at, prompt="Where is the light?")
  assert reply.status_code == 200
  told = reply.json()
  assert told["modality"] == "X-Ray"
  assert "[SEG]" in told["text"]
  (target,) = told["targets"]
  assert target["class"] == "bright"
  assert target["present"] is True
  assert target["box"] == [4, 8, 20, 16]
  assert target["confidence"] == 0.75
  data = np.frombuffer(base64.b64decode(target["mask"]["data"]), np.uint8)
  mask = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
  np.testing.assert_array_equal(mask, served.image()[..., 0])
  timings = told["timings"]
  assert 0 <= timings["queue_s"] + timings["answer_s"] <= timings["total_s"]


def test_runs_are_those_of_coco(at):
  mask = _post(at, prompt="light", masks="rle").json()["targets"][0]["mask"]
  mask_IJ = rle.decode(mask["counts"], tuple(mask["size"]))
  np.testing.assert_array_equal(mask_IJ, served.image()[..., 0] > 0)
  full = np.ones((3, 2), bool)
  assert api.runs(full) == [0, 6]
  assert (
    _post(at, prompt="a", masks="none").json()["targets"][0]["mask"] is None
  )


def test_classes_become_a_question_and_those_unsaid_are_named(at):
  told = _post(at, classes=["Bright", "liver"], modality="pet").json()
  assert told["unanswered"] == ["liver"]
  assert "the bright, liver in this pet image?" in at.assistant.texts[-1]
  _post(at, classes=["liver"])
  assert at.assistant.texts[-1] == "Can you segment the liver in this image?"


def test_a_form_is_answered_as_json_is(at):
  reply = requests.post(
    at.url + "/v1/segment",
    files={"image": ("/home/doe/Jane Doe.png", served.png())},
    data={"prompt": "light", "describe": "true", "masks": "none"},
    timeout=20,
  )
  assert reply.status_code == 200
  assert reply.json()["targets"][0]["box"] == [4, 8, 20, 16]
  form = [("classes", "bright"), ("classes", "liver")]
  reply = requests.post(
    at.url + "/v1/segment",
    files={"image": ("a.png", served.png())},
    data=form,
    timeout=20,
  )
  assert reply.json()["unanswered"] == ["liver"]


def test_a_dicom_file_of_one_picture_is_answered(at, tmp_path):
  dataset = dicom_files.new("DX")
  dicom_files.put_pixels(dataset, served.image()[..., 0])
  dicom_files.save(dataset, tmp_path / "a.dcm")
  reply = requests.post(
    at.url + "/v1/segment",
    files={"image": ("a.dcm", (tmp_path / "a.dcm").read_bytes())},
    data={"prompt": "light"},
    timeout=20,
  )
  assert reply.status_code == 200, reply.text
  assert reply.json()["targets"][0]["box"] == [4, 8, 20, 16]
  assert "Doe" not in reply.text


@pytest.mark.parametrize(
  ("body", "status", "param"),
  [
    ({}, 422, "prompt"),
    ({"prompt": "a", "classes": ["b"]}, 422, "prompt"),
    ({"prompt": "  "}, 422, "prompt"),
    ({"prompt": 5}, 422, "prompt"),
    ({"prompt": "a <image> b"}, 422, "prompt"),
    ({"prompt": "a" * 5000}, 422, "prompt"),
    ({"prompt": "a" * 700}, 422, "prompt"),  # the assistant's own limit
    ({"classes": []}, 422, "classes"),
    ({"prompt": "a", "describe": 1}, 422, "describe"),
    ({"prompt": "a", "masks": "gif"}, 422, "masks"),
    ({"prompt": "a", "secret": 1}, 422, "secret"),
    ({"prompt": "a", "image": "http://127.0.0.1/x.png"}, 400, "image"),
    ({"prompt": "a", "image": "file:///etc/passwd"}, 400, "image"),
    ({"prompt": "a", "image": "?"}, 400, "image"),
    ({"prompt": "a", "image": "aGVsbG8="}, 400, "image"),
  ],
)
def test_bad_fields_are_named(at, body, status, param):
  reply = _post(at, **body)
  assert (reply.status_code, reply.json()["error"]["param"]) == (status, param)
  assert "/tmp" not in reply.text


@pytest.mark.parametrize("body", ["{", "[" * 100_000, "\x00", '"text"'])
def test_what_is_no_json_object_is_refused(at, body):
  reply = requests.post(
    at.url + "/v1/segment",
    data=body,
    headers={"Content-Type": "application/json"},
    timeout=20,
  )
  assert reply.status_code in (400, 422)
  assert reply.json()["error"]["type"] == "invalid_request_error"


def test_other_and_damaged_bodies_are_refused(at):
  for kind, body, status in (
    ("text/plain", "a", 415),
    ("multipart/form-data", "a", 400),
    ("multipart/form-data; boundary=x", "--x\r\nbroken", 422),
    ("multipart/form-data; boundary=x", "--y--", 400),
  ):
    reply = requests.post(
      at.url + "/v1/segment",
      data=body,
      headers={"Content-Type": kind},
      timeout=20,
    )
    assert reply.status_code in (status, 400, 422), (kind, reply.text)
    assert "error" in reply.json()


def test_fifty_at_once_get_their_own_answers_in_shared_batches():
  with served.running(served.Assistant(4, batch_s=0.01)) as at:

    def ask(number):
      box = [number % 20, number // 10, number % 20 + 5, number // 10 + 3]
      data = served.png(served.image(*box))
      reply = requests.post(
        at.url + "/v1/segment",
        files={"image": ("a.png", data)},
        data={"prompt": f"light {number}", "masks": "none"},
        timeout=30,
      )
      return reply.status_code, reply.json()["targets"][0]["box"] == box

    with concurrent.futures.ThreadPoolExecutor(50) as pool:
      replies = list(pool.map(ask, range(50)))
    assert replies == [(200, True)] * 50
    assert sum(at.assistant.batches) == 50
    assert max(at.assistant.batches) > 1
    metrics = requests.get(at.url + "/metrics", timeout=20).text
    assert 'status="200"} 50.0' in metrics
    print(f"batches: {at.assistant.batches}", file=sys.stderr)


def test_a_fault_of_the_assistant_is_this_request_s_alone(at):
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    prompts = ["fault" if n == 3 else "light" for n in range(8)]
    replies = list(pool.map(lambda text: _post(at, prompt=text), prompts))
  codes = [reply.status_code for reply in replies]
  assert codes == [500 if n == 3 else 200 for n in range(8)]
  assert "memory" not in replies[3].text
  assert replies[3].json()["error"]["type"] == "server_error"
  # It is written behind the answer.
  served.until(lambda: any("fault" in line for line in at.log))
  (fault,) = [line["fault"] for line in at.log if "fault" in line]
  assert fault.startswith("RuntimeError in stream")


def test_states_and_abilities(at):
  assert requests.get(at.url + "/healthz", timeout=20).status_code == 200
  assert requests.get(at.url + "/readyz", timeout=20).status_code == 200
  told = requests.get(at.url + "/capabilities", timeout=20).json()
  assert told["model"] == served.NAME
  assert told["batch"] == 4
  reply = requests.get(at.url + "/nothing", timeout=20)
  assert reply.status_code == 404
  assert reply.json()["error"]["type"] == "not_found_error"
  paths = requests.get(at.url + "/openapi.json", timeout=20).json()["paths"]
  assert "/v1/segment" in paths


def test_what_libraries_log_is_said_without_its_values():
  lines = []
  logger = logging.getLogger("a_library")
  handler = telemetry.LibraryLog(lambda **fields: lines.append(fields))
  logger.addHandler(handler)
  logger.warning("cannot read %s", "JaneDoe1970")
  logger.removeHandler(handler)
  (line,) = lines
  assert line["message"] == "cannot read %s"
  assert (line["event"], line["logger"]) == ("library", "a_library")


def test_logs_and_metrics_hold_no_prompt_name_or_id(at):
  requests.get(at.url + "/session/JaneDoe1970", timeout=20)
  requests.get(at.url + "/JaneDoe1970", timeout=20)
  _post(at, prompt="JaneDoe1970")
  metrics = requests.get(at.url + "/metrics", timeout=20).text
  assert "JaneDoe" not in metrics + json.dumps(at.log)
  assert "/session/{name}" in {line["route"] for line in at.log}
  assert at.log[-1].keys() >= {"id", "status", "seconds", "bytes_in", "caller"}


def test_many_classes_are_asked_in_as_many_questions_as_they_need():
  """As `Assistant.segment`, since an answer has only so many masks."""

  def answer(question):
    names = [one for one in NAMES if re.search(rf"\b{one}\b", question.text)]
    mask_IJ = question.image_IJC[..., 0] > 127
    spoken = [one for one in names if one != "name3"][:4]
    targets = [Found(one, True, mask_IJ, (4, 8, 20, 16), 0.5) for one in spoken]
    return Answer(" ".join(spoken), "X-Ray", tuple(targets))

  assistant = served.Assistant(answer=answer)
  assistant.max_targets = 4
  with served.running(assistant) as at:
    told = requests.get(at.url + "/capabilities", timeout=20).json()
    assert told["max_targets"] == 4
    reply = requests.post(
      at.url + "/v1/segment",
      files={"image": ("a.png", served.png())},
      data={"classes": NAMES, "modality": "X-Ray"},
      timeout=20,
    )
    said = reply.json()
    assert reply.status_code == 200, reply.text
    assert len(at.assistant.texts) == 3
  found = [one["class"] for one in said["targets"]]
  assert found == [one for one in NAMES if one != "name3"]
  assert all(one["present"] and one["mask"] for one in said["targets"])
  assert said["unanswered"] == ["name3"]
  assert said["timings"]["shared"] >= 1


NAMES = [f"name{number}" for number in range(10)]
