"""`rcmed data describe`: say in words where targets are and how they look."""

import argparse
import os
import pathlib
import sys
import urllib.parse

import tqdm

from rcmed_jax.apps import data_sources
from rcmed_jax.data import files
from rcmed_jax.data.checks import Quarantine
from rcmed_jax.ingest.describing import asking, describe, endpoint
from rcmed_jax.ingest.describing.replies import Replies

# Where keys are accepted and needed when no address is given.
OPENAI_URL = "https://api.openai.com/v1"
URL_NAME = "OPENAI_BASE_URL"
KEY_NAME = "OPENAI_API_KEY"

# As a shell reports a program that Ctrl-C ended.
STOPPED = 130


def add_to(commands: argparse._SubParsersAction) -> None:
  """Adds the command."""
  parser = commands.add_parser(
    "describe",
    allow_abbrev=False,
    help="write descriptions, from geometry or by a model that looks",
    description="Writes JSON {image: text} for data.descriptions. The built-in "
    "describer measures the masks. With --describer server, a vision-language "
    "model sees each image with its targets painted in colours; nothing but "
    "these pictures leaves the machine: mind what is written into images. Its "
    "answers are kept as they come, so that the same command goes on where it "
    "was stopped. Several sources with equal image names need a file each.",
    epilog="Exit code 0: every image with a target has its description; 1: "
    "some lack it, or a source has faults, which are in OUT's faults.jsonl; 2: "
    "wrong input.",
  )
  data_sources.add_arguments(parser)
  parser.add_argument(
    "--out",
    type=pathlib.Path,
    required=True,
    help="JSON file of descriptions; made, or gone on with",
  )
  parser.add_argument(
    "--describer", choices=("geometry", "server"), default="geometry"
  )
  parser.add_argument(
    "--detail", action="store_true", help="two or three sentences a target"
  )
  parser.add_argument(
    "--limit", type=_count, default=0, help="describe the first images only"
  )
  parser.add_argument(
    "--processes",
    type=data_sources.positive,
    default=os.cpu_count() or 1,
    help="of the built-in describer (default: %(default)s)",
  )
  _add_server(parser)
  parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
  """Describes, and prints how many."""
  if files.is_remote(args.out):
    raise ValueError(f"--out {args.out}: descriptions are written to a disk.")
  sources = [source for _, _, source in data_sources.open_all(args)]
  data_sources.require_key(args, sources)
  faults_path = args.out.with_suffix(".faults.jsonl")
  wish = describe.Wish(
    args.detail, args.limit, args.attempts, args.fallback == "geometry"
  )
  if args.describer == "server":
    return _by_server(args, sources, wish, faults_path)
  faults = _fresh(faults_path)
  with tqdm.tqdm(desc="describe", unit="image", mininterval=2) as bar:
    counts = describe.built_in(
      sources, args.out, wish, faults.add, bar.update, args.processes
    )
  return _told(args.out, counts, faults)


def _add_server(parser: argparse.ArgumentParser) -> None:
  group = parser.add_argument_group("--describer server")
  group.add_argument(
    "--base-url",
    help=f"of any OpenAI-compatible server (default: {URL_NAME} or OpenAI)",
  )
  group.add_argument("--model", default="", help="name at the server")
  group.add_argument(
    "--api-key-env",
    metavar="NAME",
    help=f"variable that holds the key (default: {KEY_NAME})",
  )
  group.add_argument(
    "--cache",
    type=pathlib.Path,
    help="folder of kept answers (default: beside OUT)",
  )
  group.add_argument(
    "--rate", type=float, default=0.0, metavar="N", help="requests a minute"
  )
  group.add_argument("--concurrency", type=data_sources.positive, default=4)
  group.add_argument(
    "--timeout", type=float, default=120.0, help="seconds for one answer"
  )
  group.add_argument(
    "--max-tokens",
    type=data_sources.positive,
    default=1024,
    help="of one answer",
  )
  group.add_argument(
    "--attempts",
    type=data_sources.positive,
    default=3,
    help="answers about one picture, the rejected included",
  )
  group.add_argument(
    "--price-in", type=float, default=0.0, help="per million tokens"
  )
  group.add_argument(
    "--price-out", type=float, default=0.0, help="per million tokens"
  )
  group.add_argument(
    "--max-cost", type=float, default=0.0, help="stop before it is passed"
  )
  group.add_argument(
    "--yes", action="store_true", help="ask the model without asking you"
  )
  group.add_argument(
    "--fallback",
    choices=("none", "geometry"),
    default="none",
    help="geometry: where the model fails, the built-in description; the "
    "faults file lists such images",
  )


