"""Our side of `gpu.py`: the 7B's programs on one device, compiled and timed."""

from collections.abc import Callable
import dataclasses
import functools
import math
import time
from typing import Any

import batches
from flax import nnx
import gpu_cases
from gpu_cases import Row
import jax
import jax.numpy as jnp

from rcmed_jax.model import config as configs
from rcmed_jax.model import rcmed
from rcmed_jax.model.language import Cache
from rcmed_jax.parallel import mesh as meshes
from rcmed_jax.train import losses
from rcmed_jax.train import optimizer as optimizers
from rcmed_jax.train import step as steps

DEVIATION = 0.02  # of weights, LLaMA's and SAM's own
PRODUCTS = 10  # in one call, so that calling takes no part
COPIED = 1 << 30  # bfloat16 numbers, read and written to tell the bandwidth
# Of configs/pretrain_7b.py, but without an end to its schedule.
OPTIMIZER = optimizers.OptimizerConfig(
  trainable=gpu_cases.TRAINABLE, schedule="constant"
)


@dataclasses.dataclass
class Program:
  """What is compiled, and its arguments from call to call."""

  function: Any  # of jax.jit
  arguments: tuple[Any, ...]
  # (arguments, results) -> the next arguments: those donated are new.
  again: Callable[[tuple[Any, ...], Any], tuple[Any, ...]] = (
    lambda arguments, _: arguments
  )


