"""What the caches of generation save, on CPU.

  .venv/bin/python benchmarks/generation.py --rounds 3

1. 64 new tokens: prefilled once and decoded with the cache, against the whole
   sequence run again for every token. Both have the image's features already.
2. A second question about an image against the first one, as
   `rcmed_jax.Assistant` answers them, masks on the image's grid included.

The model is random, of a size that two cores can run: 1,024 visual tokens, as
the released 7B has, and encoder and mask decoder with about the 7B's share of
the work. Each case is compiled before it is timed; cases take turns, and a
round's ratio is of neighbours. Wall time says little on a machine with other
users: CPU seconds of the process are what to read.
"""

import argparse
from collections.abc import Callable
import dataclasses
import datetime
import importlib.metadata
import os
import pathlib
import statistics
import tempfile
import time
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from rcmed_jax.data import phantoms, pipeline, prompts, readers, tokens
from rcmed_jax.data.tokens import IMAGE_TOKEN
from rcmed_jax.model import flops, generate, presets, sampling
from rcmed_jax.model.config import (
  ImageEncoderConfig,
  LanguageConfig,
  MaskDecoderConfig,
  ModelConfig,
)
from rcmed_jax.model.rcmed import RCMed
from rcmed_jax.serve.assistant import Assistant, Question, Sampling

LENGTH = 128  # tokens of a padded prompt
NEW = 64
TARGETS = 8  # masks of an answer, as the assistant's default
# The first token, with which a text begins to be shown; a question about one
# class, answered with some twenty; a description.
ANSWERS = (1, 20, NEW)
QUESTIONS = ("liver", "left kidney", "spleen", "pancreas")


def main() -> None:
  """Runs all cases in turns and prints the tables."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--rounds", type=int, default=3, help="of questions")
  args = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    tokenizer = _tokenizer(pathlib.Path(folder))
  config = _config(tokenizer.vocabulary)
  model = _random(config)
  # Its logit is 0 and never the largest: no answer ends before its limit.
  head = model.language.head.kernel
  head[...] = head[...].at[:, tokenizer.end_id].set(0.0)
  _introduce(config, model)
  _cached(model, tokenizer, 1)  # of 64 tokens each way
  _second(model, tokenizer, args.rounds)


def _tokenizer(folder: pathlib.Path) -> tokens.Tokenizer:
  phantoms.write(folder, 27, seed=0, size=64)
  items = readers.read_index(folder / "image2label_train.json")
  path = folder / "tokenizer.model"
  return tokens.train_tokenizer(pipeline.corpus(items), 1024, path)


def _config(vocabulary: int) -> ModelConfig:
  return ModelConfig(
    image=ImageEncoderConfig(width=160, depth=6, heads=4, global_blocks=(2, 5)),
    language=LanguageConfig(
      vocabulary=vocabulary, width=512, depth=10, heads=8, hidden=1408
    ),
    decoder=MaskDecoderConfig(width=64, hidden=512),
  )


def _random(config: ModelConfig) -> RCMed:
  """Weights as a new run's, drawn by NumPy: compiling initializers is slow."""
  rng = np.random.default_rng(0)
  graphdef, state = nnx.split(
    nnx.eval_shape(lambda: RCMed(config, rngs=nnx.Rngs(0)))
  )

  def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if "scale" in jax.tree_util.keystr(path):
      return jnp.ones(leaf.shape, leaf.dtype)
    return jnp.asarray(rng.normal(0, 0.02, leaf.shape), leaf.dtype)

  return nnx.merge(graphdef, jax.tree.map_with_path(draw, state))


def _introduce(config: ModelConfig, model: RCMed) -> None:
  def work(config: ModelConfig) -> str:
    parts = flops.forward(config, LENGTH, TARGETS)
    whole = sum(parts.values())
    shares = (f"{name} {part / whole:.1%}" for name, part in parts.items())
    return f"{whole / 1e9:.0f} GFLOP: {', '.join(shares)}"

  counts = {
    name: sum(leaf.size for leaf in jax.tree.leaves(nnx.state(part)))
    for name, part in (
      ("all", model),
      ("encoder", model.image_encoder),
      ("language", model.language),
    )
  }
  versions = ", ".join(
    f"{name} {importlib.metadata.version(name)}"
    for name in ("jax", "jaxlib", "flax", "numpy")
  )
  print(f"{datetime.date.today()}; {versions}; {config.dtype}")
  print(
    f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the beginning"
  )
  print(
    "parameters: "
    + ", ".join(f"{name} {count / 1e6:.1f} M" for name, count in counts.items())
  )
  print(f"{config.visual_tokens} visual tokens; a prompt and its masks take")
  print(f"  here {work(config)}")
  print(f"  the 7B {work(presets.SYRE_7B)}")


@dataclasses.dataclass(frozen=True)
class Took:
  """Seconds of one run."""

  wall: float
  cpu: float  # of all threads


def _timed(run: Callable[[], Any]) -> Took:
  wall, cpu = time.perf_counter(), time.process_time()
  run()
  return Took(time.perf_counter() - wall, time.process_time() - cpu)


