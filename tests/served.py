"""An assistant that answers from the image, and a server around it."""

import contextlib
import pathlib
import socket
import tempfile
import threading
import time

import cv2
import numpy as np

from rcmed_jax.serve import (
  asking,
  batches,
  engine,
  limits,
  server,
  shelf,
  telemetry,
  volume_jobs,
)
from rcmed_jax.serve.questions import Answer, Found, Tokens

NAME = "rcmed"
KEY = "a-key-that-is-long-enough"
OTHER_KEY = "another-key-long-enough"


class Assistant:
  """Says "bright" for pixels whose red is above 127; absent if there are none.

  Args:
    answer: what a question is answered with, in the place of that.

  Attributes:
    batches: how many questions each batch held.
    texts: all that was asked.
    questions: likewise, whole.
    free: batches wait for it.
    said: words that are told wait for it, from the third on.
  """

  def __init__(self, rows=4, batch_s=0.0, answer=None):
    self.rows = rows
    self.max_new = 50
    self.max_targets = 8
    self._answer = answer or bright
    self.batches = []
    self.texts = []
    self.questions = []
    self.free = threading.Event()
    self.free.set()
    self.said = threading.Event()
    self.said.set()
    self._batch_s = batch_s

  def groups(self, classes):
    """As an assistant's that knows no new class."""
    most = self.max_targets
    asked = [*dict.fromkeys(classes)]
    groups = [asked[at : at + most] for at in range(0, len(asked), most)]
    return {name: name for name in asked}, groups

  def kind(self, question):
    """Long questions are of another kind than short ones."""
    whole = [
      question.text,
      *(text for turn in question.earlier for text in turn),
    ]
    if max(map(len, whole)) > 600:
      raise ValueError("the prompt is longer than 600 characters.")
    return len(question.text) > 60

  def stream(self, questions, *, ahead=1, told=None):
    questions = list(questions)
    for question in questions:
      self.kind(question)
      if "fault" in question.text:
        raise RuntimeError("out of memory")
    for _, batch in batches.batches(questions, self.kind, self.rows):
      self.batches.append(len(batch))
      self.free.wait()
      time.sleep(self._batch_s)
      for number, question in batch:
        self.texts.append(question.text)
        self.questions.append(question)
        found = self._answer(question)
        if told is not None:
          self._tell(told, number, question, found.text)
        yield number, found

  def _tell(self, told, number, question, text):
    """Word by word; from the third on they wait for `said`."""
    words = text.split(" ")
    for count in range(1, len(words) + 1):
      if count > 2:
        self.said.wait()
        if "break" in question.text:
          raise RuntimeError("out of memory")
      told(number, " ".join(words[:count]))


def bright(question):
  mask_IJ = question.image_IJC[..., 0] > 127
  box = None
  if mask_IJ.any():
    rows, columns = (np.flatnonzero(mask_IJ.any(axis)) for axis in (1, 0))
    box = tuple(map(int, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)))
  there = box is not None
  text = "This is a <p> X-Ray </p> image. The image contains"
  text += " <p> bright </p> [SEG]." if there else " no <p> bright </p>."
  mask = mask_IJ if there else None
  found = Found("bright", there, mask, box, 0.75 if there else 0.0)
  asked, said = len(question.text.split()), len(text.split())
  most = question.sampling.max_new or said
  counts = Tokens(asked, said, said <= most)
  return Answer(text, "X-Ray", (found,), tokens=counts)


def image(x0=4, y0=8, x1=20, y1=16, shape=(32, 48)):
  """uint8[I, J, 3], black with a white box."""
  made_IJC = np.zeros((*shape, 3), np.uint8)
  made_IJC[y0:y1, x0:x1] = 255
  return made_IJC


def png(image_IJC=None):
  image_IJC = image() if image_IJC is None else image_IJC
  return cv2.imencode(".png", image_IJC)[1].tobytes()


class Running:
  """A server that runs, and what is behind it."""

  def __init__(self, app, assistant, port, log):
    self.app = app
    self.assistant = assistant
    self.port = port
    self.url = f"http://127.0.0.1:{port}"
    self.log = log


@contextlib.contextmanager
def running(
  assistant=None,
  *,
  keys=None,
  most=64,
  origins=(),
  hosts=(),
  write_answer=None,
  volumes=None,
  classes=("bright",),
  windows=(),
  **changes,
):
  """A server on a port of its own, in a thread, ready."""
  assistant = assistant or Assistant()
  log = []
  metrics = telemetry.Metrics()
  told = {"rate": 1e6, **changes}
  service = asking.Service(
    engine=engine.Engine(assistant, most=most, batched=metrics.rows.observe),
    limits=limits.Limits(**told),
    keys=limits.Keys(keys),
    name=NAME,
    modalities=("X-Ray",),
    classes=classes,
    windows=windows,
    volumes=volumes or volume_jobs.Jobs(),
  )
  with tempfile.TemporaryDirectory() as folder:
    app = server.Application(
      service,
      shelf.Shelf(pathlib.Path(folder) / "shelf"),
      origins=origins,
      hosts=hosts,
      write_answer=write_answer,
      metrics=metrics,
      log=lambda **fields: log.append(fields),
    )
    app.folder = pathlib.Path(folder)
    port = free_port()
    runner = server.Server(app, host="127.0.0.1", port=port, drain_s=10)
    service.engine.start()
    thread = threading.Thread(target=runner.run)
    thread.start()
    try:
      until(lambda: runner.started and service.engine.ready)
      assistant.batches.clear()
      assistant.texts.clear()
      assistant.questions.clear()
      yield Running(app, assistant, port, log)
    finally:
      assistant.free.set()
      assistant.said.set()
      runner.should_exit = True
      thread.join(10)
      service.engine.stop()


def until(true, timeout_s=20.0):
  end = time.monotonic() + timeout_s
  while not true():
    assert time.monotonic() < end, "it did not come true in time"
    time.sleep(0.01)


def free_port():
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    return one.getsockname()[1]


def raw(port, data, timeout_s=10.0):
  """All that comes back over a socket, until the server closes it."""
  with socket.create_connection(("127.0.0.1", port), timeout_s) as one:
    one.sendall(data)
    parts = []
    while part := one.recv(65536):
      parts.append(part)
  return b"".join(parts)
