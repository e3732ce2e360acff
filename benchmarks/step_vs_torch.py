"""Seconds of a training step here and in PyTorch, on a CPU, in one run.

  make reference
  PYTHONPATH=tests .venv/bin/python benchmarks/step_vs_torch.py

Forward, backward, clipping and AdamW, float32: the same weights in both, put
there by our converter's table, and the same batch. Theirs are transformers' SAM
and LLaMA with PyTorch's fused attention and optimizer (`torch_model.py`).
Losses and every gradient are compared first. Then the two take turns, pair by
pair, so that what else the machine does meets both; the ratio is the median of
the pairs' own.
"""

import argparse
from collections.abc import Callable, Mapping
import dataclasses
import functools
import os
import statistics
import time
from typing import Any

import batches
from flax import nnx
import jax
import numpy as np
import torch
import torch_model
import torch_train
import toy
import transformers
import transformers_names

from rcmed_jax.apps import plan_steps, settings
from rcmed_jax.convert import fit, names, names_vision
from rcmed_jax.model import config as configs
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.train import losses as loss_terms
from rcmed_jax.train import optimizer as optimizers
from rcmed_jax.train import step as steps

RATE = 1e-4
NOISE = 0.5  # added to fresh weights, so that none is zero and each matters
# Of losses, and of each gradient; the latter where rounding in float32 counts
# most, behind a norm of few channels.
TOLERANCES = 1e-5, 1e-2
FLOOR = 1e-6  # of the whole gradient: below, a tensor's own is rounding

Arrays = dict[str, Any]
Run = Callable[[], Any]


@dataclasses.dataclass(frozen=True)
class Case:
  """A model, a batch for it and what training minimises."""

  model: configs.ModelConfig
  batch: dict[str, np.ndarray]
  loss: loss_terms.LossConfig


@dataclasses.dataclass(frozen=True)
class Row:
  """What was measured of a case."""

  case: str
  ours_s: float
  theirs_s: float
  ratio: float  # theirs / ours: above 1 we are faster
  spread: tuple[float, float]  # quartiles of the pairs' ratios
  # The same of the seconds that processors were at work, all threads together.
  ours_work_s: float
  theirs_work_s: float
  work_ratio: float
  compile_s: float
  loss_error: float
  gradient_error: float


def main() -> None:
  """Compares, times and prints a table."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--case", choices=CASES, nargs="+", default=list(CASES))
  parser.add_argument("--pairs", type=int, default=31)
  parser.add_argument("--threads", type=int, default=2)
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  # XLA has a thread for each core that the process may use.
  cores = sorted(os.sched_getaffinity(0))[: args.threads]
  os.sched_setaffinity(0, cores)
  torch.set_num_threads(args.threads)
  print(
    f"jax {jax.__version__}, torch {torch.__version__}, transformers "
    f"{transformers.__version__}, {len(cores)} threads, {args.pairs} pairs, "
    f"load {os.getloadavg()[0]:.1f}\n"
  )
  print(
    "| model | ours ms | PyTorch ms | PyTorch / ours (quartiles) | ours CPU ms "
    "| PyTorch CPU ms | PyTorch / ours | compiled in s | losses differ by | "
    "gradients |\n" + "| --- " * 10 + "|"
  )
  for name in args.case:
    row = measure(name, CASES[name](), args.pairs)
    print(
      f"| {name} | {1e3 * row.ours_s:.1f} | {1e3 * row.theirs_s:.1f} | "
      f"{row.ratio:.2f} ({row.spread[0]:.2f}..{row.spread[1]:.2f}) | "
      f"{1e3 * row.ours_work_s:.1f} | {1e3 * row.theirs_work_s:.1f} | "
      f"{row.work_ratio:.2f} | {row.compile_s:.1f} | {row.loss_error:.1e} | "
      f"{row.gradient_error:.1e} |",
      flush=True,
    )
  print(f"\nload afterwards {os.getloadavg()[0]:.1f}")


def measure(name: str, case: Case, pairs: int) -> Row:
  """The row of a case.

  Raises:
    ValueError: the two do not compute the same.
  """
  ours, theirs = Ours(case), Theirs(case)
  theirs.load(ours.weights())
  errors = compare(ours, theirs)
  if not all(e < t for e, t in zip(errors, TOLERANCES, strict=True)):
    raise ValueError(
      f"{name}: losses differ by {errors[0]:.1e}, gradients by "
      f"{errors[1]:.1e}; expected less than {TOLERANCES}. Only what computes "
      "the same is timed."
    )
  start = time.perf_counter()
  ours.step()
  compile_s = time.perf_counter() - start
  for run in (ours.step, theirs.step) * 2:
    run()
  pairs_of = [(_time(ours.step), _time(theirs.step)) for _ in range(pairs)]
  clock, work = (
    [(mine[kind], other[kind]) for mine, other in pairs_of] for kind in (0, 1)
  )
  ratios = [other / mine for mine, other in clock]
  low, _, high = statistics.quantiles(ratios, n=4)
  return Row(
    name,
    ours_s=statistics.median(mine for mine, _ in clock),
    theirs_s=statistics.median(other for _, other in clock),
    ratio=statistics.median(ratios),
    spread=(low, high),
    ours_work_s=statistics.median(mine for mine, _ in work),
    theirs_work_s=statistics.median(other for _, other in work),
    work_ratio=statistics.median(other / mine for mine, other in work),
    compile_s=compile_s,
    loss_error=errors[0],
    gradient_error=errors[1],
  )


def compare(ours: "Ours", theirs: "Theirs") -> tuple[float, float]:
  """The largest relative errors: of losses, and of all tensors' gradients."""
  terms, gradients = ours.gradients()
  their_terms, their_gradients = theirs.gradients()
  missing = gradients.keys() ^ their_gradients.keys()
  if missing:
    raise ValueError(f"one side only has gradients of {sorted(missing)}.")
  loss = max(
    abs(float(term) / their_terms[name] - 1) for name, term in terms.items()
  )
  norms = {name: np.linalg.norm(array) for name, array in gradients.items()}
  floor = FLOOR * np.linalg.norm(list(norms.values()))
  return loss, max(
    float(np.linalg.norm(gradient - their_gradients[name]))
    / max(float(norms[name]), float(floor))
    for name, gradient in gradients.items()
  )