def _turns(
  cases: dict[str, Callable[[int], Took]], rounds: int
) -> dict[str, list[Took]]:
  """A round of all cases after another; the first, which compiles, left out."""
  taken: dict[str, list[Took]] = {name: [] for name in cases}
  for number in range(rounds + 1):
    for name, run in cases.items():
      took = run(number)
      if number:
        taken[name].append(took)
  return taken


def _report(title: str, taken: dict[str, list[Took]]) -> None:
  """Medians, and how often faster each is than the first case."""
  print(f"\n{title}\ncase | CPU s | times | wall s | times | rounds")
  first = next(iter(taken.values()))
  for name, all_ in taken.items():
    columns = [name]
    for clock in ("cpu", "wall"):
      middle = statistics.median(getattr(one, clock) for one in all_)
      ratio = statistics.median(
        getattr(slow, clock) / getattr(fast, clock)
        for slow, fast in zip(first, all_, strict=True)
      )
      columns += [f"{middle:.2f}", f"{ratio:.2f}"]
    print(*columns, len(all_), sep=" | ", flush=True)


def _cached(model: RCMed, tokenizer: tokens.Tokenizer, rounds: int) -> None:
  """Case 1. Both ways must say the same."""
  ids_T = tokenizer.encode_prompt(
    prompts.conversation(prompts.question(["liver"], "pet", 0))
  )
  tokens_BT, length_B = tokens.pad([ids_T], (LENGTH,))
  graphdef, weights = nnx.split(model)
  rng = np.random.default_rng(1)
  visual_BED, pixels_BYXC = jax.jit(
    lambda weights, pixels: nnx.merge(graphdef, weights).encode_image(
      pixels, np.array([[1024, 1024]])
    )
  )(weights, rng.integers(0, 256, (1, 1024, 1024, 3), np.uint8))

  @jax.jit
  def cached(weights: Any, visual_BED: jax.Array) -> jax.Array:
    model = nnx.merge(graphdef, weights)
    seen, cache = generate.read(
      model, visual_BED, pixels_BYXC, tokens_BT, length_B, room=NEW
    )
    progress = generate.begin(model, seen, cache, length_B, max_new=NEW)
    choice = sampling.greedy(1, NEW)
    # No token ends the answer: both ways have all 64 to make.
    done = generate.decode(model, progress, choice, NEW, end_id=-1)
    return done.tokens_BT[0]

  @jax.jit
  def again(weights: Any, visual_BED: jax.Array, ids_BT: Any, last: Any) -> Any:
    """The next token, from the whole sequence at its final length."""
    model = nnx.merge(graphdef, weights)
    states_BSD, image_B = model.embed(ids_BT, visual_BED)
    text_BTD, _ = model.part(model.language(states_BSD), image_B)
    return jnp.argmax(model.language.logits(text_BTD[0, last]))

  said: dict[str, list[int]] = {}

  def with_cache(_: int) -> Took:
    def run() -> None:
      said["cached"] = np.asarray(cached(weights, visual_BED)).tolist()

    return _timed(run)

  def without(number: int) -> Took:
    length = int(length_B[0])
    ids_BT = np.pad(tokens_BT[:, :length], ((0, 0), (0, NEW)))

    def run() -> None:
      for step in range(NEW if number else 1):  # one compiles
        last = length - 1 + step
        ids_BT[0, last + 1] = again(weights, visual_BED, ids_BT, last)
      said["again"] = ids_BT[0, length:].tolist()

    return _timed(run)

  cases = {"whole sequence again": without, "cached": with_cache}
  seconds = _turns(cases, rounds)
  same = sum(
    one == other
    for one, other in zip(said["cached"], said["again"], strict=True)
  )
  _report(f"{NEW} new tokens, {same} of them the same both ways", seconds)
  positions = int(length_B[0]) - 1 + model.config.visual_tokens
  assert np.sum(tokens_BT == IMAGE_TOKEN) == 1
  print(f"after a prompt of {positions} positions")


def _second(model: RCMed, tokenizer: tokens.Tokenizer, rounds: int) -> None:
  """Case 2."""
  assistant = Assistant(
    model,
    tokenizer,
    image_size=1024,
    lengths=(LENGTH,),
    max_new=NEW,
    max_targets=TARGETS,
  )
  rng = np.random.default_rng(2)
  for new in ANSWERS:
    held: dict[str, np.ndarray] = {}

    def ask(name: str, new: int = new, held: Any = held) -> Took:
      text = prompts.question([name], "pet", 0)
      sampling = Sampling(max_new=new)
      question = Question(held["image"], text, sampling=sampling)
      return _timed(lambda: assistant.ask_many([question]))

    def first(number: int, ask: Any = ask, held: Any = held) -> Took:
      held["image"] = rng.integers(0, 256, (512, 512, 3), np.uint8)
      return ask(QUESTIONS[number % len(QUESTIONS)])

    def second(number: int, ask: Any = ask) -> Took:
      return ask(QUESTIONS[(number + 1) % len(QUESTIONS)])

    seconds = _turns({"first question": first, "second": second}, rounds)
    _report(f"A question about an image, at most {new} new tokens", seconds)


if __name__ == "__main__":
  main()
