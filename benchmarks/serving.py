"""How `rcmed serve` stands many clients at once, on this machine.

  python benchmarks/serving.py RUN INDEX [--rows=16] [--clients=200]
    [--seconds=60] [--out=benchmarks/results/serving.md]

RUN is the folder of a trained model, INDEX an index of images to ask about.
Every answer is compared with the one that the assistant gives in Python: text,
classes, boxes, confidences and masks. Clients keep asking, each on a connection
of its own, on loopback. Servers, one after another:

  batched     rows at a time, a queue for all clients
  one by one  the same with batches of one
  overload    a short queue: who is refused comes again when he was told to
  stopped     SIGTERM in the middle

and the first two once more with a stand-in for the model that takes 30 ms for
any batch, as a device does that is not full: what the server itself allows.
"""

import argparse
import asyncio
import collections
from collections.abc import Sequence
import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import platform
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import Any
import urllib.request

import cv2
import numpy as np

_ROOT = pathlib.Path(__file__).parents[1]
_LINE = "benchmark-line"
_IMAGES = 64  # asked about in turn
_READY_S = 900
_STAND_IN = "stand-in"
_DEVICE_S = 0.03  # that the stand-in takes for a batch
_ANSWER_S = 120.0  # a client that waits longer hangs


@dataclasses.dataclass
class Seen:
  """What clients saw."""

  counts: collections.Counter = dataclasses.field(
    default_factory=collections.Counter
  )
  took_s: list[float] = dataclasses.field(default_factory=list)  # of status 200
  refused_s: list[float] = dataclasses.field(default_factory=list)  # of 429
  rss: list[tuple[float, int]] = dataclasses.field(default_factory=list)
  cpu_s: float = 0.0  # of the server
  seconds: float = 0.0
  log: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def main() -> None:
  """Runs all servers and writes the page."""
  if sys.argv[1:2] == [_STAND_IN]:
    _run_stand_in(*sys.argv[2:])
    return
  args = _parser().parse_args()
  questions = _questions(args.index)
  requests = [_request(data, text) for data, text in questions]
  context = multiprocessing.get_context("spawn")
  wanted = {}
  for rows in sorted({args.rows, 1}):
    with context.Pool(1) as pool:  # JAX is gone with it
      wanted[rows] = pool.apply(_answers, (args.run, args.index, rows))
  stand_in = [_written(StandIn.answer(one)) for one in _pictures(questions)]

  def ask(rows: int, most: int, seconds: float, **options: Any) -> Seen:
    command = _command(args.run, rows, most)
    return _serve(
      command, (requests, args.clients, wanted[rows]), seconds, **options
    )

  def ask_stand_in(rows: int) -> Seen:
    command = [sys.executable, __file__, _STAND_IN, str(rows)]
    work = (requests, args.clients, stand_in)
    return _serve(command, work, args.seconds / 3)

  rows, most = args.rows, args.clients
  seen = {
    "batched": ask(rows, most, args.seconds),
    "one by one": ask(1, most, args.seconds),
    "overload": ask(rows, rows, args.seconds / 3),
    "stopped": ask(rows, most, 10, stop=True),
    "stand-in, batched": ask_stand_in(rows),
    "stand-in, one by one": ask_stand_in(1),
  }
  page = _page(args, seen)
  print(page)
  if args.out:
    args.out.write_text(page, encoding="utf-8")


class StandIn:
  """Sees brightness, and takes a fixed time for any batch."""

  max_new = 64

  def __init__(self, rows: int):
    self.rows = rows

  def kind(self, question: Any) -> int:
    """All questions are alike."""
    return 0

  def stream(self, questions: Any, *, ahead: int = 1, told: Any = None) -> Any:
    """See `Assistant.stream`."""
    questions = list(questions)
    for number, question in enumerate(questions):
      if number % self.rows == 0:
        time.sleep(_DEVICE_S)
      yield number, self.answer(question.image_IJC)

  @staticmethod
  def answer(image_IJC: np.ndarray) -> Any:
    """What is bright in an image."""
    from rcmed_jax.data import images
    from rcmed_jax.serve.questions import Answer, Found

    mask_IJ = image_IJC[..., 0] > 127
    box = images.box(mask_IJ) if mask_IJ.any() else None
    found = Found("bright", box is not None, mask_IJ, box, 0.5)
    return Answer("<p> bright </p> [SEG]", None, (found,))


