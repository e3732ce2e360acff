"""One exported toy, in our model and in PyTorch's modules.

The toy's numbers are noise under the release's names. They are imported and
exported by our converter, and what was exported is loaded strictly, so every
comparison here is one of the converter's names as well.
"""

from collections.abc import Callable
import dataclasses
import functools
import importlib
from typing import Any

import numpy as np
import pytest
import torch_files
import transformers_names

from rcmed_jax.convert import (
  exporter,
  importer,
  names_vision,
  sizes,
  store,
  torch_io,
)
from rcmed_jax.model import config as configs
from rcmed_jax.model.rcmed import RCMed

REASON = (
  "PyTorch's CPU build and transformers are missing; see `make reference`"
)

# Windows of 5 do not divide the grid of 12: its edge is padded to 15.
CONFIG = configs.ModelConfig(
  image=configs.ImageEncoderConfig(
    image_size=96,
    patch_size=8,
    width=32,
    depth=4,
    heads=2,
    mlp_ratio=2.0,
    window=5,
    global_blocks=(1, 3),
  ),
  language=configs.LanguageConfig(
    vocabulary=71, width=32, depth=3, heads=4, hidden=56, norm_eps=1e-3
  ),
  correlation=configs.CorrelationConfig(heads=4),
  decoder=configs.MaskDecoderConfig(width=32, heads=4, hidden=48),
  channel_order="bgr",
)


@dataclasses.dataclass(frozen=True)
class Pair:
  """The same weights twice."""

  ours: RCMed
  sam: Any  # transformers.SamModel
  llama: Any  # transformers.LlamaForCausalLM


@pytest.fixture(scope="session")
def torch() -> Any:
  """PyTorch, where it is installed, on one thread: tests run side by side."""
  found = pytest.importorskip("torch", reason=REASON)
  found.set_num_threads(1)
  return found


@pytest.fixture(scope="session")
def transformers(torch) -> Any:
  """transformers, where it is installed."""
  return pytest.importorskip("transformers", reason=REASON)


@pytest.fixture(scope="session")
def torch_model(transformers) -> Any:
  """Their models of our sizes, as benchmarks build them."""
  return importlib.import_module("benchmarks.torch_model")


@pytest.fixture(scope="session")
def pair(torch, torch_model, load_sam, tmp_path_factory) -> Pair:
  """The toy, its weights float32, large enough that every one matters."""
  folder = tmp_path_factory.mktemp("reference")
  noise = {
    name: 2 * np.asarray(values, np.float32)
    for name, values in torch_files.tensors(CONFIG).items()
  }
  told = sizes.to_release(CONFIG)
  torch_files.write(folder / "release", noise, told)
  importer.convert(
    importer.look(folder / "release", "syre"),
    folder / "ours",
    name="noise",
    licence="none",
  )
  held = store.read_whole(folder / "ours")
  exporter.convert(held.tensors, held.model, folder / "back", sources={})
  exported = {
    name: torch.from_numpy(np.asarray(tensor).copy())
    for name, tensor in torch_io.read(folder / "back").items()
  }
  ours = torch_io.build(held.model, torch_io.nested(held.tensors))
  return Pair(
    ours,
    load_sam(CONFIG, exported),
    _load_llama(torch_model, CONFIG.language, exported),
  )


@pytest.fixture(scope="session")
def load_sam(torch_model) -> Callable[..., Any]:
  """Makes their SAM of sizes and of tensors under the release's names."""
  return functools.partial(_load_sam, torch_model)


def _load_sam(torch_model, config: configs.ModelConfig, exported) -> Any:
  """Their SAM with all that was exported of it, and nothing else."""
  model = torch_model.sam(config)
  weights = {
    transformers_names.sam(name.removeprefix(names_vision.PREFIX)): tensor
    for name, tensor in exported.items()
    if name.startswith(names_vision.PREFIX)
  }
  weights[transformers_names.AGAIN] = weights[transformers_names.FREQUENCIES]
  model.load_state_dict(weights, strict=True)
  return model.eval()


def _load_llama(torch_model, language: configs.LanguageConfig, exported) -> Any:
  """Their LLaMA with what was exported under its names."""
  model = torch_model.llama(language)
  theirs = ("model.embed_tokens", "model.layers", "model.norm", "lm_head")
  weights = {
    name: tensor for name, tensor in exported.items() if name.startswith(theirs)
  }
  model.load_state_dict(weights, strict=True)
  return model.eval()
