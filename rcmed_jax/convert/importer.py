"""From the release's checkpoint, or SAM's, or LLaMA's, to a folder of ours."""

from collections.abc import Mapping
import dataclasses
import pathlib
import shutil
from typing import Any

from rcmed_jax.convert import (
  fit,
  json_file,
  lora,
  names,
  sizes,
  store,
  stream,
  torch_io,
)
from rcmed_jax.convert.tensors import Tensor
from rcmed_jax.model.config import LoraConfig, ModelConfig


@dataclasses.dataclass(frozen=True)
class Source:
  """A checkpoint that was looked at and not yet read."""

  kind: str  # of `names.PARTS`
  model: ModelConfig
  release: Mapping[str, Any]  # its config.json, {} where it needs none
  tensors: Mapping[str, Tensor]  # by the names of its kind
  files: tuple[pathlib.Path, ...]  # all that the result depends on


def look(path: pathlib.Path, kind: str) -> Source:
  """What a checkpoint is, from its config.json and its headers.

  Args:
    path: a file, or a folder of shards; config.json lies beside the weights.
    kind: "syre", "sam" or "llama".

  Raises:
    FileNotFoundError: there is no config.json, and the kind needs one.
    ValueError: the files cannot be read, or contradict each other.
  """
  folder = path if path.is_dir() else path.parent
  stored = torch_io.read(path)
  told: dict[str, Any] = {}
  files = {tensor.file for tensor in stored.values()}
  if kind != "sam":  # whose sizes are in its shapes
    told = json_file.read(folder / store.CONFIG)
    files.add(folder / store.CONFIG)
  adapter: dict[str, Any] = {}
  if (folder / lora.CONFIG).is_file():
    adapter = json_file.read(folder / lora.CONFIG)
    files.add(folder / lora.CONFIG)
  tensors = lora.plain_names(stored)
  try:
    model = sizes.from_release(told, tensors, kind)
  except ValueError as error:
    raise ValueError(f"{folder}: {error}") from error
  model = dataclasses.replace(model, lora=lora.config(tensors, adapter))
  return Source(kind, model, told, tensors, tuple(sorted(files)))


def convert(
  source: Source,
  out: pathlib.Path,
  *,
  name: str,
  licence: str,
  tokenizer: pathlib.Path | None = None,
  merge: bool = False,
  progress: stream.Progress = lambda *_: None,
) -> ModelConfig:
  """Writes the converted checkpoint and returns the model it is of.

  One tensor at a time is in memory. Where a conversion of the same files was
  stopped, it goes on from there and gives the same bytes.

  Args:
    source: from `look`.
    out: the new folder.
    name: whose checkpoint it is, for the manifest.
    licence: under which it may be used, for the manifest.
    tokenizer: a SentencePiece model to keep with the weights.
    merge: whether low-rank updates are added to their weights.
    progress: told of the bytes of each piece.

  Raises:
    ValueError: the tensors do not fit the model; nothing is written then.
    OSError: OUT exists or the disk is too small.
  """
  model, arrays = _fitted(source, merge)
  files = stream.split(arrays.values(), store.STEM)
  sources = [*source.files, *([tokenizer] if tokenizer else [])]
  with stream.folder(out) as partial:
    stream.write(partial, files, stream.fingerprint(sources), progress)
    store.write_texts(partial, files, source.kind, model, source.release)
    if tokenizer:
      shutil.copyfile(tokenizer, partial / store.TOKENIZER)
    store.sign(partial, sources, kind=source.kind, name=name, licence=licence)
  return model


def _fitted(source: Source, merge: bool) -> tuple[ModelConfig, dict[str, Any]]:
  """The model and its arrays by path, in the order of the table."""
  model = source.model
  entries = names.entries(model, source.kind)
  if model.lora.rank:
    updates = lora.entries(model)
    # A model of ours updates q, k, v and o; what is merged may leave some out.
    entries += lora.updated(updates, source.tensors) if merge else updates
  fitted = fit.to_ours(entries, fit.shapes(model), source.tensors)
  arrays = {array.name: array for array in fitted}
  if merge:
    arrays = lora.merge(arrays, model.lora)
    model = dataclasses.replace(model, lora=LoraConfig())
  return model, arrays