class Ours:
  """Our step, its state and its batch."""

  def __init__(self, case: Case):
    self.case = case
    self.optimizer = optimizers.OptimizerConfig(
      learning_rate=RATE, warmup_steps=0, schedule="constant"
    )
    optimizer = optimizers.make_optimizer(self.optimizer, 1)
    mesh = meshes.make_mesh(meshes.MeshConfig(data=1), jax.devices()[:1])
    self.layout = steps.make_layout(case.model, self.optimizer, optimizer, mesh)
    state = steps.init_state(
      self.layout, case.model, self.optimizer, optimizer, 0
    )
    self.state = dataclasses.replace(state, trainable=_noisy(state.trainable))
    self._step = steps.make_train_step(
      self.layout, optimizer, case.loss.for_model(case.model)
    )

    # It runs once or twice: polishing it would take longer.
    @functools.partial(
      jax.jit, compiler_options={"xla_backend_optimization_level": 0}
    )
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_and_grad(trainable: Arrays, frozen: Arrays) -> Any:
      terms = case.loss.for_model(case.model)
      return steps.loss(
        trainable, frozen, self.layout.graphdef, case.batch, None, terms
      )

    self._loss_and_grad = loss_and_grad

  def weights(self) -> Mapping[str, np.ndarray]:
    """By dotted path, in the model's own shapes."""
    whole = nnx.to_pure_dict(
      nnx.merge_state(
        nnx.State(self.state.trainable), nnx.State(self.state.frozen)
      )
    )
    return self._own(whole)

  def gradients(self) -> tuple[Arrays, Mapping[str, np.ndarray]]:
    """(the total as "loss" and its terms, gradients by transformers' names)."""

    (total, terms), gradients = self._loss_and_grad(
      self.state.trainable, self.state.frozen
    )
    held, flat = self.weights(), self._own(gradients)
    # What does not train has no gradient, and a place in the table.
    flat = {path: np.zeros_like(array) for path, array in held.items()} | flat
    return terms | {"loss": total}, to_theirs(self.case.model, flat)

  def _own(self, arrays: Arrays) -> Mapping[str, np.ndarray]:
    """The same by dotted path, without what fills them up."""
    shapes = fit.shapes(self.case.model)
    return {
      path: array[tuple(map(slice, shapes[path]))]
      for path, array in _flat(arrays).items()
    }

  def step(self) -> None:
    """One step, waited for."""
    self.state, metrics = self._step(self.state, self.case.batch)
    jax.block_until_ready((self.state, metrics))


