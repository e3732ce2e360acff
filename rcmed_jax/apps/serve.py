"""`rcmed serve`: a model behind HTTP."""

import argparse
from collections.abc import Sequence
import importlib
import ipaddress
import pathlib
import sys
import tempfile
from typing import Any

from etils import epath

from rcmed_jax.apps import answering, predict_tasks, runs, serve_volumes
from rcmed_jax.data import extras
from rcmed_jax.eval import overlays
from rcmed_jax.serve import engine, new_classes

_EXAMPLE = """\
paths: / (a web page), POST /v1/segment, POST /v1/segment_volume,
POST /v1/chat/completions, GET /v1/models, /capabilities, /healthz, /readyz,
/metrics, and those of MONAI Label, which 3D Slicer asks.

  rcmed serve --workdir runs/first
  curl -F image=@scan.png -F prompt='Where is the liver?' \\
    http://127.0.0.1:8000/v1/segment

With --mcp, tools for a language model over standard input and output:

  rcmed serve --workdir runs/first --mcp --mcp-images scans

A file of keys holds a NAME and a KEY a line; a key is 16 characters or more.
"""

# What this machine is called by itself.
_OWN = ("localhost", "127.0.0.1", "[::1]")


def main(argv: Sequence[str]) -> int:
  """Runs the command; see `rcmed serve --help`."""
  args = _parser().parse_args(argv)
  for package in (
    "fastapi",
    "python_multipart",
    "prometheus_client",
    "uvicorn",
  ):
    extras.load(package, "The server", "serve")
  if args.mcp:
    return _answer_tools(args)
  # Its parts need these packages, `rcmed serve --help` does not.
  serve = importlib.import_module("rcmed_jax.serve.server")
  keys = serve.limits.Keys()
  if args.keys:
    keys = serve.limits.read_keys(args.keys)
  elif not args.no_keys and not _is_own(args.host):
    raise ValueError(
      f"--host={args.host} can be reached from elsewhere: give --keys=FILE, or "
      "--no-keys if everybody there may ask."
    )
  metrics = serve.telemetry.Metrics()
  service = _service(args, keys, metrics.rows.observe, at_once=False)
  with tempfile.TemporaryDirectory() as scratch:
    kept = serve.shelf.Shelf(
      args.files or pathlib.Path(scratch),
      unpacked_bytes=service.limits.unpacked_bytes,
    )
    # Parts of bodies that libraries put aside lie there as well.
    tempfile.tempdir = str(kept.scratch)
    app = serve.Application(
      service,
      kept,
      origins=tuple(args.origin),
      hosts=() if keys or not _is_own(args.host) else _names(args.host),
      write_answer=serve_volumes.write_answer,
      metrics=metrics,
    )
    dropped = serve.run(
      app, host=args.host, port=args.port, drain_s=args.drain_s
    )
  return 1 if dropped else 0


def _service(
  args: argparse.Namespace, keys: Any, batched: Any, *, at_once: bool
) -> Any:
  """What requests are answered with.

  Args:
    at_once: whether the model is read now, or once the engine starts.
  """
  limits = importlib.import_module("rcmed_jax.serve.limits")
  asking = importlib.import_module("rcmed_jax.serve.asking")
  told = limits.Limits(
    body_bytes=args.most_mb * limits.MEGABYTE,
    upload_bytes=args.most_upload_mb * limits.MEGABYTE,
    pixels=args.most_pixels,
    answer_s=args.answer_s,
    rate=args.rate,
  )
  workdir = args.workdir or runs.newest()
  own = [new_classes.load(path).name for path in args.classes]

  def load() -> Any:
    return answering.load_assistant(
      workdir, rows=args.rows, **answering.loading(args)
    )

  trained = predict_tasks.trained(workdir)
  return asking.Service(
    engine=engine.Engine(
      load() if at_once else load,
      most=args.most_waiting,
      batched=batched,
      # All new classes share one program.
      warm=own[:1],
    ),
    limits=told,
    keys=keys,
    name=args.name,
    modalities=tuple(sorted(trained)),
    classes=(
      *own,
      *sorted({one for names in trained.values() for one in names}),
    ),
    windows=predict_tasks.windows_of(workdir),
    log_prompts=args.log_prompts,
  )


