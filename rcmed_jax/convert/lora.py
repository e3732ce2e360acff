"""Low-rank updates as peft stores them, kept apart or merged.

peft calls the update of q_proj, W + scale * B A, with A [R, in], B [out, R]:

  base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight
  base_model.model.model.layers.0.self_attn.q_proj.lora_B.default.weight

with the adapter's name, "default", in a model's state and without it in
adapter_model.safetensors; the weight beneath is then `q_proj.base_layer.weight`
or, of older peft, `q_proj.weight`. All these are read; rank and alpha come from
adapter_config.json. Modules that peft saved whole ("modules_to_save") are not
read: merge those there.
Source: peft's documentation, "PEFT checkpoint format", and files that peft 0.21
wrote and read; no checkpoint of the release with updates apart was at hand.
"""

from collections.abc import Callable, Mapping
import re
from typing import Any

import numpy as np

from rcmed_jax.convert.entry import TRANSPOSE, Entry
from rcmed_jax.convert.names_language import LAYER_KERNELS
from rcmed_jax.convert.tensors import Array, Tensor
from rcmed_jax.model.config import LoraConfig, ModelConfig

CONFIG = "adapter_config.json"
ADAPTER = "adapter_model.safetensors"
PREFIX = "base_model.model."

_DECORATION = re.compile(
  rf"^{re.escape(PREFIX)}|\.base_layer(?=\.)|(?<=\.lora_[AB])\.default(?=\.)"
)
_TARGETS = {t: ours for t, ours in LAYER_KERNELS.items() if "attn" in t}
# What changes the update's formula; none of it is known here.
_UNKNOWN = ("use_rslora", "use_dora", "rank_pattern", "alpha_pattern")


def plain_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
  """The same tensors under the base model's names; see the module's text.

  Raises:
    ValueError: two tensors would have the same name.
  """
  found: dict[str, Tensor] = {}
  for name, tensor in tensors.items():
    plain = _DECORATION.sub("", name)
    if plain in found:
      raise ValueError(
        f"{name}: the checkpoint holds {plain} twice, with and without peft's "
        "additions to the name; keep one of the two."
      )
    found[plain] = tensor
  return found


def config(
  tensors: Mapping[str, Tensor], told: Mapping[str, Any]
) -> LoraConfig:
  """Rank and alpha of the updates among the tensors; rank 0 without any.

  Args:
    tensors: by plain name.
    told: adapter_config.json, or {}: alpha is then the release's, 16.

  Raises:
    ValueError: the updates are of another form than W + alpha / rank * B A.
  """
  ranks = [
    tensor.shape[0]
    for name, tensor in tensors.items()
    if name.endswith(".lora_A.weight") and len(tensor.shape) == 2
  ]
  if not ranks:
    return LoraConfig()
  unknown = [f"{key}={told[key]}" for key in _UNKNOWN if told.get(key)]
  if unknown:
    raise ValueError(
      f"{CONFIG}: {', '.join(unknown)} is not known here; merge the updates "
      "with peft's merge_and_unload and convert the result."
    )
  alpha = _number(told, "lora_alpha", LoraConfig.alpha)
  dropout = _number(told, "lora_dropout", LoraConfig.dropout)
  return LoraConfig(ranks[0], alpha, dropout)


def _number(told: Mapping[str, Any], key: str, default: float) -> float:
  value = told.get(key, default)
  if isinstance(value, bool) or not isinstance(value, int | float):
    raise ValueError(f"{CONFIG}: {key}={value!r}, expected a number.")
  return float(value)


def adapter_config(config: LoraConfig) -> dict[str, Any]:
  """peft's adapter_config.json for our updates."""
  return {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "r": config.rank,
    "lora_alpha": config.alpha,
    "lora_dropout": config.dropout,
    # A pattern, because SAM's decoder has a q_proj as well.
    "target_modules": r"model\.layers\.\d+\.self_attn\.[qkvo]_proj",
    "bias": "none",
  }


def entries(config: ModelConfig, prefix: str = "") -> list[Entry]:
  """The updates of q, k, v, o in every layer."""
  return [
    Entry(
      f"{prefix}model.layers.{layer}.{theirs}.lora_{letter}.weight",
      f"language.layers.{ours}.{name}",
      (layer,),
      TRANSPOSE,
    )
    for layer in range(config.language.depth)
    for theirs, ours in _TARGETS.items()
    for letter, name in (("A", "down"), ("B", "up"))
  ]


def updated(entries: list[Entry], tensors: Mapping[str, Tensor]) -> list[Entry]:
  """The entries of those projections that have an update in some layer."""
  paths = {
    entry.path.rpartition(".")[0]
    for entry in entries
    if entry.release in tensors
  }
  return [e for e in entries if e.path.rpartition(".")[0] in paths]


def merge(
  tensors: Mapping[str, Tensor], config: LoraConfig
) -> dict[str, Tensor]:
  """Our arrays with every update added to its kernel and then left out.

  kernel + (alpha / R) down up, in float32, rounded to the kernel's dtype.

  Args:
    tensors: by our paths.
    config: of the updates.
  """
  found = dict(tensors)
  for ours in _TARGETS.values():
    root = f"language.layers.{ours}"
    if f"{root}.down" not in found:
      continue
    # Small beside the kernel, which alone is read layer by layer.
    down, up = (np.asarray(found.pop(f"{root}.{n}")) for n in ("down", "up"))
    kernel = found[f"{root}.kernel"]
    scale = np.float32(config.alpha / config.rank)
    pieces = {
      (layer,): _merged(kernel, down, up, scale, layer)
      for layer in range(kernel.shape[0])
    }
    found[f"{root}.kernel"] = Array(
      f"{root}.kernel", np.dtype(kernel.dtype), kernel.shape, pieces
    )
  return found


def _merged(
  kernel: Tensor, down: Tensor, up: Tensor, scale: np.float32, layer: int
) -> Callable[[], np.ndarray]:
  def part(tensor: Tensor) -> np.ndarray:
    return np.asarray(tensor[(layer,)]).astype(np.float32)

  return lambda: (part(kernel) + scale * (part(down) @ part(up))).astype(
    kernel.dtype
  )
