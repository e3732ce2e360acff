"""Weights that a new run starts from: converted ones, or another run's."""

from collections.abc import Mapping
import dataclasses
import os
from typing import Any

from etils import epath

from rcmed_jax.apps import runs, settings
from rcmed_jax.convert import store
from rcmed_jax.model import config as model_configs
from rcmed_jax.train import checkpoints


@dataclasses.dataclass(frozen=True)
class Start:
  """Weights and what belongs to them."""

  folder: epath.Path
  model: model_configs.ModelConfig
  arrays: Mapping[str, Any]  # by dotted path; read one by one when taken


def open_weights(folder: str | os.PathLike[str]) -> Start:
  """The weights of a converted checkpoint, or of a run's newest checkpoint.

  Raises:
    FileNotFoundError: the folder is neither.
    ValueError: it holds only parts of the model, or no whole checkpoint.
  """
  converted = runs.converted(folder)
  if converted is not None:
    held = store.read_whole(converted)
    return Start(epath.Path(folder), held.model, held.tensors)
  runs.require(folder)
  with checkpoints.Checkpoints(folder) as saved:
    arrays = saved.stored()
  return Start(epath.Path(folder), settings.load(folder).model, arrays)


def with_sizes(told: settings.Settings, start: Start) -> settings.Settings:
  """Settings for a run that starts from such weights.

  Sizes, order of channels and low-rank updates that the weights have are
  theirs; what adds to a model (new updates, correlation steps), and how it
  computes, stays as told. The tokenizer beside the weights is the run's, where
  the settings name none.
  """
  held = start.model
  language = dataclasses.replace(
    held.language, attention=told.model.language.attention
  )
  model = dataclasses.replace(
    told.model,
    image=held.image,
    language=language,
    decoder=held.decoder,
    channel_order=held.channel_order,
    lora=held.lora if held.lora.rank else told.model.lora,
  )
  tokenizer = told.data.tokenizer
  if not tokenizer and (start.folder / runs.TOKENIZER).exists():
    tokenizer = os.fspath(start.folder / runs.TOKENIZER)
  data = dataclasses.replace(told.data, tokenizer=tokenizer)
  return dataclasses.replace(told, model=model, data=data)
