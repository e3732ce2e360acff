"""What a step would take, counted and not compiled.

For GPUs, whose compiler needs one, and to rank what a search then compiles.
Weights, moments and batch are exact; activations, gradients and the largest
layer's work are counted from the model's sizes and leave out what a compiler
does with them. For the 7B's train step on v5e:16x16 and v5p:4x4x8 memory was a
sixth above the compiled program's, what is sent within 1% of it
(benchmarks/results/plan_7b.md); other steps may lie a half off.
"""

from collections.abc import Mapping
import dataclasses
import math

import jax.numpy as jnp

from rcmed_jax.apps.plan_steps import Step
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
  sent: float  # bytes to other chips
  compute_s: float  # at the utilisation asked for
  memory_s: float  # everything held, read once, or once a token
  sent_s: float  # at the speed of its links, or of the network

  @property
  def total(self) -> int:
    return self.held + self.gradients + self.activations + self.work


def estimate(
  told: Settings,
  step: Step,
  name: str,
  mesh: meshes.AnyMesh,
  chip: chips.Chip,
  *,
  utilisation: float,
) -> Estimate:
  """Counts one step.

  Args:
    told: settings.
    step: of `plan_steps.make`; never lowered here.
    name: of the step.
    mesh: on which it would run.
    chip: of which kind.
    utilisation: of the chip's peak that products reach, 0 to 1.
  """
  held = {key: plan.shard_bytes(tree) for key, tree in step.held.items()}
  training = name == "train"
  rows = step.rows(mesh)
  trained = held["trained weights"]
  copies = 2 if step.accumulation > 1 else 1
  activations = rows * _kept(told, step.text) if training else 0.0
  sent = _sent(told, step, name, mesh, held, rows)
  _, done = image_flops(told, step, name)
  inside = mesh.size <= (chip.domain or math.inf)
  speed = chip.link_gbs if inside else chip.network_gbs
  return Estimate(
    held=sum(held.values()),
    gradients=copies * trained if training else 0,
    activations=int(activations),
    work=int(rows * _layer_work(told, step.text, mesh, training)),
    sent=sent,
    compute_s=done
    * step.images
    / mesh.size
    / (chip.tflops * 1e12 * utilisation),
    memory_s=step.turns * sum(held.values()) / (chip.memory_gbs * 1e9),
    sent_s=sent / (speed * 1e9),
  )


def image_flops(told: Settings, step: Step, name: str) -> tuple[float, float]:
  """Operations of an image: (the model's own, those done)."""
  return flops.by_step(
    told.model,
    name,
    text=step.text,
    targets=told.data.trained_masks,
    new=told.eval.max_new,
    trainable=told.optimizer.trainable,
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


def _layer_work(
  told: Settings, text: int, mesh: meshes.AnyMesh, training: bool
) -> float:
  """Bytes of the arrays inside the largest layer of one image."""
  model = told.model
  image, language = model.image, model.language
  item, ways = jnp.dtype(model.dtype).itemsize, mesh.shape["tensor"]
  length = flops.sequence(model, text)
  passes = 3 if training else 1  # forward, made again, and its gradient
  # Scores in float32 and in the model's dtype, where no kernel keeps them away.
  scores = image.heads * image.grid**4 * (4 + item) / ways
  if image.attention not in ("auto", "reference"):
    scores = 0.0
  encoder = item * image.grid**2 * image.width * (3 + image.mlp_ratio) / ways
  states = item * length * (4 * language.width + 3 * language.hidden) / ways
  return max(scores + passes * encoder, passes * states)


def _sent(
  told: Settings,
  step: Step,
  name: str,
  mesh: meshes.AnyMesh,
  held: Mapping[str, int],
  rows: float,
) -> float:
  """Bytes that a chip sends: weights gathered, gradients, activations."""
  model, language = told.model, told.model.language
  item = jnp.dtype(model.dtype).itemsize
  # Gathered in the model's dtype, forward and backward of each micro-batch.
  passes = 2 if name == "train" else step.turns
  fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
  trained = held["trained weights"] / 4 * item
  frozen = held["frozen weights"]
  if told.optimizer.frozen_placement == "replicated":
    frozen = 0
  gathered = passes * (trained + frozen) * (fsdp - 1)
  others = meshes.batch_shards(mesh) // fsdp
  sent = step.accumulation * gathered
  if name == "train":
    reduced = held["trained weights"] * (fsdp - 1)
    between = 2 * held["trained weights"] * (others - 1) / others
    sent += step.accumulation * (reduced + between)
  if tensor > 1:
    positions = 1 if name == "decode" else flops.sequence(model, step.text)
    layers = language.depth * positions * language.width
    if name != "decode":
      layers += model.image.depth * model.image.grid**2 * model.image.width
    turns = 6 if name == "train" else 2
    sent += (
      step.accumulation
      * rows
      * turns
      * item
      * layers
      * 2
      * (tensor - 1)
      / tensor
    )
  return float(sent)