def _by_server(
  args: argparse.Namespace,
  sources: list,
  wish: describe.Wish,
  faults_path: pathlib.Path,
) -> int:
  server = _server(args)
  folder = args.cache or args.out.with_suffix(".cache")
  replies = Replies(folder)
  try:
    with tqdm.tqdm(desc="estimate", unit="image", mininterval=2) as bar:
      found = asking.survey(sources, server.model, wish, replies, bar.update)
    print("\n".join(estimate(found, server, wish.tries)), flush=True)
    if found.cached < found.questions and not _agreed(args.yes):
      print("describe: nothing was asked")
      return 1
    faults = _fresh(faults_path)
    with tqdm.tqdm(
      total=found.images, desc="describe", unit="image", mininterval=2
    ) as bar:
      bill = asking.ask(
        sources,
        args.out,
        wish,
        server,
        replies,
        found,
        faults.add,
        bar.update,
      )
  except KeyboardInterrupt:
    print(
      f"describe: stopped; {len(replies)} answers are kept in {folder}, the "
      f"same command goes on, {args.out} is as it was"
    )
    return STOPPED
  finally:
    replies.close()
  print(f"describe: {bill.requests} requests{_price(bill.spent, server)}")
  return _told(args.out, bill.counts, faults)


def estimate(
  found: asking.Survey, server: endpoint.Server, tries: int
) -> list[str]:
  """What asking will come to, in lines to print."""
  to_ask = found.questions - found.cached
  most = server.cost(found.tokens_in, to_ask * server.max_tokens)
  lines = [
    f"describe: {found.images} images, {found.blank} without targets; "
    f"{found.questions} pictures, {found.cached} answered before, {to_ask} to "
    f"ask {server.model} at {server.base_url}",
    f"describe: about {found.tokens_in} tokens in and {found.tokens_out} out",
  ]
  if server.price_in or server.price_out:
    usual = server.cost(found.tokens_in, found.tokens_out)
    lines.append(
      f"describe: about {usual:.2f}, {most:.2f} if all answers are as long as "
      f"--max-tokens; rejected ones are asked again, up to {tries} times"
    )
    if server.max_cost:
      lines.append(f"describe: stops before {server.max_cost:.2f} is passed")
  if server.per_minute:
    minutes = to_ask / server.per_minute
    lines.append(
      f"describe: at least {minutes:.1f} minutes at {server.per_minute:g} "
      "requests a minute"
    )
  if server.base_url.startswith("http:") and not _is_local(server.base_url):
    lines.append("describe: pictures and key will go unencrypted (http)")
  return lines


def _server(args: argparse.Namespace) -> endpoint.Server:
  name = args.api_key_env or KEY_NAME
  key = os.environ.get(name, "")
  url = args.base_url or os.environ.get(URL_NAME) or OPENAI_URL
  if not key and (args.api_key_env or url == OPENAI_URL):
    raise ValueError(
      f"the variable {name} holds no key; set it, or name the server that "
      "needs none by --base-url."
    )
  return endpoint.Server(
    base_url=url,
    model=args.model,
    key=key,
    key_name=name,
    per_minute=args.rate,
    concurrency=args.concurrency,
    timeout_s=args.timeout,
    max_tokens=args.max_tokens,
    price_in=args.price_in,
    price_out=args.price_out,
    max_cost=args.max_cost,
  )


def _agreed(is_told: bool) -> bool:
  if is_told:
    return True
  if not sys.stdin.isatty():
    raise ValueError(
      "nobody is there to agree to this; say --yes to have the model asked."
    )
  return input("describe: ask? [y/N] ").strip().lower() in ("y", "yes")


def _told(
  out: pathlib.Path, counts: describe.Counts, faults: Quarantine
) -> int:
  """Prints what became of the images; the exit code."""
  parts = [
    f"{counts.built_in} from geometry",
    f"{counts.asked} asked",
    f"{counts.cached} from kept answers",
    f"{counts.failed} failed",
    f"{counts.blank} without targets",
    f"{counts.left} left as the money was spent",
  ]
  said = " + ".join(part for part in parts if not part.startswith("0 "))
  print(f"describe: {counts.images} images = {said or 'none'}; {out}")
  if counts.fallback:
    print(
      f"describe: {counts.fallback} of those that failed have the built-in "
      "description"
    )
  if len(faults):
    print(f"describe: {len(faults)} faults in {faults.path}")
  return 1 if len(faults) or counts.left else 0


def _fresh(path: pathlib.Path) -> Quarantine:
  """An empty file of faults: those of the last run may be gone."""
  path.unlink(missing_ok=True)
  return Quarantine(path)


def _price(spent: float, server: endpoint.Server) -> str:
  return f", {spent:.4f} spent" if server.price_in or server.price_out else ""


def _is_local(url: str) -> bool:
  return urllib.parse.urlsplit(url).hostname in (
    "localhost",
    "127.0.0.1",
    "::1",
  )


def _count(text: str) -> int:
  value = int(text)
  if value < 0:
    raise argparse.ArgumentTypeError(f"expected 0 or more, received {text}")
  return value