def _answer_tools(args: argparse.Namespace) -> int:
  """Serves MCP until standard input ends."""
  extras.load("mcp.server.mcpserver", "Tools for language models", "serve")
  tools = importlib.import_module("rcmed_jax.serve.mcp_tools")
  limits = importlib.import_module("rcmed_jax.serve.limits")
  folder = args.mcp_images
  if folder is not None and not folder.is_dir():
    raise ValueError(f"--mcp-images={folder} is no folder.")
  faults: list[Exception] = []

  def load() -> Any:
    try:
      made = _service(args, limits.Keys(), lambda count: None, at_once=True)
      made.engine.start()
      return made
    except Exception as error:
      print(f"rcmed serve: {error}", file=sys.stderr, flush=True)
      faults.append(error)
      raise

  tools.make(load, folder=folder, paint=overlays.painted).run()
  return 1 if faults else 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    "rcmed serve",
    allow_abbrev=False,
    description="Answers over HTTP until SIGTERM; then ends what it began.",
    epilog=_EXAMPLE,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  add = parser.add_argument
  add(
    "--workdir",
    type=epath.Path,
    help="a run or a converted checkpoint; default: the newest in runs/",
  )
  add("--host", default="127.0.0.1", help="address; default: %(default)s")
  add(
    "--port", type=int, default=8000, help="to listen on; default: %(default)s"
  )
  add("--mcp", action="store_true", help="serve MCP on stdin, and no HTTP")
  add(
    "--mcp-images",
    type=pathlib.Path,
    metavar="FOLDER",
    help="images that MCP clients may name; default: they send them",
  )
  add("--name", default="rcmed", help="of the model, in requests")
  add("--keys", type=pathlib.Path, help="file of those who may ask")
  add("--no-keys", action="store_true", help="everybody may ask")
  add(
    "--origin",
    action="append",
    default=[],
    help="whose web pages may ask, https://viewer.example.org; may be repeated",
  )
  _add_limits(parser)
  add(
    "--files",
    type=pathlib.Path,
    help="keeps what viewers upload; default: a folder that goes at the end",
  )
  add(
    "--log-prompts",
    action="store_true",
    help="write prompts to the log, which may hold patients' data",
  )
  answering.add_flags(parser)
  return parser


def _add_limits(parser: argparse.ArgumentParser) -> None:
  """Adds how much and how often; each with its default."""
  for name, kind, default, told in (
    ("--rows", _above_zero, 1, "requests that a device answers together"),
    ("--most-waiting", _above_zero, 64, "requests that may wait"),
    ("--rate", float, 120.0, "requests a minute and caller"),
    ("--answer-s", float, 120.0, "longest wait for an answer, in seconds"),
    ("--most-mb", int, 64, "megabytes of one request's JSON"),
    ("--most-upload-mb", int, 1000, "megabytes of one form with its files"),
    ("--most-pixels", int, 40_000_000, "pixels of one image"),
    (
      "--drain-s",
      float,
      60.0,
      "seconds after SIGTERM in which requests that were let in are answered",
    ),
  ):
    parser.add_argument(
      name, type=kind, default=default, help=f"{told}; default: %(default)s"
    )


def _above_zero(text: str) -> int:
  """A number of 1 or more, of the command line."""
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f"expected 1 or more, received {number}")
  return number


def _names(host: str) -> tuple[str, ...]:
  """By which a server that listens on this address of its own may be called."""
  return (*_OWN, f"[{host}]" if ":" in host else host.lower())


def _is_own(host: str) -> bool:
  """Whether only this machine reaches the address."""
  if host.lower() == "localhost":
    return True
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return False