class Theirs:
  """Their step, on the same batch."""

  def __init__(self, case: Case):
    self.model = torch_model.RCMed(case.model)
    self.model.sam.shared_image_embedding.requires_grad_(False)
    self.trainer = torch_train.Trainer(
      self.model,
      case.loss.for_model(case.model),
      optimizers.OptimizerConfig(learning_rate=RATE),
    )
    self.batch = case.batch

  def load(self, weights: Mapping[str, np.ndarray]) -> None:
    """Our weights in the place of theirs, all of them."""
    held = to_theirs(self.model.config, weights)
    held[f"sam.{transformers_names.AGAIN}"] = held[
      f"sam.{transformers_names.FREQUENCIES}"
    ]
    self.model.load_state_dict(
      {name: torch.tensor(array) for name, array in held.items()}
    )

  def gradients(self) -> tuple[Arrays, Mapping[str, np.ndarray]]:
    """The same as ours."""
    terms = self.trainer.gradients(torch_train.tensors(self.batch))
    return {name: term.item() for name, term in terms.items()}, {
      name: (
        torch.zeros_like(weight) if weight.grad is None else weight.grad
      ).numpy()
      for name, weight in self.model.named_parameters()
    }

  def step(self) -> None:
    """One step; a CPU has done it when it returns."""
    self.trainer.step(torch_train.tensors(self.batch))["loss"].item()


def to_theirs(
  config: configs.ModelConfig, arrays: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Our arrays, or their gradients, under the names of `torch_model.RCMed`."""
  lora = config.lora.rank > 0
  found = {}
  for array in fit.to_release(names.entries(config), arrays):
    found[_their_name(array.name, lora)] = np.asarray(array)
  for path, array in arrays.items():
    first, *rest = path.split(".")
    if first == "correlation":
      name = ".".join(rest).replace("kernel", "weight")
      found[name] = array.T if name.endswith("weight") else array
    elif rest[-1] in ("down", "up") and array.ndim == 3:  # not a layer's "down"
      for layer, part in enumerate(array):
        module = f"llama.model.layers.{layer}.self_attn.{rest[1]}_proj"
        found[f"{module}.{rest[-1]}.weight"] = part.T
  return found


def _their_name(release: str, lora: bool) -> str:
  if release.startswith(names_vision.PREFIX):
    name = release.removeprefix(names_vision.PREFIX)
    return f"sam.{transformers_names.sam(name)}"
  for theirs, here in (
    ("model.mm_projector.", "projector."),
    ("model.t2i_projection.0.", "feedback."),
    ("model.text_hidden_fcs.0.", "query."),
  ):
    if release.startswith(theirs):
      return here + release.removeprefix(theirs)
  if lora and ".self_attn." in release:
    release = release.replace("_proj.", "_proj.held.")
  return f"llama.{release}"


def _flat(arrays: Arrays) -> dict[str, np.ndarray]:
  return {
    ".".join(map(str, path)): np.asarray(array)
    for path, array in nnx.traversals.flatten_mapping(arrays).items()
  }


def _noisy(weights: Arrays) -> Arrays:
  """Noise in proportion to a fresh kernel's own, 1 / sqrt(inputs)."""
  rng = np.random.default_rng(0)

  def add(path: Any, array: jax.Array) -> jax.Array:
    inputs = -3 if any(key.key == "qkv" for key in path) else -2
    fan_in = array.shape[inputs] if array.ndim >= -inputs else 100
    noise = rng.normal(0, NOISE * fan_in**-0.5, array.shape)
    return jax.device_put(array + noise.astype(array.dtype), array.sharding)

  return jax.tree.map_with_path(add, weights)


def _time(run: Run) -> tuple[float, float]:
  """Seconds by the clock, and of processors at work."""
  start, worked = time.perf_counter(), time.process_time()
  run()
  return time.perf_counter() - start, time.process_time() - worked


def _toy() -> Case:
  """Of the tests, with the loop and low-rank updates."""
  model = toy.model_config(
    correlation_steps=2, deep_supervision=True, lora_rank=2
  )
  batch = toy.batch()
  del batch["record_B"]
  return Case(model, batch, loss_terms.LossConfig(quality=1.0))


def _demo(steps_of_loop: int) -> Case:
  """Of configs/demo.py, at its own batch."""
  told = plan_steps.with_vocabulary(
    settings.parse(["--config=configs/demo.py"])
  )
  model = dataclasses.replace(
    told.model,
    correlation=dataclasses.replace(
      told.model.correlation, steps=steps_of_loop
    ),
  )
  batch = batches.make(
    model,
    told.train.batch_size,
    max(told.data.lengths),
    targets=told.data.trained_masks,
    mask_size=told.data.mask_size,
  )
  return Case(model, batch, told.train.loss)


CASES: Mapping[str, Callable[[], Case]] = {
  "the demo's": lambda: _demo(0),
  "the demo's, two turns of the loop": lambda: _demo(2),
  "the tests' toy": _toy,
}


if __name__ == "__main__":
  main()
