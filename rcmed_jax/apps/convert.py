"""`rcmed convert`: a PyTorch checkpoint in, a PyTorch checkpoint out."""

import argparse
from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import pathlib
from typing import Any

from etils import epath
import numpy as np
import tqdm

from rcmed_jax.apps import runs, settings, verify
from rcmed_jax.convert import (
  exporter,
  fit,
  importer,
  names,
  sizes,
  store,
  stream,
)
from rcmed_jax.data import tokens
from rcmed_jax.model import config as model_configs
from rcmed_jax.train import checkpoints
from rcmed_jax.train.reading import Stored


def main(argv: Sequence[str]) -> int:
  """Runs the command; see `rcmed convert --help`."""
  args = _parser().parse_args(argv)
  if args.run is verify.run:
    return verify.run(args)
  with tqdm.tqdm(
    desc=args.command, unit="B", unit_scale=True, mininterval=5
  ) as bar:

    def progress(size: int, total: int) -> None:
      bar.total = total
      bar.update(size)

    args.run(args, progress)
  print(f"convert: written to {args.out}")
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    "rcmed convert",
    allow_abbrev=False,
    description="Converts checkpoints, one tensor in memory at a time; of a "
    "run, all layers of one kind. A conversion that was stopped goes on when "
    "the same command is given.",
  )
  commands = parser.add_subparsers(dest="command", required=True)
  reading = commands.add_parser("import", help="PyTorch checkpoint to ours")
  reading.set_defaults(run=_import)
  reading.add_argument(
    "--from", dest="kind", choices=tuple(names.PARTS), required=True
  )
  reading.add_argument(
    "path",
    metavar="SRC",
    type=pathlib.Path,
    help=".safetensors, .bin or .pth file, or folder with config.json",
  )
  reading.add_argument("--source", help="whose weights; default: SRC's name")
  reading.add_argument(
    "--licence", default="not stated", help="recorded in the manifest"
  )
  reading.add_argument(
    "--tokenizer",
    type=pathlib.Path,
    help="default: tokenizer.model in SRC, if it is there",
  )
  writing = commands.add_parser("export", help="ours to PyTorch checkpoint")
  writing.set_defaults(run=_export)
  writing.add_argument(
    "path",
    metavar="CKPT",
    type=epath.Path,
    help="what import wrote, or the workdir of a run, which may be gs://",
  )
  runs.add_choice_flags(writing)
  verify.add_parser(commands)
  for command, default, written in (
    (reading, "separate", "predict, serve and train --from take it"),
    (writing, "merge", "safetensors under the original names"),
  ):
    command.add_argument(
      "out",
      metavar="OUT",
      type=pathlib.Path,
      help=f"folder that is written, or gone on with: {written}",
    )
    command.add_argument(
      "--lora",
      choices=("separate", "merge"),
      default=default,
      help=f"low-rank updates, if there are any; default: {default}",
    )
  return parser


def _import(args: argparse.Namespace, progress: stream.Progress) -> None:
  source = importer.look(args.path, args.kind)
  tokenizer = args.tokenizer
  if source.kind == "sam":
    if tokenizer:
      raise ValueError("--tokenizer: SAM has no text; leave the flag out.")
  elif tokenizer or (args.path / store.TOKENIZER).is_file():
    tokenizer = tokenizer or args.path / store.TOKENIZER
    _require_vocabulary(tokenizer, source)
  importer.convert(
    source,
    args.out,
    name=args.source or args.path.resolve().name,
    licence=args.licence,
    tokenizer=tokenizer,
    merge=args.lora == "merge",
    progress=progress,
  )


def _require_vocabulary(path: pathlib.Path, source: importer.Source) -> None:
  """Refuses a tokenizer whose ids are not those of the embedding's rows."""
  tokenizer = tokens.Tokenizer(path)
  expected = [tokenizer.vocabulary]
  if source.kind == "llama":  # may lack the added tokens
    expected.append(tokenizer.base_size)
  held = source.model.language.vocabulary
  if held not in expected:
    raise ValueError(
      f"{path} has {expected[0]} ids with the added tokens, the checkpoint "
      f"has {held}; give the tokenizer that belongs to it."
    )


def _export(args: argparse.Namespace, progress: stream.Progress) -> None:
  path, merge = args.path, args.lora == "merge"
  tokenizer = path / store.TOKENIZER
  write = functools.partial(
    exporter.convert,
    out=args.out,
    tokenizer=tokenizer if tokenizer.is_file() else None,
    merge=merge,
    progress=progress,
  )
  converted = runs.converted(path)
  if converted is not None:
    runs.refuse_choice(path, averaged=args.averaged, best=args.best)
    held = store.read(converted)
    files = {tensor.file for tensor in held.tensors.values()}
    write(
      held.tensors,
      held.model,
      sources=stream.fingerprint(files),
      kind=held.kind,
      release=held.release,
    )
    return
  runs.require(path)
  model = settings.load(path).model
  for key, value in sizes.unlike(model).items():
    print(
      f"convert: note: {key}={value} is not what the original code does; it "
      "will load these weights and give other answers."
    )
  with checkpoints.Checkpoints(path) as saved:
    step = saved.chosen(best=args.best)
    stored = saved.stored(averaged=args.averaged, step=step)
    sources = {"checkpoint": saved.digest(step), "averaged": args.averaged}
  write(_trained(stored, model), model, sources=sources)


@dataclasses.dataclass(frozen=True)
class _Trained:
  """An array of a run in the model's own shape; reads all of it when asked."""

  shape: tuple[int, ...]
  dtype: Any
  read: Callable[[], np.ndarray]

  def __getitem__(self, index: Any) -> np.ndarray:
    return np.asarray(self)[index]

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
    del copy
    own = self.read()[tuple(slice(size) for size in self.shape)]
    return own if dtype is None else own.astype(dtype)


def _trained(
  stored: Mapping[str, Stored], model: model_configs.ModelConfig
) -> dict[str, _Trained]:
  """A run's arrays by dotted path.

  The last one that was read is kept, and no other: layers that lie in one array
  are asked for one after another.
  """
  read = functools.lru_cache(maxsize=1)(lambda name: np.asarray(stored[name]))
  return {
    name: _Trained(shape, stored[name].dtype, functools.partial(read, name))
    for name, shape in fit.shapes(model).items()
  }
