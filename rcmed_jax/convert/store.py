"""A converted checkpoint: our arrays, lazily, with what they are and were.

  config.json      {"format", "kind", "model": our ModelConfig, "release":
                   config.json of the source, kept whole for the way back}
  weights-0000N-of-0000M.safetensors, weights.safetensors.index.json
                   our arrays by dotted path, stacked layers first
  tokenizer.model  where the source had one
  manifest.json    {"format", "writer", "source", "licence", "parts",
                   "sources", "files": sha256 by file name}

A kind "sam" or "llama" holds those parts of the model only; the sizes of the
others in its config.json say nothing.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import pathlib
import typing
from typing import Any

import rcmed_jax
from rcmed_jax.convert import (
  fit,
  json_file,
  names,
  safetensors_file,
  stream,
  torch_io,
)
from rcmed_jax.convert.tensors import Stored
from rcmed_jax.model.config import ModelConfig

FORMAT = 1
CONFIG = "config.json"
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"
STEM = "weights"
INDEX = f"{STEM}.safetensors.index.json"


@dataclasses.dataclass(frozen=True)
class Converted:
  """A converted checkpoint, opened."""

  folder: pathlib.Path
  kind: str  # of `names.PARTS`: what it holds
  model: ModelConfig
  release: Mapping[str, Any]  # the source's config.json, {} if it had none
  tensors: Mapping[str, Stored]  # by our dotted paths


def is_converted(folder: pathlib.Path) -> bool:
  """Whether a folder is a finished converted checkpoint."""
  return (folder / MANIFEST).is_file()


def read(folder: pathlib.Path) -> Converted:
  """Opens a converted checkpoint; reads no array.

  Raises:
    OSError: a file is missing.
    ValueError: the folder is of another format, or its files do not belong
      together.
  """
  told = json_file.read(folder / CONFIG)
  if told.get("format") != FORMAT:
    raise ValueError(
      f"{folder / CONFIG}: format {told.get('format')!r}, expected {FORMAT}; "
      "convert the checkpoint with this version of rcmed."
    )
  try:
    kind, model = told["kind"], _model(told["model"])
    parts, release = names.PARTS[kind], told["release"]
  except (KeyError, TypeError, AttributeError) as error:
    raise ValueError(
      f"{folder / CONFIG} is not as it was written ({error!r}); convert the "
      "checkpoint again."
    ) from error
  tensors: dict[str, Stored] = {}
  for path in torch_io.indexed(folder / INDEX):
    if not path.is_file():
      raise ValueError(f"{path} is missing; convert again.")
    tensors |= safetensors_file.read(path)
  expected = {
    path: shape
    for path, shape in fit.shapes(model).items()
    if path.split(".")[0] in parts
  }
  if expected != {path: tensor.shape for path, tensor in tensors.items()}:
    raise ValueError(
      f"{folder}: the weights are not those of its {CONFIG}; convert again."
    )
  return Converted(folder, kind, model, release, tensors)


def read_whole(folder: pathlib.Path) -> Converted:
  """Opens a converted checkpoint that holds the whole model.

  Raises:
    OSError, ValueError: as `read`, or it holds only parts.
  """
  held = read(folder)
  if held.kind != "syre":
    raise ValueError(
      f"{folder} holds the {held.kind} part of a model only; convert a whole "
      "one with `rcmed convert import --from syre`."
    )
  return held


def write_texts(
  partial: pathlib.Path,
  files: stream.Files,
  kind: str,
  model: ModelConfig,
  release: Mapping[str, Any],
) -> None:
  """Writes config.json and the index beside the arrays."""
  told = {
    "format": FORMAT,
    "kind": kind,
    "model": dataclasses.asdict(model),
    "release": release,
  }
  json_file.write(partial / CONFIG, told)
  json_file.write(partial / INDEX, stream.index(files))


def sign(
  partial: pathlib.Path,
  sources: Iterable[pathlib.Path],
  *,
  kind: str,
  name: str,
  licence: str,
) -> None:
  """Writes the manifest over all other files; the last thing to do."""
  written = set(partial.iterdir()) - {
    partial / stream.JOURNAL,
    partial / MANIFEST,
  }
  manifest = {
    "format": FORMAT,
    "writer": f"rcmed-jax {rcmed_jax.__version__}",
    "source": name,
    "licence": licence,
    "parts": list(names.PARTS[kind]),
    "sources": stream.digests(sources),
    "files": stream.digests(written),
  }
  json_file.write(partial / MANIFEST, manifest)


def _model(told: Mapping[str, Any]) -> ModelConfig:
  """The ModelConfig that `dataclasses.asdict` took apart."""
  values: dict[str, Any] = dict(told)
  for name, kind in typing.get_type_hints(ModelConfig).items():
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
      # JSON has no tuples.
      values[name] = kind(
        **{
          key: tuple(value) if isinstance(value, list) else value
          for key, value in told[name].items()
        }
      )
  return ModelConfig(**values)