class Ours:
  """Measures one part after another; each has a process of its own.

  Args:
    given: sizes.
    attention: of the image encoder, as in its config.
    emit: takes each row.
    clock: tells when to stop.
  """

  def __init__(
    self,
    given: gpu_cases.Sizes,
    attention: str,
    emit: gpu_cases.Emit,
    clock: gpu_cases.Clock,
  ):
    image = dataclasses.replace(given.model.image, attention=attention)
    self.given = dataclasses.replace(
      given, model=dataclasses.replace(given.model, image=image)
    )
    self.emit, self.clock = emit, clock
    self.device = jax.devices()[0]
    self.ceiling, self.bandwidth = _ceiling(given.product), _bandwidth(given)

  def facts(self) -> Row:
    """What the numbers hold for."""
    return {
      "device": self.device.device_kind,
      "jax": jax.__version__,
      "attention": self.given.model.image.attention,
      "ceiling_tflops": self.ceiling,
      "bandwidth_gbs": self.bandwidth,
    }

  def train(self) -> None:
    """Forward, backward and update, by batch and by what layers keep."""
    held: dict[str, Any] = {}

    def measure(remat: str, rows: int, text: int = self.given.text[0]) -> Row:
      return self._timed(
        "train", rows, text, lambda: self._train(remat, rows, text, held)
      ) | {"remat": remat}

    best = gpu_cases.sweep(self.given.train, measure, self.emit, self.clock)
    self._longer(best, measure)

  def evaluate(self) -> None:
    """Image and whole answer to masks, as the release scores."""
    self._answers("evaluate", evaluate)

  def prefill(self) -> None:
    """Image and question to the first token and a filled cache."""
    slots = gpu_cases.slots(self.given, self.given.text[0])
    self._answers("prefill", functools.partial(prefill, slots))

  def decode(self) -> None:
    """More tokens, each looking back on the cache."""
    config, new = self.given.model, self.given.new
    graphdef, weights = _weights(config)
    text = self.given.text[0]
    slots = gpu_cases.slots(self.given, text)
    read = sum(
      leaf.nbytes
      for path, leaf in nnx.traversals.flatten_mapping(weights).items()
      if path[0] == "language" and path[1] != "embedding"
    )

    def program(rows: int) -> Program:
      return Program(
        jax.jit(functools.partial(_decode, graphdef, new), donate_argnums=3),
        (
          weights,
          jnp.ones(rows, jnp.int32),
          jnp.full(rows, slots - new, jnp.int32),
          _cache(config, rows, slots),
        ),
        lambda arguments, results: (*arguments[:3], results[1]),
      )

    def measure(_: None, rows: int) -> Row:
      row = self._timed("decode", rows, text, lambda: program(rows))
      if "failed" not in row:
        cache = 2 * config.language.depth * rows * slots
        cache *= config.language.width * jnp.dtype(config.dtype).itemsize
        row["gbs"] = (read + cache) / row["ms"] / 1e6
        row["share"] = row["gbs"] / self.bandwidth
      return row

    cases = [(None, rows) for rows in self.given.answer]
    gpu_cases.sweep(cases, measure, self.emit, self.clock)

  def _answers(self, part: str, function: Callable[..., Any]) -> None:
    graphdef, weights = _weights(self.given.model)

    def call(weights: Any, batch: Any) -> Any:
      return function(nnx.merge(graphdef, weights), batch)

    def measure(_: None, rows: int, text: int = self.given.text[0]) -> Row:
      return self._timed(
        part,
        rows,
        text,
        lambda: Program(jax.jit(call), (weights, self._batch(rows, text))),
      )

    cases = [(None, rows) for rows in self.given.answer]
    best = gpu_cases.sweep(cases, measure, self.emit, self.clock)
    if part == "evaluate":
      self._longer(best, measure)

  def _longer(
    self, best: tuple[Any, int] | None, measure: Callable[..., Row]
  ) -> None:
    """The best case again, with longer texts."""
    if best is not None:
      for text in self.clock.cases(self.given.text[1:]):
        self.emit(measure(*best, text))

  def _timed(
    self, part: str, rows: int, text: int, make: Callable[[], Program]
  ) -> Row:
    try:
      return self._run(part, rows, text, make())
    except Exception as error:  # one case must not cost the others
      failed = gpu_cases.reason(error)
      return {"rows": rows, "text": text, "failed": failed}

  def _run(self, part: str, rows: int, text: int, program: Program) -> Row:
    start = time.perf_counter()
    compiled = program.function.lower(*program.arguments).compile()
    compile_s = time.perf_counter() - start
    needs = compiled.memory_analysis()

    def run() -> Any:
      results = compiled(*program.arguments)
      program.arguments = program.again(program.arguments, results)
      return results

    before = self._peak()
    took = gpu_cases.seconds(run, jax.block_until_ready)
    peak = self._peak()
    return gpu_cases.speed(part, took, rows, text, self.given, self.ceiling) | {
      "compile_s": compile_s,
      # Of the program alone, what is donated counted once.
      "program_gb": (
        needs.argument_size_in_bytes
        + needs.temp_size_in_bytes
        + needs.output_size_in_bytes
        - needs.alias_size_in_bytes
      )
      / 1e9,
      # The allocator knows the peak of the process only: not this case's
      # where an earlier one took more.
      "peak_gb": peak if peak > before else None,
    }

  def _peak(self) -> float:
    stats = self.device.memory_stats() or {}  # a CPU has none
    return stats.get("peak_bytes_in_use", 0) / 1e9

  def _train(
    self, remat: str, rows: int, text: int, held: dict[str, Any]
  ) -> Program:
    """The step that `rcmed train` runs; `held` keeps the state among cases."""
    config = dataclasses.replace(self.given.model, remat=remat)
    optimizer = optimizers.make_optimizer(OPTIMIZER, 1000)
    mesh = meshes.make_mesh(meshes.MeshConfig(data=1), [self.device])
    layout = steps.make_layout(config, OPTIMIZER, optimizer, mesh)
    step = steps.make_train_step(layout, optimizer, losses.LossConfig())
    state = held.pop("state", None)
    if state is None or any(a.is_deleted() for a in jax.tree.leaves(state)):
      del state
      state = _state(layout.state)

    def again(
      arguments: tuple[Any, ...], results: tuple[Any, Any]
    ) -> tuple[Any, ...]:
      held["state"] = results[0]
      return results[0], arguments[1]

    held["state"] = state
    return Program(step, (state, self._batch(rows, text)), again)

  def _batch(self, rows: int, text: int) -> dict[str, jax.Array]:
    made = batches.make(
      self.given.model,
      rows,
      text,
      targets=self.given.targets,
      mask_size=self.given.mask_size,
    )
    return jax.device_put(made, self.device)


def evaluate(model: rcmed.RCMed, batch: dict[str, Any]) -> Any:
  prediction = model(batch)
  return prediction.masks_KBGYX[-1], prediction.quality_BG


def prefill(slots: int, model: rcmed.RCMed, batch: dict[str, Any]) -> Any:
  visual_BED, pixels_BYXC = model.encode_image(
    batch["pixels_BIJC"], batch["extent_B2"]
  )
  states_BSD, image_B = model.embed(batch["tokens_BT"], visual_BED)
  hidden_BSD, cache = model.language.prefill(
    states_BSD, slots, prefix_B=model.prefix(batch["length_B"], image_B)
  )
  return pixels_BYXC, model.language.logits(hidden_BSD[:, -1]), cache