def _run_stand_in(rows: str, port: str, folder: str) -> None:
  from rcmed_jax.serve import asking, engine, limits, server, shelf

  service = asking.Service(
    engine=engine.Engine(StandIn(int(rows)), most=10**4),
    limits=limits.Limits(rate=1e9),
    keys=limits.Keys(),
    name="rcmed",
  )
  app = server.Application(service, shelf.Shelf(pathlib.Path(folder)))
  server.run(app, host="127.0.0.1", port=int(port), drain_s=60)


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("run", type=pathlib.Path)
  parser.add_argument("index", type=pathlib.Path)
  parser.add_argument("--rows", type=int, default=16)
  parser.add_argument("--clients", type=int, default=200)
  parser.add_argument("--seconds", type=float, default=60.0)
  parser.add_argument("--out", type=pathlib.Path)
  return parser


def _questions(index: pathlib.Path) -> list[tuple[bytes, str]]:
  """Files of images, and what is asked: each time for a class that is there."""
  found = []
  for name, masks in list(json.loads(index.read_text()).items())[:_IMAGES]:
    target = next(iter(masks[0].values())).replace("_", " ")
    text = f"Can you segment the {target} in this image?"
    found.append(((index.parent / name).read_bytes(), text))
  return found


def _pictures(questions: Sequence[tuple[bytes, str]]) -> list[np.ndarray]:
  return [
    cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    for data, _ in questions
  ]


def _answers(
  run: pathlib.Path, index: pathlib.Path, rows: int
) -> list[dict[str, Any]]:
  """What the assistant says in Python, as the server would write it."""
  from rcmed_jax.apps import answering
  from rcmed_jax.serve.questions import Question

  assistant = answering.load_assistant(run, rows=rows)
  questions = _questions(index)
  answers = assistant.ask_many(
    Question(image_IJC, text)
    for image_IJC, (_, text) in zip(
      _pictures(questions), questions, strict=True
    )
  )
  return [_written(answer) for answer in answers]


def _written(answer: Any) -> dict[str, Any]:
  from rcmed_jax.serve import api

  return {
    "text": answer.text,
    "modality": answer.modality,
    "targets": [
      json.loads(target.model_dump_json(by_alias=True))
      for target in api.targets(answer, "rle")
    ],
  }


def _request(data: bytes, text: str) -> bytes:
  """POST /v1/segment, byte for byte."""
  fields = {"prompt": text, "masks": "rle"}
  body = b"".join(
    f'--{_LINE}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
    f"{value}\r\n".encode()
    for name, value in fields.items()
  )
  body += (
    f'--{_LINE}\r\nContent-Disposition: form-data; name="image"; '
    'filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
  ).encode()
  body += data + f"\r\n--{_LINE}--\r\n".encode()
  head = (
    "POST /v1/segment HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    f"Content-Type: multipart/form-data; boundary={_LINE}\r\n"
    f"Content-Length: {len(body)}\r\n\r\n"
  )
  return head.encode() + body


def _command(run: pathlib.Path, rows: int, most: int) -> list[str]:
  return [
    *(sys.executable, "-m", "rcmed_jax", "serve", "--rate=1e9"),
    *("--workdir", str(run.resolve())),
    *(f"--rows={rows}", f"--most-waiting={most}"),
  ]


