"""From our arrays to a checkpoint under the original names."""

from collections.abc import Mapping
import pathlib
from typing import Any

from etils import epath

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
from rcmed_jax.model.config import ModelConfig

STEM = "model"


def convert(
  tensors: Mapping[str, Tensor],
  model: ModelConfig,
  out: pathlib.Path,
  *,
  sources: Mapping[str, Any],
  kind: str = "syre",
  release: Mapping[str, Any] | None = None,
  tokenizer: epath.Path | None = None,
  merge: bool = True,
  progress: stream.Progress = lambda *_: None,
) -> None:
  """Writes a checkpoint that the original code loads.

  Low-rank updates are merged, or stand beside it as peft keeps them:
  adapter_model.safetensors and adapter_config.json.

  Args:
    tensors: our arrays by dotted path.
    model: theirs.
    out: the new folder.
    sources: JSON that changes when the arrays do, for going on after a crash.
    kind: what the arrays are of, of `names.PARTS`.
    release: the config.json that they once came with; None makes one.
    tokenizer: a SentencePiece model to put beside the weights.
    merge: whether low-rank updates are added to their weights.
    progress: told of the bytes of each tensor.

  Raises:
    ValueError: the original model has no place for some of the arrays.
    OSError: OUT exists or the disk is too small.
  """
  told = sizes.to_release(model) if release is None else release
  if merge and model.lora.rank:
    tensors = lora.merge(tensors, model.lora)
  # Tensors of one array after another, so that each array is read once.
  entries = sorted(names.entries(model, kind), key=lambda entry: entry.path)
  weights = stream.split(fit.to_release(entries, tensors), STEM)
  files = dict(weights)
  texts = {torch_io.INDEX: stream.index(weights)}
  if told:  # SAM alone has none
    texts[store.CONFIG] = dict(told)
  if model.lora.rank and not merge:
    updates = lora.entries(model, lora.PREFIX)
    files[lora.ADAPTER] = fit.to_release(updates, tensors)
    texts[lora.CONFIG] = lora.adapter_config(model.lora)
  with stream.folder(out) as partial:
    stream.write(partial, files, sources, progress)
    for name, text in texts.items():
      json_file.write(partial / name, text)
    if tokenizer:
      (partial / store.TOKENIZER).write_bytes(tokenizer.read_bytes())
