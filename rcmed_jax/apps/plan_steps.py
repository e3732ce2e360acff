"""What `rcmed plan` compiles, and for what: the real steps, on shapes alone."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from rcmed_jax import axes
from rcmed_jax.apps.settings import Settings
from rcmed_jax.data import pipeline, tokens
from rcmed_jax.model import flops, generate, rcmed
from rcmed_jax.model.language import Cache
from rcmed_jax.parallel import chips, plan, rules, topologies
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.train import step as steps
from rcmed_jax.train.recipe import Recipe

# train      forward, backward, update; every micro-batch
# evaluate   whole answers: prefill, all tokens, masks
# prefill    the image and the question, up to the first token
# decode     one more token
STEPS = ("train", "evaluate", "prefill", "decode")

# A weight of more that a mesh leaves whole is told: 64 MiB.
LARGE_BYTES = 2**26


@dataclasses.dataclass(frozen=True)
class Place:
  """Accelerators, rented or not."""

  topology: str  # "v5p:4x4x8", "h100:64"
  slices: int
  chip: chips.Chip
  count: int  # devices of JAX

  @property
  def compiles(self) -> bool:
    """Whether there is a compiler without the accelerator."""
    return self.chip.name in chips.TPUS

  def mesh(self, config: meshes.MeshConfig) -> meshes.AnyMesh:
    """The mesh; without devices where nothing can be compiled."""
    if not self.compiles:
      return meshes.abstract_mesh(config, self.count)
    devices = topologies.devices(self.topology, self.slices)
    return meshes.make_mesh(config, devices.tolist())


def place(topology: str, slices: int = 1) -> Place:
  """Where "v5e:16x16" or "h100:64" is.

  Raises:
    NotImplementedError: a TPU, but its compiler is not installed.
    ValueError: neither, which lists what is known; or no slice at all.
  """
  if slices < 1:
    raise ValueError(f"--slices={slices}: expected 1 or more.")
  found = chips.gpus(topology)
  if found is not None:
    chip, count = found
    return Place(topology, slices, chip, count * slices)
  try:
    devices = topologies.devices(topology, slices)
  except ValueError as error:
    raise ValueError(
      f"{error} GPUs, estimated only, are written as in "
      f"{', '.join(f'{name}:64' for name in chips.GPUS)}."
    ) from error
  chip = chips.TPUS[topology.partition(":")[0]]
  return Place(topology, slices, chip, devices.size)


@dataclasses.dataclass(frozen=True)
class Step:
  """A step, not compiled yet, what it works on, and what sets it apart."""

  name: str  # one of STEPS
  mesh: meshes.AnyMesh
  lower: Callable[[], jax.stages.Lowered]
  # Trees of jax.ShapeDtypeStruct with shardings, by what they are.
  held: dict[str, Any]
  images: int  # a call
  text: int  # padded tokens of each
  accumulation: int  # micro-batches a call
  turns: int  # of the loop over tokens, where there is one, at most
  replicated: tuple[str, ...]  # sentences: what could not be cut
  flops: tuple[float, float]  # of an image: (the model's own, those done)
  trains: bool
  passes: int  # in which a micro-batch needs all weights
  encodes: bool  # whether images pass the encoder
  positions: int  # of an image in each pass of the language model
  unit: str  # of what it makes

  @property
  def rows(self) -> float:
    """Images at a time on each of the devices that share the batch."""
    return self.images / self.accumulation / meshes.batch_shards(self.mesh)

  def whole(self, kind: str) -> dict[str, int]:
    """Large arrays that fsdp could cut and does not: names and bytes."""
    if self.mesh.shape["fsdp"] == 1:
      return {}
    return {
      jax.tree_util.keystr(path, simple=True, separator="."): size
      for path, leaf in jax.tree.leaves_with_path(self.held[kind])
      if not cut_by(leaf, "fsdp")
      and (size := plan.shard_bytes(leaf)) >= LARGE_BYTES
    }


def cut_by(leaf: jax.ShapeDtypeStruct, axis: str) -> bool:
  """Whether a mesh axis cuts an array."""
  assert isinstance(leaf.sharding, NamedSharding)
  return any(
    part == axis or (isinstance(part, tuple) and axis in part)
    for part in leaf.sharding.spec
  )


def make(
  told: Settings,
  mesh: meshes.AnyMesh,
  name: str,
  layout: steps.Layout | None = None,
) -> Step:
  """One of STEPS on a mesh, whose devices need not exist.

  Args:
    told: settings; the mesh among them is not asked.
    mesh: where.
    name: of the step.
    layout: `lay_out` of the same, for steps that are counted and not compiled
      of other `remat` as well.

  Raises:
    ValueError: no such step, or the batch does not divide over the mesh.
  """
  if name not in STEPS:
    raise ValueError(f"--step={name!r} is unknown; choose one of {STEPS}.")
  told = with_vocabulary(told)
  layout = layout or lay_out(told, mesh)
  if name == "train":
    return _train(told, mesh, layout)
  return _answer(told, mesh, name, layout)


def lay_out(told: Settings, mesh: meshes.AnyMesh) -> steps.Layout:
  """Where weights and moments lie."""
  told = with_vocabulary(told)
  return Recipe(told.model, told.train, told.optimizer).layout(mesh)


def with_vocabulary(told: Settings) -> Settings:
  """Settings whose model has a size where a tokenizer would tell it."""
  if told.model.language.vocabulary:
    return told
  size = told.data.vocabulary + len(tokens.ADDED_TOKENS)
  language = dataclasses.replace(told.model.language, vocabulary=size)
  model = dataclasses.replace(told.model, language=language)
  return dataclasses.replace(told, model=model)


def _train(told: Settings, mesh: meshes.AnyMesh, layout: steps.Layout) -> Step:
  config = told.train
  step = Recipe(told.model, config, told.optimizer).step(layout)
  text = max(told.data.lengths)
  shapes = pipeline.batch_shapes(
    told.data, told.model.image.image_size, config.batch_size, text
  )
  batch = {
    name: _shape(*spec, rules.batch_sharding(mesh))
    for name, spec in shapes.items()
  }
  state = layout.state
  return Step(
    "train",
    mesh,
    functools.partial(step.lower, state, batch),
    {
      "trained weights": state.trainable,
      "frozen weights": state.frozen,
      "moments": state.moments,
      "batch": batch,
    },
    images=config.batch_size,
    text=text,
    accumulation=config.accumulation,
    turns=1,
    replicated=layout.replicated,
    flops=_flops(told, "train", text),
    trains=True,
    passes=2,  # forward and backward
    encodes=True,
    positions=flops.sequence(told.model, text),
    unit="images",
  )


def _answer(
  told: Settings, mesh: meshes.AnyMesh, name: str, layout: steps.Layout
) -> Step:
  """The steps that answer, with the weights as a run in training holds them."""
  rows = told.eval.rows * meshes.batch_shards(mesh)
  text = max(told.data.lengths)
  shapes = pipeline.batch_shapes(
    told.data, told.model.image.image_size, rows, text
  )
  by_rows = rules.batch_sharding(mesh)
  batch = {
    name: _shape(*shapes[name], by_rows)
    for name in ("pixels_BIJC", "extent_B2", "tokens_BT", "length_B")
  }
  weights = layout.state.trainable, layout.state.frozen
  held: dict[str, Any] = {
    "trained weights": weights[0],
    "frozen weights": weights[1],
  }
  slots = flops.sequence(told.model, text) + told.eval.max_new
  function: Callable[..., Any] = {
    "evaluate": functools.partial(_evaluate, told),
    "prefill": functools.partial(_prefill, slots),
    "decode": _decode,
  }[name]
  donated: tuple[int, ...] = ()
  rest: tuple[Any, ...] = (batch,)
  if name == "decode":
    ints_B = _shape((rows,), jnp.int32, by_rows)
    batch = {"token_B": ints_B, "position_B": ints_B}
    held["cache"] = cache = _cache(told, mesh, rows, slots)
    donated, rest = (3,), (batch, cache)

  def placed(trainable: Any, frozen: Any, *rest: Any) -> Any:
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
      return function(nnx.merge(layout.graphdef, trainable, frozen), *rest)

  # Weights that a step leaves alone lie in memory all the same.
  compiled = jax.jit(placed, donate_argnums=donated, keep_unused=True)
  turns = told.eval.max_new if name == "evaluate" else 1
  one_token = name == "decode"
  return Step(
    name,
    mesh,
    functools.partial(compiled.lower, *weights, *rest),
    {**held, "batch": batch},
    images=rows,
    text=text,
    accumulation=1,
    turns=turns,
    replicated=layout.replicated,
    flops=_flops(told, name, text),
    trains=False,
    passes=turns,
    encodes=not one_token,
    positions=1 if one_token else flops.sequence(told.model, text),
    unit="tokens" if one_token else "images",
  )


def _flops(told: Settings, name: str, text: int) -> tuple[float, float]:
  return flops.by_step(
    told.model,
    name,
    text=text,
    targets=told.data.trained_masks,
    new=told.eval.max_new,
    trainable=told.optimizer.trainable,
  )


def _evaluate(
  told: Settings, model: rcmed.RCMed, batch: dict[str, Any]
) -> generate.Generation:
  return generate.generate(
    model,
    **batch,
    seg_id=0,  # which ids they are changes nothing in the program
    end_id=1,
    max_new=told.eval.max_new,
    max_targets=told.data.max_targets,
  )


def _prefill(slots: int, model: rcmed.RCMed, batch: dict[str, Any]) -> Any:
  visual_BED, pixels_BYXC = model.encode_image(
    batch["pixels_BIJC"], batch["extent_B2"]
  )
  states_BSD, image_B = model.embed(batch["tokens_BT"], visual_BED)
  prefix_B = model.prefix(batch["length_B"], image_B)
  return pixels_BYXC, model.language.prefill(
    states_BSD, slots, prefix_B=prefix_B
  )


def _decode(
  model: rcmed.RCMed, batch: dict[str, Any], cache: Cache
) -> tuple[jax.Array, Cache]:
  state_BD, cache = model.language.decode(
    model.language.embed(batch["token_B"]), batch["position_B"], cache
  )
  return jnp.argmax(model.language.logits(state_BD), axis=-1), cache


def _cache(
  told: Settings, mesh: meshes.AnyMesh, rows: int, slots: int
) -> Cache:
  language = told.model.language
  # As `rules.constrain` has it: heads that tensor does not divide stay whole.
  divides = language.heads % mesh.shape["tensor"] == 0
  heads = rules.RULES[axes.HEADS] if divides else None
  spec = PartitionSpec(rules.RULES[axes.BATCH], None, heads)
  one: Any = _shape(
    (
      rows,
      language.depth,
      language.heads,
      slots,
      language.width // language.heads,
    ),
    told.model.dtype,
    NamedSharding(mesh, spec),
  )
  return Cache(one, one)


def _shape(
  shape: tuple[int, ...], dtype: Any, sharding: NamedSharding
) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