def _serve(
  command: list[str],
  work: tuple[list[bytes], int, list[dict[str, Any]]],
  seconds: float,
  *,
  stop: bool = False,
) -> Seen:
  """A server of its own, and all clients at it.

  Args:
    work: requests, how many clients, the answers that they should get.
    stop: whether SIGTERM comes half way.
  """
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    port = one.getsockname()[1]
  with tempfile.TemporaryDirectory() as folder:
    log = pathlib.Path(folder) / "log"
    place = [str(port), f"{folder}/files"]
    if _STAND_IN not in command:
      place = [f"--port={port}", f"--files={folder}/files"]
    with log.open("wb") as out:
      server = subprocess.Popen(
        [*command, *place],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        stdout=out,
        stderr=subprocess.STDOUT,
      )
    try:
      _await_ready(server, port)
      seen = asyncio.run(_clients(server, port, *work, seconds, stop=stop))
      if not stop:
        server.send_signal(signal.SIGTERM)
      code = server.wait(_ANSWER_S)
    finally:
      server.kill()
      server.wait()
    lines = log.read_text().splitlines()
    seen.log = [json.loads(line) for line in lines if line.startswith("{")]
    seen.counts["exit code"] = code
  return seen


def _await_ready(server: subprocess.Popen, port: int) -> None:
  until = time.monotonic() + _READY_S
  while time.monotonic() < until and server.poll() is None:
    with contextlib.suppress(OSError):
      urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5)
      return
    time.sleep(0.2)
  raise RuntimeError(f"the server was not ready; exit code {server.poll()}")


async def _clients(
  server: subprocess.Popen,
  port: int,
  requests: list[bytes],
  count: int,
  wanted: list[dict[str, Any]],
  seconds: float,
  *,
  stop: bool,
) -> Seen:
  seen = Seen()
  began = time.monotonic()
  until = began + seconds
  before = _cpu_s(server)

  async def watch() -> None:
    while time.monotonic() < until:
      with contextlib.suppress(OSError):
        seen.rss.append((time.monotonic() - began, _rss(server)))
        seen.cpu_s = _cpu_s(server) - before
      await asyncio.sleep(1)

  async def end() -> None:
    await asyncio.sleep(seconds / 2)
    server.send_signal(signal.SIGTERM)

  clients = [
    _client(number, port, requests, wanted, until, seen)
    for number in range(count)
  ]
  await asyncio.gather(*clients, watch(), *([end()] if stop else []))
  seen.seconds = time.monotonic() - began
  return seen


async def _client(
  client: int,
  port: int,
  requests: list[bytes],
  wanted: list[dict[str, Any]],
  until: float,
  seen: Seen,
) -> None:
  """Asks, and asks again."""
  counts = seen.counts
  turn = client
  reader = writer = None
  while time.monotonic() < until:
    number = turn = (turn + 1) % len(requests)
    try:
      if writer is None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
      counts["no server"] += 1
      return
    began = time.monotonic()
    try:
      writer.write(requests[number])
      async with asyncio.timeout(_ANSWER_S):
        status, headers, body = await _read(reader)
    except TimeoutError:
      counts["hangs"] += 1
      return
    except (OSError, asyncio.IncompleteReadError):
      counts["cut off"] += 1
      writer, turn = None, turn - 1
      continue
    took = time.monotonic() - began
    counts[str(status)] += 1
    if status == 200:
      seen.took_s.append(took)
      counts["wrong"] += not _is(json.loads(body), wanted[number])
    elif status == 429:
      seen.refused_s.append(took)
      await asyncio.sleep(float(headers["retry-after"]))
    else:
      await asyncio.sleep(0.1)
    if headers.get("connection") == "close":
      writer.close()
      writer = None


async def _read(
  reader: asyncio.StreamReader,
) -> tuple[int, dict[str, str], bytes]:
  head = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
  headers = dict(line.split(": ", 1) for line in head[1:] if line)
  body = await reader.readexactly(int(headers["content-length"]))
  return int(head[0].split()[1]), headers, body


