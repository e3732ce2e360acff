"""What a step would take, counted and not compiled.

For GPUs, whose compiler needs one, and to rank what a search then compiles.
Weights, moments and batch are exact; activations, gradients and the largest
layer's work are counted from the model's sizes and leave out what a compiler
does with them. For the 7B's train step on v5e:16x16 and v5p:4x4x8 memory was a
sixth above the compiled program's, what is sent 5% below it
(benchmarks/results/plan_7b.md); other steps may lie a half off.
"""

from collections.abc import Mapping
import dataclasses

import jax
import jax.numpy as jnp

from rcmed_jax.apps.plan_steps import Step, cut_by
from rcmed_jax.apps.settings import Settings
from rcmed_jax.model import flops
from rcmed_jax.parallel import chips, plan
from rcmed_jax.parallel import mesh as meshes

# Widths of a layer that its backward pass finds in memory, by `model.remat`.
# Those of "none" leave out scores.
_KEPT = {"full": 1, "attention": 2, "dots": 11, "none": 20}


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Of one chip in one call of the step; bytes and seconds."""

  held: int
  gradients: int
  activations: int
  work: int  # the largest layer's own arrays
  sent: Mapping[str, float]  # bytes to other chips, by mesh axis
  compute_s: float  # at the utilisation asked for
  memory_s: float  # everything held, read once, or once a token

  @property
  def total(self) -> int:
    return self.held + self.gradients + self.activations + self.work


def estimate(
  told: Settings, step: Step, chip: chips.Chip, *, utilisation: float
) -> Estimate:
  """Counts one step.

  Args:
    told: settings.
    step: of `plan_steps.make`; never lowered here.
    chip: of which kind.
    utilisation: of the chip's peak that products reach, 0 to 1.
  """
  held = {key: plan.shard_bytes(tree) for key, tree in step.held.items()}
  trained = held["trained weights"]
  copies = 2 if step.accumulation > 1 else 1
  activations = step.rows * _kept(told, step.text) if step.trains else 0.0
  _, done = step.flops
  return Estimate(
    held=sum(held.values()),
    gradients=copies * trained if step.trains else 0,
    activations=int(activations),
    work=int(step.rows * _layer_work(told, step)),
    sent=_sent(told, step),
    compute_s=done
    * step.images
    / step.mesh.size
    / (chip.tflops * 1e12 * utilisation),
    memory_s=step.turns * sum(held.values()) / (chip.memory_gbs * 1e9),
  )


def _kept(told: Settings, text: int) -> float:
  """Bytes that the forward pass of one image keeps for the backward pass."""
  model = told.model
  image, language = model.image, model.language
  item, widths = jnp.dtype(model.dtype).itemsize, _KEPT[str(model.remat)]
  encoder = image.depth * image.grid**2 * image.width
  states = language.depth * flops.sequence(model, text) * language.width
  decoder = 24 * told.data.trained_masks * image.grid**2 * model.decoder.width
  return float(item * (widths * (encoder + states) + decoder))


def _layer_work(told: Settings, step: Step) -> float:
  """Bytes of the arrays inside the largest layer of one image."""
  model = told.model
  image, language = model.image, model.language
  item, ways = jnp.dtype(model.dtype).itemsize, step.mesh.shape["tensor"]
  length = flops.sequence(model, step.text)
  passes = 3 if step.trains else 1  # forward, made again, and its gradient
  # Scores in float32 and in the model's dtype, where no kernel keeps them away.
  scores = image.heads * image.grid**4 * (4 + item) / ways
  if image.attention not in ("auto", "reference"):
    scores = 0.0
  encoder = item * image.grid**2 * image.width * (3 + image.mlp_ratio) / ways
  states = item * length * (4 * language.width + 3 * language.hidden) / ways
  return max(scores + passes * encoder, passes * states)


def _sent(told: Settings, step: Step) -> dict[str, float]:
  """Bytes that a chip sends: weights gathered, gradients, activations.

  A weight that fsdp = n cuts is gathered in the model's dtype, n - 1 times a
  chip's part in each pass, and its gradient scattered, as much again in
  float32. One that lies whole is not gathered, and its gradient is added up
  over n chips, which sends it 2 (n - 1) / n times; as every part's gradient is
  between copies.
  """
  item = jnp.dtype(told.model.dtype).itemsize
  sizes = step.mesh.shape
  sent = dict.fromkeys(meshes.MESH_AXES, 0.0)
  for kind in ("trained weights", "frozen weights"):
    for leaf in jax.tree.leaves(step.held[kind]):
      part, others = plan.shard_bytes(leaf), sizes["fsdp"] - 1
      cut = cut_by(leaf, "fsdp")
      if cut:
        gathered = part * min(1, item / leaf.dtype.itemsize)
        sent["fsdp"] += step.passes * gathered * others
      if step.trains and kind == "trained weights":
        sent["fsdp"] += part * others * (1 if cut else 2 / sizes["fsdp"])
        for axis in ("data", "slice"):
          sent[axis] += 2 * part * (sizes[axis] - 1) / sizes[axis]
  tensor = sizes["tensor"]
  sums = 6 if step.trains else 2  # of states, a layer
  sent["tensor"] = (
    step.rows * sums * item * _states(told, step) * 2 * (tensor - 1) / tensor
  )
  return {axis: step.accumulation * size for axis, size in sent.items()}


def _states(told: Settings, step: Step) -> int:
  """Elements of the states of one image, of all layers."""
  image, language = told.model.image, told.model.language
  states = language.depth * step.positions * language.width
  if step.encodes:
    states += image.depth * image.grid**2 * image.width
  return states