def _decode(
  graphdef: nnx.GraphDef,
  new: int,
  weights: Any,
  token_B: jax.Array,
  position_B: jax.Array,
  cache: Cache,
) -> tuple[jax.Array, Cache]:
  """`new` tokens one after another, as `generate` makes them."""
  language = nnx.merge(graphdef, weights).language

  def add(
    carry: tuple[jax.Array, Cache], step: jax.Array
  ) -> tuple[tuple[jax.Array, Cache], None]:
    token_B, cache = carry
    state_BD, cache = language.decode(
      language.embed(token_B), position_B + step, cache
    )
    token_B = jnp.argmax(language.logits(state_BD), -1).astype(jnp.int32)
    return (token_B, cache), None

  carry, _ = jax.lax.scan(add, (token_B, cache), jnp.arange(new))
  return carry


def _cache(config: configs.ModelConfig, rows: int, slots: int) -> Cache:
  language = config.language
  shape = (
    rows,
    language.depth,
    language.heads,
    slots,
    language.width // language.heads,
  )
  key, value = (jnp.zeros(shape, config.dtype) for _ in range(2))
  return Cache(key, value)


def _weights(config: configs.ModelConfig) -> tuple[nnx.GraphDef, Any]:
  """Weights as answers are given with: all in the model's dtype, merged."""
  merged = dataclasses.replace(config.lora, rank=0)
  config = dataclasses.replace(config, lora=merged)
  graphdef, state = nnx.split(
    nnx.eval_shape(lambda: rcmed.RCMed(config, rngs=nnx.Rngs(0)))
  )
  shapes = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, config.dtype),
    nnx.to_pure_dict(state),
  )
  return graphdef, jax.jit(functools.partial(_noise, shapes))()


def _state(shapes: steps.TrainState) -> steps.TrainState:
  """A training state of noise, its moments zeros."""

  def make() -> steps.TrainState:
    zeros = functools.partial(
      jax.tree.map, lambda leaf: jnp.zeros(leaf.shape, leaf.dtype)
    )
    return steps.TrainState(
      zeros(shapes.step),
      _noise(shapes.trainable),
      _noise(shapes.frozen),
      zeros(shapes.moments),
    )

  shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
  return jax.jit(make, out_shardings=shardings)()


def _noise(shapes: Any) -> Any:
  """Weights of deviation DEVIATION; norms change nothing.

  A hash of each number's place, not `jax.random`: XLA writes each weight once,
  in its own dtype, where random bits of the 7B would take 60 GB beside it.
  """

  def make(path: Any, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if path[-1].key in ("scale", "bias"):
      return jnp.full(leaf.shape, path[-1].key == "scale", leaf.dtype)
    count = math.prod(leaf.shape)
    hashed = jax.lax.iota(jnp.uint32, count) + jnp.uint32(count)
    # The end of MurmurHash3.
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
      hashed = (hashed ^ (hashed >> shift)) * jnp.uint32(factor)
    uniform = hashed.astype(jnp.float32) / 2.0**31 - 1  # of deviation 3^-0.5
    values = (DEVIATION * 3**0.5) * uniform
    return values.reshape(leaf.shape).astype(leaf.dtype)

  return jax.tree.map_with_path(make, shapes)


def _ceiling(side: int) -> float:
  """TFLOP/s of a product of random bfloat16 matrices."""
  matrix = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
  matrix /= side**0.5  # a product has its factors' deviation

  @jax.jit
  def run(matrix: jax.Array) -> jax.Array:
    product = matrix
    for _ in range(PRODUCTS):
      product = product @ matrix
    return product

  took = gpu_cases.seconds(lambda: run(matrix), jax.block_until_ready)
  return 2 * PRODUCTS * side**3 / took / 1e12


def _bandwidth(given: gpu_cases.Sizes) -> float:
  """GB/s of a copy, read and written counted."""
  count = COPIED if given.product == gpu_cases.PRODUCT else 1 << 12
  values = jnp.ones(count, jnp.bfloat16)
  run = jax.jit(lambda values: -values)
  took = gpu_cases.seconds(lambda: run(values), jax.block_until_ready)
  return 2 * values.nbytes / took / 1e9
