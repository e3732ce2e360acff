"""How `rcmed serve` stands many clients at once, on this machine.

  python benchmarks/serving.py RUN INDEX [--rows=16] [--clients=200]
    [--seconds=60] [--out=benchmarks/results/serving.md]

RUN is the folder of a trained model, INDEX an index of images to ask about.
Every answer is compared with the one that the assistant gives in Python: text,
classes, boxes, confidences and masks. Clients keep asking, each on a connection
of its own, on loopback. Four servers, one after another:

  batched     rows at a time, a queue for all clients
  one by one  the same with batches of one
  overload    a short queue: who is refused comes again when he was told to
  stopped     SIGTERM in the middle
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

import numpy as np

_ROOT = pathlib.Path(__file__).parents[1]
_LINE = "benchmark-line"
_IMAGES = 64  # asked about in turn
_READY_S = 900
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
  """Runs all four and writes the page."""
  args = _parser().parse_args()
  questions = _questions(args.index)
  context = multiprocessing.get_context("spawn")
  wanted = {}
  for rows in sorted({args.rows, 1}):
    with context.Pool(1) as pool:  # JAX is gone with it
      told = (args.run, args.index, rows)
      wanted[rows] = pool.apply(_answers, told)
  requests = [_request(data, text) for data, text in questions]
  work = (requests, args.clients)
  room = ["--rate=1e9", f"--most-waiting={args.clients}"]
  seen = {
    "batched": _serve(
      args.run, args.rows, room, work, wanted[args.rows], args.seconds
    ),
    "one by one": _serve(args.run, 1, room, work, wanted[1], args.seconds),
    "overload": _serve(
      args.run,
      args.rows,
      ["--rate=1e9", f"--most-waiting={args.rows}"],
      work,
      wanted[args.rows],
      args.seconds / 3,
    ),
    "stopped": _serve(
      args.run, args.rows, room, work, wanted[args.rows], 10, stop=True
    ),
  }
  page = _page(args, seen)
  print(page)
  if args.out:
    args.out.write_text(page, encoding="utf-8")


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


def _answers(
  run: pathlib.Path, index: pathlib.Path, rows: int
) -> list[dict[str, Any]]:
  """What the assistant says in Python, as the server would write it."""
  import cv2

  from rcmed_jax.apps import answering
  from rcmed_jax.serve import api
  from rcmed_jax.serve.questions import Question

  assistant = answering.load_assistant(run, rows=rows)
  answers = assistant.ask_many(
    Question(
      cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1],
      text,
    )
    for data, text in _questions(index)
  )
  return [
    {
      "text": answer.text,
      "modality": answer.modality,
      "targets": [
        json.loads(target.model_dump_json(by_alias=True))
        for target in api.targets(answer, "rle")
      ],
    }
    for answer in answers
  ]


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


def _serve(
  run: pathlib.Path,
  rows: int,
  flags: Sequence[str],
  work: tuple[list[bytes], int],
  wanted: list[dict[str, Any]],
  seconds: float,
  *,
  stop: bool = False,
) -> Seen:
  """A server of its own, and all clients at it.

  Args:
    stop: whether SIGTERM comes half way.
  """
  with socket.socket() as one:
    one.bind(("127.0.0.1", 0))
    port = one.getsockname()[1]
  with tempfile.TemporaryDirectory() as folder:
    log = pathlib.Path(folder) / "log"
    command = [sys.executable, "-m", "rcmed_jax", "serve"]
    command += ["--workdir", str(run.resolve()), f"--port={port}"]
    command += [f"--rows={rows}", f"--files={folder}/files", *flags]
    with log.open("wb") as out:
      server = subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(_ROOT)},
        stdout=out,
        stderr=subprocess.STDOUT,
      )
    try:
      _await_ready(server, port)
      seen = asyncio.run(
        _clients(server, port, *work, wanted, seconds, stop=stop)
      )
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
  batched, single = seen["batched"], seen["one by one"]
  rate = {name: one.counts["200"] / one.seconds for name, one in seen.items()}
  lines = [
    "# Many clients at once",
    "",
    "`python benchmarks/serving.py RUN INDEX`, on loopback, "
    f"{os.cpu_count()} cores ({platform.machine()}), load "
    f"{os.getloadavg()[1]:.1f} of other work included. {args.clients} clients, "
    f"each on a connection of its own, {_IMAGES} images, batches of "
    f"{args.rows} rows or of one. Every answer is compared with the assistant's "
    "in Python, masks pixel by pixel.",
    "",
    "| server | seconds | answers | a second | wrong | lost | hangs | 429 "
    "| p50 s | p99 s | server's cores |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
  ]
  for name, one in seen.items():
    middle, last = (
      np.percentile(one.took_s, [50, 99]) if one.took_s else (0.0, 0.0)
    )
    lines.append(
      f"| {name} | {one.seconds:.0f} | {one.counts['200']} | "
      f"{rate[name]:.1f} | {one.counts['wrong']} | {_lost(one)} | "
      f"{one.counts['hangs']} | {one.counts['429']} | {middle:.2f} | "
      f"{last:.2f} | {one.cpu_s / one.seconds:.2f} |"
    )
  ratio = rate["batched"] / rate["one by one"]
  refused = seen["overload"].refused_s
  stopped = seen["stopped"]
  lines += [
    "",
    f"* Batching: {ratio:.2f} times the answers of batches of one.",
    f"* Memory, batched: {_memory(batched)}; one by one: {_memory(single)}.",
    f"* Overload: a refusal took {np.percentile(refused, 99):.2f} s at p99, "
    f"{max(refused):.2f} s at most."
    if refused
    else "* Overload: nobody was refused.",
    f"* SIGTERM: {stopped.counts['200']} answers came, {_served(stopped)} were "
    f"sent; {stopped.counts['503']} were refused with 503, "
    f"{stopped.counts['cut off']} connections were closed before a request was "
    f"taken; exit code {stopped.counts['exit code']}, unanswered "
    f"{stopped.log[-1].get('unanswered')}.",
    "",
    "Lost: answers that the server says to have sent and no client got.",
  ]
  return "\n".join(lines) + "\n"


def _served(one: Seen) -> int:
  return sum(
    line.get("route") == "/v1/segment" and line["status"] == 200
    for line in one.log
  )


def _lost(one: Seen) -> int:
  return _served(one) - one.counts["200"]


def _memory(one: Seen) -> str:
  """After a third of the time, when all is warm, and at the end."""
  held = [rss / 1e6 for _, rss in one.rss]
  third = len(held) // 3
  return f"{held[third]:.0f} MB after a third, {max(held[-3:]):.0f} at the end"


if __name__ == "__main__":
  main()
