"""One training step: the function that trains and that the planner compiles.

Weights and moments are held with axes filled up to what a mesh divides
(`parallel.rules.MULTIPLES`), the same on every mesh, and stored so;
`Layout.weights` tells a model's own shapes.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from rcmed_jax.model import config as model_configs
from rcmed_jax.model import rcmed
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.parallel import rules
from rcmed_jax.train import cross_entropy, losses
from rcmed_jax.train import optimizer as optimizers

Arrays = dict[str, Any]  # a pure dict of arrays, nested by parameter path

# Mesh axes that do not cut frozen weights, by `optimizer.frozen_placement`.
_WHOLE_OVER = {"sharded": frozenset(), "replicated": frozenset({"fsdp"})}


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("step", "trainable", "frozen", "moments"),
  meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class TrainState:
  """All that a step reads and writes."""

  step: Any  # int32[], steps done
  trainable: Arrays  # float32
  frozen: Arrays  # in optimizer.frozen_dtype; returned as it came
  moments: Any  # of optax, float32, sharded like their parameters


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
  """The structure of a model and where its state lies."""

  graphdef: nnx.GraphDef
  mesh: meshes.AnyMesh
  weights: Arrays  # of jax.ShapeDtypeStruct: the model's own, not filled up
  state: TrainState  # of jax.ShapeDtypeStruct with shardings
  replicated: tuple[str, ...]  # sentences: dimensions that could not be cut

  @property
  def shardings(self) -> TrainState:
    return jax.tree.map(lambda leaf: leaf.sharding, self.state)


def make_layout(
  model_config: model_configs.ModelConfig,
  optimizer_config: optimizers.OptimizerConfig,
  optimizer: optax.GradientTransformation,
  mesh: meshes.AnyMesh,
) -> Layout:
  """Structure, shapes and shardings of the training state, without memory.

  Raises:
    ValueError: where nothing trains, or a parameter has no logical axes.
  """
  model = nnx.eval_shape(lambda: rcmed.RCMed(model_config, rngs=nnx.Rngs(0)))
  abstract = jax.eval_shape(
    functools.partial(_init, model_config, optimizer_config, optimizer, 0)
  )
  if not jax.tree.leaves(abstract.trainable):
    raise ValueError(
      f"optimizer.trainable={optimizer_config.trainable!r} selects no "
      "parameter of this model; with 'lora' set model.lora.rank > 0."
    )
  graphdef, trainable, frozen = _split(model, optimizer_config)
  whole = rules.replicated(mesh)
  trained_shardings, trained_report = rules.param_shardings(trainable, mesh)
  frozen_shardings, frozen_report = rules.param_shardings(
    frozen,
    mesh,
    whole_over=_WHOLE_OVER[optimizer_config.frozen_placement],
  )
  shardings = TrainState(
    step=whole,
    trainable=trained_shardings,
    frozen=frozen_shardings,
    moments=optax.tree.map_params(
      optimizer,
      lambda moment, sharding: moment if _is_masked(moment) else sharding,
      abstract.moments,
      trained_shardings,
      transform_non_params=lambda _: whole,
      is_leaf=_is_masked,
    ),
  )
  state = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(
      leaf.shape, leaf.dtype, sharding=sharding
    ),
    abstract,
    shardings,
  )
  own = nnx.to_pure_dict(nnx.state(model))
  return Layout(graphdef, mesh, own, state, trained_report + frozen_report)


def init_state(
  layout: Layout,
  model_config: model_configs.ModelConfig,
  optimizer_config: optimizers.OptimizerConfig,
  optimizer: optax.GradientTransformation,
  seed: int,
) -> TrainState:
  """A fresh state, every array made where it will lie."""
  init = functools.partial(
    _init, model_config, optimizer_config, optimizer, seed
  )
  assert isinstance(layout.mesh, jax.sharding.Mesh)  # where arrays can lie
  platform = layout.mesh.devices.flat[0].platform
  return jax.jit(
    init,
    out_shardings=layout.shardings,
    # It runs once, yet LLVM would polish its random numbers for 20 seconds.
    compiler_options=(
      {"xla_backend_optimization_level": 0} if platform == "cpu" else None
    ),
  )()


def make_train_step(
  layout: Layout,
  optimizer: optax.GradientTransformation,
  loss_config: losses.LossConfig,
  *,
  accumulation: int = 1,
  seed: int = 0,
  reduce_dtype: str = "float32",
  donate: bool = True,
) -> Callable[[TrainState, Arrays], tuple[TrainState, dict[str, jax.Array]]]:
  """A jitted (state, batch) -> (state, metrics); the state is donated.

  Without `donate` the state can be used again, at twice the memory.

  Losses and gradients of the `accumulation` micro-batches are averaged with
  equal weight. Dropout keys come from (seed, step, micro-batch) and the values
  they drop from the place in the whole array, so that no mesh changes them. A
  step whose loss or gradient is not finite counts, also for the schedule, and
  changes nothing else.

  Devices add up gradients of weights in `reduce_dtype` and each keeps its part;
  micro-batches are added in float32. "bfloat16" halves what travels and lets
  the model read trained weights rounded to it.

  Metrics, all scalars: the loss and its terms, `grad_norm` before clipping,
  `non_finite` 0 or 1.
  """

  def rounded_loss(trainable: Arrays, *rest: Any) -> tuple[jax.Array, Arrays]:
    dtype = jnp.dtype(reduce_dtype)
    return loss(jax.tree.map(lambda a: a.astype(dtype), trainable), *rest)

  loss_and_grad = jax.value_and_grad(rounded_loss, has_aux=True)

  def placed_step(
    state: TrainState, batch: Arrays
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    # Activations and kernels ask which mesh they are traced for.
    with jax.sharding.use_abstract_mesh(layout.mesh.abstract_mesh):
      return step(state, batch)

  def step(
    state: TrainState, batch: Arrays
  ) -> tuple[TrainState, dict[str, jax.Array]]:
    step_key = jax.random.fold_in(jax.random.key(seed), state.step)

    def micro(index: jax.Array, rows: Arrays) -> tuple[Arrays, Arrays]:
      (total, terms), gradients = loss_and_grad(
        state.trainable,
        state.frozen,
        layout.graphdef,
        rows,
        jax.random.fold_in(step_key, index),
        loss_config,
      )
      gradients = jax.lax.with_sharding_constraint(
        gradients, layout.shardings.trainable
      )
      return gradients, {"loss": total, **terms}

    gradients, metrics = accumulate(micro, batch, accumulation)
    grad_norm = optax.tree.norm(gradients)
    finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
    updates, moments = optimizer.update(
      gradients,
      optimizers.at_step(state.moments, state.step),
      state.trainable,
    )
    trainable = optax.apply_updates(state.trainable, updates)
    trainable, moments = jax.tree.map(
      lambda new, old: jnp.where(finite, new, old),
      (trainable, moments),
      (state.trainable, state.moments),
    )
    metrics["grad_norm"] = grad_norm
    metrics["non_finite"] = jnp.int32(~finite)
    done = state.step + 1
    return TrainState(done, trainable, state.frozen, moments), metrics

  return jax.jit(
    placed_step,
    donate_argnums=0 if donate else (),
    out_shardings=(layout.shardings, None),
  )


def accumulate(
  micro: Callable[[jax.Array, Arrays], Any], batch: Arrays, parts: int
) -> Any:
  """The mean of `micro(i, rows)` over `parts` micro-batches, in a scan.

  Row r of the batch goes to micro-batch r % parts: each device, which holds a
  run of rows, gives its share to every micro-batch.

  Raises:
    ValueError: where `parts` does not divide the batch.
  """
  if parts == 1:
    return micro(jnp.int32(0), batch)

  def cut(rows: jax.Array) -> jax.Array:
    size = len(rows)
    if size % parts:
      raise ValueError(
        f"train.accumulation={parts} does not divide the batch of {size}; "
        "choose one that does."
      )
    return rows.reshape(size // parts, parts, *rows.shape[1:]).swapaxes(0, 1)

  def add(total: Any, one: tuple[jax.Array, Arrays]) -> tuple[Any, None]:
    return jax.tree.map(jnp.add, total, micro(*one)), None

  ones = (jnp.arange(parts), jax.tree.map(cut, batch))
  first = jax.tree.map(lambda leaf: leaf[0], ones)
  zeros = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype),
    jax.eval_shape(micro, *first),
  )
  total, _ = jax.lax.scan(add, zeros, ones)
  return jax.tree.map(lambda leaf: leaf / parts, total)


def loss(
  trainable: Arrays,
  frozen: Arrays,
  graphdef: nnx.GraphDef,
  batch: Arrays,
  key: jax.Array | None,
  config: losses.LossConfig,
) -> tuple[jax.Array, Arrays]:
  """(total, terms) of one micro-batch; dropout only with a key."""
  model = nnx.merge(graphdef, trainable, frozen)
  prediction = model(batch, dropout_key=key)
  text = cross_entropy.text_loss(
    prediction.states_BTD,
    model.language.head.kernel[...],
    batch["labels_BT"],
    vocabulary=model.config.language.vocabulary,
  )
  return losses.losses(prediction, text, batch, config)


def _init(
  model_config: model_configs.ModelConfig,
  optimizer_config: optimizers.OptimizerConfig,
  optimizer: optax.GradientTransformation,
  seed: int,
) -> TrainState:
  model = rcmed.RCMed(model_config, rngs=nnx.Rngs(seed))
  _, *parts = _split(model, optimizer_config)
  trainable, frozen = map(rules.padded, parts)
  # Constants that are no parameters (position tables) keep their precision.
  params, constants = nnx.split_state(frozen, nnx.Param, ...)
  dtype = jnp.dtype(optimizer_config.frozen_dtype)
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
  trained = nnx.to_pure_dict(trainable)
  return TrainState(
    step=jnp.int32(0),
    trainable=trained,
    frozen=nnx.to_pure_dict(nnx.merge_state(params, constants)),
    moments=optimizer.init(trained),
  )


def _is_masked(moment: Any) -> bool:
  """Whether it stands for a parameter that another rule moves."""
  return isinstance(moment, optax.MaskedNode)


def _split(
  model: rcmed.RCMed, config: optimizers.OptimizerConfig
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
  """(structure, trainable, frozen)."""
  trained = optimizers.trainable_filter(config.trainable)
  graphdef, trainable, frozen = nnx.split(model, trained, ...)
  return graphdef, trainable, frozen