def _is(told: dict[str, Any], wanted: dict[str, Any]) -> bool:
  return {key: told[key] for key in wanted} == wanted


def _rss(server: subprocess.Popen) -> int:
  text = pathlib.Path(f"/proc/{server.pid}/statm").read_text()
  return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _cpu_s(server: subprocess.Popen) -> float:
  text = pathlib.Path(f"/proc/{server.pid}/stat").read_text()
  user, system = text.rpartition(")")[2].split()[11:13]
  return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def _page(args: argparse.Namespace, seen: dict[str, Seen]) -> str:
  refused = seen["overload"].refused_s or [0.0]
  stopped = seen["stopped"]
  first, second = seen["batched"], seen["one by one"]
  return "\n".join(
    [
      "# Many clients at once",
      "",
      f"`python benchmarks/serving.py RUN INDEX --rows={args.rows}`, loopback, "
      f"{os.cpu_count()} cores ({platform.machine()}), a load of "
      f"{os.getloadavg()[2]:.1f} (15 minutes, this and other work). "
      f"{args.clients} clients, each on a connection of its own; {_IMAGES} "
      "images. Every answer is compared with the assistant's in Python, masks "
      "pixel by pixel.",
      "",
      "| server | seconds | answers | a second | wrong | lost | hang | 429 "
      "| p50 s | p99 s | its cores |",
      "|---|---|---|---|---|---|---|---|---|---|---|",
      *(_row(name, one) for name, one in seen.items()),
      "",
      "Lost: the server says to have sent it and no client got it. Its cores: "
      "how many it kept busy.",
      "",
      f"* Batches of {args.rows} against batches of one: "
      f"{_rate(first) / _rate(second):.2f} times the answers with the model, "
      f"{_of_stand_in(seen):.2f} times with a stand-in that takes "
      f"{_DEVICE_S * 1e3:.0f} ms for any batch.",
      f"* Memory of the server: {_memory(first)}; one by one: "
      f"{_memory(second)}.",
      f"* Overload: a refusal took {np.percentile(refused, 50):.3f} s at p50, "
      f"{np.percentile(refused, 99):.2f} s at p99, {max(refused):.2f} s at "
      "most.",
      f"* SIGTERM: {_served(stopped)} answers were sent and "
      f"{stopped.counts['200']} came; {stopped.counts['503']} requests were "
      f"refused with 503; {stopped.counts['cut off']} connections were closed "
      "with no request taken; exit code "
      f"{stopped.counts['exit code']}, unanswered "
      f"{stopped.log[-1].get('unanswered')}.",
      "",
    ]
  )


def _row(name: str, one: Seen) -> str:
  middle, last = np.percentile(one.took_s or [0.0], [50, 99])
  counts = one.counts
  cells = (
    name,
    f"{one.seconds:.0f}",
    counts["200"],
    f"{_rate(one):.1f}",
    counts["wrong"],
    _served(one) - counts["200"],
    counts["hangs"],
    counts["429"],
    f"{middle:.2f}",
    f"{last:.2f}",
    f"{one.cpu_s / one.seconds:.2f}",
  )
  return f"| {' | '.join(map(str, cells))} |"


def _rate(one: Seen) -> float:
  return one.counts["200"] / one.seconds


def _of_stand_in(seen: dict[str, Seen]) -> float:
  both = seen["stand-in, batched"], seen["stand-in, one by one"]
  return _rate(both[0]) / _rate(both[1])


def _served(one: Seen) -> int:
  return sum(
    line.get("route") == "/v1/segment" and line["status"] == 200
    for line in one.log
  )


def _memory(one: Seen) -> str:
  """After a third of the time, when all is warm, and at the end."""
  held = [rss / 1e6 for _, rss in one.rss]
  third = len(held) // 3
  return (
    f"{held[third]:.0f} MB after a third of the time, {held[-1]:.0f} MB at the "
    "end"
  )


if __name__ == "__main__":
  main()
