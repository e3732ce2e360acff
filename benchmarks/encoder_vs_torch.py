"""Seconds of a forward pass here and in PyTorch, on a CPU, in one run.

  make reference
  PYTHONPATH=tests .venv/bin/python benchmarks/encoder_vs_torch.py

Two passes, float32, batch 1: SAM's ViT-B on 1024 x 1024 pixels, and a
LLaMA of 1.3 billion parameters that reads a prompt of 1,200 tokens and keeps
its keys and values. Theirs are `transformers`' modules with the fastest
attention that they offer; weights are random and the same in both. The two take
turns, round by round, so that what else the machine does meets both.
Needs 13 GB of memory.
"""

import argparse
from collections.abc import Callable
import dataclasses
import gc
import os
import statistics
import time
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch_model
import transformers
import transformers_names

from rcmed_jax.convert import fit, names, names_vision, torch_io
from rcmed_jax.model import config as configs
from rcmed_jax.model import presets
from rcmed_jax.model.rcmed import RCMed

PROMPT = 1200  # tokens
DEVIATION = 0.02  # of the random weights, transformers' own

LLAMA = dataclasses.replace(presets.LLAMA_1B, vocabulary=32000)
CONFIG = configs.ModelConfig(image=presets.VIT_B, language=LLAMA, remat="none")

Run = Callable[[], np.ndarray]


def main() -> None:
  """Times both passes and prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--threads", type=int, default=2)
  args = parser.parse_args()
  # XLA has a thread for each core that the process may use.
  cores = sorted(os.sched_getaffinity(0))[: args.threads]
  os.sched_setaffinity(0, cores)
  torch.set_num_threads(args.threads)
  print(
    f"jax {jax.__version__}, torch {torch.__version__}, transformers "
    f"{transformers.__version__}, {len(cores)} threads, {args.rounds} rounds"
  )
  for name, make in (
    ("ViT-B, 1024 x 1024 pixels", _encoder),
    (f"LLaMA 1.3B, {PROMPT} tokens", _language),
  ):
    ours, theirs = make()
    _compare(name, ours, theirs, args.rounds)
    del ours, theirs
    gc.collect()


def _compare(name: str, ours: Run, theirs: Run, rounds: int) -> None:
  expected = theirs()
  error = np.linalg.norm(ours() - expected) / np.linalg.norm(expected)
  pairs = [(_time(ours), _time(theirs)) for _ in range(rounds)]
  seconds = [statistics.median(column) for column in zip(*pairs, strict=True)]
  ratio = statistics.median(mine / other for mine, other in pairs)
  print(
    f"{name}: ours {seconds[0]:.2f} s, torch {seconds[1]:.2f} s, ratio "
    f"{ratio:.2f} (median of {rounds} pairs); outputs differ by {error:.1e}",
    flush=True,
  )


def _time(run: Run) -> float:
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def _encoder() -> tuple[Run, Run]:
  """Pixel features after the neck, [1, 64, 64, 256] here and there."""
  module = transformers.SamVisionModel(
    transformers.SamVisionConfig(attn_implementation="sdpa")  # its defaults: B
  )
  encoder = _same("image_encoder", module, _sam_name)
  pixels = np.random.default_rng(1).normal(size=(1, 1024, 1024, 3))
  pixels_BIJC = jnp.asarray(pixels, jnp.float32)
  pixels_BCIJ = torch.tensor(pixels, dtype=torch.float32).permute(0, 3, 1, 2)
  ours = _jitted(encoder, lambda encoder, pixels: encoder(pixels)[1])

  @torch.inference_mode()
  def theirs() -> np.ndarray:
    return module(pixels_BCIJ)[0].permute(0, 2, 3, 1).numpy()

  return lambda: np.asarray(ours(pixels_BIJC)), theirs


def _language() -> tuple[Run, Run]:
  """The next token's logits, [1, V], with a filled cache left behind."""
  module = torch_model.llama(LLAMA)
  language = _same("language", module, lambda name: name)
  ids = np.random.default_rng(1).integers(0, LLAMA.vocabulary, (1, PROMPT))

  def prefill(language: Any, tokens_BT: jax.Array) -> Any:
    hidden_BTD, cache = language.prefill(language.embed(tokens_BT), PROMPT)
    return language.logits(hidden_BTD[:, -1]), cache

  ours = _jitted(language, prefill)
  tokens_BT, theirs_BT = jnp.asarray(ids), torch.tensor(ids)

  @torch.inference_mode()
  def theirs() -> np.ndarray:
    found = module(theirs_BT, use_cache=True, logits_to_keep=1)
    return found.logits[:, -1].numpy()

  return lambda: np.asarray(ours(tokens_BT)[0]), theirs


def _same(
  part: str, module: torch.nn.Module, their_name: Callable[[str], str]
) -> nnx.Module:
  """A part of our model with the weights of theirs, both now random."""
  torch.manual_seed(0)
  with torch.no_grad():
    for parameter in module.eval().parameters():
      parameter.normal_(0, DEVIATION)
  held = module.state_dict()
  entries = [entry for entry in names.entries(CONFIG) if entry.part == part]
  tensors = {
    entry.release: held[their_name(entry.release)].numpy() for entry in entries
  }
  arrays = fit.to_ours(entries, fit.shapes(CONFIG), tensors)
  model = nnx.eval_shape(lambda: RCMed(CONFIG, rngs=nnx.Rngs(0)))
  nnx.update(
    model,
    torch_io.nested({a.name: jnp.asarray(np.asarray(a)) for a in arrays}),
  )
  return getattr(model, part)


def _jitted(module: nnx.Module, call: Callable[[Any, Any], Any]) -> Any:
  """`call(module, argument)`, compiled and waited for."""
  graphdef, weights = nnx.split(module)
  run = jax.jit(
    lambda weights, given: call(nnx.merge(graphdef, weights), given)
  )
  return lambda given: jax.block_until_ready(run(weights, given))


def _sam_name(name: str) -> str:
  return transformers_names.sam(name.removeprefix(names_vision.PREFIX))


if __name__ == "__main__":
  main()
