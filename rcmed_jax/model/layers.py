"""Building blocks shared by the encoder, the language model and the decoder.

Every parameter is made here or with `named`, so that each of its axes carries
a logical name from `axes.py`. Arithmetic runs in `dtype`; parameters are held
in float32; norms compute in float32.
"""

from collections.abc import Callable

from flax import nnx
import jax
import jax.numpy as jnp

from rcmed_jax import axes

Initializer = jax.nn.initializers.Initializer

# Normal(0, 0.02): what both SAM and LLaMA start their weights from.
NORMAL = nnx.initializers.normal(0.02)
# Uniform(+-1 / sqrt(inputs)), what SAM's own layers start from: unlike a fixed
# deviation it keeps a toy's narrow layers alive.
FAN_IN = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# Outputs as large as inputs: signals keep their size through the language model
# and the projections between language and pixels.
UNIT = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
ZEROS = nnx.initializers.zeros_init()
ONES = nnx.initializers.ones_init()


def named(init: Initializer, names: tuple[str, ...]) -> Initializer:
  """The same initializer, its result carrying logical axis names."""
  return nnx.with_partitioning(init, names)


def linear(
  inputs: int,
  outputs: int,
  names: tuple[str, str],
  *,
  rngs: nnx.Rngs,
  bias: bool = True,
  init: Initializer = NORMAL,
  dtype: jnp.dtype = jnp.float32,
) -> nnx.Linear:
  """A dense layer whose kernel [inputs, outputs] has the axes `names`."""
  return nnx.Linear(
    inputs,
    outputs,
    use_bias=bias,
    dtype=dtype,
    kernel_init=named(init, names),
    bias_init=named(ZEROS, (axes.VECTOR,)),
    rngs=rngs,
  )


def layer_norm(width: int, *, eps: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
  """LayerNorm over the last axis, float32 inside."""
  return nnx.LayerNorm(
    width,
    epsilon=eps,
    dtype=jnp.float32,
    use_fast_variance=False,  # E[x^2] - E[x]^2 loses digits
    scale_init=named(ONES, (axes.VECTOR,)),
    bias_init=named(ZEROS, (axes.VECTOR,)),
    rngs=rngs,
  )


def rms_norm(width: int, *, eps: float, rngs: nnx.Rngs) -> nnx.RMSNorm:
  """RMSNorm over the last axis, float32 inside."""
  return nnx.RMSNorm(
    width,
    epsilon=eps,
    dtype=jnp.float32,
    scale_init=named(ONES, (axes.VECTOR,)),
    rngs=rngs,
  )


def dropout(values: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Zeroes a share `rate` of the values and rescales; no key, no dropout."""
  if key is None or rate == 0.0:
    return values
  keep = jax.random.bernoulli(key, 1.0 - rate, values.shape)
  return jnp.where(keep, values / (1.0 - rate), 0).astype(values.dtype)


def stack(
  make: Callable[[nnx.Rngs], nnx.Module],
  count: int,
  name: str,
  *,
  rngs: nnx.Rngs,
) -> nnx.Module:
  """`count` layers as one module, every parameter with a leading axis `name`.

  Run it with `jax.lax.scan` over the module itself.
  """
  make_all = nnx.vmap(
    make,
    in_axes=0,
    out_axes=0,
    transform_metadata={nnx.PARTITION_NAME: name},
  )
  return make_all(rngs.split(count))


def resize_bilinear(values_BYXC: jax.Array, size: tuple[int, int]) -> jax.Array:
  """float32 [B, *size, C]: bilinear, half-pixel centres, no antialiasing.

  Source: torch `interpolate(mode="bilinear", align_corners=False)`, which the
  release uses for visual tokens, feedback and masks.
  """
  batch, _, _, channels = values_BYXC.shape
  return jax.image.resize(
    values_BYXC.astype(jnp.float32),
    (batch, *size, channels),
    method="bilinear",
    antialias=False,
  )
